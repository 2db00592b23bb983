"""Which job follows which: when a service that is kept gets its next job, when that one takes over. Pure.

                       half of the walltime                  ends_at
    job 1   ├──────load┼─────────────┼───────────┬──────────────┤
                                     │ submitted │ answers
    job 2                            ├─wait─load─┼── serves ────────▶
                                                 job 1: what it has begun, then its end

The next job is submitted so long before the limit as the scheduler says that it will wait and as the last one took to
load, and `MARGIN` more. A job that ends without a fault of its own (its limit, its node, a preemption) is followed at
once. One that never answers costs an attempt; of those there are `MOST_ATTEMPTS` in a row.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from orchestrator.models import Job, JobState, Service

MARGIN = timedelta(minutes=5)
DEFAULT_WAIT = timedelta(minutes=30)  # in the queue, where the scheduler gives no estimate
DEFAULT_LOAD = timedelta(minutes=10)  # of a job that has not answered yet
MOST_ATTEMPTS = 5  # in a row, of jobs that never answer
FIRST_PAUSE = timedelta(seconds=30)  # after the first of them; each further one twice as long
PATIENCE = timedelta(minutes=2)  # with the slower replicas of a group that is to take over

# The ends that say nothing against another try. FAILED, OUT_OF_MEMORY and COMPLETED are the engine's own, CANCELLED is
# somebody's wish.
_FOLLOWED = frozenset(
    {
        JobState.TIMEOUT, JobState.PREEMPTED, JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.LAUNCH_FAILED,
        JobState.LOST,
    }
)  # fmt: skip


class Role(StrEnum):
    SERVES = "serves"
    NEXT = "next"  # takes over when it answers
    RETIRED = "retired"  # has served, or is not wanted any more: ends when it has answered what it was asked


def role_of(service: Service, job: Job) -> Role:
    if job.submission_id == service.job:
        return Role.SERVES
    return Role.NEXT if service.kept and job.submission_id == service.next_job else Role.RETIRED


class Act(StrEnum):
    WAIT = "wait"
    SUBMIT = "submit"  # the next job
    HAND_OVER = "hand over"  # to the next job
    LET_GO = "let go"  # nothing follows


@dataclass(frozen=True)
class Step:
    """What is to be done for a service now. `attempt` is the next job's, `why` is for the log of events."""

    act: Act
    attempt: int = 1
    why: str = ""


def step(job: Job, successor: Job | None, *, healthy: bool, wait: timedelta | None, now: datetime) -> Step:
    """What is to be done for a kept service.

    `successor`: the last job that was to take over from `job`, which may have failed. `healthy`: it may take over now.
    `wait`: how long a job submitted now would be in the queue, by the scheduler's word; None where it gives none.
    """
    if successor is not None and not successor.state.ended:
        return _with_successor(job, healthy)
    if job.state.ended and job.state not in _FOLLOWED:
        return Step(Act.LET_GO, why=f"its job ended as {job.state.value}")
    attempt, since = _failures(job, successor)
    if attempt >= MOST_ATTEMPTS:
        return Step(Act.LET_GO, why=f"{attempt} jobs in a row never answered") if job.state.ended else Step(Act.WAIT)
    if since is not None and now < since + pause(attempt):
        return Step(Act.WAIT)
    if job.state.ended or successor is not None:
        return Step(Act.SUBMIT, attempt + 1)
    at = due(job, wait)
    return Step(Act.SUBMIT) if at is not None and now >= at else Step(Act.WAIT)


def _with_successor(job: Job, healthy: bool) -> Step:
    if job.state is JobState.CANCELLED:
        return Step(Act.LET_GO, why="its job was cancelled outside of Sluicegate")
    # When the job has ended the next one is the service's, whether it answers already or not.
    return Step(Act.HAND_OVER) if healthy or job.state.ended else Step(Act.WAIT)


def _failures(job: Job, successor: Job | None) -> tuple[int, datetime | None]:
    """How many jobs in a row never answered, and when the last of them ended."""
    last = successor or job
    if not last.state.ended or (successor is None and last.ready_at is not None):
        return 0, None
    return last.attempt, last.ended_at


def pause(attempt: int) -> timedelta:
    """Between the end of a job that never answered and the next attempt."""
    return FIRST_PAUSE * (1 << (attempt - 1))


def earliest(job: Job) -> datetime | None:
    """Half of the job's walltime: before that nothing is submitted. None while it does not run, or has no limit."""
    if not job.state.runs or job.started_at is None or job.ends_at is None:
        return None
    return job.started_at + (job.ends_at - job.started_at) / 2


def due(job: Job, wait: timedelta | None) -> datetime | None:
    """When the next job is to be submitted; None while that cannot be said."""
    half = earliest(job)
    if half is None or job.ends_at is None:
        return None
    waiting = DEFAULT_WAIT if wait is None else max(wait, timedelta(0))
    return max(half, job.ends_at - waiting - _load(job) - MARGIN)


def _load(job: Job) -> timedelta:
    """How long its engine took until it answered."""
    if job.ready_at is None or job.started_at is None or job.ready_at < job.started_at:
        return DEFAULT_LOAD
    return job.ready_at - job.started_at


def healthy(successor: Job, *, answering: int, wanted: int, now: datetime) -> bool:
    """Whether a job may take over with so many of its replicas: all, or after a while those that there are."""
    late = successor.ready_at is not None and now - successor.ready_at >= PATIENCE
    return answering >= wanted or (answering > 0 and late)


def explain(service: Service, job: Job, successor: Job | None) -> str:
    """What there is to say of a kept service's next job, "" for nothing."""
    if not service.kept and successor is None:
        return ""
    if successor is None:
        return "the next job is submitted" if job.state.ended else ""
    if not successor.state.ended:
        return ""
    words = f"job {successor.job_id or successor.name}, which was to take over, {_ending(successor)}"
    if not service.kept:
        return words
    if successor.attempt >= MOST_ATTEMPTS:
        return f"{words}; it was the last of {MOST_ATTEMPTS} attempts"
    again = f"{successor.ended_at + pause(successor.attempt):%H:%M:%SZ}" if successor.ended_at else "soon"
    return f"{words}; attempt {successor.attempt + 1} of {MOST_ATTEMPTS} at {again}"


def _ending(job: Job) -> str:
    return f"ended as {job.state.value}{f' ({job.reason})' if job.reason else ''}"

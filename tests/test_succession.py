"""Which job follows which: a table of what is known and what is to be done."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from orchestrator.models import Job, JobState, Service
from orchestrator.succession import (
    DEFAULT_LOAD,
    DEFAULT_WAIT,
    MARGIN,
    MOST_ATTEMPTS,
    PATIENCE,
    Act,
    Role,
    due,
    earliest,
    explain,
    healthy,
    pause,
    role_of,
    step,
)
from tests.orchestrating import START

S = JobState
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def a_job(**more: Any) -> Job:
    """One of ten hours that has run for one; its engine took two minutes to load."""
    fields: dict[str, Any] = {
        "submission_id": "a", "service": "a", "scheduler": "slurm", "name": "sluice-a", "job_id": "7",
        "state": S.RUNNING, "recorded_at": START - HOUR, "started_at": START - HOUR,
        "ready_at": START - HOUR + 2 * MINUTE, "ends_at": START + 9 * HOUR,
    }  # fmt: skip
    return Job(**(fields | more))


def ended(state: JobState, **more: Any) -> Job:
    return a_job(**({"state": state, "ended_at": START - MINUTE} | more))


def successor(**more: Any) -> Job:
    fields = {"submission_id": "b", "job_id": "8", "name": "sluice-b", "replaces": "a", "ready_at": None}
    return a_job(**(fields | more))


def failed(attempt: int, ago: timedelta = HOUR) -> Job:
    return successor(state=S.FAILED, attempt=attempt, ended_at=START - ago, reason="NonZeroExitCode")


@dataclass
class Case:
    name: str
    act: Act
    job: Job
    successor: Job | None = None
    healthy: bool = False
    wait: timedelta | None = timedelta(0)
    attempt: int = 1
    now: datetime = START


LATE = START + 9 * HOUR - MARGIN - 2 * MINUTE  # when the next job is due, if it need not wait

CASES = [
    Case("early there is nothing to do", Act.WAIT, a_job()),
    Case("just before it is due", Act.WAIT, a_job(), now=LATE - MINUTE),
    Case("when it is due", Act.SUBMIT, a_job(), now=LATE),
    Case("a long queue makes it due earlier", Act.SUBMIT, a_job(), wait=2 * HOUR, now=LATE - 2 * HOUR),
    Case("but not before half of the walltime", Act.WAIT, a_job(), wait=99 * HOUR, now=START + 4 * HOUR - MINUTE),
    Case("then it is", Act.SUBMIT, a_job(), wait=99 * HOUR, now=START + 4 * HOUR),
    Case("also when the limit is over by our clock", Act.SUBMIT, a_job(), now=START + 99 * HOUR),
    Case("a job without a limit is never due", Act.WAIT, a_job(ends_at=None), now=START + 99 * HOUR),
    Case("nor one that waits again after a requeue", Act.WAIT, a_job(state=S.PENDING), now=LATE),
    Case("while the next one waits", Act.WAIT, a_job(), successor(state=S.PENDING), now=LATE),
    Case("while the next one loads", Act.WAIT, a_job(), successor(), now=LATE),
    Case("when the next one answers", Act.HAND_OVER, a_job(), successor(), healthy=True, now=LATE),
    Case("when the last one has ended before", Act.HAND_OVER, ended(S.TIMEOUT), successor(state=S.PENDING)),
    Case("or has failed by itself meanwhile", Act.HAND_OVER, ended(S.FAILED), successor()),
    Case("but a cancel outside is the service's end", Act.LET_GO, ended(S.CANCELLED), successor()),
    Case("a job at its limit is followed at once", Act.SUBMIT, ended(S.TIMEOUT)),
    Case("a preempted one too", Act.SUBMIT, ended(S.PREEMPTED)),
    Case("one whose node has failed", Act.SUBMIT, ended(S.NODE_FAIL)),
    Case("one that Slurm has forgotten", Act.SUBMIT, ended(S.LOST)),
    Case("an engine that fails is not", Act.LET_GO, ended(S.FAILED)),
    Case("nor one that ends", Act.LET_GO, ended(S.COMPLETED)),
    Case("nor one without memory", Act.LET_GO, ended(S.OUT_OF_MEMORY)),
    Case("nor a job cancelled outside", Act.LET_GO, ended(S.CANCELLED)),
    Case("a failed replacement is tried again", Act.SUBMIT, a_job(), failed(1), attempt=2, now=LATE),
    Case("after a pause", Act.WAIT, a_job(), failed(1, pause(1) - MINUTE / 60)),
    Case("that grows", Act.WAIT, a_job(), failed(3, pause(3) - MINUTE / 60)),
    Case("and ends", Act.SUBMIT, a_job(), failed(3, pause(3)), attempt=4),
    Case("until there were enough", Act.WAIT, a_job(), failed(MOST_ATTEMPTS)),
    Case("then the last job's end is the service's", Act.LET_GO, ended(S.TIMEOUT), failed(MOST_ATTEMPTS)),
    Case("before, it goes on", Act.SUBMIT, ended(S.TIMEOUT), failed(2), attempt=3),
    Case(
        "a job at its limit that never answered is a failure",
        Act.SUBMIT,
        ended(S.TIMEOUT, ready_at=None, attempt=2),
        attempt=3,
        now=START - MINUTE + pause(2),
    ),
    Case("with its pause", Act.WAIT, ended(S.TIMEOUT, ready_at=None, attempt=3), now=START - MINUTE + pause(2)),
    Case("and its limit", Act.LET_GO, ended(S.TIMEOUT, ready_at=None, attempt=MOST_ATTEMPTS)),
    Case("one that answered begins anew", Act.SUBMIT, ended(S.NODE_FAIL, attempt=MOST_ATTEMPTS)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_to_be_done(case: Case) -> None:
    found = step(case.job, case.successor, healthy=case.healthy, wait=case.wait, now=case.now)
    assert (found.act, found.attempt) == (case.act, case.attempt)
    assert bool(found.why) is (case.act is Act.LET_GO)


def test_what_is_not_known_has_a_default() -> None:
    assert due(a_job(), None) == START + 9 * HOUR - DEFAULT_WAIT - 2 * MINUTE - MARGIN
    for unloaded in (None, START - 2 * HOUR):  # never answered, or not since it was requeued
        assert due(a_job(ready_at=unloaded), timedelta(0)) == START + 9 * HOUR - DEFAULT_LOAD - MARGIN
    assert due(a_job(), timedelta(hours=-1)) == due(a_job(), timedelta(0)), "an estimate in the past is no time gained"


def test_a_job_of_a_minute_is_replaced_at_half_of_it() -> None:
    short = a_job(started_at=START, ready_at=START, ends_at=START + MINUTE)
    assert due(short, None) == earliest(short) == START + MINUTE / 2


@pytest.mark.parametrize(
    ("answering", "wanted", "since", "takes_over"),
    [
        (0, 1, None, False),
        (1, 1, START, True),
        (3, 4, START, False),
        (3, 4, START - PATIENCE, True),
        (0, 4, START - PATIENCE, False),
        (4, 4, START, True),
    ],
)
def test_a_group_takes_over_when_all_answer_or_after_a_while(
    answering: int, wanted: int, since: datetime | None, takes_over: bool
) -> None:
    found = healthy(successor(ready_at=since), answering=answering, wanted=wanted, now=START)
    assert found is takes_over


def a_service(**more: Any) -> Service:
    fields: dict[str, Any] = {"submission_id": "a", "job": "a", "recipe_name": "r", "created_at": START, "kept": True}
    return Service(**(fields | more))


def test_a_job_has_one_role() -> None:
    assert role_of(a_service(), a_job()) is Role.SERVES
    assert role_of(a_service(next_job="b"), successor()) is Role.NEXT
    assert role_of(a_service(next_job="b", kept=False), successor()) is Role.RETIRED, "nobody waits for it any more"
    assert role_of(a_service(job="b"), a_job()) is Role.RETIRED


@pytest.mark.parametrize(
    ("service", "job", "last", "words"),
    [
        (a_service(), a_job(), None, ""),
        (a_service(), a_job(), successor(), ""),
        (a_service(kept=False), ended(S.FAILED), None, ""),
        (a_service(), ended(S.TIMEOUT), None, "the next job is submitted"),
        (a_service(), a_job(), failed(1), "ended as FAILED (NonZeroExitCode); attempt 2 of 5 at 11:00:30Z"),
        (a_service(), a_job(), failed(MOST_ATTEMPTS), "it was the last of 5 attempts"),
        (a_service(kept=False), ended(S.TIMEOUT), failed(5), "job 8, which was to take over, ended as FAILED"),
    ],
)
def test_what_is_said_of_the_next_job(service: Service, job: Job, last: Job | None, words: str) -> None:
    said = explain(service, job, last)
    assert (words in said) if words else said == ""

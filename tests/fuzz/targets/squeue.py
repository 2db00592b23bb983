"""What squeue and sacct print. A job that is read is one of Slurm's, and reads the same when it is written again."""

import re

from orchestrator.models import JobState
from orchestrator.schedulers import JobInfo
from orchestrator.schedulers.slurm import FIELDS, SEPARATOR, by_name, parse_sacct, parse_squeue, parse_squeue_line
from tests.fuzz.target import Target

_ROWS = (
    "8~sluice-cancel~CANCELLED~None~node1~1795274371~1795274373~1795274375~15~0~",
    "7~sluice-held~PENDING~JobHeldUser~~1795274371~N/A~N/A~0~0~",
    "9~sluice-soon~PENDING~Priority~~1795274371~1795279999~1795280999~0~0~",
    "4~sluice-both~RUNNING~None~node[1-2]~1795274371~1795274373~1795274973~0~0~",
    "13~sluice-b~CANCELLED by 1000~None~node1~1795274371~1795274373~1795274400~0:15",
    "15~sluice-d~TIMEOUT~TimeLimit~None assigned~1795274371~Unknown~Unknown~0:0",
)


def _run(data: bytes) -> None:
    text = data.decode(errors="replace")
    jobs = parse_squeue(text)
    for job in jobs:
        _check(job)
    names = {job.name for job in jobs[::2]}
    assert parse_squeue(text, names) == [job for job in jobs if job.name in names]
    _check_newest(jobs)
    for job in parse_sacct(text):
        _check(job)
        assert job.restarts == 0


def _check(job: JobInfo) -> None:
    assert re.fullmatch("[0-9]{1,18}", job.job_id), job
    assert job.state not in (JobState.SUBMITTING, JobState.LOST), job
    assert (job.exit_code is None or job.state.ended) and (job.exit_code or 0) >= 0, job
    assert (job.ends_at if job.state.ended else job.ended_at) is None, job
    assert job.starts_at is None or (job.state is JobState.PENDING and job.started_at is None), job
    assert parse_squeue_line(_written(job)) == job, job


def _written(job: JobInfo) -> str:
    """A line of squeue that says the same."""
    times = (job.submitted_at, job.started_at or job.starts_at, job.ends_at or job.ended_at)
    submitted, started, ends = ("N/A" if time is None else str(int(time.timestamp())) for time in times)
    code = "" if job.exit_code is None else f"{job.exit_code}:0"
    head = job.job_id, job.name, job.state.value, job.reason, job.nodes
    return SEPARATOR.join((*head, submitted, started, ends, code, str(job.restarts), ""))


def _check_newest(jobs: list[JobInfo]) -> None:
    """Of one name it is a living job, if one lives."""
    found = by_name(jobs)
    assert found.keys() == {job.name for job in jobs}
    for job in jobs:
        assert job.state.ended or not found[job.name].state.ended


_SEEDS = ["\n".join(_ROWS), *_ROWS]
TARGET = Target(
    _run,
    seeds=[seed.replace("~", SEPARATOR).encode() for seed in _SEEDS],
    words=[SEPARATOR.encode() * len(FIELDS), b"\n", b"RUNNING", b"N/A", b"99999999999", b"CANCELLED+", b"0:9", b"LOST"],
)

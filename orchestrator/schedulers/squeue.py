"""The queue of everybody as squeue tells it: its call, and its lines read. Pure but for the mark.

Anybody on the cluster can write what they like into the name of a job, line breaks included. So the columns are told
apart by a mark that is another one in each call: who does not know it cannot write a line that is taken for squeue's.
"""

import re
import secrets
from collections.abc import Sequence

from orchestrator.models import JobState
from orchestrator.schedulers import QueuedJob
from orchestrator.schedulers.words import REASONLESS, number, parse_state, parse_time

FIELDS = (
    "JobArrayID", "Partition", "State", "UserID", "Reason", "NumNodes", "NumCPUs", "tres-alloc", "tres-per-node",
    "tres-per-job", "SubmitTime", "StartTime", "EndTime", "Name",
)  # fmt: skip
SCONTROL = ("scontrol", "show", "config")

_GPUS = re.compile(r"gres[:/]gpu(?P<type>:[^:=,]+(?=[:=]))?[:=](?P<number>\d{1,6})\b", re.ASCII)


def new_mark() -> str:
    """What stands between two columns. It begins with a sign, since digits would be the width of a column."""
    return f"\x1f{secrets.token_hex(4)}"


def squeue(mark: str) -> Sequence[str]:
    """The call. Jobs in several partitions once for each, in the order in which Slurm looks at them."""
    columns = ",".join(f"{name}:{mark}" for name in FIELDS)
    return ("squeue", "--noheader", "--noconvert", "--priority", "--sort=-p,i", f"--Format={columns}")


def parse_queue(text: str, mark: str, user: int) -> list[QueuedJob]:
    """The jobs in the order of the lines; `user` is the number of ours. What is no line of squeue's is passed over."""
    parts = text.split(mark)
    width = len(FIELDS)
    lines = (parts[start : start + width] for start in range(0, len(parts) - width + 1, width))
    return [job for line in lines if (job := _job(line, str(user))) is not None]


def _job(line: list[str], user: str) -> QueuedJob | None:
    job_id, partition, state, owner, reason = (value.strip() for value in line[:5])
    known = parse_state(state)
    if known.ended or not partition:
        return None
    why = "" if reason in REASONLESS else reason
    # Below a site's banner the first line begins with that.
    job_id = job_id.rpartition("\n")[2].strip()
    if owner != user:
        return QueuedJob(job_id, partition, known, mine=False, reason=why)
    nodes, cpus, allocated, per_node, per_job, submitted, start, end, name = (value.strip() for value in line[5:])
    waits, many = known is JobState.PENDING, number(nodes, 7)
    return QueuedJob(
        job_id=job_id,
        partition=partition,
        state=known,
        mine=True,
        reason=why,
        name=name,
        nodes=many,
        cpus=number(cpus, 9),
        gpus=parse_gpus(allocated) or parse_gpus(per_node) * (many or 1) or parse_gpus(per_job),
        submitted_at=parse_time(submitted),
        started_at=None if waits else parse_time(start),
        ends_at=None if waits else parse_time(end),
        starts_at=parse_time(start) if waits else None,
    )


def parse_gpus(text: str) -> int:
    """The GPUs in a list of trackable resources: `cpu=8,mem=64G,node=1,gres/gpu=2,gres/gpu:a100=2`, `gres:gpu:a100:2`.

    Where a list has the number of all and those of the types, the former is meant.
    """
    found = [(match["type"] is not None, int(match["number"])) for match in _GPUS.finditer(text)]
    return next((many for typed, many in found if not typed), sum(many for _, many in found))


def hides_jobs(config: str) -> bool | None:
    """Whether `scontrol show config` says that the jobs of others are hidden; None where it does not say."""
    match = re.search(r"^PrivateData\s*=\s*(\S*)", config, re.MULTILINE)
    return None if match is None else "jobs" in match[1].split(",")

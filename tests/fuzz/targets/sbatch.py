"""What `sbatch --parsable` prints: a job id that stands there alone on its line, or SchedulerUnknown."""

import re

from orchestrator.errors import SchedulerUnknown
from orchestrator.schedulers.slurm import parse_sbatch
from tests.fuzz.target import Target


def _run(data: bytes) -> None:
    text = data.decode(errors="replace")
    try:
        job_id = parse_sbatch(text)
    except SchedulerUnknown:
        assert not re.search(r"(?:\A|\n)[0-9]{1,18}(?:\n|\Z)", text)
        return
    assert re.fullmatch("[0-9]{1,18}", job_id)
    assert any(re.split("[;\\s]", line.strip())[0] == job_id for line in text.splitlines())


TARGET = Target(
    _run,
    seeds=[
        b"12\n",
        b"12;cluster\n",
        b"Welcome to the site\n7;a-b.c_d\n\n",
        b"sbatch: lua: 3 jobs\nSubmitted batch job 9\n",
    ],
    words=[b";", b"\n", b"\r\n", b"\x1f", "\u0663".encode(), b"Submitted batch job "],
)

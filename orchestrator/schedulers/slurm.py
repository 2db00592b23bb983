"""Slurm through its command line: sbatch, squeue, sinfo, scontrol, scancel. Parsing is in pure functions of its own.

Text with explicit separators, not `--json`, whose schema changes between releases.
"""

import asyncio
import itertools
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from orchestrator.errors import SchedulerError, SchedulerUnknown
from orchestrator.models import JobState
from orchestrator.process import NotHeard, Process, started
from orchestrator.schedulers import JobInfo, JobSpec, NodeGroup, Queue, Rehearsal
from orchestrator.schedulers.sinfo import SINFO, parse_sinfo
from orchestrator.schedulers.squeue import SCONTROL, hides_jobs, new_mark, parse_queue, squeue
from orchestrator.schedulers.words import REASONLESS, number, parse_state, parse_time

SEPARATOR = "\x1f"
FIELDS = (
    "JobID", "Name", "State", "Reason", "NodeList", "SubmitTime", "StartTime", "EndTime", "exit_code", "RestartCnt",
)  # fmt: skip
SQUEUE = (
    "squeue", "--me", "--states=all", "--noheader", "--noconvert",
    "--Format=" + ",".join(f"{name}:{SEPARATOR}" for name in FIELDS),
)  # fmt: skip

# Without --starttime it would look no further back than midnight.
SACCT = (
    "sacct", "--allocations", "--noheader", "--parsable2", f"--delimiter={SEPARATOR}", "--starttime=now-30days",
    "--format=JobIDRaw,JobName,State,Reason,NodeList,Submit,Start,End,ExitCode",
)  # fmt: skip

_MOST_HOSTS = 10_000  # of one job
_MOST_ESTIMATING = 10.0  # seconds: nobody waits for an estimate
_NAMES_AT_ONCE = 1000  # one word of a command line may have 128 KiB
# The answer was lost, so nothing is known: the job may have been accepted.
_AMBIGUOUS = re.compile(
    r"timed out|time-?out|unable to contact|connection (refused|reset)|not responding", re.IGNORECASE
)


class NotRun(SchedulerUnknown):
    """The command could not be started, so it changed nothing."""


@dataclass(frozen=True)
class Output:
    """What a command printed, and its exit status."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Slurm:
    """The cluster of the login node that this runs on. `timeout`: seconds for each command."""

    timeout: float = 30.0
    name: str = "slurm"
    bind_host: str = "0.0.0.0"  # engines are reached from the login node; each asks for its own key
    environment: Mapping[str, str] = field(default_factory=lambda: clean_environment(os.environ))
    user: int = field(default_factory=os.getuid)

    async def submit(self, spec: JobSpec) -> str:
        try:
            output = await self._run("sbatch", "--parsable", str(spec.script))
        except NotRun as exc:
            raise SchedulerError(str(exc)) from exc
        except SchedulerUnknown as exc:
            raise SchedulerUnknown(
                f"{exc}. If Slurm took the job all the same, it appears in the list of services within a minute."
            ) from exc
        if output.status != 0:
            words = _words_of(output)
            kind = SchedulerUnknown if _AMBIGUOUS.search(words) else SchedulerError
            raise kind(f"sbatch: {words}")
        return parse_sbatch(output.stdout)

    async def starts_at(self, script: Path) -> datetime | None:
        return (await self.rehearse(script)).starts_at

    async def rehearse(self, script: Path) -> Rehearsal:
        try:
            async with asyncio.timeout(_MOST_ESTIMATING):
                output = await self._run("sbatch", "--test-only", str(script))
        except (TimeoutError, SchedulerUnknown):
            return Rehearsal()
        return parse_rehearsal(output)

    async def query(self, names: Collection[str]) -> Mapping[str, JobInfo]:
        if not names:
            return {}
        output = await self._run(*SQUEUE)
        if output.status != 0:
            raise SchedulerUnknown(f"squeue: {_words_of(output)}")
        wanted = frozenset(names)
        found = by_name(parse_squeue(output.stdout, wanted))
        forgotten = sorted(wanted - found.keys())
        if any(name in output.stdout for name in forgotten):
            raise SchedulerUnknown("squeue printed our jobs in a form that is not understood")
        for start in range(0, len(forgotten), _NAMES_AT_ONCE):
            found |= await self._accounted(forgotten[start : start + _NAMES_AT_ONCE])
        return found

    async def _accounted(self, names: Collection[str]) -> dict[str, JobInfo]:
        """What accounting knows of jobs that squeue has forgotten. Many sites have none: then nothing.

        Raises SchedulerUnknown when there is accounting but it did not answer.
        """
        try:
            output = await self._run(*SACCT, f"--name={','.join(names)}")
        except NotRun:
            return {}
        if output.status != 0:
            words = _words_of(output)
            if _AMBIGUOUS.search(words):
                raise SchedulerUnknown(f"sacct: {words}")
            return {}
        return by_name(job for job in parse_sacct(output.stdout) if job.name in names)

    async def cancel(self, job_id: str, name: str) -> None:
        # Both must match: the id alone may have been given to another job.
        output = await self._run("scancel", "--me", f"--jobname={name}", job_id)
        if output.status != 0:
            words = _words_of(output)
            if "Invalid job id specified" in words or "already completing or completed" in words:  # it has ended
                return
            kind = SchedulerUnknown if _AMBIGUOUS.search(words) else SchedulerError
            raise kind(f"scancel: {words}")

    async def nodes(self) -> Sequence[NodeGroup]:
        return parse_sinfo(await self._told(*SINFO))

    async def queue(self) -> Queue:
        mark = new_mark()
        text = await self._told(*squeue(mark))
        # In a thread: of very many jobs this takes longer than a token may wait.
        jobs = await asyncio.to_thread(parse_queue, text, mark, self.user)
        return Queue(jobs, whole=any(not job.mine for job in jobs) or await self._shows_all())

    async def _shows_all(self) -> bool:
        """Whether the jobs of others would be shown if there were any."""
        try:
            return hides_jobs(await self._told(*SCONTROL)) is False
        except SchedulerUnknown:
            return False

    async def _told(self, *argv: str) -> str:
        """What a command has printed that only asks. Raises SchedulerUnknown when it did not succeed."""
        output = await self._run(*argv)
        if output.status != 0:
            raise SchedulerUnknown(f"{argv[0]}: {_words_of(output)}")
        return output.stdout

    async def _run(self, *argv: str) -> Output:
        """Run a command to its end. Raises SchedulerUnknown when it does not end in time, NotRun when there is none."""
        async with AsyncExitStack() as stack:
            try:
                process = await stack.enter_async_context(started(argv, environment=dict(self.environment)))
            except NotHeard as exc:
                raise SchedulerUnknown(f"{argv[0]}: {exc}") from exc
            except OSError as exc:
                raise NotRun(
                    f"cannot run {argv[0]}: {exc}. Is Slurm installed here and on PATH? "
                    "Without Slurm, set ORCHESTRATOR_SCHEDULER=local"
                ) from exc
            return await self._answer(process, argv[0])

    async def _answer(self, process: Process, name: str) -> Output:
        try:
            async with asyncio.timeout(self.timeout):
                stdout, stderr = await process.communicate()
                status = await process.wait()
        except TimeoutError as exc:
            raise SchedulerUnknown(f"{name} did not answer within {self.timeout:g} s") from exc
        return Output(status, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


def _words_of(output: Output) -> str:
    """The command's own words: stderr, else stdout, on one line and of a bearable length."""
    text = " ".join((output.stderr.strip() or output.stdout.strip()).split())
    text = re.sub(r"^(sbatch|scancel|squeue|sacct|sinfo|scontrol): ", "", text).removeprefix("error: ")
    return text[:1000] or f"ended with status {output.status} and no message"


# Who the user is, where Slurm is. Not TMPDIR, which on many login nodes is a folder of one login.
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TZ", "SLURM_CONF", "SLURM_CLUSTERS", "LD_LIBRARY_PATH")


def clean_environment(environment: Mapping[str, str], further: Collection[str] = ()) -> dict[str, str]:
    """What Slurm's commands get: no secret of the orchestrator's, no `SQUEUE_*` of the user's profile.

    sbatch exports its whole environment into the job: `--export=NONE` would keep that out, but also from every srun
    within the job. `SQUEUE_STATES=PENDING` in a profile hides running jobs; within an allocation SLURM_* say what that
    one has. `further`: names that the site wants there all the same.
    """
    return {name: environment[name] for name in (*_KEPT, *further) if name in environment} | {
        "LC_ALL": "C",
        "SLURM_TIME_FORMAT": "%s",
    }


def parse_sbatch(text: str) -> str:
    """The job id in the output of `sbatch --parsable`: `12` or `12;cluster`, perhaps below a site's banner."""
    for line in reversed(text.splitlines()):
        if match := re.fullmatch(r"([0-9]{1,18})(;[\w.-]+)?", line.strip()):
            return match[1]
    raise SchedulerUnknown(f"sbatch succeeded but printed no job id: {text[:500]!r}")


def parse_estimate(text: str) -> datetime | None:
    """The start in the words of `sbatch --test-only`: `sbatch: Job 12 to start at 1795295839 using …`."""
    match = re.search(r"\bto start at ([0-9]{1,11})(?!\S)", text)
    return parse_time(match[1]) if match else None


def parse_rehearsal(output: Output) -> Rehearsal:
    """What `sbatch --test-only` has said. Words of a controller that could not be reached are no refusal."""
    words = _words_of(output)
    refused = output.status != 0 and not _AMBIGUOUS.search(words)
    return Rehearsal(starts_at=parse_estimate(output.stderr), refusal=words if refused else "")


def parse_squeue(text: str, names: Collection[str] | None = None) -> list[JobInfo]:
    """The jobs in the output of SQUEUE, with `names` only those: a user may have many others.

    Lines of another shape, such as a site's banner, are passed over.
    """
    lines = text.split("\n")
    if names is not None:
        lines = [line for line in lines if "".join(line.split(SEPARATOR, 2)[1:2]).strip() in names]
    return [job for line in lines if (job := parse_squeue_line(line)) is not None]


def parse_squeue_line(line: str) -> JobInfo | None:
    """One job, or None for a line that is not one.

    Older releases have no RestartCnt or exit_code column; what is missing or unreadable there is 0 or None.
    """
    values = [value.strip() for value in line.split(SEPARATOR)]
    if len(values) < len(FIELDS) or number(values[0], 18) is None:
        return None
    job_id, name, state, reason, nodes, submitted, started, ends, exit_code, restarts = values[: len(FIELDS)]
    known = parse_state(state)
    return JobInfo(
        job_id=job_id,
        name=name,
        state=known,
        reason="" if reason in REASONLESS else reason,
        nodes="" if nodes in REASONLESS else nodes,
        exit_code=parse_exit_code(exit_code) if known.ended else None,
        submitted_at=parse_time(submitted),
        started_at=None if known is JobState.PENDING else parse_time(started),
        ended_at=parse_time(ends) if known.ended else None,
        ends_at=None if known.ended else parse_time(ends),
        restarts=number(restarts, 9) or 0,
        starts_at=parse_time(started) if known is JobState.PENDING else None,
    )


def parse_sacct(text: str) -> list[JobInfo]:
    """The jobs in the output of SACCT, whose lines are squeue's without the restarts."""
    lines = (line for line in text.split("\n") if line.count(SEPARATOR) == len(FIELDS) - 2)
    return [job for line in lines if (job := parse_squeue_line(line + SEPARATOR)) is not None]


def parse_exit_code(text: str) -> int | None:
    """An exit code from `7:0`, from `0:9` (ended by signal 9: 137), or from a raw wait status such as 1792."""
    if match := re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text):
        return int(match[1]) or (128 + int(match[2]) if int(match[2]) else 0)
    if (status := number(text, 9)) is not None:
        return 128 + (status & 0x7F) if status & 0x7F else (status >> 8) & 0xFF
    return None


def by_name(jobs: Iterable[JobInfo]) -> dict[str, JobInfo]:
    """Jobs keyed by name. Of two with one name, which can only be a submission taken twice, the first that lives."""
    found: dict[str, JobInfo] = {}
    for job in sorted(jobs, key=_first_living):
        found.setdefault(job.name, job)
    return found


def _first_living(job: JobInfo) -> tuple[bool, int]:
    return job.state.ended, int(job.job_id)


def hostnames(text: str) -> Sequence[str]:
    """The node names in Slurm's compact form, e.g. `gpu[01-03,7],login1`; a form not understood yields no name."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", text):
        names += _expanded(part.strip(), _MOST_HOSTS - len(names))
    return names


def _expanded(part: str, most: int) -> list[str]:
    """The names of one part. One in which several brackets multiply is expanded as Slurm does."""
    if not re.fullmatch(r"([A-Za-z0-9_.-]|\[[0-9,-]+\])+", part):
        return []
    pieces = [_ranges(piece) for piece in re.split(r"[\[\]]", part)[1::2]]
    if not 0 < math.prod(sum(len(numbers) for _, numbers in piece) for piece in pieces) <= most:  # before they are made
        return []
    pattern = re.sub(r"\[[^\]]*\]", "{}", part)
    words = ([f"{n:0{width}d}" for width, numbers in piece for n in numbers] for piece in pieces)
    return [pattern.format(*numbers) for numbers in itertools.product(*words)]


def _ranges(text: str) -> list[tuple[int, range]]:
    """`01-03,7` as numbers of 2 digits from 1 to 3, and of 1 digit from 7 to 7; [] for anything else."""
    found: list[tuple[int, range]] = []
    for piece in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", piece)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            return []
        found.append((len(match[1]), range(int(match[1]), int(match[2] or match[1]) + 1)))
    return found

"""The scheduler, as the rest of the orchestrator sees it: three verbs, four questions, and what travels through them.

The unit that travels is a bash script in a run folder of its own. To bash, `#SBATCH` lines are comments, so the very
file that `sbatch` gets also runs as a plain process.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from orchestrator.models import JobState


@dataclass(frozen=True)
class JobSpec:
    """What a scheduler is asked to run.

    `name` is unique for ever and made of `[A-Za-z0-9._-]`: it is how a job is found again, since a job id is not an
    identity (Slurm gave the same id twice after a controller crash). `script` is a readable file inside `folder`.
    `stdout` and `stderr` are where the job's output goes; their folder exists.
    """

    name: str
    comment: str
    script: Path
    folder: Path
    stdout: Path
    stderr: Path


@dataclass(frozen=True)
class JobInfo:
    """What a scheduler says of one job at one moment. Times are aware UTC datetimes; None where it does not say.

    `reason` is the scheduler's own word (Slurm: `Resources`, `Priority`, `NonZeroExitCode`, …), "" for none.
    `exit_code` is the script's; a job ended by signal N has 128 + N. `ends_at` is when the walltime limit is reached.
    """

    job_id: str
    name: str
    state: JobState
    reason: str = ""
    nodes: str = ""
    exit_code: int | None = None
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ends_at: datetime | None = None
    restarts: int = 0
    starts_at: datetime | None = None  # of a job that waits: when the scheduler expects it to start


@dataclass(frozen=True)
class Rehearsal:
    """What a scheduler says of a script that it is asked about but not given. Both empty: it said nothing.

    `starts_at`: when its job would start, a guess. `refusal`: why it would not be taken, in the scheduler's own words.
    """

    starts_at: datetime | None = None
    refusal: str = ""


class NodeState(StrEnum):
    """What a node can do for a job. DOWN takes none: it is broken, drained, reserved, or in maintenance."""

    IDLE = "idle"
    MIXED = "mixed"
    ALLOCATED = "allocated"
    DOWN = "down"


@dataclass(frozen=True)
class Cpus:
    """`down`: of nodes that take no job."""

    total: int
    in_use: int
    free: int
    down: int


@dataclass(frozen=True)
class Gpus:
    """Of one type ("" where the scheduler does not name it) on one node."""

    type: str
    total: int
    in_use: int


@dataclass(frozen=True)
class NodeGroup:
    """The nodes of a partition that are in the same state. A node may be in several partitions.

    `available` is the scheduler's word for the partition, `up` when it starts jobs. `time_limit` is None for none.
    `nodes` are the names in Slurm's compact form, `number` is how many there are, 0 in a partition without any.
    `cpus` are those of all of them, `gpus` those of one.
    """

    partition: str
    state: NodeState
    number: int
    nodes: str
    cpus: Cpus
    gpus: tuple[Gpus, ...] = ()
    default: bool = False
    available: str = "up"
    time_limit: timedelta | None = None


@dataclass(frozen=True)
class QueuedJob:
    """A job of anybody's that waits or runs. What is None is not known; `gpus` and `cpus` are of all its nodes.

    `partition` is one: a job that waits in several is there once for each. `name` is "" for a job of others.
    """

    job_id: str
    partition: str
    state: JobState
    mine: bool
    reason: str = ""
    name: str = ""
    nodes: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    ends_at: datetime | None = None
    starts_at: datetime | None = None  # of a job that waits: when the scheduler expects it to start


@dataclass(frozen=True)
class Queue:
    """The jobs that wait or run, those that wait in the order in which the scheduler looks at them.

    `whole` is False where the jobs of others are not shown, or nobody can say whether they are.
    """

    jobs: Sequence[QueuedJob] = ()
    whole: bool = True


class Scheduler(Protocol):
    """Runs scripts as jobs. Implementations hold no state that a restart would lose."""

    @property
    def name(self) -> str:
        """Kept with each job."""
        ...

    @property
    def bind_host(self) -> str:
        """The address at which a job's engine must listen so that the orchestrator reaches it.

        The machine's loopback for plain processes, every interface of the compute node for a cluster.
        """
        ...

    async def submit(self, spec: JobSpec) -> str:
        """Hand the script over and return the job id, a string of digits.

        Raises SchedulerError when the scheduler refused (the job does not exist) and SchedulerUnknown when it did not
        answer (the job may exist and will be found by its name).
        """
        ...

    async def starts_at(self, script: Path) -> datetime | None:
        """When a job of this script would start if it were submitted now; None where the scheduler cannot say.

        A guess, so that silence is no error.
        """
        ...

    async def rehearse(self, script: Path) -> Rehearsal:
        """Whether a job of this script would be taken, and when it would start. Nothing is submitted."""
        ...

    async def query(self, names: Collection[str]) -> Mapping[str, JobInfo]:
        """What the scheduler knows of the jobs of these names, keyed by name, in as few calls as possible.

        A name that the scheduler does not know is left out: that alone ends nothing. Raises SchedulerUnknown when
        the scheduler could not be asked. An empty collection costs no call.
        """
        ...

    async def cancel(self, job_id: str, name: str) -> None:
        """End the job of this id if it still bears this name. A job that has ended already is no error.

        Raises SchedulerError when the scheduler refused, SchedulerUnknown when it did not answer.
        """
        ...

    async def nodes(self) -> Sequence[NodeGroup]:
        """The nodes of the whole cluster, as far as it shows them. Raises SchedulerUnknown when it did not answer."""
        ...

    async def queue(self) -> Queue:
        """Everybody's jobs that have not ended. Raises SchedulerUnknown when the scheduler did not answer."""
        ...

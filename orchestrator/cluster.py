"""The whole cluster, as the scheduler tells it: asked for at most once an interval, and only while somebody looks.

What is asked is decided by who looks: the page of the cluster wants the nodes and the queue, a service that waits its
place in the queue. Requests answer from memory; nobody's question is put twice.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.models import JobState
from orchestrator.question import Question
from orchestrator.schedulers import Cpus, NodeGroup, NodeState, Queue, QueuedJob, Scheduler
from orchestrator.schedulers.slurm import hostnames

# Jobs that wait for something else than their turn.
_OUT_OF_TURN = frozenset({"JobHeldUser", "JobHeldAdmin", "Dependency", "DependencyNeverSatisfied", "BeginTime"})


@dataclass(frozen=True)
class Turns:
    """What is kept of a queue: our own jobs, their places, and how many there are of anybody's by partition.

    `places` is empty where the jobs of others are hidden: they may be ahead. A place counts from 1.
    """

    mine: Sequence[QueuedJob] = ()
    places: Mapping[str, int] = field(default_factory=dict)
    pending: Mapping[str, int] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    whole: bool = True


def turns(queue: Queue) -> Turns:
    """A job that waits in several partitions has the best of its places. An array that waits counts as one job; what is
    held, or waits for another job or a time, is not ahead of anybody."""
    places: dict[str, int] = {}
    pending, running, ahead = Counter[str](), Counter[str](), Counter[str]()
    for job in queue.jobs:
        if job.state is not JobState.PENDING:
            running[job.partition] += 1
            continue
        pending[job.partition] += 1
        if job.reason in _OUT_OF_TURN:
            continue
        ahead[job.partition] += 1
        if job.mine:
            places[job.job_id] = min(ahead[job.partition], places.get(job.job_id, ahead[job.partition]))
    mine = {job.job_id: job for job in reversed(queue.jobs) if job.mine}  # of several partitions the first
    return Turns(list(mine.values())[::-1], places if queue.whole else {}, pending, running, queue.whole)


@dataclass(frozen=True)
class GpuCount:
    """GPUs of one type, "" for one without a name. `down`: not in use, on nodes that take no job."""

    type: str
    total: int = 0
    in_use: int = 0
    free: int = 0
    down: int = 0


@dataclass(frozen=True)
class PartitionView:
    """A partition as a whole. `nodes` counts them by state."""

    name: str
    default: bool
    available: str
    time_limit: timedelta | None
    nodes: Mapping[NodeState, int]
    cpus: Cpus
    gpus: Sequence[GpuCount]


def partitions(groups: Sequence[NodeGroup]) -> list[PartitionView]:
    """The default one first, the others as the scheduler names them."""
    by_name: dict[str, list[NodeGroup]] = {}
    for group in groups:
        by_name.setdefault(group.partition, []).append(group)
    return sorted((_partition(name, parts) for name, parts in by_name.items()), key=lambda one: not one.default)


def _partition(name: str, parts: Sequence[NodeGroup]) -> PartitionView:
    nodes = Counter[NodeState]()
    for part in parts:
        nodes[part.state] += part.number
    cpus = [part.cpus for part in parts]
    return PartitionView(
        name=name,
        default=parts[0].default,
        available=parts[0].available,
        time_limit=parts[0].time_limit,
        nodes=nodes,
        cpus=Cpus(*(sum(getattr(one, of) for one in cpus) for of in ("total", "in_use", "free", "down"))),
        gpus=gpus((part, part.number) for part in parts),
    )


def gpus(parts: Iterable[tuple[NodeGroup, int]]) -> list[GpuCount]:
    """The GPUs of so many nodes of each group, by type."""
    total, in_use, free = Counter[str](), Counter[str](), Counter[str]()
    for group, nodes in parts:
        for one in group.gpus:
            total[one.type] += nodes * one.total
            in_use[one.type] += nodes * one.in_use
            if group.state is not NodeState.DOWN:
                free[one.type] += nodes * (one.total - one.in_use)
    return [
        GpuCount(kind, many, in_use[kind], free[kind], many - in_use[kind] - free[kind]) for kind, many in total.items()
    ]


def all_gpus(groups: Sequence[NodeGroup]) -> list[GpuCount]:
    """Those of the cluster: a node that is in several partitions counts once."""
    seen: set[str] = set()
    parts: list[tuple[NodeGroup, int]] = []
    for group in groups:
        new = set(hostnames(group.nodes)) - seen
        seen |= new
        parts.append((group, len(new)))
    return gpus(parts)


@dataclass(frozen=True)
class Cluster:
    """Both questions."""

    nodes: Question[Sequence[NodeGroup]]
    queue: Question[Turns]

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.nodes.run())
            group.create_task(self.queue.run())

    async def look(self) -> None:
        """Return when both have been answered in this interval, or nobody would wait any longer."""
        await asyncio.gather(self.nodes.fresh(), self.queue.fresh())

    def place(self, job_id: str) -> int | None:
        """The place of a job of ours in its queue, 1 for the next one; None where that is not known, or not yet.

        Answers from memory, and has the queue looked at again.
        """
        self.queue.want()
        known = self.queue.recent
        return None if known is None else known.places.get(job_id)


def cluster_of(scheduler: Scheduler, clock: Callable[[], datetime], seconds: float) -> Cluster:
    async def queue() -> Turns:
        # In a thread: of very many jobs this takes longer than a token may wait.
        return await asyncio.to_thread(turns, await scheduler.queue())

    return Cluster(Question(scheduler.nodes, clock, seconds), Question(queue, clock, seconds))

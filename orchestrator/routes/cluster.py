"""The cluster: partitions, GPUs, and the user's jobs with their places in the queue."""

from collections.abc import Iterator
from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from orchestrator.cluster import GpuCount, PartitionView, Turns, all_gpus, partitions
from orchestrator.deps import App, Orchestrator, Whose
from orchestrator.errors import NotReady
from orchestrator.models import Job, Service
from orchestrator.routes.shapes import public_id
from orchestrator.routes.strict import StrictRoute
from orchestrator.schedulers import NodeState, QueuedJob
from orchestrator.services import plan_of

router = APIRouter(tags=["cluster"], route_class=StrictRoute)

MOST_JOBS = 200


class NodeCounts(BaseModel):
    """`down`: nodes that take no job, because they are broken, drained, reserved or in maintenance."""

    total: int
    idle: int
    mixed: int
    allocated: int
    down: int


class CpuCounts(BaseModel):
    """`down`: on nodes that take no job."""

    total: int
    in_use: int
    free: int
    down: int


class GpuCounts(CpuCounts):
    """GPUs of one type; "" is the type where the scheduler does not name it."""

    type: str


class PartitionShape(BaseModel):
    """`state` is the scheduler's word: `up` when it starts jobs. `time_limit` is in minutes, null for none.

    `running` and `pending` count everybody's jobs; null where those of others are hidden.
    """

    name: str
    default: bool
    state: str
    time_limit: int | None
    nodes: NodeCounts
    cpus: CpuCounts
    gpus: list[GpuCounts]
    running: int | None
    pending: int | None


class ClusterJob(BaseModel):
    """A job of the user's. `service_id` is null for one that is no service's.

    `queue_position` is its place among the jobs that wait in its partition, 1 for the next one; null for a job that
    runs, is held or waits for another one, and where the jobs of others are hidden. `estimated_start` is the
    scheduler's.
    """

    id: str
    name: str
    service_id: str | None
    recipe_name: str | None
    model: str | None
    partition: str | None
    state: str
    reason: str
    nodes: int | None
    gpus: int | None
    submitted_at: datetime | None
    started_at: datetime | None
    ends_at: datetime | None
    estimated_start: datetime | None
    queue_position: int | None


class ClusterShape(BaseModel):
    """`gpus` counts each node once, also where it is in several partitions. `as_of` is when the scheduler said so;
    `stale_since` is null unless it does not answer any more, and `trouble` says why.

    `jobs` are at most 200, those of services first; `jobs_total` is how many there are.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "scheduler": "slurm",
                    "as_of": "2026-11-21T12:00:00Z",
                    "stale_since": None,
                    "trouble": "",
                    "gpus": [{"type": "a100", "total": 8, "in_use": 6, "free": 2, "down": 0}],
                    "partitions": [
                        {
                            "name": "gpu",
                            "default": True,
                            "state": "up",
                            "time_limit": 2880,
                            "nodes": {"total": 2, "idle": 0, "mixed": 1, "allocated": 1, "down": 0},
                            "cpus": {"total": 128, "in_use": 96, "free": 32, "down": 0},
                            "gpus": [{"type": "a100", "total": 8, "in_use": 6, "free": 2, "down": 0}],
                            "running": 3,
                            "pending": 12,
                        }
                    ],
                    "jobs": [
                        {
                            "id": "3652098",
                            "name": "sluice-5f0c2d9e8b7a4c31",
                            "service_id": "3652098",
                            "recipe_name": "inference/vllm-single-node",
                            "model": "Qwen/Qwen2.5-7B-Instruct",
                            "partition": "gpu",
                            "state": "PENDING",
                            "reason": "Priority",
                            "nodes": 1,
                            "gpus": 4,
                            "submitted_at": "2026-11-21T11:58:00Z",
                            "started_at": None,
                            "ends_at": None,
                            "estimated_start": "2026-11-21T12:10:00Z",
                            "queue_position": 4,
                        }
                    ],
                    "jobs_total": 1,
                }
            ]
        }
    )

    scheduler: str
    as_of: datetime | None
    stale_since: datetime | None
    trouble: str
    gpus: list[GpuCounts]
    partitions: list[PartitionShape]
    jobs: list[ClusterJob]
    jobs_total: int


@router.get("/cluster", summary="Show the cluster's partitions and GPUs, and your jobs in its queue")
async def show_cluster(app: App, whose: Whose) -> ClusterShape:
    """What the scheduler said within the last interval (`cluster_seconds`, 15); while it does not answer, what it said
    last. It is asked for this only while somebody looks. Jobs that are no service's are shown to the user, and to keys
    that may manage."""
    await app.cluster.look()
    nodes, queue = app.cluster.nodes, app.cluster.queue
    if nodes.answer is None and queue.answer is None:
        raise NotReady(f"the scheduler has not said anything of its cluster yet: {nodes.trouble or 'no answer so far'}")
    groups, known = nodes.answer or (), queue.answer or Turns(whole=False)
    rows = await app.store.open_jobs()
    jobs = [*_ours(app, rows, known), *(_others(rows, known) if whose.sees_all else ())]
    return ClusterShape(
        scheduler=app.services.scheduler.name,
        as_of=min((q.answered_at for q in (nodes, queue) if q.answered_at), default=None),
        stale_since=min((q.silent_since for q in (nodes, queue) if q.silent_since), default=None),
        trouble=nodes.trouble or queue.trouble,
        gpus=[_gpus(one) for one in all_gpus(groups)],
        partitions=[_partition(one, known) for one in partitions(groups)],
        jobs=jobs[:MOST_JOBS],
        jobs_total=len(jobs),
    )


def _gpus(one: GpuCount) -> GpuCounts:
    return GpuCounts(**vars(one))


def _partition(one: PartitionView, known: Turns) -> PartitionShape:
    counts = {state.value: one.nodes.get(state, 0) for state in NodeState}
    return PartitionShape(
        name=one.name,
        default=one.default,
        state=one.available,
        time_limit=None if one.time_limit is None else round(one.time_limit.total_seconds() / 60),
        nodes=NodeCounts(total=sum(counts.values()), **counts),
        cpus=CpuCounts(**vars(one.cpus)),
        gpus=[_gpus(gpu) for gpu in one.gpus],
        running=known.running.get(one.name, 0) if known.whole else None,
        pending=known.pending.get(one.name, 0) if known.whole else None,
    )


def _ours(app: Orchestrator, rows: list[tuple[Service, Job]], known: Turns) -> Iterator[ClusterJob]:
    """The jobs of services, as the watcher knows them; the queue adds what it alone knows."""
    queued = {job.name: job for job in known.mine}
    for service, job in rows:
        plan, told = plan_of(service), queued.get(job.name)
        waits = not job.state.runs
        yield ClusterJob(
            id=job.job_id or job.submission_id,
            name=job.name,
            service_id=public_id(service),
            recipe_name=service.recipe_name,
            model=plan.served_model_name,
            partition=told.partition if told else None,
            state=job.state.value,
            reason=job.reason,
            nodes=plan.resources.nodes,
            gpus=(plan.resources.gpu or 0) * plan.resources.nodes,
            submitted_at=job.submitted_at or job.recorded_at,
            started_at=job.started_at,
            ends_at=job.ends_at,
            estimated_start=app.watcher.estimates.get(job.name) if waits else None,
            queue_position=known.places.get(job.job_id or "") if waits else None,
        )


def _others(rows: list[tuple[Service, Job]], known: Turns) -> Iterator[ClusterJob]:
    """The user's jobs that are no service's."""
    ours = {job.name for _, job in rows}
    for job in known.mine:
        if job.name not in ours:
            yield _other(job, known)


def _other(job: QueuedJob, known: Turns) -> ClusterJob:
    return ClusterJob(
        id=job.job_id,
        name=job.name,
        service_id=None,
        recipe_name=None,
        model=None,
        partition=job.partition,
        state=job.state.value,
        reason=job.reason,
        nodes=job.nodes,
        gpus=job.gpus,
        submitted_at=job.submitted_at,
        started_at=job.started_at,
        ends_at=job.ends_at,
        estimated_start=job.starts_at,
        queue_position=known.places.get(job.job_id),
    )

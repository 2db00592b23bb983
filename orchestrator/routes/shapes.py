"""The shapes of the answers, as the HTTP contract spells them."""

import itertools
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from orchestrator.deps import Orchestrator, Wanted
from orchestrator.diagnosis import Diagnosis
from orchestrator.groups import GroupStatus, ReplicaStatus, ReplicaView, is_group, views
from orchestrator.loading import Loading
from orchestrator.models import Job, Service, ServiceStatus
from orchestrator.schedulers.slurm import hostnames
from orchestrator.services import plan_of
from orchestrator.succession import explain


class Failure(BaseModel):
    """Every error under /api. `success` and `error` come with prompts, models and vector databases only."""

    detail: str | list[dict[str, Any]]
    success: bool | None = None
    error: str | None = None


class StartRequest(BaseModel):
    """`config` is explained by `GET /recipes/{name}`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"recipe_name": "inference/vllm-single-node"},
                {
                    "recipe_name": "inference/vllm-single-node",
                    "config": {
                        "environment": {"VLLM_MODEL": "gpt2"},
                        "resources": {"cpu": "8", "memory": "64G", "time_limit": 120, "gpu": "4"},
                    },
                },
            ]
        },
    )

    recipe_name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    config: dict[str, Any] = {}


StaleSince = Annotated[
    datetime | None, Field(description="Since when the scheduler has not answered; null when it does, or at the end.")
]


class ServiceShape(BaseModel):
    """A service. The fields of replica groups are null for a single service, and for one replica all but `group_id`."""

    id: str
    name: str
    recipe_name: str
    status: ServiceStatus
    config: dict[str, Any]
    created_at: datetime
    type: str | None = None
    replicas: list[dict[str, Any]] | None = None
    num_replicas: int | None = None
    num_nodes: int | None = None
    replicas_per_node: int | None = None
    total_replicas: int | None = None
    node_jobs: list[dict[str, Any]] | None = None
    group_id: str | None = None
    replica_index: int | None = None
    stale_since: StaleSince = None


class JobShape(BaseModel):
    """The scheduler's job behind a service, in the scheduler's own words."""

    id: str | None
    name: str
    scheduler: str
    state: str
    exit_code: int | None
    restarts: int
    submitted_at: datetime | None
    started_at: datetime | None
    ready_at: datetime | None
    ended_at: datetime | None


class ServiceRow(ServiceShape):
    """A service and what it waits for. `reason` is in words; `endpoint` is null until the engine answers.
    `estimated_start` is the scheduler's, of a job in the queue; null where it gives none."""

    endpoint: str | None
    reason: str
    nodes: list[str]
    model: str | None
    estimated_start: datetime | None
    started_at: datetime | None
    ends_at: datetime | None


class ServiceDetail(ServiceRow):
    """All that is known of a service. `queue_position` is its job's place among those that wait in its partition, 1 for
    the next one; null where it is not known, or not yet.

    `progress` is what the engine says of its loading, null unless it loads.
    `next_job` is the one that takes over when it answers, with `keep_alive`; `handovers` counts those that have.
    `idle_timeout` is in minutes; `idle_shutdown_at` is null for never, and while a request is open.
    `diagnosis` is of one that failed, or of which a replica does not come up; null otherwise.
    """

    diagnosis: Diagnosis | None
    queue_position: int | None
    progress: Loading | None
    job: JobShape
    next_job: JobShape | None
    handovers: int
    idle_timeout: float | None
    last_activity: datetime | None
    idle_shutdown_at: datetime | None


class StatusShape(BaseModel):
    status: ServiceStatus


class StatusChanged(BaseModel):
    message: str
    service_id: str
    status: ServiceStatus


class Message(BaseModel):
    message: str


class Logs(BaseModel):
    """`logs` is both outputs one after the other; `note` says why there is nothing when there is nothing."""

    logs: str
    stdout: str
    stderr: str
    note: str | None = None


class VllmService(BaseModel):
    id: str
    name: str
    recipe_name: str
    endpoint: str | None
    status: ServiceStatus


class VllmServices(BaseModel):
    vllm_services: list[VllmService]


class Models(BaseModel):
    success: bool
    models: list[str]
    service_id: str
    endpoint: str


class VectorDbService(BaseModel):
    id: str
    name: str
    recipe_name: str
    endpoint: str | None
    status: ServiceStatus


class VectorDbServices(BaseModel):
    vector_db_services: list[VectorDbService]


class Collections(BaseModel):
    success: bool
    collections: list[str]
    service_id: str
    endpoint: str


class AboutCollection(BaseModel):
    """The fields of every answer about one collection."""

    success: bool
    service_id: str
    endpoint: str
    collection_name: str


class Collection(AboutCollection):
    collection_info: dict[str, Any]


class CollectionCreated(AboutCollection):
    message: str
    vector_size: int
    distance: str


class CollectionDeleted(AboutCollection):
    message: str


class PointsUpserted(AboutCollection):
    message: str
    num_points: int


class PointFound(BaseModel):
    """`score`: by the collection's distance. For Euclid and Manhattan the lowest is the nearest."""

    id: int | str
    score: float
    payload: dict[str, Any] | None


class SearchResults(AboutCollection):
    """The nearest point first. `result` is `results` again."""

    results: list[PointFound]
    result: list[PointFound]
    num_results: int


class QdrantAnswer(BaseModel):
    """Qdrant's own answer to a body of its own API, as it is: `result`, or the error in `status`."""

    model_config = ConfigDict(extra="allow")

    status: str | dict[str, Any]
    time: float
    result: Any = None


class PromptRequest(BaseModel):
    """A question. Any further field (top_p, stop, seed, …) goes to the engine as it is."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"prompt": "Tell me a joke about programming", "max_tokens": 100}]},
    )

    prompt: Annotated[str, StringConstraints(min_length=1)]
    model: str | None = None
    max_tokens: int = Field(default=150, ge=1)
    temperature: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    stream: bool = False

    @model_validator(mode="after")
    def _can_be_sent_on(self) -> Self:
        try:
            json.dumps(self.model_extra, allow_nan=False)
        except ValueError as exc:
            raise ValueError("a field holds a number that is too large for a float, such as 1e999") from exc
        return self


class PromptAnswer(BaseModel):
    """The model's words, twice: `text` and `response` are the same."""

    success: bool
    text: str
    response: str
    service_id: str
    endpoint: str
    endpoint_used: str
    usage: dict[str, Any] | None
    routed_to: str | None = None
    group_id: str | None = None
    total_replicas: int | None = None


class ReplicaShape(BaseModel):
    """One replica. `port` and `node` are those expected until it runs; `problem` says why it does not answer."""

    id: str
    job_id: str | None
    node_index: int
    replica_index: int
    port: int
    gpu_id: str | None
    status: ReplicaStatus
    endpoint: str | None
    problem: str


class NodeJob(BaseModel):
    job_id: str
    node_index: int
    node: str | None
    replicas: list[ReplicaShape]


class Group(BaseModel):
    """A replica group: one job, several replicas."""

    id: str
    name: str
    type: Literal["replica_group"]
    recipe_name: str
    status: ServiceStatus
    num_nodes: int
    replicas_per_node: int
    total_replicas: int
    healthy_replicas: int
    starting_replicas: int
    pending_replicas: int
    failed_replicas: int
    node_jobs: list[NodeJob]
    config: dict[str, Any]
    created_at: datetime
    stale_since: StaleSince = None


class GroupHealth(BaseModel):
    """`replica_statuses` is every replica with its status and endpoint."""

    group_id: str
    overall_status: GroupStatus
    total_replicas: int
    healthy_replicas: int
    starting_replicas: int
    pending_replicas: int
    failed_replicas: int
    replica_statuses: list[ReplicaShape]


class GroupChanged(BaseModel):
    success: bool
    message: str
    group_id: str
    replicas_updated: int


class GroupStopped(BaseModel):
    success: bool
    message: str
    group_id: str
    replicas_stopped: int
    jobs_cancelled: list[str]


def public_id(service: Service) -> str:
    """The scheduler's id; before there is one, ours."""
    return service.id or service.submission_id


def service_shape(app: Orchestrator, service: Service, job: Job) -> ServiceShape:
    shape = ServiceShape(
        id=public_id(service),
        name=service.name,
        recipe_name=service.recipe_name,
        status=app.status(service, job),
        config=service.config,
        created_at=service.created_at,
        stale_since=stale_since(app, service, job),
    )
    return shape.model_copy(update=group_fields(app, service, job)) if is_group(service) else shape


def stale_since(app: Orchestrator, service: Service, job: Job) -> datetime | None:
    """Since when what is told of a service may be out of date. What has ended, and is not replaced, stays as it is."""
    return None if job.state.ended and not service.kept else app.watcher.unseen_since


def group_fields(app: Orchestrator, service: Service, job: Job) -> dict[str, Any]:
    """What the shape of a group has beyond that of a single service."""
    plan = plan_of(service)
    replicas = views(service, job, app.replicas.of(service.submission_id))
    return {
        "type": "replica_group",
        "num_replicas": len(replicas),
        "num_nodes": plan.resources.nodes,
        "replicas_per_node": plan.replicas_per_node,
        "total_replicas": len(replicas),
        "group_id": public_id(service),
        "node_jobs": [_node_job(public_id(service), list(part)) for _, part in _by_node(replicas)],
    }


def _by_node(replicas: list[ReplicaView]) -> Iterator[tuple[int, Iterator[ReplicaView]]]:
    return itertools.groupby(replicas, key=lambda replica: replica.node_index)


def _node_job(job_id: str, replicas: list[ReplicaView]) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "node_index": replicas[0].node_index,
        "node": replicas[0].node,
        "replicas": [replica_shape(replica) for replica in replicas],
    }


def replica_shape(replica: ReplicaView) -> dict[str, Any]:
    return {
        "id": replica.id,
        "job_id": replica.job_id,
        "node_index": replica.node_index,
        "replica_index": replica.replica_index,
        "port": replica.port,
        "gpu_id": replica.gpus,
        "status": replica.status,
        "endpoint": replica.endpoint,
        "problem": replica.problem,
    }


def service_row(app: Orchestrator, service: Service, job: Job) -> ServiceRow:
    """Not validated once more: of a page of 200 that would take as long as all the rest."""
    return ServiceRow.model_construct(**vars(service_shape(app, service, job)), **_now(app, service, job, None, None))


def _now(app: Orchestrator, service: Service, job: Job, successor: Job | None, port: int | None) -> dict[str, Any]:
    """How a service stands. `successor`: the last job that was to take over; in lists it is not looked for."""
    return {
        "endpoint": endpoint_of(app, service, port),
        "reason": reason_of(app, service, job, successor),
        "nodes": list(hostnames(job.nodes)),
        "model": service.plan.get("served_model_name"),  # not the whole plan, for the same reason
        "estimated_start": None if job.state.runs or job.state.ended else app.watcher.estimates.get(job.name),
        "started_at": job.started_at,
        "ends_at": job.ends_at,
    }


def service_detail(
    app: Orchestrator,
    wanted: Wanted,
    successor: Job | None,
    diagnosis: Diagnosis | None,
    progress: Loading | None,
) -> ServiceDetail:
    """`successor`: the last job that was to take over."""
    service, job = wanted.service, wanted.job
    waits = not (job.state.runs or job.state.ended)
    shape = service_shape(app, service, job).model_dump()
    if wanted.port is not None:
        replica = next(r for r in views(service, job, app.replicas.of(service.submission_id)) if r.port == wanted.port)
        of_groups = ("type", "num_replicas", "num_nodes", "replicas_per_node", "total_replicas", "node_jobs")
        shape |= dict.fromkeys(of_groups)
        shape |= {"id": wanted.id, "replica_index": replica.replica_index, "status": app.status_of(wanted)}
    return ServiceDetail(
        **shape,
        **_now(app, service, job, successor, wanted.port),
        diagnosis=diagnosis,
        queue_position=app.cluster.place(job.job_id) if waits and job.job_id else None,
        progress=progress,
        job=job_shape(job),
        next_job=None if successor is None or successor.state.ended else job_shape(successor),
        handovers=service.handovers,
        idle_timeout=plan_of(service).idle_timeout,
        last_activity=app.caretaker.idleness(service, job).last_activity,
        idle_shutdown_at=app.caretaker.shutdown_at(service, job),
    )


def job_shape(job: Job) -> JobShape:
    return JobShape(
        id=job.job_id,
        name=job.name,
        scheduler=job.scheduler,
        state=job.state.value,
        exit_code=job.exit_code,
        restarts=job.restarts,
        submitted_at=job.submitted_at,
        started_at=job.started_at,
        ready_at=job.ready_at,
        ended_at=job.ended_at,
    )


def endpoint_of(app: Orchestrator, service: Service, port: int | None = None) -> str | None:
    """The base URL of the first replica that answers, of one that takes new requests where there is one."""
    running = [r for r in app.replicas.of(service.submission_id) if r.ready and port in (None, r.port)]
    return min(running, key=lambda r: r.draining).url if running else None


def reason_of(app: Orchestrator, service: Service, job: Job, successor: Job | None = None) -> str:
    """What the service waits for, or why it ended; "" when there is nothing to say."""
    about_next = explain(service, job, successor)
    return "; ".join(words for words in (_reason_of_job(app, service, job), about_next) if words)


def _reason_of_job(app: Orchestrator, service: Service, job: Job) -> str:
    if job.state.ended:
        code = f" (exit code {job.exit_code})" if job.exit_code else ""
        ending = f"{job.reason}{code}".strip()
        return f"job {job.job_id} has ended ({ending or job.state.value})" if service.kept else ending
    waiting = [r.problem for r in app.replicas.of(service.submission_id, job.submission_id) if not r.ready]
    if job.state.runs:
        answers = app.replicas.answers(service.submission_id)
        return "" if answers else waiting[0] if waiting else "the job runs; its engine has not started yet"
    return job.reason

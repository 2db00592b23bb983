"""The shapes of the answers, as the HTTP contract spells them."""

import json
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from orchestrator.deps import Orchestrator
from orchestrator.models import Job, Service, ServiceStatus
from orchestrator.services import plan_of


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


class ServiceShape(BaseModel):
    """A service. The fields of replica groups are null for a single service."""

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


class ServiceDetail(ServiceShape):
    """A service and what it waits for. `reason` is in words; `endpoint` is null until the engine answers."""

    endpoint: str | None
    reason: str
    nodes: list[str]
    model: str | None
    started_at: datetime | None
    ends_at: datetime | None
    stale_since: datetime | None = Field(description="Since when the scheduler has not answered; null when it does.")
    job: JobShape


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


class PromptRequest(BaseModel):
    """A question. Any further field (top_p, stop, seed, …) goes to the engine as it is."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"prompt": "Tell me a joke about programming", "max_tokens": 100}]},
    )

    prompt: Annotated[str, StringConstraints(min_length=1)]
    model: str | None = None
    max_tokens: int = Field(default=150, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    stream: bool = False

    @model_validator(mode="after")
    def _can_be_sent_on(self) -> Self:
        try:
            json.dumps(self.model_extra, allow_nan=False, ensure_ascii=False).encode()
        except ValueError as exc:
            raise ValueError("a field holds NaN, Infinity or broken Unicode, which no engine can read") from exc
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


def public_id(service: Service) -> str:
    """The scheduler's id; before there is one, ours."""
    return service.id or service.submission_id


def service_shape(app: Orchestrator, service: Service, job: Job) -> ServiceShape:
    return ServiceShape(
        id=public_id(service),
        name=service.name,
        recipe_name=service.recipe_name,
        status=app.status(service, job),
        config=service.config,
        created_at=service.created_at,
    )


def service_detail(app: Orchestrator, service: Service, job: Job, nodes: list[str]) -> ServiceDetail:
    return ServiceDetail(
        **service_shape(app, service, job).model_dump(),
        endpoint=endpoint_of(app, service),
        reason=reason_of(app, service, job),
        nodes=nodes,
        model=plan_of(service).served_model_name,
        started_at=job.started_at,
        ends_at=job.ends_at,
        stale_since=None if job.state.ended else app.watcher.stale_since,
        job=JobShape(
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
        ),
    )


def endpoint_of(app: Orchestrator, service: Service) -> str | None:
    """The base URL of the first replica that answers."""
    return next((r.url for r in app.replicas.of(service.submission_id) if r.ready), None)


def reason_of(app: Orchestrator, service: Service, job: Job) -> str:
    """What the service waits for, or why it ended; "" when there is nothing to say."""
    if job.state.ended:
        code = f" (exit code {job.exit_code})" if job.exit_code else ""
        return f"{job.reason}{code}".strip()
    waiting = [r.problem for r in app.replicas.of(service.submission_id) if not r.ready]
    if job.state.runs:
        answers = app.replicas.answers(service.submission_id)
        return "" if answers else waiting[0] if waiting else "the job runs; its engine has not started yet"
    return job.reason

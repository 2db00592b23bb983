"""The API's answers as types, field by field as openapi/server-openapi.json has them. Times are ISO 8601."""

from typing import Any, TypedDict

JSON = dict[str, Any]


class Service(TypedDict):
    """`status`: pending, configuring, running, suspended, or how it has ended."""

    id: str
    name: str
    recipe_name: str
    status: str
    config: JSON
    created_at: str
    type: str | None
    replicas: list[JSON] | None
    num_replicas: int | None
    num_nodes: int | None
    replicas_per_node: int | None
    total_replicas: int | None
    node_jobs: list[JSON] | None
    group_id: str | None
    replica_index: int | None
    stale_since: str | None


class Job(TypedDict):
    """`state` is the scheduler's own word."""

    id: str | None
    name: str
    scheduler: str
    state: str
    exit_code: int | None
    restarts: int
    submitted_at: str | None
    started_at: str | None
    ready_at: str | None
    ended_at: str | None


class Diagnosis(TypedDict):
    """Why a service failed. `changes`: a part of a config with which it may run, {} where nothing can be said."""

    name: str
    sentence: str
    advice: str
    changes: JSON


class Loading(TypedDict):
    """How far an engine is: `phase`, its own `percent` where it gives one, and its words."""

    phase: str
    percent: float | None
    text: str


class ServiceRow(Service):
    """`reason`: what it waits for, or why it has ended. `endpoint`: null until the engine answers."""

    endpoint: str | None
    reason: str
    nodes: list[str]
    model: str | None
    estimated_start: str | None
    started_at: str | None
    ends_at: str | None


class ServiceDetail(ServiceRow):
    """All that is known of a service."""

    diagnosis: Diagnosis | None
    queue_position: int | None
    progress: Loading | None
    job: Job
    next_job: Job | None
    handovers: int
    idle_timeout: float | None
    last_activity: str | None
    idle_shutdown_at: str | None


class Status(TypedDict):
    status: str


class Cancelled(TypedDict):
    message: str
    service_id: str
    status: str


class Logs(TypedDict):
    logs: str
    stdout: str
    stderr: str
    note: str | None


class Group(TypedDict):
    id: str
    name: str
    type: str
    recipe_name: str
    status: str
    num_nodes: int
    replicas_per_node: int
    total_replicas: int
    healthy_replicas: int
    starting_replicas: int
    pending_replicas: int
    failed_replicas: int
    node_jobs: list[JSON]
    config: JSON
    created_at: str
    stale_since: str | None


class GroupHealth(TypedDict):
    """`overall_status`: healthy, partial, starting or failed."""

    group_id: str
    overall_status: str
    total_replicas: int
    healthy_replicas: int
    starting_replicas: int
    pending_replicas: int
    failed_replicas: int
    replica_statuses: list[JSON]


class GroupCancelled(TypedDict):
    success: bool
    message: str
    group_id: str
    replicas_updated: int


class Recipe(TypedDict):
    """`path` is the full name, `parameters` what a config may set."""

    name: str
    category: str
    version: str
    description: str
    engine: str
    ports: list[int]
    resources: JSON
    path: str
    image: str | None
    environment: JSON
    parameters: dict[str, JSON]


class Rendered(TypedDict):
    """`script`: the job's, as it would be submitted."""

    script: str


class PromptAnswer(TypedDict):
    """The model's words are in `text`. `routed_to`, `group_id` and `total_replicas` are a group's."""

    success: bool
    text: str
    response: str
    service_id: str
    endpoint: str
    endpoint_used: str
    usage: JSON | None
    routed_to: str | None
    group_id: str | None
    total_replicas: int | None


class ModelList(TypedDict):
    """OpenAI's list. Each model has `id`, `state` and `slot`."""

    object: str
    data: list[JSON]


class FoundModel(TypedDict):
    id: str
    downloads: int
    likes: int
    architecture: str | None
    vllm_compatible: bool
    created_at: str | None
    tags: list[str]


class FoundModels(TypedDict):
    models: list[FoundModel]
    total: int


class Pull(TypedDict):
    """A download, of a model or an image (`name`). `status`: queued, running, done, failed or cancelled."""

    id: str
    kind: str
    name: str
    revision: str | None
    commit: str | None
    status: str
    path: str
    files: int
    bytes_done: int
    bytes_total: int | None
    percent: float | None
    bytes_per_second: float | None
    eta_seconds: float | None
    text: str
    error: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None


class Push(TypedDict):
    """What is still to be sent: `path`, `size`, `blob`, `have`. `snapshot`: the model's folder when nothing is."""

    missing: list[JSON]
    snapshot: str | None


class Received(TypedDict):
    have: int
    complete: bool


class Verdict(TypedDict):
    """`level`: ok, warning, error or unknown."""

    check: str
    level: str
    message: str
    next_step: str


class PreflightReport(TypedDict):
    """`ok` is false when one of the verdicts is an error."""

    ok: bool
    model: str | None
    engine: str
    verdicts: list[Verdict]
    memory: JSON | None
    quantization: JSON | None
    estimated_start: str | None
    script_ok: bool | None


class Amounts(TypedDict):
    total_runtime_hours: float
    gpu_hours: float
    cpu_hours: float
    total_cost: float
    sessions_count: int
    avg_session_minutes: float


class GroupCosts(Amounts):
    key: str | None


class Costs(Amounts):
    since: str | None
    until: str
    currency: str
    group_by: str
    groups: list[GroupCosts]


class ServiceCosts(Amounts):
    service_id: str
    currency: str
    jobs: list[JSON]


class Slot(TypedDict):
    """`loaded`: a model's name, or null."""

    name: str
    base_url: str
    phase: str
    loaded: str | None
    models: list[JSON]
    switches: int
    last_switch_seconds: float | None


class Accepted(TypedDict):
    """A request that is answered later."""

    job_id: str
    status: str
    status_url: str
    result_url: str


class Task(TypedDict):
    """A queued request. `position` and `reason` are null unless it is queued."""

    job_id: str
    status: str
    model: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    position: int | None
    reason: str | None
    error: str | None
    attempts: int


class TaskListed(TypedDict):
    job_id: str
    status: str
    model: str | None
    path: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    error: str | None
    attempts: int
    batch_id: str | None


class TaskCancelled(TypedDict):
    job_id: str
    status: str
    cancelled: bool
    message: str


class VectorDbServices(TypedDict):
    vector_db_services: list[JSON]


class Collections(TypedDict):
    success: bool
    collections: list[str]
    service_id: str
    endpoint: str


class SearchResults(TypedDict):
    """The nearest first: `id`, `score`, `payload`."""

    success: bool
    service_id: str
    endpoint: str
    collection_name: str
    results: list[JSON]
    result: list[JSON]
    num_results: int

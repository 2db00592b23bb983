"""Requests that are answered later: how they stand, their results, their end. Users know a task as a job."""

from collections import Counter
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from orchestrator import __version__
from orchestrator.deps import App, Orchestrator, Whose
from orchestrator.errors import Conflict, Gone
from orchestrator.models import ServiceStatus, Task, TaskState, status_in
from orchestrator.routes.health import WatcherHealth, watcher_health
from orchestrator.routes.paging import PAGE, Limit, Offset, tell_total
from orchestrator.routes.shapes import Failure
from orchestrator.routes.strict import StrictRoute
from orchestrator.task_store import Waiting

router = APIRouter(tags=["jobs"], route_class=StrictRoute)

_MOST_QUEUED = 1000  # that GET /queue lists
_SOON = "2"  # seconds, Retry-After of a result that is not there yet

TaskId = Annotated[str, Path(description="The id of a job.", examples=["job_0123456789abcdef0123456789abcdef"])]
Listed = Annotated[TaskState | None, Query(description="Only jobs in this state.")]


class TaskShape(BaseModel):
    """A queued request. `position` and `reason` (what it waits for) are null unless it is queued."""

    job_id: str
    status: TaskState
    model: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    position: int | None
    reason: str | None
    error: str | None
    attempts: int


class TaskCancelled(BaseModel):
    """`cancelled` is false when the job had ended before; nothing was changed then."""

    job_id: str
    status: TaskState
    cancelled: bool
    message: str


class TaskListed(BaseModel):
    """One of a list: `path` is what was asked, `batch_id` where it belongs to a batch."""

    job_id: str
    status: TaskState
    model: str | None
    path: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None
    attempts: int
    batch_id: str | None


class QueueOfModel(BaseModel):
    model: str | None
    queued: int
    running: int
    oldest: datetime | None
    reason: str | None


class QueuedTask(BaseModel):
    job_id: str
    position: int
    model: str | None
    actor: str
    created_at: datetime


class Queue(BaseModel):
    """`counts`: jobs by state. `oldest_wait_seconds`: of the job that has been queued longest, null without any.
    `items`: the first thousand."""

    counts: dict[TaskState, int]
    models: list[QueueOfModel]
    oldest_wait_seconds: float | None
    items: list[QueuedTask]


class Status(BaseModel):
    """Everything at one look. `services`: how many by status; `models`: the names that answer now."""

    status: Literal["healthy", "degraded"]
    version: str
    scheduler: str
    started_at: datetime
    uptime_seconds: float
    services: dict[ServiceStatus, int]
    models: list[str]
    in_flight: int
    queue: dict[TaskState, int]
    watcher: WatcherHealth


_PENDING: dict[str, Any] = {
    "model": TaskShape,
    "description": "It is not there yet; Retry-After says when to ask again.",
}
_RESULT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The engine's own answer.", "content": {"application/json": {"schema": {}}}},
    202: _PENDING,
    410: {"model": Failure, "description": "It has expired."},
    # With the status and the body of the engine's error.
    "4XX": {"description": "The engine's own error.", "content": {"application/json": {"schema": {}}}},
    "5XX": {"description": "The engine's own error.", "content": {"application/json": {"schema": {}}}},
}


@router.get("/jobs", summary="List the queued requests, the newest first")
async def list_tasks(
    app: App,
    whose: Whose,
    request: Request,
    response: Response,
    status: Listed = None,
    limit: Limit = PAGE,
    offset: Offset = 0,
) -> list[TaskListed]:
    """Those of the key that asks; with the scope `manage` everybody's. `X-Total-Count` says how many there are."""
    store = app.tasks.store
    tasks = await store.tasks(whose, state=status, limit=limit, offset=offset)
    total = await store.count(whose, state=status)
    tell_total(request, response, total=total, limit=limit, offset=offset)
    return [_listed(task) for task in tasks]


@router.get("/jobs/{job_id}", summary="Show a queued request")
async def show_task(app: App, whose: Whose, job_id: TaskId) -> TaskShape:
    """How a request with `"async": true` stands."""
    return await _shape(app, await app.tasks.store.find(job_id, whose))


@router.get("/jobs/{job_id}/result", summary="Show the answer to a queued request", responses=_RESULT)
async def show_result(app: App, whose: Whose, job_id: TaskId) -> Response:
    """The engine's own JSON once it is `done`, its error when it has `failed`; until then 202 and `Retry-After`.

    409 for a job that was cancelled, 410 for one that has expired.
    """
    task = await app.tasks.store.find(job_id, whose, content=True)
    if task.state is TaskState.CANCELLED:
        raise Conflict(f"Job {task.id} was cancelled; send the request again")
    if task.state is TaskState.EXPIRED:
        raise Gone(f"Job {task.id} has expired: {task.error or 'its result was kept as long as task_keep_hours says'}")
    if not task.state.ended:
        shape = await _shape(app, task)
        return Response(shape.model_dump_json(), 202, {"Retry-After": _SOON}, media_type="application/json")
    if task.status is None or task.result is None:
        raise Conflict(f"Job {task.id} has failed: {task.error}")
    return Response(task.result, task.status, media_type="application/json")


@router.post("/jobs/{job_id}/cancel", summary="Cancel a queued request")
async def cancel_task(app: App, whose: Whose, job_id: TaskId) -> TaskCancelled:
    """One that is queued is never run; the engine of one that runs is left at once. What has ended stays as it is."""
    task, before = await app.tasks.cancel(job_id, whose)
    message = (
        f"Job {task.id} had already ended" if before.ended else f"Job {task.id} was {before.value}; it is cancelled"
    )
    return TaskCancelled(job_id=task.id, status=task.state, cancelled=not before.ended, message=message)


@router.get("/queue", summary="Show the queue of requests")
async def show_queue(app: App) -> Queue:
    """Everybody's, so with the scope `admin`."""
    tally = await app.tasks.store.tally()
    items = await app.tasks.store.queued(_MOST_QUEUED)
    waiting = [row.oldest for row in tally if row.state is TaskState.QUEUED]
    now = app.tasks.clock()
    return Queue(
        counts=_counts(tally),
        models=[_of_model(app, model, tally) for model in sorted({row.model for row in tally if not row.state.ended})],
        oldest_wait_seconds=max(0.0, (now - min(waiting)).total_seconds()) if waiting else None,
        items=[
            QueuedTask(job_id=t.id, position=n, model=t.model or None, actor=t.actor, created_at=t.created_at)
            for n, t in enumerate(items, 1)
        ],
    )


@router.get("/status", summary="Show everything at one look")
async def show_status(app: App) -> Status:
    """Services, models, the queue, the watcher; with the scope `admin`."""
    rows = await app.store.open_services()
    services = Counter(app.status(service, job) for service, job in rows)
    for state, cancelled, last, number in await app.store.tally():
        if last and state.ended:
            services[status_in(state, cancelled=cancelled, answers=False)] += number
    watcher = watcher_health(app)
    ready = [replica for replica in app.replicas.every() if replica.ready]
    troubled = watcher.late or watcher.stale_since or watcher.trouble
    return Status(
        status="degraded" if troubled else "healthy",
        version=__version__,
        scheduler=app.settings.scheduler,
        started_at=app.started_at,
        uptime_seconds=max(0.0, (app.tasks.clock() - app.started_at).total_seconds()),
        services=dict(services),
        models=sorted({name for replica in ready for name in replica.models}),
        in_flight=sum(replica.in_flight for replica in ready),
        queue=_counts(await app.tasks.store.tally()),
        watcher=watcher,
    )


def _counts(tally: list[Waiting]) -> dict[TaskState, int]:
    """All states, those without any as 0."""
    return {state: sum(row.number for row in tally if row.state is state) for state in TaskState}


def _of_model(app: Orchestrator, model: str, tally: list[Waiting]) -> QueueOfModel:
    mine = {row.state: row for row in tally if row.model == model}
    queued, running = mine.get(TaskState.QUEUED), mine.get(TaskState.RUNNING)
    return QueueOfModel(
        model=model or None,
        queued=queued.number if queued else 0,
        running=running.number if running else 0,
        oldest=queued.oldest if queued else None,
        reason=app.tasks.rests(model),
    )


async def _shape(app: Orchestrator, task: Task) -> TaskShape:
    queued = task.state is TaskState.QUEUED
    return TaskShape(
        job_id=task.id,
        status=task.state,
        model=task.model or None,
        created_at=task.created_at,
        started_at=task.started_at,
        ended_at=task.ended_at,
        position=await app.tasks.store.position(task) if queued else None,
        reason=(app.tasks.rests(task.model) or task.error) if queued else None,
        error=task.error if task.state.ended else None,
        attempts=task.attempts,
    )


def _listed(task: Task) -> TaskListed:
    return TaskListed(
        job_id=task.id,
        status=task.state,
        model=task.model or None,
        path=task.target,
        created_at=task.created_at,
        started_at=task.started_at,
        ended_at=task.ended_at,
        error=task.error,
        attempts=task.attempts,
        batch_id=task.batch,
    )

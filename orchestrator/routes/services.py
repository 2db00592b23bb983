"""Services: start, list, show, status, cancel, logs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.responses import StreamingResponse

from orchestrator.deps import Actor, App, IdempotencyKey, Orchestrator, Wanted, diagnosis_of, end, find, loading
from orchestrator.errors import BadRequest, Conflict, Invalid
from orchestrator.logs import follow, tail
from orchestrator.models import Job, Service, ServiceStatus
from orchestrator.routes.paging import PAGE, Limit, Offset, tell_total
from orchestrator.routes.shapes import (
    Logs,
    Message,
    ServiceDetail,
    ServiceRow,
    ServiceShape,
    StartRequest,
    StatusChanged,
    StatusShape,
    public_id,
    service_detail,
    service_row,
    service_shape,
)
from orchestrator.routes.strict import StrictRoute

router = APIRouter(tags=["services"], route_class=StrictRoute)
# The spellings of the orchestrator's own API, beside the client's.
internal = APIRouter(tags=["services"], route_class=StrictRoute)

ServiceId = Annotated[str, Path(description="The id of a service.", examples=["3652098"])]


class RetryRequest(BaseModel):
    """`changes` is a part of a `config`: a value in it takes the place of the one that the failed service had."""

    model_config = ConfigDict(extra="forbid")

    changes: dict[str, Any] = {}


@router.post("/services", summary="Start a service from a recipe")
async def start_service(app: App, actor: Actor, key: IdempotencyKey, wanted: StartRequest) -> ServiceShape:
    """Submits one job and answers as soon as the scheduler has taken it; `GET /services/{id}` tells how it goes on.

    With an `Idempotency-Key` the same request may be sent again: the answer is the same service, never a second job.
    """
    service, job = await app.services.start(wanted.recipe_name, wanted.config, actor=actor, idempotency_key=key)
    app.watcher.wake()
    return service_shape(app, service, job)


@internal.post("/services/start", summary="Start a service from a recipe")
async def start_service_internal(app: App, actor: Actor, key: IdempotencyKey, wanted: StartRequest) -> ServiceShape:
    """The same as `POST /api/v1/services`."""
    return await start_service(app, actor, key, wanted)


@router.get("/services", summary="List the services, the newest first")
async def list_services(
    app: App,
    request: Request,
    response: Response,
    status: Annotated[ServiceStatus | None, Query(description="Only services in this status.")] = None,
    recipe: Annotated[str | None, Query(description="Only services of this recipe.")] = None,
    limit: Limit = PAGE,
    offset: Offset = 0,
) -> list[ServiceRow]:
    """`X-Total-Count` says how many there are in all, and `Link` where the next ones are."""
    full_name = None if recipe is None else app.recipes.find(recipe).full_name
    rows, total = await _chosen(app, full_name, status, limit, offset)
    tell_total(request, response, total=total, limit=limit, offset=offset)
    return [service_row(app, service, job) for service, job in rows]


async def _chosen(
    app: Orchestrator, recipe: str | None, status: ServiceStatus | None, limit: int, offset: int
) -> tuple[list[tuple[Service, Job]], int]:
    """One page of services, and how many there are on all pages."""
    if status not in (ServiceStatus.CONFIGURING, ServiceStatus.RUNNING):
        rows = await app.store.services(recipe=recipe, status=status, limit=limit, offset=offset)
        return rows, await app.store.count(recipe=recipe, status=status)
    # Which of the two depends on whether the engine answers now, which the database does not know.
    rows = await app.store.services(recipe=recipe, status=status)
    matching = [(service, job) for service, job in rows if app.status(service, job) is status]
    return matching[offset : offset + limit], len(matching)


@router.get("/services/{service_id}", summary="Show a service")
async def show_service(app: App, service_id: ServiceId) -> ServiceDetail:
    """With its endpoint, its job, what it waits for and when it will end; where it failed, why (`diagnosis`)."""
    wanted = await find(app, service_id)
    following = wanted.service.next_job
    successor = await app.store.job(following) if following else None
    return service_detail(app, wanted, successor, await diagnosis_of(app, wanted), await loading(app, wanted))


@router.post("/services/{service_id}/retry", summary="Start a failed service again, changed as its diagnosis says")
async def retry_service(
    app: App,
    actor: Actor,
    key: IdempotencyKey,
    service_id: ServiceId,
    more: Annotated[RetryRequest | None, Body(examples=[{"changes": {"gpu_memory_utilization": 0.8}}])] = None,
) -> ServiceShape:
    """A new service with the same recipe and `config`, but for the `changes` of its diagnosis and yours, which win.

    The record of the one that failed stays. 409 where it has not failed.
    """
    wanted = await find(app, service_id)
    if wanted.port is not None:
        raise Conflict(f"{wanted.id} is a replica; only its group can be started again: {public_id(wanted.service)}")
    diagnosis = await diagnosis_of(app, wanted)
    changes = [diagnosis.changes if diagnosis else {}, more.changes if more else {}]
    service, job = await app.services.retry(wanted.service, wanted.job, changes, actor=actor, idempotency_key=key)
    app.watcher.wake()
    return service_shape(app, service, job)


@router.get("/services/{service_id}/status", summary="Show a service's status")
async def show_status(app: App, service_id: ServiceId) -> StatusShape:
    return StatusShape(status=app.status_of(await find(app, service_id)))


@router.post("/services/{service_id}/status", summary="Cancel a service, keeping its record")
async def change_status(
    app: App,
    actor: Actor,
    service_id: ServiceId,
    wanted_status: Annotated[dict[str, Any] | None, Body(examples=[{"status": "cancelled"}])] = None,
) -> StatusChanged:
    """The body is `{"status": "cancelled"}`. Cancelling what has ended already changes nothing."""
    cancelled_only(wanted_status or {})
    wanted, status = await _cancel(app, actor, service_id)
    if status is not ServiceStatus.CANCELLED:
        return StatusChanged(message=f"Service {wanted.id} had already ended", service_id=wanted.id, status=status)
    message = f"Service {wanted.id} status updated to cancelled"
    return StatusChanged(message=message, service_id=wanted.id, status=status)


def cancelled_only(wanted_status: dict[str, Any]) -> None:
    """The only status that a user can set. Raises BadRequest for any other body."""
    asked = wanted_status.get("status")
    if "status" not in wanted_status:
        raise BadRequest('Missing \'status\' field in request body; send {"status": "cancelled"}')
    if asked != "cancelled":
        raise BadRequest(f"Unsupported status value: {str(asked)[:100]!r}. Currently only 'cancelled' is supported.")


@router.delete("/services/{service_id}", summary="Stop a service", deprecated=True)
async def delete_service(app: App, actor: Actor, service_id: ServiceId, response: Response) -> Message:
    """Use `POST /services/{id}/status` instead. The record is kept here too."""
    return await _stop(app, actor, service_id, response)


@internal.post("/services/stop/{service_id}", summary="Stop a service", deprecated=True)
async def stop_service(app: App, actor: Actor, service_id: ServiceId, response: Response) -> Message:
    """The same as `DELETE /api/v1/services/{id}`."""
    return await _stop(app, actor, service_id, response)


async def _stop(app: Orchestrator, actor: str, service_id: str, response: Response) -> Message:
    wanted, _ = await _cancel(app, actor, service_id)
    response.headers["Deprecation"] = "true"
    return Message(message=f"Service {wanted.id} stopped successfully")


async def _cancel(app: Orchestrator, actor: str, service_id: str) -> tuple[Wanted, ServiceStatus]:
    wanted = await find(app, service_id)
    if wanted.port is not None:
        raise Conflict(f"{wanted.id} is a replica; only its group can be stopped: {public_id(wanted.service)}")
    await end(app, wanted, actor)
    wanted = await find(app, service_id)
    return wanted, app.status_of(wanted)


@router.get(
    "/services/{service_id}/logs",
    summary="Show or follow a service's output",
    response_model=Logs,
    responses={200: {"content": {"text/plain": {}}}},
)
async def show_logs(
    app: App,
    request: Request,
    service_id: ServiceId,
    tail: Annotated[int | None, Query(ge=0, description="Only the last lines of each output.")] = None,
    follow: Annotated[bool, Query(description="Stream the output as text until the service ends.")] = False,
) -> Logs | StreamingResponse:
    """What the job has written so far. At most 4 MiB of each output are returned.

    `follow=1` streams both outputs as they grow: all of them, or with `tail` from the last lines on.
    """
    wanted = await find(app, service_id)
    service, job = wanted.service, wanted.job
    if tail is not None and tail > 10_000_000:
        raise Invalid(f"tail is {tail}; allowed: 0 to 10000000")
    if follow:
        return StreamingResponse(_followed(app, job, tail), media_type="text/plain; charset=utf-8")
    return await _logs(app, service, job, tail)


async def _logs(app: Orchestrator, service: Service, job: Job, lines: int | None) -> Logs:
    folder = app.services.folder(job.submission_id)
    stdout = await asyncio.to_thread(tail, folder.stdout, lines)
    stderr = await asyncio.to_thread(tail, folder.stderr, lines)
    both = f"{stdout}{'' if stdout.endswith(chr(10)) or not stdout else chr(10)}{stderr}"
    return Logs(logs=both, stdout=stdout, stderr=stderr, note=None if both else _nothing(job))


def _nothing(job: Job) -> str:
    return f"the job has written nothing yet; its state is {job.state.value}"


async def _followed(app: Orchestrator, job: Job, lines: int | None) -> AsyncIterator[bytes]:
    """stderr is where engines and our script write, so it comes first of what is there already."""
    folder = app.services.folder(job.submission_id)
    watching = asyncio.create_task(_ended(app, job.submission_id))
    try:
        nothing = f"{_nothing(job)}\n".encode()
        async for data in follow((folder.stderr, folder.stdout), watching.done, lines=lines, nothing=nothing):
            yield data
        await watching  # where it broke, the client must see that something is missing
    finally:
        watching.cancel()


async def _ended(app: Orchestrator, submission_id: str) -> None:
    """Return when a job has ended; the database is asked once a second."""
    job = await app.store.job(submission_id)
    while not job.state.ended:
        await asyncio.sleep(1)
        job = await app.store.job(submission_id)

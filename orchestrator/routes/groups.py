"""Replica groups: list, show, status, cancel."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request, Response

from orchestrator.deps import Actor, App, Orchestrator, Wanted, end, find
from orchestrator.errors import NotFound
from orchestrator.groups import is_group, tally, views
from orchestrator.routes.paging import PAGE, Limit, Offset, tell_total
from orchestrator.routes.services import cancelled_only
from orchestrator.routes.shapes import (
    Group,
    GroupChanged,
    GroupHealth,
    GroupStopped,
    ReplicaShape,
    group_fields,
    replica_shape,
    service_shape,
)
from orchestrator.routes.strict import StrictRoute

router = APIRouter(tags=["service groups"], route_class=StrictRoute)

GroupId = Annotated[str, Path(description="The id of a group, with or without `sg-`.", examples=["3652098"])]


@router.get("/service-groups", summary="List the replica groups, the newest first")
async def list_groups(
    app: App, request: Request, response: Response, limit: Limit = PAGE, offset: Offset = 0
) -> list[Group]:
    """`X-Total-Count` says how many there are in all, and `Link` where the next ones are."""
    rows = await app.store.services(groups=True, limit=limit, offset=offset)
    tell_total(request, response, total=await app.store.count(groups=True), limit=limit, offset=offset)
    return [_group(app, Wanted(service, job)) for service, job in rows]


@router.get("/service-groups/{group_id}", summary="Show a replica group")
async def show_group(app: App, group_id: GroupId) -> Group:
    """With its replicas by node."""
    return _group(app, await _find(app, group_id))


@router.get("/service-groups/{group_id}/status", summary="Show how a group's replicas are")
async def show_group_status(app: App, group_id: GroupId) -> GroupHealth:
    wanted = await _find(app, group_id)
    replicas = views(wanted.service, wanted.job, app.replicas.of(wanted.service.submission_id))
    count = tally(replicas)
    return GroupHealth(
        group_id=wanted.id,
        overall_status=count.overall_status,
        **asdict(count),
        replica_statuses=[ReplicaShape(**replica_shape(replica)) for replica in replicas],
    )


@router.post("/service-groups/{group_id}/status", summary="Cancel a group, keeping its record")
async def change_group_status(
    app: App,
    actor: Actor,
    group_id: GroupId,
    wanted_status: Annotated[dict[str, Any] | None, Body(examples=[{"status": "cancelled"}])] = None,
) -> GroupChanged:
    """The body is `{"status": "cancelled"}`. The one job of all replicas is cancelled."""
    cancelled_only(wanted_status or {})
    wanted = await _cancel(app, actor, group_id)
    return GroupChanged(
        success=True,
        message=f"Service group {wanted.id} status updated to cancelled",
        group_id=wanted.id,
        replicas_updated=len(views(wanted.service, wanted.job, ())),
    )


@router.delete("/service-groups/{group_id}", summary="Stop a group", deprecated=True)
async def delete_group(app: App, actor: Actor, group_id: GroupId, response: Response) -> GroupStopped:
    """Use `POST /service-groups/{id}/status` instead. The record is kept here too."""
    wanted = await _cancel(app, actor, group_id)
    response.headers["Deprecation"] = "true"
    return GroupStopped(
        success=True,
        message="Stopped the group's job",
        group_id=wanted.id,
        replicas_stopped=len(views(wanted.service, wanted.job, ())),
        jobs_cancelled=[wanted.job.job_id] if wanted.job.job_id else [],
    )


async def _cancel(app: Orchestrator, actor: str, group_id: str) -> Wanted:
    wanted = await _find(app, group_id)
    await end(app, wanted, actor)
    return wanted


async def _find(app: Orchestrator, group_id: str) -> Wanted:
    wanted = await find(app, group_id)
    if not is_group(wanted.service):
        raise NotFound(f"Service group {group_id[:100]!r} not found: {wanted.id} is a single service, see /services")
    return Wanted(wanted.service, wanted.job)


def _group(app: Orchestrator, wanted: Wanted) -> Group:
    service, job = wanted.service, wanted.job
    count = asdict(tally(views(service, job, app.replicas.of(service.submission_id))))
    fields = group_fields(app, service, job) | count
    return Group(**service_shape(app, service, job).model_dump() | fields)

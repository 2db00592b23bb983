"""Accounts: that a service is used, what services cost, and the record of what was done."""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator

from orchestrator.costs import Bill, Use, Window, bill, daily, grouped, total
from orchestrator.deps import App, find
from orchestrator.errors import Conflict, Invalid
from orchestrator.ledger import Entry, Sought
from orchestrator.routes.paging import Offset, tell_total
from orchestrator.routes.services import ServiceId
from orchestrator.routes.shapes import public_id
from orchestrator.routes.strict import StrictRoute
from orchestrator.settings import Prices

router = APIRouter(tags=["accounts"], route_class=StrictRoute)


def _utc(moment: datetime) -> datetime:
    """A time without a zone is UTC."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("it is not within the years 1 to 9999 of UTC") from exc


def _written_out(given: Any) -> Any:
    """Not the seconds of an epoch, which would be taken too."""
    if isinstance(given, str) and not re.match(r"\d{4}-\d\d-\d\d", given):
        raise ValueError("write it like 2026-11-01T00:00:00Z")
    return given


Moment = Annotated[datetime, BeforeValidator(_written_out), AfterValidator(_utc)]
Since = Annotated[Moment | None, Query(description="From this time on, such as 2026-11-01T00:00:00Z.")]
Until = Annotated[Moment | None, Query(description="Before this time.")]


class Recorded(BaseModel):
    status: Literal["recorded"]
    last_activity: datetime


class Amounts(BaseModel):
    """What was used: `total_runtime_hours` of jobs, `gpu_hours` and `cpu_hours` of their GPUs and cores."""

    total_runtime_hours: float
    gpu_hours: float
    cpu_hours: float
    total_cost: float
    sessions_count: int
    avg_session_minutes: float


class JobCosts(BaseModel):
    """One job. `runtime_seconds` is of all its runs, also those before it was put back into the queue."""

    job_id: str | None
    started_at: datetime | None
    ended_at: datetime | None
    runtime_seconds: float
    gpus: int
    cores: int
    gpu_hours: float
    cpu_hours: float
    cost: float


class ServiceCosts(Amounts):
    """`sessions_count` is the number of jobs that have run."""

    service_id: str
    currency: str
    jobs: list[JobCosts]


class GroupCosts(Amounts):
    """`key` is a service's id, who started it, its model (null for none), its recipe, or a day of UTC."""

    key: str | None


class Costs(Amounts):
    since: datetime | None
    until: datetime
    currency: str
    group_by: str
    groups: list[GroupCosts]


class AuditEntry(BaseModel):
    """`subject` is the submission id of what was changed, `service_id` the id by which users know it."""

    ts: datetime
    event: str
    actor: str
    subject: str
    service_id: str | None
    meta: dict[str, Any]


@router.post("/services/{service_id}/activity", summary="Say that a service is used")
async def record_activity(app: App, service_id: ServiceId) -> Recorded:
    """As if a request had been sent to its model: an `idle_timeout` counts from now."""
    wanted = await find(app, service_id)
    status = app.status(wanted.service, wanted.job)
    if status.ended:
        raise Conflict(f"Service {wanted.id} has ended ({status}); start a new one")
    now = app.watcher.clock()
    app.replicas.touch(wanted.service.submission_id, now)
    return Recorded(status="recorded", last_activity=now)


@router.get("/services/{service_id}/costs", summary="Show what a service has cost")
async def show_service_costs(app: App, service_id: ServiceId) -> ServiceCosts:
    """By the scheduler's own start and end times; what runs is counted until now."""
    wanted = await find(app, service_id)
    now, prices = app.watcher.clock(), app.settings.prices
    uses, window = await app.store.uses(service=wanted.service.submission_id), Window(None, now)
    return ServiceCosts(
        service_id=public_id(wanted.service),
        currency=prices.currency,
        jobs=[_job(use, bill(use, prices, window, now)) for use in uses],
        **_amounts(total(uses, prices, window, now)),
    )


@router.get("/costs", summary="Show what was used, and what it costs")
async def show_costs(
    app: App,
    since: Since = None,
    until: Until = None,
    group_by: Annotated[
        Literal["service", "user", "key", "model", "recipe", "day"],
        Query(description="A user is who started the service; with a key that is the key's name."),
    ] = "service",
) -> Costs:
    """In all, and by group, the highest cost first, days in their order. Of a job that ran beyond the window the part
    within it counts, and of one that ran on several days its part of each."""
    now, prices = app.watcher.clock(), app.settings.prices
    window = Window(since, until or now)
    if since is not None and since >= window.until:
        raise Invalid(f"since ({since.isoformat()}) must be before until ({window.until.isoformat()})")
    uses = await app.store.uses(since=since)
    # In a thread: of very many jobs this takes longer than a token may wait.
    groups, everything = await asyncio.to_thread(_added_up, uses, group_by, prices, window, now)
    return Costs(
        since=since,
        until=window.until,
        currency=prices.currency,
        group_by=group_by,
        groups=[GroupCosts(key=key, **_amounts(one)) for key, one in groups],
        **_amounts(everything),
    )


def _added_up(
    uses: list[Use], by: str, prices: Prices, window: Window, now: datetime
) -> tuple[Sequence[tuple[str | None, Bill]], Bill]:
    """By group, and in all. A job of two days has run once."""
    if by == "day":
        return daily(uses, prices, window, now), total(uses, prices, window, now)
    groups = grouped(uses, by, prices, window, now)
    return groups, sum((one for _, one in groups), Bill())


@router.get("/audit", summary="Show the record of what was done")
async def show_audit(
    app: App,
    request: Request,
    response: Response,
    actor: Annotated[str | None, Query(description="Who did it: a key's name, user, watcher, idle, budget.")] = None,
    event: Annotated[str | None, Query(description="What was done.", examples=["service.created"])] = None,
    subject: Annotated[str | None, Query(description="A service's id, or a submission id.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 50,
    offset: Offset = 0,
) -> list[AuditEntry]:
    """The newest first. `X-Total-Count` says how many there are in all, and `Link` where the next ones are."""
    sought = Sought(actor, event, subject, since, until)
    entries, number = await app.store.audit(sought, limit=limit, offset=offset)
    tell_total(request, response, total=number, limit=limit, offset=offset)
    return [_entry(entry) for entry in entries]


def _entry(entry: Entry) -> AuditEntry:
    event = entry.event
    return AuditEntry(
        ts=event.at,
        event=event.kind,
        actor=event.actor,
        subject=event.subject,
        service_id=entry.service_id,
        meta=event.detail,
    )


def _amounts(of: Bill) -> dict[str, Any]:
    hours = of.runtime.total_seconds() / 3600
    return {
        "total_runtime_hours": round(hours, 6),
        "gpu_hours": round(of.gpu_hours, 6),
        "cpu_hours": round(of.cpu_hours, 6),
        "total_cost": round(of.cost, 6),
        "sessions_count": of.sessions,
        "avg_session_minutes": round(60 * hours / of.sessions, 4) if of.sessions else 0.0,
    }


def _job(use: Use, of: Bill) -> JobCosts:
    return JobCosts(
        job_id=use.job_id,
        started_at=use.started_at,
        ended_at=use.ended_at,
        runtime_seconds=of.runtime.total_seconds(),
        gpus=use.gpus,
        cores=use.cores,
        gpu_hours=round(of.gpu_hours, 6),
        cpu_hours=round(of.cpu_hours, 6),
        cost=round(of.cost, 6),
    )

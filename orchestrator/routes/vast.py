"""/infra/vast: the machine that is rented at vast.ai. Started, stopped, used, paid for, and who did what."""

import hmac
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from orchestrator.deps import Actor, App
from orchestrator.errors import NotConfigured, RentalError, Unauthorized
from orchestrator.keys import Scope
from orchestrator.routes.shapes import Failure
from orchestrator.routes.strict import StrictRoute
from orchestrator.settings import Vast
from orchestrator.vast.idle import minutes_left
from orchestrator.vast.instance import Instance, Status
from orchestrator.vast.keeper import Check, Keeper
from orchestrator.vast.ledger import runtime

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in (
        (401, "X-API-Key is missing, or is not the CONTROL_API_KEY."),
        (500, "VAST_API_KEY, VAST_INSTANCE_ID or CONTROL_API_KEY is not configured."),
        (502, "vast.ai refused or broke, in its own words."),
        (504, "vast.ai did not answer, or the machine was not healthy (or stopped) in time."),
    )
}
_CALLED_OFF: dict[int | str, dict[str, Any]] = {
    409: {"model": Failure, "description": "It was switched off meanwhile, or is being started in another way."}
}
router = APIRouter(prefix="/infra/vast", tags=["vast.ai"], route_class=StrictRoute, responses=_ERRORS)


class VastStatus(BaseModel):
    """`auto_shutdown_in_minutes`: null while it does not run, and where it is never stopped by itself."""

    instance_id: int | None
    status: Status
    gpu_name: str | None
    dph_total: float | None = Field(description="Dollars an hour.")
    endpoint_base_url: str | None
    last_activity: datetime | None
    auto_shutdown_in_minutes: int | None
    total_runtime_hours: float
    total_cost_usd: float
    message: str | None


class PowerOnRequest(BaseModel):
    """Without `health_path` and `health_port` those of VAST_HEALTH_PATH and VAST_HEALTH_PORT are asked."""

    model_config = ConfigDict(extra="forbid")

    wait_for_health: StrictBool = True
    health_path: Annotated[str, Field(pattern=r"^/[!\"$-~]*$", max_length=200)] | None = None
    health_port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None


class PoweredOn(BaseModel):
    status: Status
    instance_id: int
    endpoint_base_url: str | None
    health_url: str | None
    message: str


class PowerOffRequest(BaseModel):
    """It has no fields."""

    model_config = ConfigDict(extra="forbid")


_HEALTHY = {"wait_for_health": True, "health_path": "/health", "health_port": 8001}
PowerOnBody = Annotated[PowerOnRequest | None, Body(examples=[_HEALTHY])]
PowerOffBody = Annotated[PowerOffRequest | None, Body(examples=[{}])]


class PoweredOff(BaseModel):
    """The session that this has ended; zeros when the machine did not run."""

    status: Status
    session_runtime_minutes: float
    session_cost_usd: float
    message: str


class Activity(BaseModel):
    status: str
    last_activity: datetime


class Costs(BaseModel):
    """Of all sessions, with the one that is open."""

    total_runtime_hours: float
    total_cost_usd: float
    sessions_count: int
    avg_session_minutes: float


class AuditLine(BaseModel):
    ts: datetime
    event: str
    actor: str
    meta: dict[str, Any]


Given = Annotated[str | None, Header(alias="X-API-Key", description="The CONTROL_API_KEY.")]
Told = Annotated[str | None, Header(include_in_schema=False)]


def _check(app: App, x_api_key: Given = None, x_sluice_control: Told = None, x_sluice_scope: Told = None) -> None:
    """Raises Unauthorized. What the gateway says of the key that it has seen counts, see `orchestrator.access`."""
    key = app.settings.vast.control_api_key
    if key is None or x_sluice_scope == Scope.ADMIN:
        return
    given = x_sluice_control or x_api_key
    if given is None:
        raise Unauthorized("this path wants the orchestrator's CONTROL_API_KEY as X-API-Key, or an admin key of ours")
    if not hmac.compare_digest(given.encode("latin-1", "replace"), key.get_secret_value().encode()):
        raise Unauthorized("the X-API-Key that was given is not the orchestrator's CONTROL_API_KEY")


Checked = Annotated[None, Depends(_check)]


def _keeper(app: App, checked: Checked) -> Keeper:
    """Raises NotConfigured."""
    if app.keeper is None or app.settings.vast.missing:
        raise NotConfigured(_missing(app.settings.vast))
    return app.keeper


Rented = Annotated[Keeper, Depends(_keeper)]


def _missing(settings: Vast) -> str:
    names = " and ".join(settings.missing)
    return f"{names} not configured: set it in the orchestrator's environment, or in [vast] of its settings file"


@router.get("/status", summary="Show the rented machine")
async def show_status(app: App, checked: Checked) -> VastStatus:
    """As vast.ai says it at this moment. `unconfigured` where nothing is rented; the message names what is missing."""
    settings = app.settings.vast
    keeper = None if settings.missing else app.keeper
    if keeper is None:
        empty = dict.fromkeys(VastStatus.model_fields)
        fields = {"status": Status.UNCONFIGURED, "message": _missing(settings), "instance_id": settings.instance_id}
        return VastStatus(**empty | fields | {"total_runtime_hours": 0.0, "total_cost_usd": 0.0})
    instance = await keeper.sight.glance()
    rental, totals = await keeper.ledger.open(), await keeper.ledger.totals()
    used_at = keeper.sight.active_at if rental is None else keeper.sight.used_at(rental)
    ends = None if rental is None or used_at is None else minutes_left(settings, used_at, keeper.sight.clock())
    return VastStatus(
        instance_id=instance.id,
        status=instance.status,
        gpu_name=instance.gpu_name,
        dph_total=instance.price,
        endpoint_base_url=keeper.sight.endpoint(instance),
        last_activity=used_at,
        auto_shutdown_in_minutes=ends,
        total_runtime_hours=round(totals.seconds / 3600, 4),
        total_cost_usd=round(totals.cost, 4),
        message=instance.message or _unreachable(keeper, instance),
    )


def _unreachable(keeper: Keeper, instance: Instance) -> str | None:
    """Why there is no endpoint although the machine runs."""
    if instance.status is not Status.RUNNING:
        return None
    try:
        keeper.sight.place_of(instance, keeper.settings.engine_port)
    except RentalError as exc:
        return str(exc)
    return None


@router.post("/power/on", summary="Start the rented machine", responses=_CALLED_OFF)
async def power_on(keeper: Rented, actor: Actor, wanted: PowerOnBody = None) -> PoweredOn:
    """Answers when it is healthy, for at most VAST_WAIT_TIMEOUT_S; with `wait_for_health: false` when vast.ai knows.

    Several at once are one start. A machine that runs already is not started again, but asked for its health.
    """
    wanted = wanted or PowerOnRequest()
    settings = keeper.settings
    check = Check(wanted.health_port or settings.health_port, wanted.health_path or settings.health_path)
    done = await keeper.power_on(check, wait=wanted.wait_for_health, actor=actor)
    return PoweredOn(
        status=done.status,
        instance_id=settings.instance_id or 0,
        endpoint_base_url=done.endpoint,
        health_url=done.health_url,
        message=done.message,
    )


@router.post("/power/off", summary="Stop the rented machine")
async def power_off(keeper: Rented, actor: Actor, wanted: PowerOffBody = None) -> PoweredOff:
    """Its disk is kept. Answers when vast.ai says that it has stopped; what it was asked before is answered first."""
    rental = await keeper.power_off(actor=actor)
    minutes = 0.0 if rental is None else runtime(rental).total_seconds() / 60
    cost = 0.0 if rental is None else rental.cost
    return PoweredOff(
        status=Status.STOPPED,
        session_runtime_minutes=round(minutes, 1),
        session_cost_usd=round(cost, 4),
        message=f"Instance stopped. Session: {minutes:.1f} min, ${cost:.3f}",
    )


@router.post("/activity", summary="Put off the end of the rented machine")
async def record_activity(keeper: Rented) -> Activity:
    """It is stopped VAST_AUTO_SHUTDOWN_MINUTES after its last use. Requests under `/v1` count by themselves."""
    return Activity(status="recorded", last_activity=keeper.sight.used())


@router.get("/costs", summary="Show what the rented machine has cost")
async def show_costs(keeper: Rented) -> Costs:
    totals = await keeper.ledger.totals()
    return Costs(
        total_runtime_hours=round(totals.seconds / 3600, 4),
        total_cost_usd=round(totals.cost, 4),
        sessions_count=totals.sessions,
        avg_session_minutes=round(totals.seconds / 60 / totals.sessions, 1) if totals.sessions else 0.0,
    )


@router.get("/audit", summary="List what was done with the rented machine, the newest first")
async def list_audit(
    keeper: Rented, limit: Annotated[int, Query(ge=1, le=10_000, description="At most so many lines.")] = 50
) -> list[AuditLine]:
    return [
        AuditLine(ts=event.at, event=event.kind, actor=event.actor, meta=event.detail)
        for event in await keeper.ledger.audit(limit)
    ]

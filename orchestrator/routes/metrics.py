"""Metrics for Prometheus: of services, of their engines, our own; and where they are."""

import asyncio
import re
from collections import Counter
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from orchestrator.deps import App, Orchestrator, Wanted, check_ready, find
from orchestrator.errors import EngineError, NotReady
from orchestrator.exposition import CONTENT_TYPE, counted, labelled, merged, render
from orchestrator.groups import is_group
from orchestrator.metrics import (
    Accounts,
    Known,
    QueueFacts,
    ReplicaFacts,
    SlotFacts,
    of_accounts,
    of_engines,
    of_orchestrator,
    of_queue,
    of_slots,
    status_info,
)
from orchestrator.models import Service, ServiceStatus
from orchestrator.routes.services import ServiceId
from orchestrator.routes.shapes import public_id
from orchestrator.routes.strict import StrictRoute
from orchestrator.scrape import Reading, read, scrape
from orchestrator.services import plan_of
from orchestrator.slots import Slot

router = APIRouter(tags=["metrics"], route_class=StrictRoute)
engines = APIRouter(tags=["vllm"], route_class=StrictRoute)
own = APIRouter(tags=["metrics"])

_TEXT: dict[int | str, dict[str, Any]] = {200: {"description": "Prometheus text", "content": {"text/plain": {}}}}
_ADDRESS = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


class PrometheusText(Response):
    media_type = CONTENT_TYPE


class TargetGroup(BaseModel):
    """One entry of Prometheus's http_sd."""

    targets: list[str]
    labels: dict[str, str]


@router.get("/services/targets", summary="List the services that run, for Prometheus's http_sd")
async def list_targets(app: App, request: Request) -> list[TargetGroup]:
    """One target for each service, at the address by which this was asked."""
    rows = await app.store.open_services()
    address = address_of(request)
    return [_target(address, s) for s, j in rows if app.status(s, j) is ServiceStatus.RUNNING]


def address_of(request: Request) -> str:
    """Host and port as the client knows them: the gateway says it where one is between."""
    host = request.headers.get("x-forwarded-host") or request.headers.get("host", "")
    return host if _ADDRESS.fullmatch(host) else "localhost:8001"


def _target(address: str, service: Service) -> TargetGroup:
    service_id = public_id(service)
    labels = {
        "__metrics_path__": f"/api/v1/services/{service_id}/metrics",
        "service_id": service_id,
        "recipe_name": service.recipe_name,
    }
    if model := plan_of(service).served_model_name:
        labels["model"] = model
    if is_group(service):
        labels["group_id"] = service_id
    return TargetGroup(targets=[address], labels=labels)


@router.get(
    "/services/{service_id}/metrics", summary="Show a service's metrics", response_class=Response, responses=_TEXT
)
async def show_metrics(app: App, service_id: ServiceId) -> Response:
    """The engines' own, labelled with `service_id` (and `replica_id` in a group), and `service_status_info`.

    Before it runs and after its end there is only the latter. An engine that gives none is left out: then its
    `sluice_scrape_ok` is 0, and a comment at the end says why.
    """
    wanted = await find(app, service_id)
    service, status = public_id(wanted.service), app.status_of(wanted)
    of_replica = {} if wanted.port is None else {"replica_id": wanted.id}
    families = [status_info({"service_id": service} | of_replica, status)]
    if status is not ServiceStatus.RUNNING:
        return PrometheusText(render(families))
    readings = await _readings(app, wanted)
    by_replica = is_group(wanted.service)
    families += await asyncio.to_thread(of_engines, service, readings, by_replica=by_replica)
    return PrometheusText(await asyncio.to_thread(render, families, _problems(readings)))


@engines.get(
    "/vllm/{service_id}/metrics", summary="Show the engine's own metrics", response_class=Response, responses=_TEXT
)
async def show_engine_metrics(app: App, service_id: ServiceId) -> Response:
    """The engine's text as it is. For a group those of all replicas that answer, with the label `replica_id`."""
    wanted = await find(app, service_id)
    replica = check_ready(app, wanted)
    if is_group(wanted.service) and wanted.port is None:
        readings = await _readings(app, wanted)
        if all(reading.problem for reading in readings):
            raise NotReady(f"No engine of {wanted.id} gives metrics: {'; '.join(_problems(readings))}")
        return PrometheusText(await asyncio.to_thread(_by_replica, readings))
    try:
        exposition = await scrape(app.engines, replica)
    except EngineError as exc:
        raise NotReady(f"Service {wanted.id} gives no metrics: {exc}") from exc
    return Response(exposition.text, media_type=exposition.content_type)


def _by_replica(readings: list[Reading]) -> bytes:
    families = [f for r in readings for f in labelled(r.families, {"replica_id": r.replica.id})]
    return render(merged(families), _problems(readings))


async def _readings(app: Orchestrator, wanted: Wanted) -> list[Reading]:
    replicas = app.replicas.of(wanted.service.submission_id)
    return await read(app.engines, tuple(r for r in replicas if wanted.port in (None, r.port)))


def _problems(readings: list[Reading]) -> list[str]:
    return [f"left out: {reading.problem}" for reading in readings if reading.problem]


@own.get("/metrics", summary="Show the orchestrator's own metrics", response_class=Response, responses=_TEXT)
@router.get(
    "/orchestrator/metrics", summary="Show the orchestrator's own metrics", response_class=Response, responses=_TEXT
)
async def show_own_metrics(app: App) -> Response:
    """Requests, jobs, services, engines, slots, queued requests, GPU hours and budgets, the watcher, the scheduler."""
    return PrometheusText(
        render(
            [
                *counted(app.registry),
                *of_orchestrator(await _known(app)),
                *of_slots([_slot(slot) for slot in app.slots]),
                *of_queue(await _queue(app)),
                *of_accounts(_accounts(app)),
            ]
        )
    )


async def _known(app: Orchestrator) -> Known:
    """Of the database only what has not ended is read."""
    rows = await app.store.open_services()
    watcher, now = app.watcher, app.watcher.clock()
    return Known(
        ended=app.census.ended,
        open_jobs=[job.state for _, job in await app.store.open_jobs()],
        open_statuses=[app.status(service, job) for service, job in rows],
        replicas=[ReplicaFacts(r.service_id, r.id, r.ready, r.in_flight) for r in app.replicas.every()],
        in_flight=dict(_in_flight(app, service) for service, job in rows if job.state.runs),
        watcher_lag=(now - (watcher.last_look or app.started_at)).total_seconds(),
        watcher_turn=watcher.turn_seconds,
        scheduler_stale=watcher.stale_since is not None,
        answer_age=None if watcher.heard is None else (now - watcher.heard).total_seconds(),
    )


def _in_flight(app: Orchestrator, service: Service) -> tuple[str, int]:
    return public_id(service), sum(replica.in_flight for replica in app.replicas.of(service.submission_id))


def _slot(slot: Slot) -> SlotFacts:
    waits = slot.waits()
    waiting = {model: (slot.waiting(model), waits.get(model, 0.0)) for model in slot.models}
    return SlotFacts(slot.name, slot.phase, slot.loaded, waiting, slot.switches, slot.loads, slot.load_seconds)


async def _queue(app: Orchestrator) -> QueueFacts:
    backlog = await app.tasks.store.backlog()
    waited = 0.0 if backlog.since is None else (app.tasks.clock() - backlog.since).total_seconds()
    running = Counter(task.model for task, _ in app.tasks.running.values())
    return QueueFacts(backlog, running, app.tasks.ended, max(waited, 0.0))


def _accounts(app: Orchestrator) -> Accounts:
    census, now = app.census, app.watcher.clock()
    heard = app.watcher.heard
    return Accounts(
        seconds={} if heard is None else {by: census.gpu_seconds(by, heard) for by in ("model", "user")},
        open_uses=census.open_uses(),
        budgets=census.budgets_at(now),
        failures=census.failures,
        rules=[rule.name for rule in app.rules],
        at=now,
    )

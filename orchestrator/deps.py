"""What the lifespan opened, as annotated parameters: a route's signature lists what it touches."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, cast

import httpx2
from fastapi import Depends, Header, Request
from prometheus_client import CollectorRegistry

from orchestrator.access import Caller, caller_of
from orchestrator.asked import idempotency_key as checked_key
from orchestrator.batches import Batches
from orchestrator.cache import Cache
from orchestrator.caretaker import Caretaker
from orchestrator.catalogue import Catalogue
from orchestrator.census import Census
from orchestrator.cluster import Cluster
from orchestrator.diagnosis import MOST_LOG, Diagnosis, Failure, Rule, diagnose
from orchestrator.errors import Conflict, NotFound, NotReady, OrchestratorError
from orchestrator.groups import views
from orchestrator.hub import Hub
from orchestrator.inference import Group, Inferences
from orchestrator.loading import MOST_LOG as MOST_LOADING
from orchestrator.loading import Loading, loading_of
from orchestrator.logs import tail
from orchestrator.models import Job, Service, ServiceStatus, status_of
from orchestrator.pulls import Pulls
from orchestrator.pushes import Pushes
from orchestrator.quantization import Loader
from orchestrator.question import Question
from orchestrator.recipes import RecipeBook
from orchestrator.replicas import Replica, Replicas
from orchestrator.retry import failed
from orchestrator.services import Services, plan_of
from orchestrator.settings import Settings
from orchestrator.slots import Slots
from orchestrator.store import Store
from orchestrator.tasks import Tasks
from orchestrator.traffic import Traffic
from orchestrator.usage import Usage
from orchestrator.vast.keeper import Keeper
from orchestrator.watcher import Watcher
from orchestrator.wire import Around


@dataclass(frozen=True)
class Orchestrator:
    """Everything that one running orchestrator has open."""

    settings: Settings
    recipes: RecipeBook
    store: Store
    services: Services
    replicas: Replicas
    watcher: Watcher
    cluster: Cluster
    usage: Question[Usage]
    slots: Slots
    caretaker: Caretaker
    census: Census
    keeper: Keeper | None  # of what is rented at vast.ai
    hub: Hub
    catalogue: Catalogue
    loaders: Mapping[str, Loader]
    rules: Sequence[Rule]  # why services fail
    inferences: Inferences
    tasks: Tasks
    batches: Batches
    pulls: Pulls
    pushes: Pushes
    loads: Cache[Loading | None]  # how far engines are, by their jobs, for a moment
    engines: httpx2.AsyncClient  # to the engines, without a time limit on answers
    registry: CollectorRegistry
    traffic: Traffic
    traced: Around  # puts a span around each request, where that is wanted
    started_at: datetime

    def status(self, service: Service, job: Job) -> ServiceStatus:
        answers = self.replicas.answers(service.submission_id)
        return status_of(service, job, answers=answers)

    def status_of(self, wanted: "Wanted") -> ServiceStatus:
        """The status of a service, or of one replica."""
        service = wanted.service
        answers = any(r.ready for r in self.replicas.of(service.submission_id) if wanted.port in (None, r.port))
        return status_of(service, wanted.job, answers=answers)


@dataclass(frozen=True)
class Wanted:
    """What an id in a path means: a service, or one replica of a group (`port`)."""

    service: Service
    job: Job
    port: int | None = None

    @property
    def id(self) -> str:
        """As users know it: the scheduler's id of the job, before there is one ours; `<id>:<port>` for a replica."""
        identity = self.service.id or self.service.submission_id
        return identity if self.port is None else f"{identity}:{self.port}"


async def find(app: Orchestrator, service_id: str) -> Wanted:
    """The service of an id: `12`, `sg-12` for a group, `12:8002` for a replica. Raises NotFound."""
    identity, colon, port = service_id.removeprefix("sg-").partition(":")
    service, job = await app.store.find(identity)
    if not colon:
        return Wanted(service, job)
    ports = {str(view.port): view.port for view in views(service, job, app.replicas.of(service.submission_id))}
    if port not in ports:
        raise NotFound(f"Service {identity} has no replica {service_id[:100]!r}. Its ports are {', '.join(ports)}.")
    return Wanted(service, job, ports[port])


async def diagnosis_of(app: Orchestrator, wanted: Wanted) -> Diagnosis | None:
    """Why a service has failed, or why a replica is started again and again; None where neither is so."""
    service, job = wanted.service, wanted.job
    replicas = app.replicas.of(service.submission_id, job.submission_id)
    struggles = any(not r.ready and (r.starts > 1 or r.state == "failed") for r in replicas)
    requeued = job.restarts > 0 and app.status(service, job) is ServiceStatus.CONFIGURING
    if not (failed(service, job) or struggles or requeued):
        return None
    return await asyncio.to_thread(diagnosed, app.services, app.rules, service, job)


def diagnosed(services: Services, rules: Sequence[Rule], service: Service, job: Job) -> Diagnosis | None:
    """Why a job has failed. Reads its log."""
    folder = services.folder(job.submission_id)
    log = "\n".join(tail(path, most=MOST_LOG // 2) for path in (folder.stdout, folder.stderr))
    failure = Failure(job.state, job.reason, job.exit_code, log)
    return diagnose(rules, failure, plan_of(service), most_minutes=services.settings.site.max_time_limit)


async def loading(app: Orchestrator, wanted: Wanted) -> Loading | None:
    """How far the engine of a service is that does not answer yet. Its log is read now and then, whoever asks."""
    job = wanted.job
    if not job.state.runs or app.status_of(wanted) is not ServiceStatus.CONFIGURING:
        return None
    return await app.loads.get(job.submission_id, partial(asyncio.to_thread, _loading, app, job))


def _loading(app: Orchestrator, job: Job) -> Loading | None:
    folder = app.services.folder(job.submission_id)
    return loading_of(*(tail(path, most=MOST_LOADING) for path in (folder.stdout, folder.stderr)))


def check_ready(app: Orchestrator, wanted: Wanted) -> Replica:
    """A replica that answers now, without taking its turn.

    Raises NotReady with the status and what the service waits for, Conflict when all is over.
    """
    status = app.status(wanted.service, wanted.job)
    if status.ended:
        raise Conflict(f"Service {wanted.id} has ended ({status}); start a new one")
    try:
        return app.replicas.ready(wanted.service.submission_id, port=wanted.port)[0]
    except NotReady as exc:
        raise NotReady(f"Service {wanted.id} is not ready yet (status: {status}): {exc}") from exc


async def end(app: Orchestrator, wanted: Wanted, actor: str) -> None:
    """Cancel a service: see `Watcher.end`."""
    await app.watcher.end(wanted.service, wanted.job, actor=actor)


async def why_none(app: Orchestrator, group: Group, model: str | None) -> OrchestratorError:
    """Why no replica answers a request: what the service lacks, or which models there are."""
    try:
        if group.slot is not None:
            app.slots.find(group.slot)
        if group.service is not None:
            port = "" if group.port is None else f":{group.port}"
            check_ready(app, await find(app, f"{group.service}{port}"))
            return NotReady(f"Service {group.service} does not answer; try again")
        for service, job in await app.store.open_services():
            if model is not None and model in plan_of(service).served_names and not app.status(service, job).ended:
                check_ready(app, Wanted(service, job))
    except OrchestratorError as exc:
        return exc
    answering = {name for replica in app.replicas.every() if replica.ready for name in replica.models}
    names = sorted(answering | app.slots.offers.keys())
    there = f"there is {', '.join(names)}" if names else "no model answers now; POST /api/v1/services starts one"
    asked = "The request names no model" if model is None else f"The model {model[:200]!r} does not exist"
    return NotFound(f"{asked}; {there}")


async def why_away(app: Orchestrator, model: str) -> OrchestratorError | None:
    """Why a model cannot be asked now, None when it can. Its status says whether it is known: 404 when it is not."""
    if app.tasks.answers(model):
        return None
    if waits := app.slots.told(None, model or None):
        return NotReady(waits)
    return await why_none(app, Group(), model or None)


def _orchestrator(request: Request) -> Orchestrator:
    return cast(Orchestrator, request.app.state.orchestrator)


App = Annotated[Orchestrator, Depends(_orchestrator)]


def _idempotency_key(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
    return checked_key(idempotency_key)


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


def _actor(x_sluice_actor: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
    """Who asks, as the gateway says it; on the user's own socket that is the user."""
    return (x_sluice_actor or "user")[:100]


Actor = Annotated[str, Depends(_actor)]


def _caller(request: Request) -> Caller:
    return caller_of(request.headers.raw)


Whose = Annotated[Caller, Depends(_caller)]

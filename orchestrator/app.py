"""The application: one lifespan that opens everything, the routers, and the one place that renders errors."""

import asyncio
import functools
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import httpx2
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator import __version__
from orchestrator.access import Admission
from orchestrator.batch_store import BatchStore
from orchestrator.batches import Batches
from orchestrator.cache import Cache
from orchestrator.caretaker import Caretaker
from orchestrator.catalogue import read_catalogue
from orchestrator.census import Census
from orchestrator.cluster import cluster_of
from orchestrator.confidential import MASK, is_secret, redacted
from orchestrator.deps import Orchestrator, diagnosed, why_away, why_none
from orchestrator.diagnosis import read_rules
from orchestrator.dispatch import Dispatch, way_of
from orchestrator.envelope import belongs_to, envelope
from orchestrator.errors import OrchestratorError, TooLarge
from orchestrator.files import Files
from orchestrator.hub import open_hub
from orchestrator.inference import Group, Inferences
from orchestrator.journal import Noted
from orchestrator.keys import Keys
from orchestrator.limits import most_connections, settle
from orchestrator.loading import Loading
from orchestrator.model_list import ModelList, check_entries, read_model_list
from orchestrator.pulls import Pulls
from orchestrator.pushes import Pushes
from orchestrator.quantization import read_loaders
from orchestrator.recipes import RecipeBook, builtin_recipes
from orchestrator.relay import LIFTED
from orchestrator.replicas import Replicas
from orchestrator.routes import (
    accounts,
    batches,
    cluster,
    groups,
    health,
    metrics,
    models,
    openai,
    preflight,
    pulls,
    recipes,
    services,
    slots,
    tasks,
    usage,
    vast,
    vector_db,
    vllm,
)
from orchestrator.routes.shapes import Failure
from orchestrator.schedulers import Scheduler
from orchestrator.services import Services
from orchestrator.settings import Settings
from orchestrator.slots import Tools, make_slots
from orchestrator.store import Store, open_store
from orchestrator.task_store import TaskStore
from orchestrator.tasks import Away, Tasks
from orchestrator.tracing import open_tracing
from orchestrator.traffic import OTHER, Counted, Traffic
from orchestrator.usage import usage_of
from orchestrator.vast.keeper import open_keeper
from orchestrator.watcher import Watcher
from orchestrator.wire import Exchange, Reply
from orchestrator.wire.hosted import Application
from orchestrator.wire.http1 import Request as Asking
from orchestrator.wire.http1 import answer
from orchestrator.wire.listener import Listener
from orchestrator.wire.server import Server
from orchestrator.wire.upstream import open_pool

log = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in (
        (400, "The request cannot be served as it stands."),
        (404, "There is no such thing; the text says what there is."),
        (409, "The request contradicts what is running."),
        (413, "The body is larger than 32 MiB."),
        (422, "A value is wrong; the text names it and what is allowed."),
        (502, "The scheduler or an engine refused, in its own words."),
        (503, "Not now; Retry-After says when to ask again."),
        (507, "The state folder has no space left."),
    )
}
# Paths whose errors carry `success` and `error` too.
_COMPATIBLE = re.compile(r"/api(/v1)?(/services)?/(vllm|vector-db)/")


_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ATTENDED_SECONDS = 5.0  # at most, between two looks at what nobody uses
READ_EVERY = timedelta(seconds=2)  # at most: the log of an engine that loads, however many ask
MOST_LOADS = 1000
MOST_WORDS = 10_000  # characters of an error: some repeat what the client sent


def now() -> datetime:
    return datetime.now(UTC)


def create_app(
    settings: Settings,
    scheduler: Scheduler,
    *,
    clock: Callable[[], datetime] = now,
    lost: Callable[[str], None] = log.error,
) -> FastAPI:
    """An orchestrator. Nothing is opened before its lifespan begins. `lost` is called when another one has taken its
    database."""
    book = RecipeBook([*settings.recipes, builtin_recipes()])
    listed = read_model_list(settings.models_path)
    check_entries(listed, book)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(settings, scheduler, book, listed, clock, lost) as app.state.orchestrator:
            yield

    app: FastAPI = FastAPIOffline(
        title="Sluicegate orchestrator",
        version=__version__,
        description="Starts services from recipes as Slurm jobs, follows them and relays prompts to them.",
        lifespan=lifespan,
        responses=_ERRORS,
        redoc_url=None,
        redirect_slashes=False,  # a redirect names our own Host, which the gateway's clients cannot reach
    )
    _route(app)
    app.openapi = functools.partial(_document, app.openapi)  # type: ignore[method-assign] # as FastAPI says it is done
    app.add_exception_handler(OrchestratorError, _render_ours)
    app.add_exception_handler(RequestValidationError, _render_invalid)
    app.add_exception_handler(HTTPException, _render_http)
    app.add_exception_handler(Exception, _render_unexpected)
    app.add_middleware(Counted, traffic=_traffic, value=_template)
    app.add_middleware(HeadAsGet)
    return app


def _document(made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI document that FastAPI makes, with what it does not see."""
    document = made()
    return document | {"paths": document["paths"] | openai.operations()}


def _route(app: FastAPI) -> None:
    """The orchestrator's spellings under /api are documented; the client's under /api/v1 are the same functions."""
    app.include_router(health.router)
    app.include_router(metrics.own)
    app.include_router(openai.router)
    app.include_router(slots.router)
    app.include_router(vast.router)
    app.include_router(batches.uploads)
    app.include_router(batches.router)
    app.include_router(tasks.router)
    for prefix, documented in (("/api", True), ("/api/v1", False)):
        # Before vllm: its /vllm/{service_id}/… would take their paths.
        app.include_router(models.router, prefix=f"{prefix}/services", include_in_schema=documented)
        app.include_router(models.router, prefix=prefix, include_in_schema=False)
        app.include_router(vllm.router, prefix=f"{prefix}/services", include_in_schema=documented)
        app.include_router(vllm.router, prefix=prefix, include_in_schema=False)
        app.include_router(vector_db.router, prefix=f"{prefix}/services", include_in_schema=documented)
        app.include_router(vector_db.router, prefix=prefix, include_in_schema=False)
        app.include_router(vector_db.native, prefix=f"{prefix}/services", include_in_schema=False)
        app.include_router(vector_db.native, prefix=prefix, include_in_schema=False)
        app.include_router(metrics.engines, prefix=f"{prefix}/services", include_in_schema=documented)
        app.include_router(metrics.engines, prefix=prefix, include_in_schema=False)
        # Before services: its /services/{service_id} would take /services/targets.
        app.include_router(metrics.router, prefix=prefix, include_in_schema=documented)
        app.include_router(openai.of_a_service, prefix=prefix, include_in_schema=False)
        app.include_router(tasks.router, prefix=prefix, include_in_schema=False)
        app.include_router(services.internal, prefix=prefix, include_in_schema=documented)
        app.include_router(services.router, prefix=prefix, include_in_schema=documented)
        app.include_router(preflight.router, prefix=prefix, include_in_schema=documented)
        app.include_router(cluster.router, prefix=prefix, include_in_schema=documented)
        app.include_router(usage.router, prefix=prefix, include_in_schema=documented)
        app.include_router(pulls.router, prefix=prefix, include_in_schema=documented)
        app.include_router(pulls.uploads, prefix=prefix, include_in_schema=documented)
        app.include_router(accounts.router, prefix=prefix, include_in_schema=documented)
        app.include_router(groups.router, prefix=prefix, include_in_schema=documented)
        app.include_router(recipes.router, prefix=prefix, include_in_schema=documented)
        app.include_router(slots.router, prefix=prefix, include_in_schema=False)


def store_of(settings: Settings, lost: Callable[[str], None] = log.error) -> AbstractAsyncContextManager[Store]:
    """Raises SettingsError when the database cannot be used."""
    path = settings.home / "orchestrator.db"
    return open_store(path, settings.database_url, seconds=settings.command_seconds, lost=lost)


@asynccontextmanager
async def opened(
    settings: Settings,
    scheduler: Scheduler,
    book: RecipeBook,
    listed: ModelList,
    clock: Callable[[], datetime],
    lost: Callable[[str], None],
) -> AsyncIterator[Orchestrator]:
    """Everything that is open while an orchestrator runs, closed in the reverse order."""
    relayed = httpx2.Timeout(None, connect=15)
    replicas, drain = Replicas(), timedelta(seconds=settings.drain_seconds)
    async with (
        store_of(settings, lost) as store,
        httpx2.AsyncClient(limits=LIFTED, timeout=relayed, trust_env=False) as engines,
        httpx2.AsyncClient(limits=LIFTED, timeout=httpx2.Timeout(5), trust_env=False) as probes,
        open_hub(settings, clock) as hub,
        open_pool() as pool,
        open_keeper(settings.vast, store, replicas, clock, drain) as keeper,
        open_tracing("sluicegate-orchestrator") as traced,
    ):
        work = Services(settings=settings, recipes=book, scheduler=scheduler, store=store, clock=clock)
        watcher = _watcher(settings, work, replicas, probes, drain)
        whole = cluster_of(scheduler, clock, settings.cluster_seconds)
        used = usage_of(replicas, probes, clock)
        tools = Tools(work, store, replicas, watcher, clock)
        places = make_slots(listed, tools, timedelta(seconds=settings.wake_hold_seconds))
        loads: Cache[Loading | None] = Cache(clock, keep=READ_EVERY, keep_error=READ_EVERY, room=MOST_LOADS)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        async def explain(group: Group, model: str | None) -> OrchestratorError:
            return await why_none(one, group, model)

        async def away(model: str) -> OrchestratorError | None:
            return await why_away(one, model)

        inferences = Inferences(replicas, pool, clock, explain, places, settings.max_in_flight)
        queue = _queue(settings, TaskStore(store.connections), inferences, away, clock)
        inferences.later = queue.queue
        seconds = min(settings.poll_interval, ATTENDED_SECONDS)
        downloads = Pulls(settings, hub, store, work.cache("vllm"), clock)
        downloads.restore()
        caretaker = Caretaker(store, work, replicas, watcher, clock, seconds)
        rules = read_rules()
        diagnose = functools.partial(diagnosed, work, rules)
        census = Census(store, settings.prices, settings.budgets, diagnose, clock, seconds)
        one = Orchestrator(
            inferences=inferences,
            tasks=queue,
            batches=queue.batches,
            pulls=downloads,
            pushes=Pushes(downloads.cache, settings.home, store, clock),
            loads=loads,
            settings=settings,
            recipes=book,
            store=store,
            services=work,
            replicas=replicas,
            watcher=watcher,
            cluster=whole,
            usage=used,
            slots=places,
            caretaker=caretaker,
            census=census,
            keeper=keeper,
            hub=hub,
            catalogue=read_catalogue(),
            loaders=read_loaders(),
            rules=rules,
            engines=engines,
            registry=registry,
            traffic=Traffic(registry, "sluice", "route"),
            traced=traced,
            started_at=clock(),
        )
        settle()
        async with turning(watcher, caretaker, places, queue, census, whole, used, downloads):
            yield one
        loads.close()
        await caretaker.note()


def _watcher(
    settings: Settings, work: Services, replicas: Replicas, probes: httpx2.AsyncClient, drain: timedelta
) -> Watcher:
    return Watcher(
        scheduler=work.scheduler,
        store=work.store,
        services=work,
        replicas=replicas,
        client=probes,
        clock=work.clock,
        grace=timedelta(seconds=settings.grace_seconds),
        drain=drain,
        poll_seconds=settings.poll_interval,
        probe_seconds=settings.probe_seconds,
        own_ports=frozenset({settings.port} if settings.host else ()),
    )


class Loop(Protocol):
    """What is done again and again beside the requests."""

    async def run(self) -> None:
        """Until cancelled."""


@asynccontextmanager
async def turning(*loops: Loop) -> AsyncIterator[None]:
    """The loops run from here to the end of the block."""
    tasks = {asyncio.create_task(loop.run()) for loop in loops}
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _queue(
    settings: Settings, store: TaskStore, inferences: Inferences, away: Away, clock: Callable[[], datetime]
) -> Tasks:
    """The requests that are answered later, and how they are answered."""

    def answers(model: str) -> bool:
        return any(r.ready and not r.draining for r in inferences.replicas.serving(model or None))

    keep = timedelta(hours=settings.task_keep_hours)
    files = Files(settings.files_path)
    return Tasks(
        store=store,
        batches=Batches(BatchStore(store.connections), store, files, away, clock, keep),
        ask=functools.partial(ask, inferences),
        away=away,
        answers=answers,
        clock=clock,
        concurrency=settings.task_concurrency,
        waiting=timedelta(seconds=settings.task_timeout),
        answering=settings.inference_timeout,
        keep=keep,
    )


def ask(inferences: Inferences, request: Asking, reply: Reply) -> Exchange:
    """A request of our own for a model, as `Dispatch` treats those of clients."""
    way = way_of(request.target)
    return inferences.begin(request, reply, way.target, way.group or Group(), way.prefixes)


def listener_of(app: FastAPI) -> Listener:
    """The orchestrator's connections, for uvicorn: the data path, and the application for everything else."""

    def make_server(application: Application, state: dict[str, Any]) -> Server:
        one: Orchestrator = app.state.orchestrator
        server = Server(
            handle=one.traced(Dispatch(one.inferences, application)),
            render=rendered,
            observe=Noted(one.traffic.observe_request),
            muxed=True,
            tick=one.inferences.tick,
            most=most_connections(one.settings.max_connections),
        )
        server.remote = by_tcp = remote(server, Keys(one.settings.keys_path if one.settings.host else None))
        # Those of the data path are no business of the application, which counts its own only.
        one.traffic.in_flight.set_function(lambda: server.in_flight + by_tcp.in_flight)
        return server

    return Listener(make_server)


def remote(server: Server, keys: Keys) -> Server:
    """The same for those who come over TCP, from this machine or another: each request needs a key."""
    return Server(
        handle=Admission(keys, server.handle, refused, "orchestrator"),
        render=server.render,
        observe=server.observe,
        tick=keys.tick,
        most=server.most,
    )  # with heads of its own: what is concluded from one that came through our socket says nothing of who may ask here


def _traffic(scope: Scope) -> Traffic:
    traffic: Traffic = scope["app"].state.orchestrator.traffic
    return traffic


def _template(scope: Scope) -> str:
    """The path of the route that answered, as it is written in `routes`: a few values, whatever clients send."""
    return str(getattr(scope.get("route"), "path", OTHER))


class HeadAsGet:
    """Answer HEAD as GET without the body: FastAPI alone answers 405."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_head)


def failure(path: str, status: int, detail: str | list[dict[str, Any]], headers: Mapping[str, str]) -> Response:
    """An error's answer. Under a /v1 for models it has OpenAI's envelope, else ours."""
    return Response(problem(path, status, detail), status, dict(headers), media_type="application/json")


def rendered(path: str, status: int, text: str) -> bytes:
    """The same as bytes of HTTP, where no application is asked. The connection ends behind it."""
    later = [(b"retry-after", b"2")] if status == 503 else []
    return answer(status, problem(path, status, text), [(b"connection", b"close"), *later])


def refused(path: str, status: int, text: str) -> bytes:
    """The same for a request without a key that is enough."""
    headers = [(b"www-authenticate", b"Bearer")] if status == 401 else []
    code = "invalid_api_key" if status == 401 else None
    body = envelope(status, text, code=code) if belongs_to(path) else problem(path, status, text)
    return answer(status, body, headers)


def problem(path: str, status: int, detail: str | list[dict[str, Any]]) -> bytes:
    """An error's body. Some errors repeat what the client or an engine has sent."""
    detail = redacted(detail) if isinstance(detail, str) else detail
    content: dict[str, Any] = {"detail": detail}
    text = detail if isinstance(detail, str) else json.dumps(detail)
    if belongs_to(path):
        return envelope(status, text)
    if _COMPATIBLE.match(path):
        content |= {"success": False, "error": text}
    # ASCII only: a lone surrogate in the client's text must not become a 500.
    return json.dumps(content).encode()


def _path(request: Request) -> str:
    """From the scope: `request.url` is built from the Host header, and fails on a broken one."""
    return str(request.scope["path"])


def _render_ours(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, OrchestratorError)
    if exc.status >= 500:
        log.warning("%s %s: %s", request.method, _path(request)[:200], str(exc)[:MOST_WORDS])
    headers = {} if exc.retry_after is None else {"Retry-After": str(exc.retry_after)}
    if isinstance(exc, TooLarge):
        # What is still to come may have no end, and the gateway sends all of a request before it reads the answer.
        headers["Connection"] = "close"
    return failure(_path(request), exc.status, str(exc)[:MOST_WORDS], headers)


def _render_http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    path, text, headers = _path(request), str(exc.detail), exc.headers or {}
    if exc.status_code == 404:
        text = f"There is nothing at {request.method} {path[:200]}; see /docs"
    elif exc.status_code == 405:
        allow = ", ".join(_methods(request))
        text, headers = f"{path[:200]} answers {allow}, not {request.method[:20]}; see /docs", {"Allow": allow}
    return failure(path, exc.status_code, text, headers)


def _methods(request: Request) -> list[str]:
    """The methods of a path, those of all its routes: Starlette names only the first route's."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]  # those are files
    asked = [(method, {**request.scope, "method": method}) for method in _METHODS]
    found = [method for method, scope in asked if any(route.matches(scope)[0] is Match.FULL for route in routes)]
    return ["GET", "HEAD", *(method for method in found if method != "GET")] if "GET" in found or not found else found


def _render_invalid(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    return failure(_path(request), 422, [_told(error) for error in exc.errors()], {})


def _told(error: Mapping[str, Any]) -> dict[str, Any]:
    """One line of FastAPI's list. The input is repeated only where it is short: bodies may be huge, or hold NaN."""
    told = {"type": error["type"], "loc": list(error["loc"]), "msg": redacted(error["msg"])}
    if error["type"] == "json_invalid":
        told["msg"] = f"The body is no JSON: {error['ctx']['error']}"
    given = error.get("input")
    if isinstance(given, str | int | bool) and len(str(given)) <= 200:
        told["input"] = (
            MASK if is_secret(str(error["loc"][-1])) else redacted(given) if isinstance(given, str) else given
        )
    return told


async def _render_unexpected(request: Request, exc: Exception) -> Response:
    # Starlette raises it again after this answer, and uvicorn writes it to the log.
    return failure(_path(request), 500, "An unexpected error; the orchestrator's log has it.", {})

"""The gateway's application: open the link, answer what must work without an orchestrator."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypedDict, cast

from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway import docs, metrics
from gateway.connect import routes as orchestrators
from gateway.dashboard import charts, contents, services
from gateway.dashboard.asking import Asker, Away, Refused
from gateway.dashboard.history import History, asked_of
from gateway.dashboard.hub import Hub
from gateway.dashboard.pages import Entry
from gateway.dashboard.view import problem, wants_html
from gateway.door import Door
from gateway.guard import Guard
from gateway.link import Link, LinkState, LocalLink, Unreached
from gateway.openssh import OpenSsh
from gateway.problem import Problem, rendered
from gateway.remembered import MODELS, Remembered, follow
from gateway.sessions import Sessions
from gateway.settings import Settings, keys_of
from gateway.trunk import Trunk
from orchestrator import __version__
from orchestrator.journal import Noted
from orchestrator.keys import Keys
from orchestrator.limits import most_connections, settle
from orchestrator.tracing import open_tracing
from orchestrator.traffic import Traffic
from orchestrator.wire import Around
from orchestrator.wire.hosted import Application
from orchestrator.wire.listener import Listener
from orchestrator.wire.server import Server

_BRIEFLY_SECONDS = 2.0  # for a link that is being opened: what is remembered can wait so long for something newer


class State(TypedDict):
    """What each request finds in `request.state`."""

    link: Link
    trunk: Trunk
    settings: Settings
    registry: CollectorRegistry
    traffic: Traffic
    remembered: Remembered
    managing: asyncio.Lock  # held while the orchestrator is started or stopped
    keys: Keys
    sessions: Sessions
    hub: Hub
    entries: tuple[Entry, ...]
    history: History
    traced: Around  # puts a span around each request, where that is wanted


def link_of(settings: Settings) -> Link:
    """The way to the orchestrator that the settings ask for."""
    if settings.cluster is not None and settings.transport == "openssh":
        return OpenSsh(settings)
    if settings.cluster is not None:
        # Imported here: it costs 25 MB and a third of a second, which nobody pays who does not use it.
        from gateway.tunnel import Tunnel

        return Tunnel(settings)
    if settings.local_socket is None:
        raise ValueError("neither cluster nor local_socket is set; take the settings from read_settings()")
    return LocalLink(settings.local_socket)


@contextlib.asynccontextmanager
async def opened(settings: Settings, link: Link) -> AsyncIterator[State]:
    """Everything that is open above the link while a gateway serves, closed in the reverse order."""
    trunk = Trunk(link, connect_seconds=settings.connect_seconds, hold_seconds=settings.hold_seconds)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    remembered = Remembered(settings.models_path, time.time)
    keys = keys_of(settings)
    traffic, asker = metrics.traffic_in(registry), Asker(trunk, link, settings.connect_seconds)
    history = History(traffic, asked_of(asker), seconds=settings.sample_seconds)
    hub = Hub((*contents.topics(), charts.topic(history)), asker)
    settle()
    try:
        async with (
            open_tracing("sluicegate-gateway") as traced,
            _beside(follow(remembered, trunk, link, settings.connect_seconds), history.run()),
            hub,
        ):
            yield State(
                link=link,
                trunk=trunk,
                settings=settings,
                registry=registry,
                traffic=traffic,
                remembered=remembered,
                managing=asyncio.Lock(),
                keys=keys,
                sessions=Sessions(keys, time.monotonic),
                hub=hub,
                entries=contents.entries(),
                history=history,
                traced=traced,
            )
    finally:
        remembered.keep()
        trunk.close()


@contextlib.asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """What goes on until the end of the `async with`."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def create_app(settings: Settings, make_link: Callable[[Settings], Link] = link_of) -> Starlette:
    """The application. Its lifespan holds the link and all that is above it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with make_link(settings) as link, opened(settings, link) as state:
            yield state

    return Starlette(
        routes=[
            Route("/", _root),
            Route("/health", _health),
            Route("/ready", _ready),
            Route("/metrics", metrics.show_metrics),
            Route(MODELS, _models),
            Route(MODELS + "/{model_id:path}", _models),
            *orchestrators.routes(),
            *docs.routes(),
            *contents.routes(),
        ],
        lifespan=lifespan,
        exception_handlers={Away: problem, Refused: problem, HTTPException: _http_error, Exception: _unforeseen},
    )


def listener_of(settings: Settings) -> Listener:
    """The gateway's connections, for uvicorn."""

    def make_server(application: Application, state: dict[str, Any]) -> Server:
        opened = cast(State, state)
        trunk, keys, sessions = opened["trunk"], opened["keys"], opened["sessions"]

        def tick() -> None:
            keys.tick()
            sessions.tick()
            trunk.tick()

        server = Server(
            handle=opened["traced"](Door(Guard(settings, keys, sessions), application, trunk, opened["link"])),
            render=_rendered,
            observe=Noted(opened["traffic"].observe_request),
            tick=tick,
            ending=opened["hub"].close,
            most=most_connections(settings.max_connections),
        )
        opened["traffic"].in_flight.set_function(lambda: server.in_flight)
        return server

    return Listener(make_server)


def _rendered(path: str, status: int, text: str) -> bytes:
    headers = {"Connection": "close"} | ({"Retry-After": "2"} if status == 503 else {})
    return rendered(path, status, _no_answer(text) if status == 502 else text, headers)


async def _models(request: Request) -> Response:
    """The models that answer, or one of them; while the orchestrator is away those that did, and how old that is."""
    state, path, model_id = request.state, request.scope["raw_path"], request.path_params.get("model_id")
    known = state.remembered.find(model_id)
    hold = state.settings.hold_seconds
    if known is not None:
        hold = min(hold, _BRIEFLY_SECONDS if state.link.status.state is LinkState.CONNECTING else 0)
    try:
        async with asyncio.timeout(state.settings.connect_seconds + hold):
            status, body = await state.trunk.ask(b"GET", path, hold)
    except (Unreached, TimeoutError):
        if known is not None:
            stale = {"X-Sluice-Stale": str(state.remembered.age), "Warning": '110 - "stale"'}
            return Response(json.dumps(known), media_type="application/json", headers=stale)
        link = state.link.status
        return Problem(path.decode(), 503, link.advice, {"Retry-After": str(link.retry_after)}, link.code)
    if status == HTTPStatus.OK and model_id is None:
        state.remembered.take(body)
    return Response(body, status, media_type="application/json")


async def _root(request: Request) -> Response:
    """The dashboard for browsers, and what this is for everybody else."""
    if wants_html(request.headers.get("accept", "")):
        return await services.show(request)
    link = request.state.link.status
    return JSONResponse(
        {
            "name": "Sluicegate gateway",
            "version": __version__,
            "docs": "/docs",
            "openapi": "/openapi.json",
            "health": "/health",
            "api": "/api/v1",
            "openai_base_url": "/v1",
            "orchestrator": link.where,
            "state": link.state,
        },
        headers={"Vary": "Accept"},
    )


async def _health(request: Request) -> JSONResponse:
    """Always 200 while the process lives."""
    (answer, body), (ready, _) = await asyncio.gather(_ask(request, b"/health"), _ask(request, b"/ready"))
    link = request.state.link.status
    tunnel = {
        "state": link.state,
        "via": link.via,
        "to": link.where,
        "since": link.since.isoformat(),
        "error": link.error,
    }
    orchestrator = {"answered": answer is not None, **body}
    if answer is None:
        orchestrator["advice"] = link.advice
    healthy = answer == HTTPStatus.OK and body.get("status", "healthy") == "healthy"
    return JSONResponse(
        {
            "status": "healthy" if healthy else "degraded",
            "version": __version__,
            "ready": ready == HTTPStatus.OK,
            "tunnel": tunnel,
            "orchestrator": orchestrator,
        }
    )


async def _ready(request: Request) -> JSONResponse:
    """200 when a request would be served, else 503 with what is missing."""
    status, body = await _ask(request, b"/ready")
    if status == HTTPStatus.OK:
        return JSONResponse({"ready": True})
    link = request.state.link.status
    detail = link.advice if status is None else body.get("detail", f"the orchestrator answers /ready with {status}")
    return JSONResponse({"ready": False, "detail": detail}, 503, {"Retry-After": str(link.retry_after)})


async def _ask(request: Request, target: bytes) -> tuple[int | None, dict[str, Any]]:
    """The orchestrator's status and JSON for `target`; None without an answer within `probe_seconds`."""
    state = request.state
    if state.link.status.state is not LinkState.UP:
        return None, {}
    started = time.perf_counter()
    try:
        async with asyncio.timeout(state.settings.probe_seconds):
            status, content = await state.trunk.ask(b"GET", target)
        body = json.loads(content)
    except (TimeoutError, Unreached, ValueError):  # ValueError: not JSON, so not an orchestrator
        return None, {}
    elapsed = round((time.perf_counter() - started) * 1000, 1)
    return status, {**(body if isinstance(body, dict) else {}), "milliseconds": elapsed}


def _no_answer(words: str) -> str:
    return (
        f"The connection to the orchestrator broke before it answered ({words}). The request may have been carried "
        "out: look before repeating it, or send it with an Idempotency-Key."
    )


async def _http_error(request: Request, exc: Exception) -> Response:
    """Of our own routes: everything else is answered by `door.Door`."""
    assert isinstance(exc, HTTPException)
    path = request.scope["path"]  # `request.url` is built from the Host header, and fails on a broken one
    if path.startswith("/ui/"):
        return await problem(request, Refused(exc.status_code, f"there is no page at {path}"))
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(metrics.methods_of(path))
        return Problem(path, 405, f"{path} answers {allowed}, not {request.method}", {"Allow": allowed})
    told = f"there is nothing at {path}; see /docs" if exc.status_code == HTTPStatus.NOT_FOUND else exc.detail
    return Problem(path, exc.status_code, told, exc.headers)


async def _unforeseen(request: Request, exc: Exception) -> Response:
    """Starlette raises `exc` again after this answer, so that it is logged."""
    return Problem(request.scope["path"], 500, f"the gateway failed: {type(exc).__name__}; its log has the details")

"""The gateway's application: open the link, answer what must work without an orchestrator, relay the rest."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any, TypedDict

import httpx2
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway import docs, metrics, paths
from gateway.guard import Guard
from gateway.link import Link, LinkState, LocalLink
from gateway.problem import Problem
from gateway.settings import Settings
from gateway.tunnel import Tunnel
from orchestrator import __version__
from orchestrator.relay import Interrupted, Unanswered, Unreached, Unsendable, relay
from orchestrator.traffic import Counted, Traffic

log = logging.getLogger(__name__)

_ORCHESTRATOR = "http://orchestrator"  # a name for the Host header; the link knows the way
_REPEATABLE = ("GET", "HEAD", "OPTIONS")


class State(TypedDict):
    """What each request finds in `scope["state"]`."""

    link: Link
    client: httpx2.AsyncClient
    settings: Settings
    registry: CollectorRegistry
    traffic: Traffic


def link_of(settings: Settings) -> Link:
    """The way to the orchestrator that the settings ask for."""
    if settings.cluster is not None:
        return Tunnel(settings)
    if settings.local_socket is None:
        raise ValueError("neither cluster nor local_socket is set; take the settings from read_settings()")
    return LocalLink(settings.local_socket)


def create_app(settings: Settings, make_link: Callable[[Settings], Link] = link_of) -> Starlette:
    """The application. Its lifespan holds the link and the one HTTP client on top of it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with make_link(settings) as link, httpx2.AsyncClient(transport=link.transport, trust_env=False) as client:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
            traffic = metrics.traffic_in(registry)
            yield State(link=link, client=client, settings=settings, registry=registry, traffic=traffic)

    app = Starlette(
        routes=[
            Route("/", _root),
            Route("/health", _health),
            Route("/ready", _ready),
            Route("/metrics", metrics.show_metrics),
            *docs.routes(),
            Route("/{path:path}", _Relayed()),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _unforeseen},
    )
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Counted, traffic=metrics.traffic_of, value=metrics.kind_of)
    return app


class _Relayed:
    """Everything that the orchestrator answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        if raw in metrics.OWN:
            return await Problem(raw, 405, f"{raw} answers GET and HEAD", {"Allow": "GET, HEAD"})(scope, receive, send)
        if not paths.is_relayed(raw):
            return await Problem(raw, 404, _what_there_is(raw))(scope, receive, send)
        try:
            paths.check(raw)
            method, path = paths.to_orchestrator(scope["method"], raw)
            target = path.encode("latin-1") + (b"?" + scope["query_string"] if scope["query_string"] else b"")
            headers = _with_host(scope) if path == paths.TARGETS else scope["headers"]
            await _pass_on(dict(scope, method=method, headers=headers), receive, send, target)
        except (paths.PathError, Unsendable) as exc:
            await Problem(raw, 400, str(exc))(scope, receive, send)
        except Unreached as exc:
            status = scope["state"]["link"].status
            log.info("%s %s: not reached: %s", scope["method"], raw, exc)
            await Problem(raw, 503, status.advice, {"Retry-After": str(status.retry_after)})(scope, receive, send)
        except Unanswered as exc:
            await Problem(raw, 502, _no_answer(str(exc)))(scope, receive, send)
        except Interrupted as exc:
            # Returning with the answer unfinished makes uvicorn cut the connection: the client must notice.
            log.warning("%s %s: the answer broke off: %s", scope["method"], raw, exc)


def _with_host(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The client's headers, with its Host as X-Forwarded-Host: the orchestrator tells Prometheus where we are."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-forwarded-host"]
    return headers + [(b"x-forwarded-host", value) for name, value in scope["headers"] if name == b"host"]


async def _pass_on(scope: Scope, receive: Receive, send: Send, target: bytes) -> None:
    """Relay; once more where an idle connection turned out to be dead and repeating does no harm."""
    state = scope["state"]
    timeout = state["settings"].connect_seconds
    try:
        await relay(state["client"], scope, receive, send, url=_ORCHESTRATOR, target=target, connect_timeout=timeout)
    except Unanswered:
        if scope["method"] not in _REPEATABLE:
            raise
        await relay(state["client"], scope, receive, send, url=_ORCHESTRATOR, target=target, connect_timeout=timeout)


async def _root(request: Request) -> JSONResponse:
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
        }
    )


async def _health(request: Request) -> JSONResponse:
    """Always 200 while the process lives."""
    (answer, body), (ready, _) = await asyncio.gather(_ask(request, b"/health"), _ask(request, b"/ready"))
    link = request.state.link.status
    tunnel = {"state": link.state, "to": link.where, "since": link.since.isoformat(), "error": link.error}
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
            answer = await state.client.get(_ORCHESTRATOR + target.decode(), timeout=None)
            body = answer.json()
    except (TimeoutError, httpx2.TransportError, ValueError):  # ValueError: not JSON, so not an orchestrator
        return None, {}
    elapsed = round((time.perf_counter() - started) * 1000, 1)
    return answer.status_code, {**(body if isinstance(body, dict) else {}), "milliseconds": elapsed}


def _what_there_is(path: str) -> str:
    relayed = ", ".join(
        f"{prefix}/…" if prefix in ("/api", "/v1", "/infra/vast") else prefix for prefix in paths.RELAYED
    )
    own = ", ".join(metrics.OWN)
    return f"there is nothing at {path}; there is {own}, {relayed}"


def _no_answer(words: str) -> str:
    return (
        f"The connection to the orchestrator broke before it answered ({words}). The request may have been carried "
        "out: look before repeating it, or send it with an Idempotency-Key."
    )


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return Problem(request.url.path, exc.status_code, exc.detail, exc.headers)


async def _unforeseen(request: Request, exc: Exception) -> Response:
    """Starlette raises `exc` again after this answer, so that it is logged."""
    return Problem(request.url.path, 500, f"the gateway failed: {type(exc).__name__}; its log has the details")

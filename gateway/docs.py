"""The documentation pages. They work without internet: what they load comes from an installed package."""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from orchestrator import __version__

_DOCUMENT = "server-openapi.json"
_NOT_READY = {
    "description": "not now; `detail` says why",
    "content": {"application/json": {"schema": {"type": "object", "required": ["ready", "detail"]}}},
}
_TUNNEL = {"state": "up", "via": "unix-socket", "to": "/home/ada/.sluicegate/orchestrator.sock on hpc", "error": ""}
_STANDING: dict[str, Any] = {
    "state": "running",
    "installed": "0.1.0-1f2e3d4c5b",
    "version": "0.1.0",
    "running": "0.1.0-1f2e3d4c5b",
    "started_by": "systemd",
    "since": "2026-11-27T12:00:00+00:00",
    "pid": 4711,
    "host": "login1",
    "folder": "/home/ada/.sluicegate",
    "socket": "/home/ada/.sluicegate/orchestrator.sock",
    "job": None,
    "waits_for": None,
    "tunnel": _TUNNEL,
}
_MESSAGE = {"message": "The orchestrator was started."}
_ENDPOINT = {
    "endpoint": _TUNNEL["to"],
    "cluster": "hpc",
    "via": "unix-socket",
    "state": "up",
    "api": "/api/v1",
    "openai_base_url": "/v1",
}
_WHY = {"application/json": {"schema": {"type": "object", "required": ["detail"]}}}
_FAILURES = {
    "409": {"description": "nothing is installed there; `detail` says what to do", "content": _WHY},
    "502": {"description": "it was tried and failed; `detail` has its last words", "content": _WHY},
    "503": {"description": "there is no connection; `detail` says why", "content": _WHY},
}


def routes() -> list[BaseRoute]:
    """/docs, what it loads, and /openapi.json."""
    spec = importlib.util.find_spec("fastapi_offline")  # found, not imported: only its files are wanted
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("fastapi-offline is not installed; install sluicegate with its dependencies")
    static = StaticFiles(directory=Path(spec.origin).parent / "static")
    return [
        Route("/docs", _docs),
        Route("/openapi.json", _openapi),
        Mount("/docs/static", static),
    ]


async def _docs(request: Request) -> HTMLResponse:
    # Imported here: FastAPI costs 14 MB and a quarter of a second, and this page is all that wants it.
    from fastapi.openapi.docs import get_swagger_ui_html

    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Sluicegate",
        swagger_js_url="/docs/static/swagger-ui-bundle.js",
        swagger_css_url="/docs/static/swagger-ui.css",
        swagger_favicon_url="/docs/static/favicon.png",
    )


async def _openapi(request: Request) -> JSONResponse:
    return JSONResponse(_shipped_document())


@cache
def _shipped_document() -> dict[str, Any]:
    """The document that `make openapi` wrote: importing the orchestrator for it would double this process's memory."""
    here = Path(__file__).parent
    inside, beside = here / _DOCUMENT, here.parent / "openapi" / _DOCUMENT  # installed, in a checkout
    document: dict[str, Any] = json.loads((inside if inside.is_file() else beside).read_text("utf-8"))
    return document


def own_document() -> dict[str, Any]:
    """The gateway's own routes as an OpenAPI document, the second argument of `gateway_document`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sluicegate gateway",
            "version": __version__,
            "description": "Your cluster's models at this address. "
            "All but /, /health, /ready, /metrics and /orchestrator/… is answered by "
            "the orchestrator; while it cannot be reached, the answer is 503 and says what to do.",
        },
        "paths": {
            "/": {"get": _operation("What this is, and what it is connected to")},
            "/health": {"get": _operation("The state of gateway, tunnel and orchestrator; always 200")},
            "/metrics": {
                "get": _operation("The gateway's own metrics")
                | {"responses": {"200": {"description": "Prometheus text", "content": {"text/plain": {}}}}}
            },
            "/ready": {
                "get": _operation("Would a request be served?")
                | {"responses": {"200": {"description": "yes"}, "503": _NOT_READY}}
            },
            "/orchestrator/endpoint": {"get": _operation("Where the orchestrator is reached, and how", _ENDPOINT)},
            "/orchestrator/start": {
                "post": _operation("Start the orchestrator that is installed there", _MESSAGE | _STANDING)
                | {"description": "One that runs is left alone. Scope `admin`."},
            },
            "/orchestrator/status": {
                "get": _operation("What stands where the orchestrator is", _STANDING)
                | {"description": "Looked up there now, also while no orchestrator answers. Scope `admin`."},
            },
            "/orchestrator/stop": {
                "post": _operation("Stop the orchestrator; jobs go on", _MESSAGE | _STANDING)
                | {"description": "Scope `admin`."},
            },
        },
    }


def _operation(summary: str, example: dict[str, Any] | None = None) -> dict[str, Any]:
    """With an `example` of its answer: one that is asked of the login node, and so may fail."""
    content: dict[str, Any] = {} if example is None else {"schema": {"type": "object"}, "example": example}
    return {
        "summary": summary,
        "tags": ["gateway"],
        "responses": {"200": {"description": "JSON", "content": {"application/json": content}}}
        | ({} if example is None else _FAILURES),
    }

"""One service: what it waits for, its replicas, its endpoint, its log, why it failed, stop and retry."""

import json
import secrets
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.console.progress import phase, told
from gateway.dashboard import story
from gateway.dashboard.asking import Asker, Refused, asker_of
from gateway.dashboard.forms import read_form
from gateway.dashboard.hub import Topic
from gateway.dashboard.pages import Page
from gateway.dashboard.readings import readings
from gateway.dashboard.templating import render
from gateway.dashboard.view import page, see_other
from gateway.shapes import ServiceDetail
from orchestrator.keys import Scope


def address(service_id: str) -> str:
    """The page of a service. Ids of replicas have a colon."""
    return f"/ui/services/{quote(service_id, safe=':')}"


def _api(service_id: str) -> str:
    return f"/api/v1/services/{quote(service_id, safe=':')}"


async def show(request: Request) -> Response:
    asker, service_id = asker_of(request), request.path_params["service"]
    service = await asker.json("GET", _api(service_id))
    shown = pieces(service)
    return page(
        request,
        "service.html",
        here="/",
        service=service,
        pieces=shown,
        address=address(service["id"]),
        config=json.dumps(service["config"], indent=2, ensure_ascii=False),
        token=secrets.token_hex(16),
    )


async def look(asker: Asker, service_id: str) -> dict[str, str]:
    return pieces(await asker.json("GET", _api(service_id)))


def pieces(service: ServiceDetail) -> dict[str, str]:
    """What of a service's page is live. Nothing of it depends on who looks."""
    about: dict[str, Any] = {
        "service": service,
        "kind": story.kind(service["status"]),
        "steps": story.steps(service),
        "told": service["reason"] if phase(service) == "ended" else told(service),
        "changes": story.proposed(service),
        "replicas": story.replicas(service),
    }
    return {name: render(f"{name.replace('-', '_')}.html", **about) for name in _PIECES}


_PIECES = ("service-head", "service-facts", "service-replicas")


async def look_at_numbers(asker: Asker, service_id: str) -> dict[str, str]:
    """Of a service that has ended there are none."""
    status, content = await asker.ask("GET", f"{_api(service_id)}/metrics")
    found = readings(content.decode("utf-8", "replace")) if status == 200 else []
    return {"service-numbers": render("service_numbers.html", readings=found)}


async def look_at_history(asker: Asker, service_id: str) -> dict[str, str]:
    entries = await asker.json("GET", "/api/v1/audit", query={"subject": service_id, "limit": 100})
    return {"service-history": render("service_history.html", happened=story.happened(entries))}


async def stop(request: Request) -> Response:
    service_id = request.path_params["service"]
    await asker_of(request).json("POST", f"{_api(service_id)}/status", {"status": "cancelled"})
    return see_other(request, address(service_id))


async def retry(request: Request) -> Response:
    """The token of the page makes one service of a button that is pressed twice."""
    token = (await read_form(request)).get("token", "")
    if not token:
        raise Refused(422, "the form has no token; reload the page and try again")
    path = f"{_api(request.path_params['service'])}/retry"
    service = await asker_of(request).json("POST", path, {}, headers={"Idempotency-Key": f"retry-{token}"})
    return see_other(request, address(service["id"]))


PAGE = Page(
    routes=(
        Route("/ui/services/{service}", show),
        Route("/ui/services/{service}/stop", stop, methods=["POST"]),
        Route("/ui/services/{service}/retry", retry, methods=["POST"]),
    ),
    topics=(
        Topic("service", look, of_one=True),
        Topic("numbers", look_at_numbers, every=5.0, of_one=True),
        Topic("history", look_at_history, every=2.0, of_one=True, scope=Scope.ADMIN),
    ),
)

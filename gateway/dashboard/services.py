"""The list of services and of slots, live."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.dashboard import story
from gateway.dashboard.asking import Asker, asker_of
from gateway.dashboard.hub import Topic
from gateway.dashboard.pages import Entry, Page
from gateway.dashboard.templating import render
from gateway.dashboard.view import page
from gateway.shapes import ServiceRow

SHOWN = 200  # at once, the newest first


async def show(request: Request) -> Response:
    asker, offset = asker_of(request), _offset(request)
    services: list[ServiceRow] = await asker.json(
        "GET", "/api/v1/services", query={"limit": SHOWN + 1, "offset": offset or None}
    )
    slots = await asker.json("GET", "/slots") if not offset else []
    shown = services[:SHOWN]
    return page(
        request,
        "services.html",
        here="/",
        rows=rows(shown),
        summary=summary(shown),
        slots=slots_piece(slots),
        newer=None if offset == 0 else max(0, offset - SHOWN),
        older=offset + SHOWN if len(services) > SHOWN else None,
    )


def _offset(request: Request) -> int:
    text = request.query_params.get("from", "0")
    return min(int(text), 10**9) if text.isascii() and text.isdigit() else 0


async def look(asker: Asker) -> dict[str, str]:
    services: list[ServiceRow] = await asker.json("GET", "/api/v1/services", query={"limit": SHOWN})
    slots = await asker.json("GET", "/slots")
    return {"services-summary": summary(services), "slots": slots_piece(slots), **rows(services)}


def rows(services: Sequence[ServiceRow]) -> dict[str, str]:
    """HTML by the id of its element."""
    return {f"service-{service['id']}": _row(json.dumps(service)) for service in services}


@lru_cache(maxsize=4 * SHOWN)
def _row(told: str) -> str:
    """Most rows are as they were a second ago, and to compare them costs a twentieth of making them anew."""
    service: ServiceRow = json.loads(told)
    status = service["status"]
    answering = story.answering(service) if status in story.UNDER_WAY else ""
    return render("service_row.html", service=service, kind=story.kind(status), answering=answering)


def summary(services: Sequence[ServiceRow]) -> str:
    """How many there are of each kind, of those that are shown."""
    tally = dict.fromkeys(("running", "configuring", "pending", "failed", "ended"), 0)
    for service in services:
        tally[story.kind(service["status"])] += 1
    return render("services_summary.html", tally=tally)


def slots_piece(slots: Sequence[dict[str, Any]]) -> str:
    return render("slots.html", slots=slots)


PAGE = Page(
    entries=(Entry("Services", "/", "services"),),
    routes=(Route("/ui/services", show),),
    topics=(Topic("services", look),),
)

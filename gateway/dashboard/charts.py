"""Charts: requests, tokens, times, and GPU hours. What goes through this gateway is from its own history."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.dashboard.asking import Asker, Refused, asker_of
from gateway.dashboard.history import Bin, History, bins
from gateway.dashboard.hub import Topic, json_piece
from gateway.dashboard.pages import Entry, Page
from gateway.dashboard.view import HEADERS, page

POINTS = 240
RANGES: Mapping[str, int] = {"1": 15, "6": 90, "24": 360}
"""Hours that a chart shows, and the seconds of one of its points."""
DAYS = 30  # of GPU hours
NAMES = ("requests", "failed", "others", "prompt", "generated", "latency50", "latency95", "first50", "first95")


async def show(request: Request) -> Response:
    history: History = request.state.history
    hours = request.query_params.get("hours", "1")
    if hours not in RANGES:
        raise Refused(422, f"hours is {hours[:20]!r}; allowed: {', '.join(RANGES)}")
    since = datetime.fromtimestamp(history.since, UTC).isoformat()
    costs = await gpu_hours(asker_of(request))
    return page(
        request, "charts.html", hours=hours, ranges=tuple(RANGES), costs=costs, since=since, seconds=history.seconds,
        kept=history.hours,
    )  # fmt: skip


async def data(request: Request) -> Response:
    """All points of a chart, as `columns` has them."""
    hours = request.query_params.get("hours", "1")
    if hours not in RANGES:
        return JSONResponse({"detail": f"hours must be one of {', '.join(RANGES)}"}, 422, HEADERS)
    found = bins(request.state.history.samples, RANGES[hours], time.time(), POINTS)
    return JSONResponse(columns(found) | {"length": RANGES[hours]}, headers=HEADERS)


def columns(found: Sequence[Bin]) -> dict[str, list[float | None]]:
    """One list for each of NAMES, and `at`: seconds since 1970."""
    rows = [
        (b.requests, b.failed, b.others, b.prompt, b.generated, b.latency[0], b.latency[1], b.first[0], b.first[1])
        for b in found
    ]
    values = [[None if v is None else round(v, 4) for v in column] for column in zip(*rows, strict=True)]
    named: dict[str, list[float | None]] = dict(zip(NAMES, values, strict=True))
    return {"at": [float(one.at) for one in found], **named}


def topic(history: History) -> Topic:
    """The last points of each range, for charts that are open."""

    async def look(asker: Asker) -> dict[str, str]:
        now = time.time()
        return {
            f"charts-{hours}": json_piece(columns(bins(history.samples, length, now, 2)))
            for hours, length in RANGES.items()
        }

    return Topic("charts", look, every=history.seconds / 3)


async def gpu_hours(asker: Asker, days: int = DAYS) -> dict[str, Any]:
    """Of the last days, by day and by model. Raises Refused and Away."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=days - 1)
    query = {"since": since.isoformat().replace("+00:00", "Z")}
    by_day = await asker.json("GET", "/api/v1/costs", query=query | {"group_by": "day"})
    by_model = await asker.json("GET", "/api/v1/costs", query=query | {"group_by": "model"})
    used = {group["key"]: group for group in by_day["groups"]}
    dates = [(since + timedelta(days=number)).date().isoformat() for number in range(days)]
    return {
        "days": [(date, used[date]["gpu_hours"] if date in used else 0.0) for date in dates],
        "models": [group for group in by_model["groups"] if group["gpu_hours"]],
        "gpu_hours": by_day["gpu_hours"],
        "total_cost": by_day["total_cost"],
        "currency": by_day["currency"],
    }


PAGE = Page(
    entries=(Entry("Charts", "/ui/charts", icon="charts", needs=("GET", "/api/v1/costs")),),
    routes=(Route("/ui/charts", show), Route("/ui/charts/data", data)),
)

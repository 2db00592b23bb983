"""The audit: who did what, and when."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.dashboard.asking import Refused, asker_of
from gateway.dashboard.pages import Entry, Page
from gateway.dashboard.view import page

PATH = "/api/v1/audit"
SHOWN = 50  # on one page
FILTERS = ("actor", "event", "subject", "since", "until")
EVENTS = (
    "service.created", "job.accepted", "job.state", "service.ready", "service.cancelled", "service.idle_warning",
    "service.idle_shutdown", "service.budget_stop", "job.replacing", "service.handover", "service.let_go",
    "task.created", "task.cancelled", "batch.created", "file.created", "file.deleted",
)  # fmt: skip
ACTORS = ("user", "watcher", "idle", "budget")


async def show(request: Request) -> Response:
    wanted = {name: value for name in FILTERS if (value := request.query_params.get(name, "").strip())}
    offset = _offset(request.query_params.get("offset", "0"))
    entries, trouble = [], ""
    try:
        # One more than is shown says whether there is another page.
        query = wanted | {"limit": SHOWN + 1, "offset": offset}
        entries = await asker_of(request).json("GET", PATH, query=query)
    except Refused as exc:
        if exc.status != 422:
            raise
        trouble = exc.text
    more = len(entries) > SHOWN
    return page(
        request, "audit.html", status=422 if trouble else 200, entries_shown=entries[:SHOWN], trouble=trouble,
        wanted={name: wanted.get(name, "") for name in FILTERS}, filtered=bool(wanted), first=offset + 1,
        newer=_address(wanted, max(0, offset - SHOWN)) if offset else "",
        older=_address(wanted, offset + SHOWN) if more else "", events=EVENTS, actors=ACTORS,
    )  # fmt: skip


def _offset(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _address(wanted: Mapping[str, Any], offset: int) -> str:
    query = urlencode(dict(wanted) | ({"offset": offset} if offset else {}))
    return f"/ui/audit?{query}" if query else "/ui/audit"


PAGE = Page(
    entries=(Entry("Audit", "/ui/audit", icon="audit", needs=("GET", PATH)),),
    routes=(Route("/ui/audit", show),),
)

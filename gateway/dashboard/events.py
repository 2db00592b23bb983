"""The one stream of a browser, for all of its tabs."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.dashboard.asking import asker_of
from gateway.dashboard.hub import Crowded, Hub
from gateway.dashboard.pages import Page


async def stream(request: Request) -> Response:
    """`?topics=link,services`. Those that the key in use may not watch are left out."""
    hub: Hub = request.state.hub
    topics = hub.allowed(request.query_params.get("topics", "").split(","), asker_of(request).scope)
    try:
        hub.check_room()
    except Crowded:
        return PlainTextResponse("too many pages are open; close some\n", 503, {"Retry-After": "30"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(hub.watch(topics), media_type="text/event-stream", headers=headers)


PAGE = Page(routes=(Route("/ui/events", stream),))

"""The chat playground. Its script asks `/v1` itself, as any client does."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.dashboard.pages import Entry, Page
from gateway.dashboard.view import page


async def show(request: Request) -> Response:
    return page(request, "chat.html")


PAGE = Page(
    entries=(Entry("Chat", "/ui/chat", icon="chat", needs=("POST", "/v1/chat/completions")),),
    routes=(Route("/ui/chat", show),),
)

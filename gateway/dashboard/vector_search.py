"""The vector-search playground. Its script asks `/api/v1/vector-db` itself, as any client does."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.dashboard.pages import Entry, Page
from gateway.dashboard.view import page


async def show(request: Request) -> Response:
    return page(request, "vector_search.html")


PAGE = Page(
    entries=(Entry("Vectors", "/ui/vectors", icon="vectors", needs=("GET", "/api/v1/vector-db/services")),),
    routes=(Route("/ui/vectors", show),),
)

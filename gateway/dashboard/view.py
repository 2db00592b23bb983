"""Answers: a whole page, a fragment of one, a redirect, a problem; and the headers that all of them have."""

from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from gateway.dashboard.asking import Asker, Away, Refused, asker_of
from gateway.dashboard.banner import TITLES, banner
from gateway.dashboard.pages import current
from gateway.dashboard.templating import render
from gateway.link import LinkState

THEME = "sluice-theme"  # the cookie that remembers light or dark
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers would send `Origin: null` with our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept, Cookie",
}
_TITLES = {
    403: "This key may not do that",
    404: "There is no such thing",
    409: "Not now",
    422: "A value is not right",
}


def wants_html(accept: str) -> bool:
    """Whether a browser asks for a page: programs take anything, or JSON."""
    return "text/html" in accept


def is_fragment(request: Request) -> bool:
    """Whether htmx asks, for a part of the page that is open."""
    return request.headers.get("hx-request") == "true"


def page(
    request: Request, template: str, *, status: int = 200, here: str = "", answers: bool = True, **context: Any
) -> Response:
    """`here`: a path of the navigation, where it is not the request's. `answers`: whether the orchestrator does."""
    asker = asker_of(request)
    entries = [entry for entry in request.state.entries if entry.needs is None or asker.may(*entry.needs)]
    link, theme = request.state.link.status, request.cookies.get(THEME, "")
    common = {
        "entries": entries,
        "here": current(entries, here or request.scope["path"]),
        "theme": theme if theme in ("light", "dark") else "auto",
        "actor": asker.actor,
        "link": link,
        "banner": banner(link, answers=answers and link.state is LinkState.UP),
    }
    return _answer(asker, template, status, common | context)


def fragment(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    return _answer(asker_of(request), template, status, context)


def see_other(request: Request, path: str) -> Response:
    """After a change: go there. htmx follows a header of its own, a form the status."""
    if is_fragment(request):
        return Response(status_code=200, headers=HEADERS | {"HX-Redirect": path})
    return RedirectResponse(path, 303, headers=HEADERS)


async def problem(request: Request, exc: Exception) -> Response:
    """The page, or the fragment, for what a handler has let through."""
    if isinstance(exc, Away):
        status, title = 503, TITLES[exc.link.state]
    else:
        assert isinstance(exc, Refused)
        status, title = exc.status, _TITLES.get(exc.status, "That did not work")
    if is_fragment(request):
        return fragment(request, "problem_part.html", status=status, title=title, text=str(exc))
    away = isinstance(exc, Away)
    return page(request, "problem.html", status=status, answers=not away, title=title, text=str(exc), away=away)


def _answer(asker: Asker, template: str, status: int, context: dict[str, Any]) -> Response:
    return HTMLResponse(render(template, asker.may, **context), status, headers=HEADERS)

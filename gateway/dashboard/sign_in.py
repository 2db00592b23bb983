"""Sign in with a key and out again, where the gateway wants keys."""

from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.dashboard.forms import read_form
from gateway.dashboard.pages import Page
from gateway.dashboard.view import page, see_other, wants_html
from gateway.guard import PAGES, SIGN_IN
from gateway.sessions import LIFETIME_SECONDS, cookie_name, session_value
from orchestrator.keys import Key
from orchestrator.wire import http1


def to_sign_in(request: http1.Request) -> bytes | None:
    """The answer to a browser that may not see a page yet; None for everybody else."""
    path = request.path
    if path != "/" and not path.startswith(PAGES):
        return None
    target = f"{SIGN_IN}?next={quote(request.target.decode('latin-1'), safe='')}"
    if request.header(b"hx-request") == b"true":
        return f"HTTP/1.1 401 Unauthorized\r\nHX-Redirect: {SIGN_IN}\r\nContent-Length: 0\r\n\r\n".encode()
    if not wants_html((request.header(b"accept") or b"").decode("latin-1")):
        return None
    return (
        f"HTTP/1.1 303 See Other\r\nLocation: {target}\r\nCache-Control: no-store\r\nVary: Accept, Cookie\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()


def local(target: str) -> str:
    """Where to go afterwards: a path of ours, else the beginning."""
    parts = urlsplit(target)
    ours = target.startswith("/") and not target.startswith(("//", "/\\")) and not parts.netloc
    return target if ours and all(" " < char < "\x7f" for char in target) else "/"


def _page(request: Request, following: str, wrong: str = "") -> Response:
    return page(request, "sign_in.html", status=401 if wrong else 200, entries=(), next=following, wrong=wrong)


async def show(request: Request) -> Response:
    return _page(request, local(request.query_params.get("next", "/")))


async def sign_in(request: Request) -> Response:
    form = await read_form(request)
    keys, following = request.state.keys, local(form.get("next", "/"))
    key = keys.find(form.get("key", "").strip().encode())
    if key is None or keys.state(key) != "live":
        why = f"The key {key.name!r} is {keys.state(key)}." if key else "This gateway does not know that key."
        return _page(request, following, why)
    return admitted(request, see_other(request, following), key)


def admitted(request: Request, answer: Response, key: Key) -> Response:
    """The answer, with which the browser is signed in by that key."""
    answer.set_cookie(
        cookie_name(request.headers.get("host", "")),
        request.state.sessions.begin(key),
        max_age=LIFETIME_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.headers.get("origin", "").startswith("https://"),
    )
    return answer


async def sign_out(request: Request) -> Response:
    request.state.sessions.end(session_value(request.headers.raw))
    answer = see_other(request, SIGN_IN)
    answer.delete_cookie(cookie_name(request.headers.get("host", "")), httponly=True, samesite="strict")
    return answer


PAGE = Page(
    routes=(
        Route(SIGN_IN, show),
        Route(SIGN_IN, sign_in, methods=["POST"]),
        Route("/ui/sign-out", sign_out, methods=["POST"]),
    )
)

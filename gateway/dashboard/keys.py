"""The gateway's keys: what `sluice keys` does, for those who have the scope for it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import keyring
from gateway.dashboard.asking import Refused, asker_of
from gateway.dashboard.forms import read_form
from gateway.dashboard.pages import Entry, Page
from gateway.dashboard.sign_in import admitted
from gateway.dashboard.view import page, see_other
from gateway.keyring import Made
from gateway.settings import Settings, fixed_keys
from orchestrator.keys import KeysError, Scope, now, shown

_NEEDS = ("GET", "/api/v1/keys")
_PATH = "/ui/keys"

Row = Mapping[str, str | None]


async def show(request: Request) -> Response:
    return _shown(request)


async def create(request: Request) -> Response:
    form = await read_form(request)
    name, scope = form.get("name", "").strip(), form.get("scope", "")
    lifetime = form.get("lifetime", "").strip() or None

    def work(settings: Settings) -> Made:
        check_first(rows(settings), scope, settings.loopback_open)
        return keyring.create(settings.keys_path, name, Scope(scope), lifetime)

    return await _changed(request, work)


async def rotate(request: Request) -> Response:
    name = request.path_params["name"]
    return await _changed(request, lambda settings: keyring.rotate(settings.keys_path, name))


async def revoke(request: Request) -> Response:
    name = request.path_params["name"]
    return await _changed(request, lambda settings: keyring.revoke(settings.keys_path, name))


def rows(settings: Settings) -> list[Row]:
    """The keys of the file, and those of the environment, which cannot be changed here. Raises KeysError."""
    fixed = [shown(key) | {"created": None, "state": "live", "fixed": "1"} for key in fixed_keys(settings)]
    return [*(row | {"fixed": None} for row in keyring.rows(settings.keys_path, now())), *fixed]


def check_first(rows: Sequence[Row], scope: str, loopback_open: bool) -> None:
    """Raises KeysError where a new key of that scope would lock out whoever makes it, or is of no scope."""
    if scope not in list(Scope):
        raise KeysError(f"{scope[:40]!r} is no scope; choose one of {', '.join(Scope)}")
    admin = any(row["scope"] == Scope.ADMIN and row["state"] == "live" for row in rows)
    if not admin and not loopback_open and scope != Scope.ADMIN:
        raise KeysError(
            "make one with the scope admin first: from the first key on this gateway wants one of everybody, also of "
            "you, and only that scope opens this page"
        )


async def _changed(request: Request, work: Callable[[Settings], Made | None]) -> Response:
    """A new secret is in this answer and nowhere else, so that answer is no redirect. Who makes the first key is
    signed in with it: without it nobody gets in any more."""
    _check(request)
    settings: Settings = request.state.settings
    was_open = asker_of(request).scope is None and not settings.loopback_open
    try:
        made = await asyncio.to_thread(work, settings)
    except KeysError as exc:
        return _shown(request, status=422, trouble=str(exc))
    request.state.keys.tick()  # it would look at the file within a second
    if made is None:
        return see_other(request, _PATH)
    answer = _shown(request, made=made)
    return admitted(request, answer, made.key) if was_open else answer


def _shown(request: Request, *, status: int = 200, made: Made | None = None, trouble: str = "") -> Response:
    _check(request)
    settings: Settings = request.state.settings
    found: list[Row] = []
    try:
        found = rows(settings)
    except KeysError as exc:
        trouble = trouble or str(exc)
    admins = [row["name"] for row in found if row["scope"] == Scope.ADMIN and row["state"] == "live"]
    about: dict[str, Any] = {"rows": found, "admins": admins, "made": made, "trouble": trouble, "scopes": list(Scope)}
    about |= {"is_open": asker_of(request).scope is None, "loopback_open": settings.loopback_open}
    about["usual"] = Scope.USE if admins or settings.loopback_open else Scope.ADMIN
    return page(request, "keys.html", status=status, here=_PATH, file=settings.keys_path, **about)


def _check(request: Request) -> None:
    asker = asker_of(request)
    if not asker.may(*_NEEDS):
        raise Refused(403, f"the key in use has the scope {asker.scope}; the page of the keys needs {Scope.ADMIN}")


PAGE = Page(
    entries=(Entry("Keys", _PATH, icon="keys", needs=_NEEDS),),
    routes=(
        Route(_PATH, show),
        Route(_PATH, create, methods=["POST"]),
        Route(_PATH + "/{name}/rotate", rotate, methods=["POST"]),
        Route(_PATH + "/{name}/revoke", revoke, methods=["POST"]),
    ),
)

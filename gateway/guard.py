"""Who may ask: a plain ASGI class before everything else.

The gateway acts as its user on the cluster, and any web page that the user opens can send requests to localhost. So
1. on loopback the Host header must be a name of loopback, or a page could reach us under its own name (DNS rebinding);
2. an Origin header must be our own address, or a page could send a POST that needs no answer;
3. with an API key, every request but the health checks must carry it.
"""

import hmac
from collections.abc import Collection, Iterator

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.problem import Problem
from gateway.settings import Settings, is_loopback

_OPEN_PATHS = ("/health", "/ready")
_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")


class Guard:
    """Answers 401 or 403, or passes the request on without the key: it is the gateway's and goes no further."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._key = settings.api_key.get_secret_value().encode() if settings.api_key else None
        self._hosts = tuple(name.lower() for name in settings.allowed_hosts)
        self._check_host = is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if refusal := self._refusal(scope):
                await refusal(scope, receive, send)
                return
            if self._key is not None:
                scope = dict(scope, headers=_without_key(scope["headers"], self._key))
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._check_host and not self._is_ours(host):
            return Problem(scope["path"], 403, _wrong_host(host, self._hosts))
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin not in (f"http://{host}", f"https://{host}"):
            text = f"a page from {origin} may not use this gateway; call it from a program, or from its own pages"
            return Problem(scope["path"], 403, text)
        if self._key is None or scope["path"] in _OPEN_PATHS:
            return None
        if any(hmac.compare_digest(given, self._key) for given in _given_keys(scope["headers"])):
            return None
        text = "this gateway wants its API key (GATEWAY_API_KEY) as `Authorization: Bearer …`, `X-API-Key` or `api-key`"
        return Problem(scope["path"], 401, text, {"WWW-Authenticate": "Bearer"})

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.removeprefix("[").removesuffix("]")
        return is_loopback(name) or name.endswith(".localhost") or name in self._hosts


def _wrong_host(host: str, allowed: Collection[str]) -> str:
    names = ", ".join(("localhost", "127.0.0.1", "[::1]", *allowed))
    return f"the request is for host {host!r}, but this gateway answers to {names}; add a name by GATEWAY_ALLOWED_HOSTS"


def _key_of(name: bytes, value: bytes) -> bytes | None:
    if name == b"authorization":
        scheme, _, token = value.partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else None
    return value if name in _KEY_HEADERS else None


def _given_keys(headers: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    return (key for name, value in headers if (key := _key_of(name, value)) is not None)


def _without_key(headers: list[tuple[bytes, bytes]], key: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if (_key_of(name, value) or b"") != key]

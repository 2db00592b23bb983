"""Who may ask. Pure: a request in, a refusal or nothing out.

The gateway acts as its user on the cluster, and any web page that the user opens can send requests to localhost. So
1. on loopback the Host header must be a name of loopback, or a page could reach us under its own name (DNS rebinding);
2. an Origin header must be our own address, or a page could send a POST that needs no answer;
3. with an API key, every request but the health checks must carry it.
"""

import hmac
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from gateway.settings import Settings, is_loopback

_OPEN_PATHS = ("/health", "/ready")
_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Refusal:
    status: int
    text: str


class Guard:
    def __init__(self, settings: Settings) -> None:
        self._key = settings.api_key.get_secret_value().encode() if settings.api_key else None
        self._hosts = tuple(name.lower() for name in settings.allowed_hosts)
        self._check_host = is_loopback(settings.host)
        self._welcome: set[bytes] = set()  # Host headers that have been found to be ours

    def refusal(self, path: str, headers: Headers) -> Refusal | None:
        """Why this request is not served, None when it is. Names of headers are in lower case."""
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        if len(hosts) > 1 or len(origins) > 1:
            return Refusal(
                400, f"the request has more than one {'Host' if len(hosts) > 1 else 'Origin'} header; send one"
            )
        host = hosts[0] if hosts else b""
        if self._check_host and host not in self._welcome:
            if not self._is_ours(host.decode("latin-1").lower()):
                return Refusal(403, _wrong_host(host.decode("latin-1").lower(), self._hosts))
            if len(self._welcome) < 100:
                self._welcome.add(host)
        if origins and origins[0].lower() not in (b"http://" + host.lower(), b"https://" + host.lower()):
            page = origins[0].decode("latin-1")
            return Refusal(
                403, f"a page from {page} may not use this gateway; call it from a program, or its own pages"
            )
        if self._key is None or path in _OPEN_PATHS:
            return None
        if any(hmac.compare_digest(given, self._key) for given in _given_keys(headers)):
            return None
        text = "this gateway wants its API key (GATEWAY_API_KEY) as `Authorization: Bearer …`, `X-API-Key` or `api-key`"
        return Refusal(401, text)

    def without_key(self, headers: Headers) -> Headers:
        """The headers that go further: the key is the gateway's own."""
        if self._key is None:
            return headers
        return [(name, value) for name, value in headers if (_key_of(name, value) or b"") != self._key]

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

"""Who has signed in with a browser: a cookie in the place of the key, so that no page and no script ever has the key.

In memory: a gateway that is started again asks again. A cookie of localhost goes to every port of localhost, whoever
listens there; so it is no key, ends after hours, and is taken only from requests that our own pages make.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.access import Headers
from orchestrator.keys import Key, Keys, hash_of

LIFETIME_SECONDS = 12 * 3600
_MOST = 1000  # at once; beyond them the oldest has to sign in again
_READING = ("GET", "HEAD")


@dataclass(frozen=True)
class Session:
    """`key_hash`: of the key with which it began. `until`: by the clock of `Sessions`."""

    key_hash: str
    until: float


def cookie_name(host: str) -> str:
    """By port, because browsers keep the cookies of all ports of a host together. `host`: the Host header."""
    port = host.rpartition(":")[2]
    return f"sluice-session-{port if port.isdigit() else 80}"


def from_our_page(method: str, headers: Headers) -> bool:
    """Whether a request comes from a page of ours, or was typed by the user; another Origin has been refused before.

    SameSite does not say so: a page on another port of localhost is of the same site.
    """
    first = dict(reversed(headers))
    site = first.get(b"sec-fetch-site")
    if site is not None:
        return site == b"same-origin" or (site == b"none" and method in _READING)
    return method in _READING or b"origin" in first


class Sessions:
    """`clock`: seconds, steady."""

    def __init__(self, keys: Keys, clock: Callable[[], float]) -> None:
        self._keys, self._clock = keys, clock
        self._open: dict[str, Session] = {}  # by the hash of the cookie's value, the oldest first

    def begin(self, key: Key) -> str:
        """Sign in; the value of the cookie."""
        self._forget_ended()
        while len(self._open) >= _MOST:
            self._open.pop(next(iter(self._open)))
        value = secrets.token_urlsafe(32)
        self._open[hash_of(value.encode())] = Session(key.hash, self._clock() + LIFETIME_SECONDS)
        return value

    def end(self, value: str) -> None:
        """Sign out. What was concluded of this cookie does not hold any more."""
        if self._open.pop(hash_of(value.encode()), None) is not None:
            self._keys.outdate()

    def key_of(self, headers: Headers) -> Key | None:
        """The key with which the browser signed in that sends these headers; also one that has ended meanwhile."""
        value = session_value(headers)
        session = self._open.get(hash_of(value.encode())) if value else None
        if session is None or session.until <= self._clock():
            return None
        return self._keys.by_hash(session.key_hash)

    def tick(self) -> None:
        """Called once a second."""
        if self._forget_ended():
            self._keys.outdate()

    def _forget_ended(self) -> bool:
        now, before = self._clock(), len(self._open)
        self._open = {value: session for value, session in self._open.items() if session.until > now}
        return len(self._open) < before


def session_value(headers: Headers) -> str:
    """The value of our cookie, "" for none. Cookies of others on this host may look like anything."""
    first = dict(reversed(headers))
    name = cookie_name(first.get(b"host", b"").decode("latin-1")).encode()
    for header, text in headers:
        for cookie in text.split(b";") if header == b"cookie" else ():
            key, _, value = cookie.strip().partition(b"=")
            if key == name:
                return value.decode("latin-1")
    return ""

"""Who may ask. Pure but for the keys: a request in, whose key it is or a refusal out.

The gateway acts as its user on the cluster, and any web page that the user opens can send requests to localhost. So
1. on loopback the Host header must be a name of loopback, or a page could reach us under its own name (DNS rebinding);
2. an Origin header must be our own address, or a page could send a POST that needs no answer;
3. where there are keys, every request but the health checks must carry one whose scope is enough, or the cookie that
   a browser got for one; the cookie is taken only from our own pages.
4. our pages are changed by themselves only, keys or not.
"""

import re
from collections.abc import Collection

from gateway.sessions import Sessions, from_our_page
from gateway.settings import Settings, is_loopback
from orchestrator.access import Headers, Refusal, doubled, foreign, judge
from orchestrator.keys import Key, Keys

WHAT = "gateway"
# A name or an address in brackets, and a port. Anything else, such as user@name, others may read in another way.
_HOST = re.compile(r"(?:\[([0-9a-f]*:[0-9a-f:.]*)\]|([a-z0-9._-]+))(?::[0-9]{0,5})?")


PAGES = "/ui/"
SIGN_IN = "/ui/sign-in"
STATIC = "/ui/static/"
_READING = ("GET", "HEAD")


class Guard:
    def __init__(self, settings: Settings, keys: Keys, sessions: Sessions) -> None:
        self.keys = keys
        self._sessions = sessions
        self._hosts = tuple(name.lower() for name in settings.allowed_hosts)
        self._on_loopback = is_loopback(settings.host)
        self._loopback_open = settings.loopback_open
        self._welcome: set[bytes] = set()  # Host headers that have been found to be ours

    def judge(self, method: str, path: str, headers: Headers) -> Key | Refusal | None:
        """Whose request it is, None where no key is wanted; or why it is not served. Names are in lower case."""
        refusal = doubled(headers) or self._wrong_host(headers) or foreign(headers, WHAT)
        ours = from_our_page(method, headers)
        if refusal is None and path.startswith(PAGES):
            refusal = None if ours or method in _READING else Refusal(403, _NOT_OURS)
        if refusal is not None or not self._wants_key or path == SIGN_IN or path.startswith(STATIC):
            return refusal
        signed_in = self._sessions.key_of(headers) if ours else None
        if path.startswith(PAGES):
            method = "GET"  # whoever may look may use a page; what it asks for is judged there, call by call
        return judge(self.keys, method, path, headers, WHAT, signed_in)

    @property
    def _wants_key(self) -> bool:
        """On loopback from the first key on; elsewhere always, also when all have ended."""
        return not self._on_loopback or (self.keys.any and not self._loopback_open)

    def _wrong_host(self, headers: Headers) -> Refusal | None:
        host = next((value for name, value in headers if name == b"host"), b"")
        if not self._on_loopback or host in self._welcome:
            return None
        name = host.decode("latin-1").lower()
        if not self._is_ours(name):
            return Refusal(403, _wrong_host(name, self._hosts))
        if len(self._welcome) < 100:
            self._welcome.add(host)
        return None

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        name = (found[1] or found[2]) if found else ""
        return is_loopback(name) or name.endswith(".localhost") or name in self._hosts


_NOT_OURS = "this is for this gateway's own pages; programs have the API, see /docs"


def _wrong_host(host: str, allowed: Collection[str]) -> str:
    names = ", ".join(("localhost", "127.0.0.1", "[::1]", *allowed))
    return f"the request is for host {host!r}, but this gateway answers to {names}; add a name by GATEWAY_ALLOWED_HOSTS"

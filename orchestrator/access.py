"""Who may ask for what: the same rules for the gateway and for the orchestrator's TCP port. Pure but for the keys.

A key is taken from three headers, of which each is what some client sends. What a request needs is read from its method
and path alone; what is not known here and changes something needs the most.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from orchestrator.keys import Key, Keys, Scope, said
from orchestrator.traffic import OTHER
from orchestrator.wire import Exchange, Handle, Reply
from orchestrator.wire.http1 import Request
from orchestrator.wire.server import Answered

Headers = list[tuple[bytes, bytes]]

OPEN = ("/health", "/ready")
"""Paths that need no key: whoever looks after a process has none."""
CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"cookie"})
"""Headers that are between a client and us: nobody behind us gets them."""

ACTOR = b"x-sluice-actor"
SCOPE = b"x-sluice-scope"
"""The name and the scope of the key with which a client was let in."""
CONTROL = b"x-sluice-control"
"""What may be the key of what asks for one of its own (`asks_itself`): there the orchestrator judges it, not we."""
_TOLD = frozenset({ACTOR, SCOPE, CONTROL})
BETWEEN_US = CREDENTIALS | _TOLD | {b"idempotency-key"}
"""Headers that a client sends for us: no engine gets them."""

_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
_READING = ("GET", "HEAD", "OPTIONS")
_ADMIN = re.compile(
    r"/api(/v1)?/(keys|audit)(/.*)?|/infra/vast(/.*)?|(/api(/v1)?)?/(queue|status)(/.*)?|/orchestrator(/.*)?"
)
_ITSELF = re.compile(r"/infra/vast(/.*)?")
# Snapshots are files and addresses that the engine reads and writes, a cluster's nodes are other machines.
_ENGINE_ITSELF = re.compile(r"/api(/v1)?(/services)?/vector-db/[^/]+/qdrant/(.*/)?(snapshots|cluster)(/.*)?")
_USE = re.compile(
    r"/v[12]/.+|/tokenize|/detokenize|/rerank|/score|/pooling|/classify"
    r"|(/api(/v1)?)?/slots/[^/]+/v[12]/.+"
    r"|/api(/v1)?/services/[^/]+(/v[12]/.+|/tokenize|/detokenize|/rerank|/score|/pooling|/classify)"
    r"|/api(/v1)?/services/[^/]+/activity"
    r"|/api(/v1)?(/services)?/vllm/[^/]+/prompt"
    r"|/api(/v1)?(/services)?/vector-db/[^/]+/.+"
    r"|(/api(/v1)?)?/jobs/[^/]+/cancel"  # of one's own, see orchestrator.deps.caller_of
)
_MANAGE = re.compile(
    r"/api(/v1)?/(services|service-groups)(/.*)?|/api(/v1)?/(preflight|render)"
    r"|/api(/v1)?/(models|images)/(pulls|pushes)(/.*)?"
    r"|(/api(/v1)?)?/slots(/.*)?|(/api(/v1)?)?/jobs(/.*)?"
)


def needed(method: str, path: str) -> Scope:
    """The scope that a request needs. `path` is raw, as in the request line, without the query."""
    decoded = unquote(path)  # as the routes read it, so that no spelling of a path asks for less
    if _ADMIN.fullmatch(decoded):
        return Scope.ADMIN
    if method in _READING:
        return Scope.USE
    if _ENGINE_ITSELF.fullmatch(decoded):
        return Scope.MANAGE
    if _USE.fullmatch(decoded):
        return Scope.USE
    return Scope.MANAGE if _MANAGE.fullmatch(decoded) else Scope.ADMIN


def asks_itself(path: str) -> bool:
    """Whether what is there asks for a key of its own, in X-API-Key, from everybody who has no admin key of ours."""
    return _ITSELF.fullmatch(unquote(path)) is not None


@dataclass(frozen=True)
class Refusal:
    status: int
    text: str


def doubled(headers: Headers) -> Refusal | None:
    """Two who read such a request could take different ones."""
    for name in (b"host", b"origin"):
        if sum(header == name for header, _ in headers) > 1:
            return Refusal(400, f"the request has more than one {name.decode().title()} header; send one")
    return None


def foreign(headers: Headers, what: str) -> Refusal | None:
    """A page of another site may not send requests, as it could even where it may not read the answers."""
    first = dict(reversed(headers))
    host, origin = first.get(b"host", b"").lower(), first.get(b"origin")
    if origin is None or origin.lower() in (b"http://" + host, b"https://" + host):
        return None
    page = origin.decode("latin-1")
    return Refusal(403, f"a page from {page} may not use this {what}; call it from a program, or its own pages")


def judge(
    keys: Keys, method: str, path: str, headers: Headers, what: str, signed_in: Key | None = None
) -> Key | Refusal | None:
    """The key that came with a request and is enough for it, or why there is none; None where none is needed.

    Names of headers are in lower case. Of what was not a key of ours nothing is said. `signed_in`: the key with which a
    browser has signed in; it counts where no other one is given.
    """
    if path in OPEN:
        return None
    given = [secret for secret in given_keys(headers) if secret]
    known = [key for key in (map(keys.find, given) if given else (signed_in,)) if key is not None]
    live = [key for key in known if keys.state(key) == "live"]
    need = needed(method, path)
    for key in live:
        if key.scope.covers(need):
            return key
    if asks_itself(path) and any(keys.find(secret) is None for secret in own_keys(headers)):
        return None
    if live:
        key = live[0]
        text = f"the key {key.name!r} has the scope {key.scope}, but {method[:20]} {path[:200]} needs {need}"
        return Refusal(403, f"{text}: use a key that has it, or make one: sluice keys create NAME --scope {need}")
    if known:
        return Refusal(401, _ended(known[0]))
    if given and keys.trouble:
        return Refusal(401, f"this {what} cannot read its keys, so it takes none of them; its log says why")
    if given:
        return Refusal(401, f"this {what} does not know the key that was given")
    return Refusal(401, f"this {what} wants an API key as `Authorization: Bearer …`, `X-API-Key` or `api-key`")


def given_keys(headers: Headers) -> Iterator[bytes]:
    """What may be keys, as clients send them."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield token.strip()
        elif name in _KEY_HEADERS:
            yield value.strip()


def own_keys(headers: Headers) -> list[bytes]:
    """What may be a key of what asks for one itself."""
    return [value.strip() for name, value in headers if name == b"x-api-key" and value.strip()]


def acting(headers: Headers, key: Key | None) -> Headers:
    """The headers with the name of whose key it is and its scope, in place of what a client says of itself."""
    kept = [header for header in headers if header[0] not in _TOLD]
    return kept if key is None else [*kept, (ACTOR, key.name.encode()), (SCOPE, key.scope.value.encode())]


class Caller(NamedTuple):
    """Who asks. With `sees_all` for what belongs to anybody, else for their own only: what is others' is not there."""

    actor: str
    sees_all: bool = True


def caller_of(headers: Headers) -> Caller:
    """As `acting` says it. On the user's own socket nobody says anything, and the user may see everything."""
    told = dict(reversed(headers))
    scope = told.get(SCOPE)
    if ACTOR not in told and scope is None:
        return Caller("user")
    actor = told.get(ACTOR, b"").decode("latin-1")[:100]
    return Caller(actor or "user", scope in (Scope.MANAGE.value.encode(), Scope.ADMIN.value.encode()))


def controlling(path: str, headers: Headers) -> Headers:
    """What else is told there where a key is asked for itself: the one that was given.

    `headers` are the client's. Nowhere else is anything told.
    """
    if not asks_itself(path):
        return []
    return [(CONTROL, value) for value in own_keys(headers)[:1]]


def _ended(key: Key) -> str:
    if key.revoked is not None:
        return f"the key {key.name!r} was revoked at {said(key.revoked)}; ask for another one"
    since = "" if key.expires is None else f" since {said(key.expires)}"
    return f"the key {key.name!r} has expired{since}; a new secret for it: sluice keys rotate {key.name}"


class Admission:
    """The handler in front of another one: only who has a key gets through to it.

    What was concluded from a head is kept with it (`Head.admitted`), until something changes about the keys.
    """

    def __init__(self, keys: Keys, inner: Handle, render: Callable[[str, int, str], bytes], what: str) -> None:
        self._keys, self._inner, self._render, self._what = keys, inner, render, what

    def __call__(self, request: Request, reply: Reply) -> Exchange:
        if request.head.admitted != self._keys.generation:
            judged = self._judge(request)
            if isinstance(judged, Refusal):
                request.kind = OTHER
                reply.write(self._render(request.path, judged.status, judged.text))
                reply.finish()
                return Answered()
            told = controlling(request.path, request.headers)
            request.head.headers = acting(request.headers, judged) + told
            request.head.admitted = self._keys.generation
        return self._inner(request, reply)

    def _judge(self, request: Request) -> Key | Refusal | None:
        headers, method = request.headers, request.method.decode()
        refusal = doubled(headers) or foreign(headers, self._what)
        return refusal or judge(self._keys, method, request.path, headers, self._what)

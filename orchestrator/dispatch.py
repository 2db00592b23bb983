"""Where a request goes: what a model answers takes the data path, everything else the application."""

import re
from dataclasses import dataclass, field

from orchestrator.envelope import envelope
from orchestrator.inference import Group, Inferences, Prefixes
from orchestrator.wire import Exchange, Reply
from orchestrator.wire.hosted import Application
from orchestrator.wire.http1 import Request, answer
from orchestrator.wire.server import Answered

# An engine answers more than that, some of it without asking for its key: these and no others are passed on.
INFERENCE = frozenset(
    {b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings", b"/v1/responses", b"/v1/messages",
     b"/v1/messages/count_tokens", b"/v1/rerank", b"/v2/rerank", b"/v1/score", b"/v1/pooling", b"/v1/classify",
     b"/v1/audio/transcriptions", b"/v1/audio/translations", b"/v1/audio/speech", b"/tokenize", b"/detokenize",
     b"/rerank", b"/score", b"/pooling", b"/classify"}
)  # fmt: skip
"""Paths of requests that name a model; with POST."""
OF_A_SERVICE = frozenset({b"/v1/models", b"/health", b"/version", b"/ping"})
"""Of one service also these; with GET. Its metrics are the application's, which labels them."""
_SERVICE = re.compile(
    rb"/api(?:/v1)?/services/(?:sg-)?([0-9A-Za-z_.-]{1,100})(?::([0-9]{1,5}))?"
    # Clients that are given a base URL ask for some things beside it: without its /v1.
    rb"(/v[12]/.+|/health|/version|/ping|/tokenize|/detokenize|/rerank|/score|/pooling|/classify)"
)
_SLOT = re.compile(rb"(?:/api(?:/v1)?)?/slots/([0-9A-Za-z_.-]{1,100})(/v[12]/.+)")


class Dispatch:
    """The handler of the orchestrator's server. Where a head leads is kept with it (`Head.memo`)."""

    def __init__(self, inferences: Inferences, application: Application) -> None:
        self._inferences = inferences
        self._application = application

    def __call__(self, request: Request, reply: Reply) -> Exchange:
        head = request.head
        way: Way | None = head.memo
        if way is None:
            way = head.memo = way_of(head.target)
        request.kind = way.kind
        if way.group is None:
            return self._application.exchange(request, reply)
        if head.method not in way.allowed:
            return refuse(reply, head.method, way.target, b", ".join(way.allowed))
        return self._inferences.begin(request, reply, way.target, way.group, way.prefixes)


@dataclass(frozen=True, slots=True)
class Way:
    """`group`: the replicas that may answer, None for the application; `target`: what the engine is asked for.

    `kind` is "" where the application counts its requests itself.
    """

    kind: str = ""
    group: Group | None = None
    target: bytes = b""
    allowed: tuple[bytes, ...] = ()
    prefixes: Prefixes = field(default_factory=dict)


def way_of(target: bytes) -> Way:
    """Where requests for a target go. Pure."""
    path = target.partition(b"?")[0]
    if path in INFERENCE:
        return Way(path.decode(), Group(), target, (b"POST",))
    if (slot := _SLOT.fullmatch(path)) is not None and slot[2] in INFERENCE:
        kind = "/slots/{name}" + slot[2].decode()
        return Way(kind, Group(slot=slot[1].decode()), target[slot.start(2) :], (b"POST",))
    match = _SERVICE.fullmatch(path)
    if match is None:
        return Way()
    below = match[3]
    group = Group(match[1].decode(), None if match[2] is None else int(match[2]))
    if below in OF_A_SERVICE:
        return Way("/api/services/{service_id}/v1", group, target[match.start(3) :], (b"GET", b"HEAD"))
    if below in INFERENCE:
        return Way("/api/services/{service_id}" + below.decode(), group, target[match.start(3) :], (b"POST",))
    return Way()


def refuse(reply: Reply, method: bytes, target: bytes, allowed: bytes) -> Answered:
    path = target.partition(b"?")[0]
    text = f"{path.decode('latin-1')} answers {allowed.decode()}, not {method.decode()[:20]}"
    reply.write(answer(405, envelope(405, text), [(b"allow", allowed)]))
    reply.finish()
    return Answered()

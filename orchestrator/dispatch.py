"""Where a request goes: what a model answers takes the data path, everything else the application."""

import re

from orchestrator.envelope import envelope
from orchestrator.inference import Group, Inferences
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
OF_A_SERVICE = frozenset({b"/v1/models", b"/health", b"/version", b"/metrics", b"/ping"})
"""Below the base URL of one service also these; with GET."""
_SERVICE = re.compile(rb"/api(?:/v1)?/services/(?:sg-)?([0-9A-Za-z_.-]{1,100})(?::([0-9]{1,5}))?(/v[12]/.+)")


class Dispatch:
    """The handler of the orchestrator's server."""

    def __init__(self, inferences: Inferences, application: Application) -> None:
        self._inferences = inferences
        self._application = application

    def __call__(self, request: Request, reply: Reply) -> Exchange:
        path = request.target.partition(b"?")[0]
        if path in INFERENCE:
            request.kind = path.decode()
            if request.method != b"POST":
                return refuse(reply, path, b"POST")
            return self._inferences.begin(request, reply, request.target, Group())
        if path.startswith(b"/api/") and (match := _SERVICE.fullmatch(path)):
            return self._of_a_service(request, reply, match)
        return self._application.exchange(request, reply)

    def _of_a_service(self, request: Request, reply: Reply, match: re.Match[bytes]) -> Exchange:
        below = match[3]
        request.kind = "/api/services/{service_id}" + below.decode() if below in INFERENCE else "/api/services/{…}/v1"
        if below in OF_A_SERVICE:
            allowed: tuple[bytes, ...] = (b"GET", b"HEAD")
        elif below in INFERENCE:
            allowed = (b"POST",)
        else:
            return self._application.exchange(request, reply)
        if request.method not in allowed:
            return refuse(reply, below, b", ".join(allowed))
        wanted = Group(match[1].decode(), None if match[2] is None else int(match[2]))
        return self._inferences.begin(request, reply, request.target[match.start(3) :], wanted)


def refuse(reply: Reply, path: bytes, allowed: bytes) -> Answered:
    text = f"{path.decode('latin-1')} answers {allowed.decode()}"
    reply.write(answer(405, envelope(405, text), [(b"allow", allowed)]))
    reply.finish()
    return Answered()

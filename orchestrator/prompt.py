"""The simple question of the HTTP API: put as an OpenAI request to the data path, and the answer taken apart."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.envelope import words
from orchestrator.errors import EngineError, NotReady, OrchestratorError
from orchestrator.incoming import Incoming
from orchestrator.inference import Group, Inferences
from orchestrator.replicas import Replica
from orchestrator.wire.http1 import Response, parse_request, request_head

# What the route itself understands; every other field goes to the engine as it is.
_OURS = frozenset({"prompt", "model", "stream"})
_PATHS = {"chat": b"/v1/chat/completions", "completions": b"/v1/completions"}


@dataclass(frozen=True)
class Question:
    """A prompt to the replicas of `group`, in their `model`'s name.

    `identity` is the request's id, `session` the name by which a client keeps to one replica, "" for none. `fields`:
    all that the client has sent. `trace`: the headers that say to which trace it belongs.
    """

    group: Group
    prompt: str
    model: str
    stream: bool
    fields: Mapping[str, Any]
    identity: bytes = b""
    session: bytes = b""
    trace: tuple[tuple[bytes, bytes], ...] = ()

    def bodies(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Chat first; plain completion for a model that has no chat template."""
        sampling = {name: value for name, value in self.fields.items() if name not in _OURS and value is not None}
        common = sampling | {"model": self.model} | ({"stream": True} if self.stream else {})
        yield "chat", {"messages": [{"role": "user", "content": self.prompt}], **common}
        yield "completions", {"prompt": self.prompt, **common}


@dataclass(frozen=True)
class Answer:
    """The model's words, and the replica that said them. `endpoint_used`: "chat" or "completions". `usage` is the
    engine's own count."""

    text: str
    endpoint_used: str
    usage: dict[str, Any] | None
    replica: str
    endpoint: str


async def ask(inferences: Inferences, question: Question) -> Answer:
    """Raises EngineError with the engine's own words, and its own status where that is the client's fault."""
    async with answering(inferences, question) as (endpoint, incoming):
        body = await incoming.whole()
        assert incoming.replica is not None
        return answer_of(incoming.replica, body, endpoint)


@asynccontextmanager
async def answering(inferences: Inferences, question: Question) -> AsyncIterator[tuple[str, Incoming]]:
    """An answer of which the head is here. Whoever leaves before its end ends the engine's work.

    Raises NotReady, or EngineError with the words of whoever refused.
    """
    for endpoint, body in question.bodies():
        async with _asked(inferences, question, _PATHS[endpoint], json.dumps(body).encode()) as incoming:
            response = await incoming.response()
            if response.status == 200:
                yield endpoint, incoming
                return
            said = await incoming.whole()
        if response.status != 400 or not lacks_chat_template(said.decode(errors="replace")):
            break
    raise refusal(incoming.replica, response, said)


@asynccontextmanager
async def _asked(inferences: Inferences, question: Question, target: bytes, body: bytes) -> AsyncIterator[Incoming]:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *question.trace]
    if question.session:
        headers.append((b"session", question.session))
    request = parse_request(request_head(b"POST", target, headers))
    request.id = question.identity
    incoming = Incoming()
    inference = incoming.inference = inferences.begin(request, incoming, target, question.group, {})
    inference.feed(body)
    inference.end()
    try:
        yield incoming
    finally:
        incoming.leave()


def lacks_chat_template(text: str) -> bool:
    return "chat template" in text.lower() or "chat_template" in text.lower()


def answer_of(replica: Replica, body: bytes, endpoint: str) -> Answer:
    """The answer in an engine's response. Raises EngineError for what is none."""
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text = choice["message"]["content"] if endpoint == "chat" else choice["text"]
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise EngineError(f"replica {replica.id} answered with something that is no completion") from exc
    return Answer(text or "", endpoint, content.get("usage"), replica.id, replica.url)


def refusal(replica: Replica | None, response: Response, body: bytes) -> OrchestratorError:
    """The error for an answer that is none, of a replica or of the data path. A 4xx is the request's fault."""
    try:
        said = words(json.loads(body))[:2000]
    except ValueError:
        said = f"status {response.status} without a message"
    text = said if replica is None else f"replica {replica.id}: {said}"
    later = response.header(b"retry-after") or b""
    retry_after = int(later) if later.isdigit() else None
    if response.status == 503:
        return NotReady(text, retry_after=retry_after or 5)
    return EngineError(text, upstream_status=response.status, retry_after=retry_after)

"""A prompt to a replica: the simple question of the HTTP API, put as an OpenAI request, and the answer taken apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from orchestrator.errors import EngineError, ReplicaFailed
from orchestrator.replicas import Replica

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
# What the route itself understands; every other field goes to the engine as it is.
_OURS = frozenset({"prompt", "model", "stream"})


@dataclass(frozen=True)
class Answer:
    """The model's words. `endpoint_used`: "chat" or "completions". `usage` is the engine's own count."""

    text: str
    endpoint_used: str
    usage: dict[str, Any] | None


def chat_body(prompt: str, model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **_sampling(fields)}


def completion_body(prompt: str, model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, **_sampling(fields)}


def _sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _OURS and value is not None}


async def ask(
    client: httpx2.AsyncClient, replica: Replica, prompt: str, model: str, fields: Mapping[str, Any]
) -> Answer:
    """Chat first; plain completion for a model that has no chat template.

    Raises EngineError with the engine's own words, and its own status where that is the client's fault.
    """
    response = await _post(client, replica, CHAT, chat_body(prompt, model, fields))
    if response.status_code == 400 and lacks_chat_template(response.text):
        response = await _post(client, replica, COMPLETIONS, completion_body(prompt, model, fields))
        return answer_of(replica, response, "completions")
    return answer_of(replica, response, "chat")


async def _post(client: httpx2.AsyncClient, replica: Replica, path: str, body: dict[str, Any]) -> httpx2.Response:
    try:
        return await client.post(f"{replica.url}{path}", json=body, headers=replica.headers)
    except httpx2.ConnectError as exc:
        replica.down("the engine refused the connection")
        raise ReplicaFailed(f"replica {replica.id} refused the connection") from exc
    except httpx2.HTTPError as exc:
        raise ReplicaFailed(f"replica {replica.id} broke off: {type(exc).__name__} {exc}") from exc


def lacks_chat_template(text: str) -> bool:
    return "chat template" in text.lower() or "chat_template" in text.lower()


def answer_of(replica: Replica, response: httpx2.Response, endpoint: str) -> Answer:
    """The answer in an engine's response. Raises EngineError for a refusal and for what is not an answer."""
    if response.status_code != 200:
        raise refusal(replica, response)
    try:
        content = response.json()
        choice = content["choices"][0]
        text = choice["message"]["content"] if endpoint == "chat" else choice["text"]
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise EngineError(f"replica {replica.id} answered with something that is no completion") from exc
    return Answer(text=text or "", endpoint_used=endpoint, usage=content.get("usage"))


def refusal(replica: Replica, response: httpx2.Response) -> EngineError:
    """The error for an engine's refusal: a 4xx is the request's fault, anything else the replica's."""
    words = f"replica {replica.id}: {engine_words(response)}"
    if 400 <= response.status_code < 500:
        return EngineError(words, upstream_status=response.status_code)
    return ReplicaFailed(words)


def engine_words(response: httpx2.Response) -> str:
    """The message in an engine's error: OpenAI's envelope, vLLM's older flat form, a bare string, or the text."""
    try:
        content = response.json()
    except ValueError:
        return response.text[:1000] or f"status {response.status_code} without a message"
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:2000]

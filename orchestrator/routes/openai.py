"""What OpenAI's clients ask beside the models' answers: which models there are."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from orchestrator import __version__
from orchestrator.deps import App, Orchestrator, check_ready, find
from orchestrator.errors import NotFound
from orchestrator.replicas import Replica
from orchestrator.slots import Slot
from orchestrator.tasks import LATER


class Problem(BaseModel):
    """OpenAI's form of an error."""

    error: dict[str, Any]


FORM = {"model": Problem, "description": "An error in OpenAI's form."}
ERRORS: dict[int | str, dict[str, Any]] = {status: FORM for status in (400, 404, 409, 413, 422, 502, 503, 507)}

router = APIRouter(tags=["openai"], responses=ERRORS)
of_a_service = APIRouter(tags=["openai"])
"""Below the base URL of one service, where its engine has no answer of its own."""


@router.get("/v1/models", summary="List the models that answer, and those that are started when they are asked for")
async def list_models(app: App) -> dict[str, Any]:
    """In OpenAI's form, with what each engine says of its model. `state` is `running`, `loading`, `waiting`,
    `stopping`, `sleeping` or `failed`; `slot` the place that a model shares with others."""
    return {"object": "list", "data": cards(app, app.replicas.every(), app.slots)}


@router.get("/v1/models/{model_id:path}", summary="Show a model")
async def show_model(app: App, model_id: str) -> dict[str, Any]:
    """The name may have slashes, encoded or not."""
    return _named(model_id, cards(app, app.replicas.every(), app.slots))


@of_a_service.get("/services/{service_id}/v1/models/{model_id:path}", summary="Show a model of a service")
async def show_model_of_service(app: App, service_id: str, model_id: str) -> dict[str, Any]:
    """The name may have slashes, encoded or not."""
    wanted = await find(app, service_id)
    check_ready(app, wanted)
    group = [r for r in app.replicas.of(wanted.service.submission_id) if wanted.port in (None, r.port)]
    return _named(model_id, cards(app, group))


@router.get("/api/tags", summary="List the models as Ollama does", include_in_schema=False)
async def list_tags(app: App) -> dict[str, Any]:
    """For programs that ask an Ollama which models there are. They are asked at `/v1`, which Ollama has too."""
    listed = cards(app, app.replicas.every(), app.slots)
    modified = app.started_at.isoformat()
    return {"models": [{"name": one["id"], "model": one["id"], "modified_at": modified} for one in listed]}


@router.get("/version", summary="Show the version")
async def show_version() -> Response:
    """As vLLM's clients ask for it."""
    return Response(json.dumps({"version": __version__}), media_type="application/json")


def _named(model_id: str, there: list[dict[str, Any]]) -> dict[str, Any]:
    known = {card["id"]: card for card in there}
    if model_id not in known:
        raise NotFound(f"The model {model_id[:200]!r} does not answer now; there is {', '.join(known) or 'none'}")
    return known[model_id]


def cards(app: Orchestrator, replicas: Sequence[Replica], slots: Iterable[Slot] = ()) -> list[dict[str, Any]]:
    """One for each model by name, however many of the replicas serve it, and one for each model of the slots."""
    found: dict[str, dict[str, Any]] = {}
    for replica in replicas:
        if replica.ready:
            for card in replica.cards:
                found.setdefault(card["id"], {**card, "state": "running", "slot": replica.slot})
    for slot in slots:
        for name in dict.fromkeys([*slot.models, slot.name]):
            place = {"id": name, "state": slot.state(name if name in slot.models else slot.comes), "slot": slot.name}
            found[name] = found.get(name, {}) | place
    basis = {"object": "model", "created": int(app.started_at.timestamp()), "owned_by": "sluicegate", "parent": None}
    return [basis | {"root": name} | card for name, card in sorted(found.items())]


def operations() -> dict[str, Any]:
    """OpenAPI's paths for what the data path answers, see `orchestrator.dispatch`: FastAPI does not know of it."""
    return {
        path: {
            "post": _operation(
                summary,
                {
                    "application/json": {
                        "schema": _BODY_OF_LATER if path in LATER else _BODY,
                        "example": {"model": _NAME} | example,
                    }
                },
                _QUEUED if path in LATER else {},
            )
        }
        for path, (summary, example) in _ASKED.items()
    } | {"/v1/audio/transcriptions": {"post": _operation("Write down what is said in a recording", _RECORDING, {})}}


_NAME = "Qwen/Qwen2.5-0.5B-Instruct"
_QUESTION = "Which city is the capital of France?"
_MESSAGES = {"messages": [{"role": "user", "content": _QUESTION}]}
_BEGUN = {"prompt": "The capital of France is", "max_tokens": 8}
_TEXTS = ["Paris is the capital of France.", "Berlin is a city in Germany."]
_ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/chat/completions": ("Answer a chat, by any model that runs here", _MESSAGES),
    "/v1/completions": ("Complete a text, by any model that runs here", _BEGUN),
    "/v1/responses": ("Answer by OpenAI's newer API", {"input": _QUESTION}),
    "/v1/messages": ("Answer by Anthropic's API", {"max_tokens": 100} | _MESSAGES),
    "/v1/embeddings": ("Make vectors of texts", {"input": _TEXTS}),
    "/v1/rerank": ("Sort texts by how well they answer a question", {"query": _QUESTION, "documents": _TEXTS}),
    "/v1/score": ("Compare a text with others", {"text_1": _QUESTION, "text_2": _TEXTS}),
    "/tokenize": ("Show a text's tokens", {"prompt": _QUESTION}),
    "/detokenize": ("Make a text of tokens", {"tokens": [1, 2, 3]}),
}
_BODY: dict[str, Any] = {
    "type": "object",
    "properties": {"model": {"type": ["string", "null"]}, "stream": {"type": ["boolean", "null"]}},
}
_BODY_OF_LATER = _BODY | {"properties": _BODY["properties"] | {"async": {"type": ["boolean", "null"]}}}
_RECEIPT = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["job_id", "id", "status", "created_at", "status_url", "result_url"],
            "properties": {name: {"type": "string"} for name in ("job_id", "id", "status", "status_url", "result_url")}
            | {"created_at": {"type": "string", "format": "date-time"}},
        }
    }
}
_FORM_OF_A_RECORDING = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}, "model": {"type": "string"}},
}
_RECORDING = {
    "multipart/form-data": {
        "schema": _FORM_OF_A_RECORDING,
        "example": {"file": "the bytes of speech.wav", "model": "openai/whisper-small"},
    }
}
_ERROR: dict[str, Any] = {"application/json": {"schema": {"type": "object", "required": ["error"]}}}
Answers = dict[str, tuple[str, dict[str, Any]]]
_QUEUED: Answers = {
    "202": ('The request says "async": true and is queued; `status_url` tells how it stands.', _RECEIPT),
    "413": ("A request that is queued has at most 32 MiB.", _ERROR),
    "422": ("The Idempotency-Key of a request to be queued is wrong, or belongs to another one.", _ERROR),
}
_DESCRIPTION = (
    "`model` chooses the service; the request goes to one of its replicas as it is, and so does the answer, "
    "with `stream: true` token by token. What an engine cannot do it refuses itself. Served in the same way: "
    "`/v1/pooling`, `/v1/classify`, `/v2/rerank`, `/v1/messages/count_tokens`, `/v1/audio/translations`, "
    "`/v1/audio/speech`, and `/rerank`, `/score`, `/pooling` and `/classify` without `/v1`. "
    "One service alone has the base URL `/api/v1/services/{id}/v1`."
)


def _operation(summary: str, asked: dict[str, Any], further: Answers) -> dict[str, Any]:
    """`asked`: the media types of the body, each with its schema and an example; `further`: its own answers."""
    error: dict[str, Any] = _ERROR
    answers: Answers = {
        "200": ("The engine's answer.", {"application/json": {}, "text/event-stream": {}}),
        "400": ("The engine refuses the request, or it is no JSON.", error),
        "404": ("No service serves this model; the text names those that are served.", error),
        "429": ("The replicas have as much to do as they may; Retry-After says when to ask again.", error),
        "502": ("The engine failed.", error),
        "503": ("The model's service does not answer yet; the text says what it waits for.", error),
    } | further
    return {
        "tags": ["openai"],
        "summary": summary,
        "description": _DESCRIPTION,
        "requestBody": {"required": True, "content": asked},
        "responses": {code: {"description": text, "content": content} for code, (text, content) in answers.items()},
    }

"""What OpenAI's clients ask beside the models' answers: which models there are."""

import json
from typing import Any

from fastapi import APIRouter, Response

from orchestrator import __version__
from orchestrator.deps import App, Orchestrator
from orchestrator.errors import NotFound

router = APIRouter(tags=["openai"])


@router.get("/v1/models", summary="List the models that answer now")
async def list_models(app: App) -> dict[str, Any]:
    """In OpenAI's form, with what each engine says of its model."""
    return {"object": "list", "data": cards(app)}


@router.get("/v1/models/{model_id:path}", summary="Show a model")
async def show_model(app: App, model_id: str) -> dict[str, Any]:
    """The name may have slashes, encoded or not."""
    known = {card["id"]: card for card in cards(app)}
    if model_id not in known:
        raise NotFound(f"The model {model_id[:200]!r} does not answer now; there is {', '.join(known) or 'none'}")
    return known[model_id]


@router.get("/version", summary="Show the version")
async def show_version() -> Response:
    """As vLLM's clients ask for it."""
    return Response(json.dumps({"version": __version__}), media_type="application/json")


def cards(app: Orchestrator) -> list[dict[str, Any]]:
    """One for each model by name, however many replicas serve it."""
    found: dict[str, dict[str, Any]] = {}
    for replica in app.replicas.every():
        if replica.ready:
            for card in replica.cards:
                found.setdefault(card["id"], card)
    basis = {"object": "model", "created": int(app.started_at.timestamp()), "owned_by": "sluicegate", "parent": None}
    return [basis | {"root": name} | card for name, card in sorted(found.items())]

"""Slots: which model is loaded, who waits, and a switch by command."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict

from orchestrator.deps import App
from orchestrator.routes.openai import ERRORS, cards
from orchestrator.routes.strict import StrictRoute
from orchestrator.slots import Slot
from orchestrator.switching import Phase

router = APIRouter(tags=["slots"], route_class=StrictRoute)

Name = Annotated[str, Path(description="The name of a slot.", examples=["main"])]


class SlotModel(BaseModel):
    """`state`: running, loading, waiting, stopping, sleeping or failed. `waiting`: requests. `told`: what they wait
    for, "" where none does."""

    name: str
    state: str
    waiting: int
    longest_wait_seconds: float
    told: str


class SlotShape(BaseModel):
    """`base_url` is below this server's; it stays the same whatever is loaded.

    `last_switch_seconds`: how long the last model took until it answered; null before the first.
    """

    name: str
    base_url: str
    phase: Phase
    loaded: str | None
    models: list[SlotModel]
    switches: int
    last_switch_seconds: float | None


class Switch(BaseModel):
    """`model`: what is to be loaded, whoever asks for what; null: nothing."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"model": "qwen3-30b"}, {"model": None}]})

    model: str | None


@router.get("/slots", summary="List the slots")
async def list_slots(app: App) -> list[SlotShape]:
    """The places in which one model at a time is loaded."""
    return [slot_shape(app.slots.find(name)) for name in app.slots.declared]


@router.get("/slots/{name}", summary="Show a slot")
async def show_slot(app: App, name: Name) -> SlotShape:
    return slot_shape(app.slots.find(name))


@router.get("/slots/{name}/v1/models", summary="List the models of a slot", responses=ERRORS)
async def list_slot_models(app: App, name: Name) -> dict[str, Any]:
    """In OpenAI's form, with their states."""
    slot = app.slots.find(name)
    return {"object": "list", "data": cards(app, app.replicas.in_slot(name, None), [slot])}


@router.post("/slots/{name}/switch", summary="Load another model", status_code=202)
async def switch_slot(app: App, name: Name, wanted: Switch) -> SlotShape:
    """Answers at once; requests under way are answered first, and `GET /slots/{name}` tells how it goes on."""
    slot = app.slots.find(name)
    slot.switch(wanted.model)
    return slot_shape(slot)


def slot_shape(slot: Slot) -> SlotShape:
    waits = slot.waits()
    return SlotShape(
        name=slot.name,
        base_url=f"/slots/{slot.name}/v1",
        phase=slot.phase,
        loaded=slot.loaded,
        models=[
            SlotModel(
                name=model,
                state=slot.state(model),
                waiting=slot.waiting(model),
                longest_wait_seconds=waits.get(model, 0.0),
                told=slot.told(model) if model in waits else "",
            )
            for model in slot.models
        ],
        switches=slot.switches,
        last_switch_seconds=slot.last_switch,
    )

"""Which model a slot has, and when another takes its place. Pure.

             a model is asked for              its engine answers
    EMPTY ────────────────────────▶ LOADING ─────────────────────▶ SERVING
      ▲                                │ too late, not wanted          │ another one's turn
      │        its job is gone         ▼                               ▼
      └──────────────────────────── LEAVING ◀── what is under way is answered, nothing new begins

A loaded model keeps its turn while it has requests, but not for longer than `max_wait` against another one that is
waited for, and then for `min_serve` at least: neither starves, and a switch, which costs minutes, serves all who wait.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.model_list import Policy

SETTLED = 0.3  # seconds without a request, until a model counts as having none


class Phase(StrEnum):
    EMPTY = "empty"
    LOADING = "loading"
    SERVING = "serving"
    LEAVING = "leaving"


@dataclass(frozen=True)
class Wish:
    """A model that somebody has switched to by command; None: the slot is to be empty."""

    model: str | None


@dataclass(frozen=True)
class View:
    """A slot at one moment. Times are in seconds.

    `waits`: the models that are waited for, and since how long. `lasted`: how long the phase has. `quiet`: since how
    long the loaded model has had no request under way. `stopping`: its job has been told to end.
    """

    phase: Phase = Phase.EMPTY
    loaded: str | None = None
    waits: Mapping[str, float] = field(default_factory=dict)
    lasted: float = 0
    in_flight: int = 0
    quiet: float = 0
    stopping: bool = False
    wish: Wish | None = None


class Act(StrEnum):
    WAIT = "wait"
    LOAD = "load"  # start a model's job
    LEAVE = "leave"  # begin nothing more with the loaded model
    STOP = "stop"  # end its job
    GIVE_UP = "give up"  # end its job, which has not answered in time


@dataclass(frozen=True)
class Step:
    act: Act
    model: str | None = None


_WAIT = Step(Act.WAIT)


def step(view: View, policy: Policy) -> Step:
    """What is to be done now."""
    match view.phase:
        case Phase.EMPTY:
            return _of_empty(view)
        case Phase.LOADING:
            return _of_loading(view, policy)
        case Phase.SERVING:
            return Step(Act.LEAVE) if _must_leave(view, policy) else _WAIT
        case Phase.LEAVING:
            ready = not view.in_flight or view.lasted >= policy.drain_timeout
            return Step(Act.STOP) if ready and not view.stopping else _WAIT


def _of_empty(view: View) -> Step:
    if view.wish is not None and view.wish.model is not None:
        return Step(Act.LOAD, view.wish.model)
    if view.waits:
        return Step(Act.LOAD, longest(view.waits))
    return _WAIT


def _of_loading(view: View, policy: Policy) -> Step:
    if view.lasted >= policy.switch_timeout:
        return Step(Act.GIVE_UP)
    wanted = view.loaded in view.waits or (view.wish is not None and view.wish.model == view.loaded)
    return Step(Act.STOP) if not wanted and (view.waits or view.wish is not None) else _WAIT


def _must_leave(view: View, policy: Policy) -> bool:
    if view.wish is not None:
        return view.wish.model != view.loaded
    others = [waited for model, waited in view.waits.items() if model != view.loaded]
    if not others:
        return False
    if view.loaded not in view.waits and not view.in_flight and view.quiet >= SETTLED:
        return True
    return max(others) >= policy.max_wait and view.lasted >= policy.min_serve


def longest(waits: Mapping[str, float]) -> str:
    """The model that has been waited for longest."""
    return max(waits, key=lambda model: waits[model])

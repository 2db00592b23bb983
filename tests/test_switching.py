"""Which model a slot has next: the decision by itself."""

from dataclasses import replace

import pytest

from orchestrator.model_list import Policy
from orchestrator.switching import Act, Phase, Step, View, Wish, step

POLICY = Policy(switch_timeout=600, max_wait=60, min_serve=10, drain_timeout=30)
SERVING = View(phase=Phase.SERVING, loaded="a", lasted=100, quiet=100)
LOADING = View(phase=Phase.LOADING, loaded="a", waits={"a": 5}, lasted=5)
LEAVING = View(phase=Phase.LEAVING, loaded="a", lasted=1)
WAIT, LEAVE, STOP = Step(Act.WAIT), Step(Act.LEAVE), Step(Act.STOP)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(), WAIT),
        (View(waits={"a": 1, "b": 2}), Step(Act.LOAD, "b")),
        (View(waits={"a": 1}, wish=Wish("b")), Step(Act.LOAD, "b")),
        (View(wish=Wish(None)), WAIT),
        # What loads goes on loading while somebody waits for it, or has asked for it by command.
        (LOADING, WAIT),
        (replace(LOADING, waits={}), WAIT),
        (replace(LOADING, waits={"a": 1, "b": 100}), WAIT),
        (replace(LOADING, waits={"b": 1}), STOP),
        (replace(LOADING, waits={"b": 1}, wish=Wish("a")), WAIT),
        (replace(LOADING, wish=Wish("b")), WAIT),
        (replace(LOADING, waits={}, wish=Wish("b")), STOP),
        (replace(LOADING, waits={}, wish=Wish(None)), STOP),
        (replace(LOADING, lasted=600), Step(Act.GIVE_UP)),
        # A model that has nothing to do makes room, one that has keeps its turn, but not for ever.
        (SERVING, WAIT),
        (replace(SERVING, waits={"b": 0.1}), LEAVE),
        (replace(SERVING, waits={"b": 0.1}, in_flight=1), WAIT),
        (replace(SERVING, waits={"b": 0.1}, quiet=0.1), WAIT),
        (replace(SERVING, waits={"b": 0.1, "a": 0.1}), WAIT),
        (replace(SERVING, waits={"b": 59}, in_flight=1), WAIT),
        (replace(SERVING, waits={"b": 60}, in_flight=1), LEAVE),
        (replace(SERVING, waits={"b": 60, "a": 1}), LEAVE),
        (replace(SERVING, waits={"b": 60}, in_flight=1, lasted=9), WAIT),
        # A command does not wait for its turn.
        (replace(SERVING, in_flight=1, wish=Wish("b")), LEAVE),
        (replace(SERVING, in_flight=1, wish=Wish(None)), LEAVE),
        (replace(SERVING, waits={"b": 100}, wish=Wish("a")), WAIT),
        # What is under way is answered first, for a while.
        (replace(LEAVING, in_flight=1), WAIT),
        (replace(LEAVING, in_flight=1, lasted=30), STOP),
        (LEAVING, STOP),
        (replace(LEAVING, stopping=True, lasted=1000), WAIT),
    ],
)
def test_the_next_step(view: View, expected: Step) -> None:
    assert step(view, POLICY) == expected

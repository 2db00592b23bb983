"""When a rented machine is stopped because nobody uses it: tables."""

from datetime import datetime, timedelta

import pytest

from orchestrator.replicas import Replica
from orchestrator.settings import Vast
from orchestrator.vast.idle import is_due, last_use, minutes_left
from tests.orchestrating import START


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def replica(used: float | None, in_flight: int = 0) -> Replica:
    one = Replica("vast", "vast", START, "vast", 0, "8.8.4.4", 1, "", "", "/health", None, rented=True)
    one.last_used, one.in_flight = None if used is None else at(used), in_flight
    return one


@pytest.mark.parametrize(
    ("told", "replicas", "used"),
    [
        (None, [], None),
        (5, [], 5),
        (None, [replica(None)], None),
        (5, [replica(None)], 5),
        (5, [replica(7)], 7),
        (9, [replica(7)], 9),
        (None, [replica(7), replica(8)], 8),
        (5, [replica(7, in_flight=1)], 100),  # now
        (None, [replica(7), replica(None, in_flight=2)], 100),
    ],
)
def test_the_last_use(told: float | None, replicas: list[Replica], used: float | None) -> None:
    found = last_use(None if told is None else at(told), replicas, at(100))
    assert found == (None if used is None else at(used))


@pytest.mark.parametrize(
    ("now", "due", "left"),
    [
        (0, False, 30),
        (0.1, False, 30),
        (5, False, 25),
        (29.9, False, 1),
        (30, True, 0),
        (90, True, 0),
        (-60, False, 30),
    ],
)
def test_the_end_is_so_far_away(now: float, due: bool, left: int) -> None:
    """Also when the clock was set back: it is never farther away than from the last use."""
    assert is_due(Vast(), at(0), at(now)) is due
    assert minutes_left(Vast(), at(0), at(now)) == left
    never = Vast(auto_shutdown=False)
    assert (is_due(never, at(0), at(now)), minutes_left(never, at(0), at(now))) == (False, None)

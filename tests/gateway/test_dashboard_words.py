"""Numbers and times of the pages, in words."""

import pytest

from gateway.dashboard.words import minutes, seconds_between

NOON = "2026-11-27T12:00:00Z"


@pytest.mark.parametrize(
    ("since", "until", "seconds"),
    [
        (NOON, "2026-11-27T12:01:30Z", 90),
        (NOON, "2026-11-27T13:00:00.5+00:00", 3600.5),
        ("2026-11-27T12:00:00.9Z", NOON, 0),  # Slurm's times are in whole seconds, ours are not
        (NOON, None, None),
        (None, NOON, None),
    ],
)
def test_what_lies_between_two_times_is_never_below_zero(
    since: str | None, until: str | None, seconds: float | None
) -> None:
    assert seconds_between(since, until) == seconds


@pytest.mark.parametrize(("count", "words"), [(90, "1 h 30 min"), (60, "1 h"), (5, "5 min"), (0, "0 min"), (None, "—")])
def test_minutes(count: float | None, words: str) -> None:
    assert minutes(count) == words

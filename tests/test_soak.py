"""The chain from client to engine under load of every kind for a minute, and with a thousand streams at once.

`make soak` does the first for as long as is wanted.
"""

import os
from collections.abc import Iterator

import pytest

from bench import native, soak
from bench.chains import Chain
from bench.parts import Place
from tests.gateway.sshd import BINARY

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SECONDS = 60.0
_MOST_MEGABYTES = 300  # of each process, with 1,000 streams open


@pytest.fixture
def chain() -> Iterator[tuple[Chain, Place]]:
    reason = "NO SSHD, so the chain is not soaked: apt-get install openssh-server" if BINARY is None else ""
    try:
        native.driver()
    except native.NoCompiler as exc:
        reason = str(exc)
    if reason:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with soak.chain_up() as up:
        yield up


def test_nothing_hangs_is_wrong_or_is_left_behind(chain: tuple[Chain, Place]) -> None:
    outcome = soak.Soak(*chain, SECONDS).run()
    assert outcome.problems == []
    counts = outcome.counts
    done = [f"{kind}, {end}" for kind in ("plain", "stream", "big") for end in ("whole", "left")]
    assert all(counts[what] > 20 for what in done), counts
    assert counts["engines killed"] >= 5, counts
    assert counts["cut by a kill"] > 0, counts  # the kills did hit answers


def test_a_thousand_streams_are_neither_lost_nor_cut(chain: tuple[Chain, Place]) -> None:
    megabytes = soak.many_streams(*chain, soak.STREAMS)
    print({name: round(value, 1) for name, value in megabytes.items()})
    assert all(value < _MOST_MEGABYTES for value in megabytes.values()), megabytes


def test_the_table_has_what_was_held_before_and_after() -> None:
    before, after = soak.Held(7, 21, 120_400, 70.2), soak.Held(7, 22, 121_000, 74.6)
    outcome = soak.Outcome(before={"gateway": before}, after={"gateway": after})
    assert soak.table_of(outcome, {"gateway": 131.4, "sshd": 20.0}).splitlines()[-1] == (
        "| gateway | 7 → 7 | 21 → 22 | 120,400 → 121,000 | 70 → 75 | 131 |"
    )

"""The history of the charts: counters sampled, samples put together, percentiles, and what is not known."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from gateway.dashboard.history import History, Sample, Tokens, bins, percentile
from gateway.metrics import traffic_in
from orchestrator.traffic import BUCKETS, Totals, Traffic
from tests.orchestrating import Clock

BOUNDS = (0.1, 1.0, None)
NOTHING = (0,) * (len(BUCKETS) + 1)


def sample(at: float, requests: int = 0, tokens: int | None = None, seconds: float = 15.0) -> Sample:
    times = (0, 0, requests, *NOTHING[3:])
    told = None if tokens is None else Tokens(tokens, 2 * tokens, (tokens, 0, 0), BOUNDS)
    return Sample(at, seconds, Totals(requests, 0, times), 3, told)


@pytest.mark.parametrize(
    ("counts", "part", "seconds"),
    [
        ((0, 0, 0), 0.5, None),
        ((10, 0, 0), 0.5, 0.05),
        ((10, 10, 0), 0.5, 0.1),
        ((10, 10, 0), 0.75, 0.55),
        ((0, 10, 0), 0.95, 0.1 + 0.9 * 0.95),
        ((0, 0, 5), 0.5, 1.0),  # longer than all bounds
        ((1, 0, 9), 0.95, 1.0),
    ],
)
def test_percentiles(counts: tuple[int, ...], part: float, seconds: float | None) -> None:
    assert percentile(counts, BOUNDS, part) == (None if seconds is None else pytest.approx(seconds))


def test_samples_become_rates_in_bins_that_begin_at_multiples_of_their_length() -> None:
    samples = [sample(1000, 30, 15), sample(1015, 0, 15), sample(1030, 60), sample(1300, 15, 0)]
    found = bins(samples, 60, now=1310, number=6)
    assert [one.at for one in found] == [960, 1020, 1080, 1140, 1200, 1260]
    first, second, empty, *_, last = found
    assert (first.requests, first.others, first.prompt, first.generated) == (1.0, 6 / 30, 1.0, 2.0)
    assert (second.requests, second.prompt) == (4.0, None)
    assert (empty.requests, empty.latency, empty.first) == (None, (None, None), (None, None))
    assert (last.requests, last.prompt, last.first) == (1.0, 0.0, (None, None))
    assert list(first.latency) == pytest.approx([0.0175, 0.02425])
    assert list(first.first) == pytest.approx([0.05, 0.095])


def test_what_is_older_than_the_chart_or_from_the_future_is_left_out() -> None:
    found = bins([sample(10, 1), sample(5000, 1), sample(990, 15)], 15, now=1000, number=2)
    assert [(one.at, one.requests) for one in found] == [(975, None), (990, 1.0)]


def usage(tokens: int) -> Tokens:
    return Tokens(tokens, 2 * tokens, (tokens, 0, 0), BOUNDS)


class Line:
    """A history whose clocks and whose engines the test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.traffic: Traffic = traffic_in(CollectorRegistry())
        self.tokens: Tokens | None = None
        self.history = History(self.traffic, self.ask, lambda: self.clock().timestamp(), self.clock.steady)

    async def ask(self) -> Tokens | None:
        return self.tokens

    def step(self, tokens: Tokens | None = None, seconds: float = 15) -> None:
        self.tokens = tokens
        self.clock.advance(seconds)
        asyncio.run(self.history.sample())


def test_what_is_sampled_is_what_has_happened_since_the_sample_before() -> None:
    line = Line()
    line.traffic.observe("POST", "v1", 200, 0.2)
    line.step(usage(100))
    for status in (200, 200, 500, 499):
        line.traffic.observe("POST", "v1", status, 0.2)
    line.traffic.observe("GET", "api", 200, 0.01)
    line.traffic.observe("GET", "own", 200, 0.01)
    line.step(usage(130))
    first, second = line.history.samples
    assert (first.models.requests, first.tokens) == (1, None)  # of before it was asked for the first time
    assert (second.models.requests, second.models.failed, second.others, second.seconds) == (4, 2, 1, 15)
    assert second.models.times[BUCKETS.index(0.25)] == 4
    assert second.tokens == usage(30)


def test_tokens_are_not_known_while_nobody_says_them_or_the_orchestrator_has_begun_again() -> None:
    line = Line()
    for told in (usage(100), None, usage(110), usage(5), usage(6)):
        line.step(told)
    assert [one.tokens for one in line.history.samples] == [None, None, usage(10), None, usage(1)]


def test_what_happened_in_a_long_sleep_is_no_peak() -> None:
    line = Line()
    line.step(usage(1))
    line.traffic.observe("POST", "v1", 200, 0.2)
    line.step(usage(10_000), seconds=3600)
    line.step(usage(10_001))
    assert [(one.models.requests, one.tokens) for one in line.history.samples] == [(0, None), (0, usage(1))]


def test_it_keeps_a_day() -> None:
    line = Line()
    for _ in range(24 * 240 + 10):
        line.history.samples.append(sample(0))
    assert len(line.history.samples) == 24 * 240

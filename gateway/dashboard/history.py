"""What has gone through this gateway: samples of its counters, and of the engines' tokens, for the last day.

One task samples. In memory, and bounded: a day is a few megabytes at most. A sample is what has happened since the one
before, so that any number of them can be added up; percentiles are made of the sums.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.dashboard.asking import Asker, Away, Refused
from gateway.link import LinkState
from orchestrator.traffic import BUCKETS, Totals, Traffic

log = logging.getLogger(__name__)

SECONDS = 15.0  # between two samples
HOURS = 24  # that are kept, with samples of that length
MODELS = "v1"
"""The kind of request (`gateway.metrics.kind_of`) that is for a model."""
_OTHERS = ("api", "relayed")
# What has happened in a longer time than so many intervals is not shown as if it had happened in one: this machine has
# slept, or the orchestrator was away.
_MOST_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class Tokens:
    """What all engines have counted, or the difference of two such. `first`: how many first tokens came within each of
    `bounds` seconds and not within the one before; None is for all that took longer."""

    prompt: int
    generated: int
    first: tuple[int, ...]
    bounds: tuple[float | None, ...]

    def __sub__(self, other: "Tokens") -> "Tokens | None":
        """None where the orchestrator has begun again."""
        first = tuple(a - b for a, b in zip(self.first, other.first, strict=False))
        if self.bounds != other.bounds or min(self.prompt - other.prompt, self.generated - other.generated, *first) < 0:
            return None
        return Tokens(self.prompt - other.prompt, self.generated - other.generated, first, self.bounds)


@dataclass(frozen=True, slots=True)
class Sample:
    """`at`: seconds since 1970, of its end; `seconds`: its length, by a clock that nobody sets. `tokens` is None where
    nobody could be asked."""

    at: float
    seconds: float
    models: Totals
    others: int
    tokens: Tokens | None


def tokens_in(answer: Mapping[str, Any]) -> Tokens:
    """Of `GET /api/v1/usage`."""
    first = answer["first_tokens"]
    return Tokens(
        prompt=answer["prompt_tokens"],
        generated=answer["generated_tokens"],
        first=tuple(entry["count"] for entry in first),
        bounds=tuple(entry["seconds"] for entry in first),
    )


def difference(now: Totals, before: Totals) -> Totals:
    times = tuple(a - b for a, b in zip(now.times, before.times, strict=True))
    return Totals(now.requests - before.requests, now.failed - before.failed, times)


Ask = Callable[[], Awaitable[Tokens | None]]
"""What all engines have counted by now; None where nobody can say."""


def asked_of(asker: Asker) -> Ask:
    """While the link is not up nobody is asked."""

    async def ask() -> Tokens | None:
        if asker.link.status.state is not LinkState.UP:
            return None
        try:
            return tokens_in(await asker.json("GET", "/api/v1/usage"))
        except (Away, Refused):  # Refused: an orchestrator of an earlier release
            return None

    return ask


class History:
    """`clock` gives seconds since 1970, `steady` those of a clock that nobody sets."""

    def __init__(
        self,
        traffic: Traffic,
        ask: Ask,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        seconds: float = SECONDS,
    ) -> None:
        self._traffic, self._ask, self._clock, self._steady = traffic, ask, clock, steady
        self.seconds = seconds
        self.samples: deque[Sample] = deque(maxlen=int(HOURS * 3600 / SECONDS))
        self.since = clock()
        self._counted = self._count()
        self._counted_at = steady()
        self._tokens: Tokens | None = None
        self._tokens_at = steady()

    @property
    def hours(self) -> float:
        """How far back it goes when it is full."""
        return (self.samples.maxlen or 0) * self.seconds / 3600

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.seconds)
            try:
                await self.sample()
            except Exception:
                # The top of the loop: a sample that failed must not be the last one.
                log.exception("a sample of the history failed")

    def _count(self) -> tuple[Totals, int]:
        return self._traffic.totals(MODELS), sum(self._traffic.totals(kind).requests for kind in _OTHERS)

    async def sample(self) -> None:
        """One more."""
        tokens = await self._ask()
        (models, others), (before, others_before) = self._count(), self._counted
        now, at = self._steady(), self._clock()
        length, self._counted_at = now - self._counted_at, now
        self._counted = models, others
        known, told_before = self._tokens, self._tokens_at
        if tokens is not None:
            self._tokens, self._tokens_at = tokens, now
        if length > _MOST_INTERVALS * self.seconds:
            return
        fresh = known is not None and now - told_before <= _MOST_INTERVALS * self.seconds
        grown = tokens - known if tokens is not None and known is not None and fresh else None
        self.samples.append(Sample(at, length, difference(models, before), others - others_before, grown))


@dataclass(frozen=True)
class Bin:
    """What happened in one interval of a chart, which begins at `at`. None: not known; of times also: nothing there."""

    at: int
    requests: float | None = None  # in a second, as all that follow but the times
    failed: float | None = None
    others: float | None = None
    prompt: float | None = None
    generated: float | None = None
    latency: tuple[float | None, float | None] = (None, None)  # the 50th and the 95th percentile, in seconds
    first: tuple[float | None, float | None] = (None, None)  # the same of first tokens


def bins(samples: Iterable[Sample], length: int, now: float, number: int) -> list[Bin]:
    """The last so many intervals of `length` seconds, the oldest first. Each begins at a multiple of its length."""
    last = int(now) // length
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        place = int(sample.at) // length
        if last - number < place <= last:
            found.setdefault(place, []).append(sample)
    return [_bin(place * length, found.get(place, [])) for place in range(last - number + 1, last + 1)]


def _bin(at: int, samples: Sequence[Sample]) -> Bin:
    seconds = sum(sample.seconds for sample in samples)
    if not seconds:
        return Bin(at)
    told = [sample for sample in samples if sample.tokens is not None]
    tokens = [sample.tokens for sample in told if sample.tokens is not None]
    told_seconds = sum(sample.seconds for sample in told)
    return Bin(
        at=at,
        requests=sum(sample.models.requests for sample in samples) / seconds,
        failed=sum(sample.models.failed for sample in samples) / seconds,
        others=sum(sample.others for sample in samples) / seconds,
        prompt=sum(one.prompt for one in tokens) / told_seconds if told_seconds else None,
        generated=sum(one.generated for one in tokens) / told_seconds if told_seconds else None,
        latency=_percentiles(_added(sample.models.times for sample in samples), BUCKETS),
        first=_percentiles(_added(one.first for one in tokens), tokens[-1].bounds) if tokens else (None, None),
    )


def _added(rows: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in itertools.zip_longest(*rows, fillvalue=0)]


def _percentiles(counts: Sequence[int], bounds: Sequence[float | None]) -> tuple[float | None, float | None]:
    return percentile(counts, bounds, 0.5), percentile(counts, bounds, 0.95)


def percentile(counts: Sequence[int], bounds: Sequence[float | None], part: float) -> float | None:
    """As Prometheus makes one of a histogram: within a bucket all are taken to be spread evenly. What is beyond all
    bounds is told as the last of them. None where nothing was counted."""
    wanted = part * sum(counts)
    if not wanted:
        return None
    below, low = 0, 0.0
    for count, bound in zip(counts, bounds, strict=False):
        if bound is None:
            break
        if below + count >= wanted:
            return low + (bound - low) * (wanted - below) / count
        below, low = below + count, bound
    return low

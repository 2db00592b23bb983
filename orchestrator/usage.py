"""What all engines have done: tokens read and written, and how long the first of an answer took.

Read from the engines' own metrics — vLLM's, SGLang's, llama.cpp's — at most once in a few seconds, and only while
somebody wants to know. What is told only grows, also when engines come and go.
"""

import asyncio
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import httpx2

from orchestrator.errors import EngineError
from orchestrator.question import Question
from orchestrator.replicas import Replica, Replicas
from orchestrator.scrape import scrape

SECONDS = 5.0  # at least between two looks at the engines
BOUNDS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds to a first token: how many took no longer than each, and longer than the one before."""

_AT_ONCE = 32  # engines
_LINE = re.compile(r"(?:vllm|sglang|llamacpp):(\w+)(\{.*\})? ([0-9.eE+]+)\s*(?:\d+\s*)?")
_LE = re.compile(r'[{,]le="([^"]+)"')
_READ = frozenset({"prompt_tokens_total"})
_WRITTEN = frozenset({"generation_tokens_total", "tokens_predicted_total"})
_FIRST = "time_to_first_token_seconds_bucket"


Engine = tuple[str, str, int, int]
"""What tells one engine's process from another's: `Replica.incarnation`."""


class Told(NamedTuple):
    """What one engine has counted since it began. `first`: by the engine's own bounds, those below included."""

    prompt: int
    generated: int
    first: Mapping[float, int]


def told_in(metrics: str) -> Told:
    """Of an engine that counts no tokens all is 0. Several of one name, with other labels, are added up."""
    prompt = generated = 0
    first: dict[float, int] = {}
    for line in metrics.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        name, labels, value = found[1], found[2] or "", _whole(found[3])
        if name in _READ:
            prompt += value
        elif name in _WRITTEN:
            generated += value
        elif name == _FIRST and (bound := _LE.search(labels)):
            le = float("inf") if bound[1] == "+Inf" else _number(bound[1])
            first[le] = first.get(le, 0) + value
    return Told(prompt, generated, first)


def _whole(text: str) -> int:
    value = _number(text)
    return int(value) if value < 1e18 else 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def apart(first: Mapping[float, int]) -> list[int]:
    """How many first tokens came within each of BOUNDS, and in the end how many came later."""
    counts, below = [0] * (len(BOUNDS) + 1), 0
    for bound in sorted(first):
        counts[bisect_left(BOUNDS, bound)] += max(0, first[bound] - below)
        below = max(below, first[bound])
    return counts


@dataclass(frozen=True)
class Usage:
    """Since this orchestrator began, of all engines: `engines` have told theirs, `silent` have not."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_tokens: Sequence[int] = (0,) * (len(BOUNDS) + 1)
    engines: int = 0
    silent: int = 0


@dataclass
class Meter:
    """Adds up what engines have counted between two looks. Of those that were there at the first look only what came
    afterwards counts."""

    total: Usage = field(default_factory=Usage)
    _last: Mapping[Engine, Told] | None = None

    def take(self, told: Mapping[Engine, Told], silent: Collection[Engine]) -> Usage:
        """What is known now. Of an engine that is silent this once what it said last is kept."""
        before = {} if self._last is None else self._last
        new = [(before.get(one, Told(0, 0, {})), now) for one, now in told.items()] if self._last is not None else []
        first = [0] * len(self.total.first_tokens)
        for then, now in new:
            first = [n + max(0, b - a) for n, a, b in zip(first, apart(then.first), apart(now.first), strict=True)]
        self.total = Usage(
            self.total.prompt_tokens + sum(max(0, now.prompt - then.prompt) for then, now in new),
            self.total.generated_tokens + sum(max(0, now.generated - then.generated) for then, now in new),
            tuple(a + b for a, b in zip(self.total.first_tokens, first, strict=True)),
            engines=len(told),
            silent=len(silent),
        )
        self._last = {**{one: before[one] for one in silent if one in before}, **told}
        return self.total


def usage_of(
    replicas: Replicas, client: httpx2.AsyncClient, clock: Callable[[], datetime], seconds: float = SECONDS
) -> Question[Usage]:
    meter, free = Meter(), asyncio.Semaphore(_AT_ONCE)

    async def read(replica: Replica) -> Told | None:
        try:
            async with free:
                exposition = await scrape(client, replica)
        except EngineError:
            return None
        return await asyncio.to_thread(told_in, exposition.text)

    async def look() -> Usage:
        asked = [replica for replica in replicas.every() if replica.ready]
        answers = await asyncio.gather(*(read(replica) for replica in asked))
        found = {replica.incarnation: answer for replica, answer in zip(asked, answers, strict=True)}
        told = {one: answer for one, answer in found.items() if answer is not None}
        return meter.take(told, [one for one, answer in found.items() if answer is None])

    return Question(look, clock, seconds)

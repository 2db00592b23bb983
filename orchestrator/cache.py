"""Answers that are slow to get: asked for once at a time, kept for a while, the least recently used dropped first."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from orchestrator.errors import OrchestratorError

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry(Generic[T]):
    task: asyncio.Task[T]
    asked_at: datetime

    @property
    def answer(self) -> T | None:
        """None while it is asked for, and where the asking has failed."""
        finished = self.task.done() and not self.task.cancelled() and self.task.exception() is None
        return self.task.result() if finished else None


class Cache(Generic[T]):
    """`keep` is how long an answer is good, `keep_error` the same for an OrchestratorError: a source that is down is
    not asked by every request. `room` bounds the sum of what `weight` says of each answer; what is still being asked
    for weighs 1. `clock` gives aware datetimes. For one event loop.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        *,
        keep: timedelta,
        keep_error: timedelta,
        room: int,
        weight: Callable[[T], int] = lambda _: 1,
    ) -> None:
        self._clock, self._keep, self._keep_error = clock, keep, keep_error
        self._room, self._weight = room, weight
        self._entries: dict[Hashable, _Entry[T]] = {}  # the least recently used first

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer kept under `key`, else that of `ask()`, which is called once for all who wait.

        A caller that is cancelled leaves the others their answer. Raises what `ask` raises.
        """
        entry = self._entries.pop(key, None)
        if entry is None or self._is_stale(entry):
            entry = _Entry(asyncio.ensure_future(_awaited(ask)), self._clock())
        self._entries[key] = entry
        await asyncio.wait({entry.task})  # unlike `await task`, cancelling this does not cancel the task
        self._drop()
        return entry.task.result()

    def _is_stale(self, entry: _Entry[T]) -> bool:
        if not entry.task.done():
            return False
        if entry.task.cancelled():
            return True
        error = entry.task.exception()
        if error is not None and not isinstance(error, OrchestratorError):
            return True
        return self._clock() - entry.asked_at >= (self._keep if error is None else self._keep_error)

    def _drop(self) -> None:
        """The entries used last stay, at least one."""
        weights = {key: self._weigh(entry) for key, entry in self._entries.items()}
        total = sum(weights.values())
        for key in list(weights)[:-1]:
            if total <= self._room:
                return
            del self._entries[key]
            total -= weights[key]

    def _weigh(self, entry: _Entry[T]) -> int:
        answer = entry.answer
        return 1 if answer is None else max(1, self._weight(answer))

    def close(self) -> None:
        """Give up what is being asked for, and forget everything."""
        for entry in self._entries.values():
            entry.task.cancel()
        self._entries.clear()


async def _awaited(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()

"""A question whose answer many want and few may ask for: put at most once an interval, and while somebody looks."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from orchestrator.errors import OrchestratorError

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 5.0  # seconds for which a request waits for the first answer, or for a newer one
_RECENT = 4  # intervals


@dataclass
class Question(Generic[T]):
    """Put for all who want the answer, at most once in `seconds`, and only while somebody wants it.

    `answer` is the last one, of `answered_at`; `stale_since` and `trouble` say since when and why there is no newer.
    """

    put: Callable[[], Awaitable[T]]
    clock: Callable[[], datetime]
    seconds: float
    answer: T | None = None
    answered_at: datetime | None = None
    stale_since: datetime | None = None
    trouble: str = ""
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _rests: asyncio.Event = field(default_factory=asyncio.Event)  # it has been put within the interval

    def want(self) -> None:
        """The answer is wanted, unless it has just been given; do not wait for it."""
        if not self._rests.is_set():
            self._wanted.set()

    async def fresh(self, patience: float = PATIENCE) -> None:
        """Return when there is an answer of this interval, or none to be had, or after so many seconds."""
        self.want()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._rests.wait()

    @property
    def silent_since(self) -> datetime | None:
        """Since when the answer may be out of date for somebody who has waited for a fresh one."""
        return self.stale_since or (None if self._rests.is_set() else self.answered_at)

    @property
    def recent(self) -> T | None:
        """The answer, unless it is several intervals old."""
        limit = timedelta(seconds=_RECENT * self.seconds)
        if self.answered_at is None or abs(self.clock() - self.answered_at) > limit:
            return None
        return self.answer

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            await self.ask()
            self._wanted.clear()  # whoever has wanted it meanwhile has it
            self._rests.set()
            await asyncio.sleep(self.seconds)
            self._rests.clear()

    async def ask(self) -> None:
        """One turn: the question is put, and what comes of it kept."""
        try:
            self.answer = await self.put()
            self.answered_at = self.clock()
            self.stale_since, self.trouble = None, ""
        except OrchestratorError as exc:
            self.stale_since, self.trouble = self.stale_since or self.clock(), str(exc)
        except Exception:
            # The top of the loop: an answer that nobody foresaw must not be the last one.
            self.stale_since, self.trouble = self.stale_since or self.clock(), "the orchestrator's log says why"
            log.exception("a question could not be put")

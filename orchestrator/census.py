"""What metrics tell that would take a look at whole tables: counted beside the requests, and only when there is news.

One turn is `look()`. Whoever asks for metrics reads what the last turn has found; a service that has just ended is
counted among those that have some seconds later.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.budgets import Spent, period_of, spent
from orchestrator.costs import GROUPINGS, Use, Window, held
from orchestrator.diagnosis import Diagnosis
from orchestrator.errors import NotReady
from orchestrator.ledger import News, newest, news
from orchestrator.models import Job, JobState, Service
from orchestrator.retry import failed
from orchestrator.settings import Budget, Prices
from orchestrator.store import Store, Tally

log = logging.getLogger(__name__)

UNKNOWN = "unknown"  # of a failure that no rule explains
OTHER = "other"
MOST_NAMES = 100  # of models, or of users, that are counted apart
_AT_ONCE = 200  # events of one turn


@dataclass
class Census:
    """`diagnose` reads the log of a job, so it is called in a thread. `clock` gives aware UTC datetimes.

    `failures`: services that have failed since this began, by the rule that says why.
    """

    store: Store
    prices: Prices
    budgets: Sequence[Budget]
    diagnose: Callable[[Service, Job], Diagnosis | None]
    clock: Callable[[], datetime]
    seconds: float  # between two turns
    ended: Sequence[Tally] = ()
    failures: Counter[str] = field(default_factory=Counter)
    _uses: dict[datetime | None, Sequence[Use]] = field(default_factory=dict)  # by the time from which they are
    _highest: dict[str, dict[str, float]] = field(default_factory=dict)  # that was told, by group and name
    _last: int | None = None  # the newest event that has been looked at

    async def run(self) -> None:
        """Turns, until cancelled."""
        while True:
            try:
                while await self.look() == _AT_ONCE:
                    continue
            except NotReady as exc:
                log.warning("what has changed could not be counted, which is tried again: %s", exc)
            except Exception:
                # The top of the loop: a turn that failed must not be the last one.
                log.exception("a turn of the census failed")
            await asyncio.sleep(self.seconds)

    async def look(self) -> int:
        """One turn: how many events it has looked at. The first one counts no failures, which are older than this."""
        if self._last is None:
            last, told = await self.store.read(newest), []
        else:
            told = await self.store.read(lambda session: news(session, self._last or 0, _AT_ONCE))
            last = told[-1].number if told else self._last
        if told or self._begins() != self._uses.keys():
            await self._count()
        for subject in {one.subject for one in told if is_end(one)}:
            await self._examine(subject)
        self._last = last
        return len(told)

    def _begins(self) -> set[datetime | None]:
        """The times from which on is asked what was used: for ever, and those of the budgets' periods."""
        now = self.clock()
        return {None, *(period_of(budget, now)[0] for budget in self.budgets)}

    async def _count(self) -> None:
        self.ended = [tally for tally in await self.store.tally() if tally.state.ended]
        self._uses = {since: await self.store.used(since=since) for since in self._begins()}

    async def _examine(self, subject: str) -> None:
        service, job = await self.store.find(subject)
        if failed(service, job):
            diagnosis = await asyncio.to_thread(self.diagnose, service, job)
            self.failures[UNKNOWN if diagnosis is None else diagnosis.name] += 1

    def gpu_seconds(self, by: str, until: datetime) -> dict[str, float]:
        """What GPUs were held by all jobs, by `model` or `user`; never less than what was told before.

        `until`: when the scheduler last answered. A job that ends did so after that, so the sum does not shrink then.
        """
        highest = self._highest.setdefault(by, {})
        found: dict[str, float] = {}
        for use in self._uses.get(None, ()):
            if use.gpus:
                seconds = use.gpus * held(use, Window(None, until), until).total_seconds()
                name = bounded(GROUPINGS[by](use) or UNKNOWN, highest)
                found[name] = found.get(name, 0.0) + seconds
        for name, seconds in found.items():
            highest[name] = max(highest.get(name, 0.0), seconds)
        return dict(highest)

    def open_uses(self) -> list[Use]:
        """The jobs with GPUs that have not ended."""
        return [use for use in self._uses.get(None, ()) if use.service and use.gpus and use.ended_at is None]

    def budgets_at(self, now: datetime) -> list[Spent]:
        """How the budgets stand."""
        begins = [(budget, period_of(budget, now)[0]) for budget in self.budgets]
        return [spent(budget, self._uses[since], self.prices, now) for budget, since in begins if since in self._uses]


def bounded(name: str, known: dict[str, float]) -> str:
    """The first names are counted apart, those that come later together. A name that is counted is known then."""
    if name not in known:
        name = name if len(known) < MOST_NAMES else OTHER
        known.setdefault(name, 0.0)
    return name


def is_end(news: News) -> bool:
    """Whether an event may be the end of its service."""
    state = news.detail.get("state")
    return news.kind == "service.let_go" or (state in list(JobState) and JobState(state).ended)

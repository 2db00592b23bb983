"""What services have used, and what that costs: from the scheduler's own start and end times. Pure.

A job holds its GPUs and cores from its start to its end, also while its engine loads or is idle. One that was put back
into the queue has several runs; what happened to it in the queue costs nothing. Prices are those of today's table, also
for hours of the past: what is recorded is the time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from orchestrator.models import Job, JobState
from orchestrator.settings import Prices

Run = tuple[datetime, datetime]
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
# The scheduler's start of a job in these states is moved on when its nodes have booted.
_BOOTING = (JobState.CONFIGURING, JobState.POWER_UP_NODE)


class Use(NamedTuple):
    """One job, and who it was for. `service` is the submission id, `service_id` the scheduler's; `gpus` and `cores` are
    those of all its nodes; `started_at` and `ended_at` are those of its last run.

    Or of several jobs for the same, which are known in sum only: `seconds` is that sum.
    """

    service: str
    service_id: str | None
    actor: str
    recipe: str
    model: str | None
    gpus: int
    gpu_type: str | None
    cores: int
    job_id: str | None
    started_at: datetime | None
    ended_at: datetime | None
    earlier_runs: Sequence[Sequence[str]]
    seconds: float = 0.0
    price: float | None = None  # of an hour, where the model list says so


@dataclass(frozen=True)
class Bill:
    """What was used. `runtime` is of jobs, one beside the other; `sessions` are jobs that have run."""

    runtime: timedelta = timedelta(0)
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    cost: float = 0.0
    sessions: int = 0

    def __add__(self, other: "Bill") -> "Bill":
        return Bill(
            self.runtime + other.runtime,
            self.gpu_hours + other.gpu_hours,
            self.cpu_hours + other.cpu_hours,
            self.cost + other.cost,
            self.sessions + other.sessions,
        )


@dataclass(frozen=True)
class Window:
    """From `since`, None for ever, to before `until`."""

    since: datetime | None
    until: datetime


def run_ended(job: Job, changes: dict[str, Any], at: datetime) -> list[str] | None:
    """The run of a job that is over, as it is kept, when these changes take its start away; else None.

    Slurm gives a job that it puts back into the queue a new time of submission: that is when it was stopped. Where it
    does not say so, the run is taken to have lasted until that was noticed, or until the next one.
    """
    start = job.started_at
    if start is None or "started_at" not in changes or job.state in _BOOTING:
        return None
    after: datetime | None = changes["started_at"]
    if after is not None and after <= start:
        return None
    again: datetime | None = changes.get("submitted_at")
    end = again if again is not None and start < again <= at else min(at, after or at)
    return [start.isoformat(), max(start, end).isoformat()]


def used_seconds(job: Job, now: datetime) -> float:
    """What a job has used in all its runs."""
    return sum((end - start).total_seconds() for start, end in runs_of(job, now))


def runs_of(job: Use | Job, now: datetime) -> list[Run]:
    """When a job held its nodes, in order, no moment twice. One that has not ended did so until now."""
    runs = [(datetime.fromisoformat(start), datetime.fromisoformat(end)) for start, end in job.earlier_runs]
    if job.started_at is not None:
        runs.append((job.started_at, job.ended_at or now))
    whole: list[Run] = []
    for start, end in sorted(runs):
        if whole:
            start = max(start, whole[-1][1])
        if start < end:
            whole.append((start, end))
    return whole


def held(use: Use, window: Window, now: datetime) -> timedelta:
    """For how long a job held its nodes within a window. What is known in sum only is taken to be within it."""
    total = timedelta(seconds=use.seconds)
    for start, end in runs_of(use, now):
        start, end = start if window.since is None else max(start, window.since), min(end, window.until)
        total += max(end - start, timedelta(0))
    return total


def rate(use: Use, prices: Prices) -> float:
    """What a job costs in an hour: what the model list says, else by the table."""
    if use.price is not None:
        return use.price
    each = prices.gpu_types.get(use.gpu_type or "", prices.gpu_hour)
    return use.gpus * each + use.cores * prices.core_hour


def bill(use: Use, prices: Prices, window: Window, now: datetime) -> Bill:
    """What one job costs within a window."""
    runtime = held(use, window, now)
    if not runtime:
        return Bill()
    hours = runtime / HOUR
    return Bill(runtime, hours * use.gpus, hours * use.cores, hours * rate(use, prices), 1)


def total(uses: Iterable[Use], prices: Prices, window: Window, now: datetime) -> Bill:
    return sum((bill(use, prices, window, now) for use in uses), Bill())


GROUPINGS: dict[str, Callable[[Use], str | None]] = {
    "service": lambda use: use.service_id or use.service,
    "user": lambda use: use.actor,
    "key": lambda use: use.actor,
    "model": lambda use: use.model,
    "recipe": lambda use: use.recipe,
}
"""By what bills are added up. A user is who started the service, and with a key that is the key's name."""


def grouped(
    uses: Iterable[Use], by: str, prices: Prices, window: Window, now: datetime
) -> list[tuple[str | None, Bill]]:
    """The bills of each group that has one, the highest first."""
    bills: dict[str | None, Bill] = {}
    for use in uses:
        one = bill(use, prices, window, now)
        if one.sessions:
            key = GROUPINGS[by](use)
            bills[key] = bills.get(key, Bill()) + one
    return sorted(
        bills.items(), key=lambda item: (-item[1].cost, -item[1].gpu_hours, -item[1].cpu_hours, item[0] or "")
    )


def daily(uses: Iterable[Use], prices: Prices, window: Window, now: datetime) -> list[tuple[str, Bill]]:
    """The bill of each day of UTC that has one, as 2026-11-21, the oldest first. A job of two days is in both."""
    bills: dict[datetime, Bill] = {}
    for use in uses:
        for day in _days(use, now):
            of_day = Window(max(filter(None, (day, window.since))), min(day + DAY, window.until))
            if of_day.since is not None and of_day.since < of_day.until:
                one = bill(use, prices, of_day, now)
                bills[day] = bills.get(day, Bill()) + one
    return [(day.date().isoformat(), one) for day, one in sorted(bills.items()) if one.sessions]


def _days(use: Use, now: datetime) -> Iterator[datetime]:
    """The days on which a job held its nodes, by their beginnings."""
    last: datetime | None = None
    for start, end in runs_of(use, now):
        day = start.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        while day < end:
            if last is None or day > last:
                yield day
                last = day
            day += DAY

"""How much may be spent: what a budget covers, since when, and whether it is spent. Pure.

A budget is about what has been used, not about what a new service will use: that is not known before it ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.costs import Use, Window, rate, total
from orchestrator.settings import Budget, Prices


@dataclass(frozen=True)
class Spent:
    """How a budget stands. `amount` and `limit` are in `unit`: the currency, or GPU hours."""

    budget: Budget
    amount: float
    limit: float
    unit: str
    since: datetime | None
    resets_at: datetime | None

    @property
    def over(self) -> bool:
        return self.amount >= self.limit

    def __str__(self) -> str:
        """A sentence for whoever is refused."""
        since = "in all" if self.since is None else f"since {self.since:%Y-%m-%d}"
        resets = "it does not reset" if self.resets_at is None else f"it resets at {self.resets_at:%Y-%m-%dT%H:%MZ}"
        return (
            f"the budget {self.budget.name!r} ({self.budget.applies_to}) is spent: {self.amount:.2f} of "
            f"{self.limit:.2f} {self.unit} {since}; {resets}"
        )

    @property
    def detail(self) -> dict[str, str | float | None]:
        """For the log of events."""
        resets = None if self.resets_at is None else self.resets_at.isoformat()
        spent, limit = round(self.amount, 4), self.limit
        return {"budget": self.budget.name, "spent": spent, "limit": limit, "unit": self.unit, "resets_at": resets}


def period_of(budget: Budget, now: datetime) -> tuple[datetime | None, datetime | None]:
    """From when to when the budget's present period lasts, in UTC; (None, None) for one without periods."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if budget.period == "day":
        return today, _days_on(today)
    if budget.period == "month":
        first = today.replace(day=1)
        after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
        return first, after
    return None, None


def _days_on(day: datetime) -> datetime:
    return datetime.fromordinal(day.toordinal() + 1).replace(tzinfo=UTC)


def covers(budget: Budget, use: Use) -> bool:
    """Whether what a job uses is the budget's."""
    kind, _, name = budget.applies_to.partition(":")
    match kind:
        case "user" | "key":
            return use.actor == name
        case "model":
            return use.model == name
        case "recipe":
            return name in (use.recipe, use.recipe.partition("/")[2])
    return True


def draws_on(budget: Budget, use: Use, prices: Prices) -> bool:
    """Whether a job makes the budget smaller. One without GPUs does not touch a budget of GPU hours."""
    return covers(budget, use) and (use.gpus > 0 if budget.gpu_hours is not None else rate(use, prices) > 0)


def spent(budget: Budget, uses: Iterable[Use], prices: Prices, now: datetime) -> Spent:
    """How a budget stands, by all jobs of its period. What is known in sum only must lie within it."""
    since, resets_at = period_of(budget, now)
    covered = (use for use in uses if covers(budget, use))
    bill = total(covered, prices, Window(since, now), now)
    if budget.gpu_hours is not None:
        return Spent(budget, bill.gpu_hours, budget.gpu_hours, "GPU hours", since, resets_at)
    assert budget.limit is not None
    return Spent(budget, bill.cost, budget.limit, prices.currency, since, resets_at)

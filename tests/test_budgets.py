"""Budgets: what they cover, their periods, new services refused, those that run ended."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.budgets import covers, draws_on, period_of, spent
from orchestrator.errors import Conflict
from orchestrator.models import ServiceStatus
from orchestrator.settings import Budget, Prices
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import START, Parts, orchestrated
from tests.test_costs import use
from tests.test_keep_alive import EPOCH, HOUR, run

PRICES = Prices(currency="EUR", gpu_hour=2)
NOW = datetime(2026, 11, 21, 18, 30, tzinfo=UTC)  # 6.5 hours after START


def budget(**more: Any) -> Budget:
    fields = {"name": "team", "period": "month"} | more
    return Budget.model_validate(fields if "gpu_hours" in fields else {"limit": 10} | fields)


@pytest.mark.parametrize(
    ("period", "now", "since", "resets"),
    [
        ("day", NOW, "2026-11-21", "2026-11-22"),
        ("day", datetime(2026, 12, 31, 23, 59, tzinfo=UTC), "2026-12-31", "2027-01-01"),
        ("month", NOW, "2026-11-01", "2026-12-01"),
        ("month", datetime(2026, 12, 31, 23, 59, tzinfo=UTC), "2026-12-01", "2027-01-01"),
        ("total", NOW, None, None),
    ],
)
def test_periods_are_days_and_months_of_utc(period: str, now: datetime, since: str | None, resets: str | None) -> None:
    told = period_of(budget(period=period), now)
    assert [None if moment is None else f"{moment:%Y-%m-%d}" for moment in told] == [since, resets]


@pytest.mark.parametrize(
    ("applies_to", "covered"),
    [
        ("all", True),
        ("user:ana", True),
        ("key:ana", True),
        ("user:bo", False),
        ("model:m", True),
        ("model:n", False),
        ("recipe:inference/r", True),
        ("recipe:r", True),
        ("recipe:q", False),
    ],
)
def test_what_a_budget_covers(applies_to: str, covered: bool) -> None:
    assert covers(budget(applies_to=applies_to), use(0, 1)) is covered


@pytest.mark.parametrize(
    ("limit", "gpus", "prices", "draws"),
    [
        ({"gpu_hours": 1}, 1, Prices(), True),
        ({"gpu_hours": 1}, 0, PRICES, False),
        ({"limit": 1}, 1, PRICES, True),
        ({"limit": 1}, 0, PRICES, False),  # cores have no price
        ({"limit": 1}, 1, Prices(), False),
    ],
)
def test_what_costs_nothing_does_not_draw_on_a_budget(
    limit: dict[str, float], gpus: int, prices: Prices, draws: bool
) -> None:
    assert draws_on(budget(**limit), use(0, 1, gpus=gpus), prices) is draws


@pytest.mark.parametrize(
    ("fields", "uses", "amount", "over"),
    [
        ({"limit": 8.01}, [use(0, 1)], 8, False),
        ({"limit": 8}, [use(0, 1)], 8, True),
        ({"limit": 0}, [], 0, True),
        ({"gpu_hours": 5}, [use(0, 1)], 4, False),
        ({"gpu_hours": 5}, [use(0, 1), use(2, 3)], 8, True),
        ({"gpu_hours": 5, "applies_to": "user:bo"}, [use(0, 1), use(2, 3)], 0, False),
        ({"gpu_hours": 5, "period": "day"}, [use(-20, 1)], 4 * 13, True),  # since midnight
        ({"gpu_hours": 5, "period": "total"}, [use(-20, 1)], 4 * 21, True),
    ],
)
def test_what_is_spent(fields: dict[str, Any], uses: list[Any], amount: float, over: bool) -> None:
    told = spent(budget(**fields), uses, PRICES, NOW)
    assert told.amount == pytest.approx(amount) and told.over is over


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"limit": None}, "needs either limit"),
        ({"limit": 1, "gpu_hours": 1}, "needs either limit"),
        ({"applies_to": "user:"}, "applies_to"),
        ({"applies_to": "everyone"}, "applies_to"),
        ({"period": "week"}, "period"),
        ({"limit": -1}, "limit"),
        ({"action": "warn"}, "action"),
    ],
)
def test_a_budget_that_says_nothing_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Budget.model_validate({"name": "team", "period": "month", "limit": 1} | fields)


def working(slurm: FakeSlurm, work: Any, *budgets: Budget) -> None:
    """A service of one GPU whose job 100 has just answered."""

    async def opened() -> None:
        parts_of = orchestrated(slurm.home / "o", slurm.scheduler(), prices=PRICES, budgets=budgets)
        async with parts_of as parts:
            service, _ = await parts.start({"gpu": 1})
            await run(parts, slurm, service.submission_id, "100", ends=EPOCH + 99 * HOUR)
            await work(parts, service)

    asyncio.run(opened())


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


@pytest.mark.parametrize("action", ["refuse", "stop"])
def test_a_new_service_is_refused_when_the_budget_is_spent(slurm: FakeSlurm, action: str) -> None:
    async def work(parts: Parts, service: Any) -> None:
        parts.clock.advance(HOUR - 1)
        await parts.start({"gpu": 1})
        parts.clock.advance(1)
        with pytest.raises(Conflict) as refused:
            await parts.start({"gpu": 1})
        said = str(refused.value)
        assert "the budget 'team' (user:test) is spent: 2.00 of 2.00 EUR since 2026-11-21" in said
        assert "it resets at 2026-11-22T00:00Z" in said
        assert list(slurm.jobs()) == ["100", "101"]
        assert len(list(parts.services.folder("x").path.parent.iterdir())) == 2, "nothing is left of it"
        await parts.start({"gpu": 0})  # which costs nothing
        await parts.services.start("vllm-single-node", {"gpu": 1}, actor="another")
        parts.clock.advance(24 * HOUR)
        if action == "refuse":
            slurm.change("100", state="COMPLETED", endtime=str(EPOCH + 2 * HOUR))
            await parts.watcher.look()
            await parts.start({"gpu": 1})  # another day

    working(slurm, work, budget(applies_to="user:test", limit=2, period="day", action=action))


def test_a_request_that_is_repeated_is_not_refused(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Any) -> None:
        first, _ = await parts.start({"gpu": 1}, idempotency_key="k")
        parts.clock.advance(9 * HOUR)
        again, _ = await parts.start({"gpu": 1}, idempotency_key="k")
        assert again.submission_id == first.submission_id

    working(slurm, work, budget(limit=2))


def test_a_budget_that_is_spent_ends_what_draws_on_it(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Any) -> None:
        other, _ = await parts.services.start("vllm-single-node", {"gpu": 1}, actor="another")
        free, _ = await parts.start({"gpu": 0})
        waiting, _ = await parts.start({"gpu": 1})
        parts.clock.advance(HOUR - 1)
        await parts.caretaker.look()
        assert await parts.status(service) is ServiceStatus.RUNNING
        parts.clock.advance(1)
        await parts.caretaker.look()
        statuses = [await parts.status(one) for one in (service, waiting, other, free)]
        assert statuses == [ServiceStatus.CANCELLED] * 2 + [ServiceStatus.PENDING] * 2
        events = [e for e in await parts.store.events(service.submission_id) if e.actor == "budget"]
        assert [event.kind for event in events] == ["service.budget_stop", "service.cancelled"]
        assert events[0].detail == {
            "budget": "team", "spent": 1.0, "limit": 1.0, "unit": "GPU hours", "resets_at": "2026-12-01T00:00:00+00:00"
        }  # fmt: skip
        before = await parts.kinds(service)
        await parts.caretaker.look()
        assert await parts.kinds(service) == before, "once"

    working(slurm, work, budget(applies_to="user:test", gpu_hours=1, action="stop"))


def test_what_is_being_answered_is_answered_first(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Any) -> None:
        (replica,) = parts.replicas.of(service.submission_id)
        with replica.lease(parts.clock):
            parts.clock.advance(HOUR)
            await parts.caretaker.look()
            assert replica.draining and slurm.calls("scancel") == []
        await parts.watcher.look()
        assert len(slurm.calls("scancel")) == 1

    working(slurm, work, budget(limit=2, action="stop"))


def test_a_budget_that_refuses_ends_nothing(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Any) -> None:
        parts.clock.advance(9 * HOUR)
        await parts.caretaker.look()
        assert await parts.status(service) is ServiceStatus.RUNNING
        assert parts.clock.now - START == timedelta(hours=9)

    working(slurm, work, budget(limit=2))

"""What metrics tell of GPU hours, budgets, failures, slots and the queue; and that asking for it is cheap."""

import asyncio
import functools
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.budgets import spent
from orchestrator.census import MOST_NAMES, OTHER, UNKNOWN, Census, is_end
from orchestrator.deps import diagnosed
from orchestrator.diagnosis import read_rules
from orchestrator.ledger import News, news
from orchestrator.metrics import (
    MOST_MODELS,
    Accounts,
    QueueFacts,
    SlotFacts,
    most,
    of_accounts,
    of_queue,
    of_slots,
)
from orchestrator.models import Batch, BatchState, JobState, TaskState
from orchestrator.settings import Budget, Prices
from orchestrator.switching import Phase
from orchestrator.task_store import Backlog
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import START, Parts, orchestrated
from tests.queueing import queueing, task
from tests.test_costs import use
from tests.test_keep_alive import EPOCH, HOUR, run

LOGS = Path(__file__).parent / "logs"


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


def census_of(parts: Parts, *budgets: Budget) -> Census:
    diagnose = functools.partial(diagnosed, parts.services, read_rules())
    return Census(parts.store, parts.settings.prices, budgets, diagnose, parts.clock, seconds=1)


def samples(families: list[Metric]) -> dict[tuple[str, ...], float]:
    """Values by name and the labels' values."""
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_gpu_seconds_are_those_of_the_scheduler_and_never_shrink(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            census = census_of(parts)
            assert census.gpu_seconds("model", parts.clock.now) == {}, "before the first turn"
            one, _ = await parts.services.start("vllm-single-node", {"gpu": 2, "model": "gpt2"}, actor="ana")
            other, _ = await parts.services.start("vllm-single-node", {"gpu": 1, "model": "m"}, actor="bo")
            await parts.services.start("vllm-single-node", {"gpu": None, "model": "m"}, actor="bo")
            for service, job in ((one, "100"), (other, "101")):
                await run(parts, slurm, service.submission_id, job, ends=EPOCH + 9 * HOUR)
            await census.look()
            parts.clock.advance(HOUR)
            await parts.watcher.look()
            assert parts.watcher.heard == parts.clock.now
            assert census.gpu_seconds("model", parts.watcher.heard) == {"gpt2": 2 * HOUR, "m": HOUR}
            assert census.gpu_seconds("user", parts.watcher.heard) == {"ana": 2 * HOUR, "bo": HOUR}
            assert {use.service_id: use.gpus for use in census.open_uses()} == {"100": 2, "101": 1}
            # The scheduler says later that it ended before it was last seen: the counter waits until it is true again.
            slurm.change("100", state="COMPLETED", endtime=str(EPOCH + HOUR - 60))
            parts.clock.advance(10)
            await parts.watcher.look()
            await census.look()
            assert census.gpu_seconds("model", parts.clock.now) == {"gpt2": 2 * HOUR, "m": HOUR + 10}
            assert [use.service_id for use in census.open_uses()] == ["101"]
            again = census_of(parts)
            await again.look()
            assert again.gpu_seconds("model", parts.clock.now) == {"gpt2": 2 * (HOUR - 60), "m": HOUR + 10}

    asyncio.run(work())


def test_without_news_nothing_is_counted_again(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            census = census_of(parts, Budget(name="a day", period="day", gpu_hours=1))
            await parts.start({"gpu": 1})
            assert await census.look() == 0, "what is older is not looked at"
            counted, used = census.ended, census._uses
            assert await census.look() == 0 and census.ended is counted and census._uses is used
            await parts.start({"gpu": 1})
            assert await census.look() == 2, "created, accepted"
            assert census.ended is not counted
            counted = census.ended
            parts.clock.advance(24 * HOUR)
            assert await census.look() == 0 and census.ended is not counted, "another day has another budget"

    asyncio.run(work())


def test_failures_are_counted_once_by_what_caused_them(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            older, _ = await parts.start()
            slurm.change("100", state="FAILED", exit_code="256")
            await parts.watcher.look()
            census = census_of(parts)
            await census.look()
            services = [(await parts.start())[0] for _ in range(4)]
            log = parts.services.folder(services[0].submission_id).stderr
            log.write_text((LOGS / "gated-model--no-token.txt").read_text())
            slurm.change("101", state="FAILED", exit_code="256")
            slurm.change("102", state="TIMEOUT", reason="TimeLimit")
            await parts.services.cancel(services[2], await parts.store.job(services[2].submission_id), actor="test")
            slurm.change("103", state="CANCELLED")
            slurm.change("104", state="COMPLETED")
            await parts.watcher.look()
            for _ in range(2):
                await census.look()
            assert census.failures == {"gated-model": 1, "time-limit": 1}
            assert older.submission_id not in census.failures

    asyncio.run(work())


def test_a_service_that_is_kept_fails_when_nothing_follows_it_any_more(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            census = census_of(parts)
            await census.look()
            service, _ = await parts.start({"gpu": 1, "keep_alive": True})
            ended = {"state": JobState.FAILED, "ended_at": parts.clock.now}
            await parts.store.record(service.submission_id, ended, at=parts.clock.now, actor="test", kind="job.state")
            await census.look()
            assert not census.failures
            await parts.store.let_go(service.submission_id, "too often", at=parts.clock.now, actor="test")
            await census.look()
            assert census.failures.total() == 1

    asyncio.run(work())


@pytest.mark.parametrize(
    ("kind", "detail", "ends"),
    [
        ("job.state", {"state": "FAILED"}, True), ("job.refused", {"state": "FAILED"}, True),
        ("job.state", {"state": "RUNNING"}, False), ("service.let_go", {"reason": "x"}, True),
        ("task.created", {"model": "m"}, False), ("job.state", {"state": "a word of tomorrow"}, False),
    ],
)  # fmt: skip
def test_which_events_may_be_an_end(kind: str, detail: dict[str, Any], ends: bool) -> None:
    assert is_end(News(1, kind, "s", detail)) is ends


def test_names_are_bounded(slurm: FakeSlurm) -> None:
    many = [use(0, 1, gpus=1)._replace(model=f"m{number}", actor="a") for number in range(MOST_NAMES + 50)]

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            census = census_of(parts)
            census._uses = {None: many}
            for _ in range(2):
                found = census.gpu_seconds("model", START + timedelta(hours=9))
                assert len(found) == MOST_NAMES + 1 and found[OTHER] == 50 * HOUR
            assert census.gpu_seconds("user", START + timedelta(hours=9)) == {"a": (MOST_NAMES + 50) * HOUR}

    asyncio.run(work())
    waiting = {f"m{number}": number for number in range(MOST_MODELS + 2)}
    told = most(waiting)
    assert len(told) == MOST_MODELS + 1 and told[OTHER] == 0 + 1 and sum(told.values()) == sum(waiting.values())


# The families: pure


def test_slots() -> None:
    main = SlotFacts(
        "main", Phase.SERVING, "a", {"a": (0, 0.0), "b": (3, 12.5)}, switches=5, loads=4, load_seconds=90.0
    )
    told = samples(of_slots([main, SlotFacts("c", Phase.EMPTY, None, {"c": (0, 0.0)}, 0, 0, 0.0)]))
    assert told["sluice_slot_model_loaded", "main", "a"] == 1
    assert told["sluice_slot_model_loaded", "main", "b"] == told["sluice_slot_model_loaded", "c", "c"] == 0
    phases = {name[2]: value for name, value in told.items() if name[:2] == ("sluice_slot_phase", "main")}
    assert phases == {"empty": 0, "loading": 0, "serving": 1, "leaving": 0}
    assert (
        told["sluice_slot_requests_waiting", "main", "b"],
        told["sluice_slot_longest_wait_seconds", "main", "b"],
    ) == (3, 12.5)
    assert told["sluice_slot_switches_total", "main"] == 5
    assert (told["sluice_slot_load_seconds_count", "main"], told["sluice_slot_load_seconds_sum", "main"]) == (4, 90)


def test_accounts() -> None:
    budget = Budget(name="team", period="month", gpu_hours=8)
    held = [
        use(0, None, gpus=2),
        use(None, None, gpus=2),
        use(1, None, gpus=1)._replace(service="t", service_id="8", model=None),
    ]
    at = START + timedelta(hours=2)
    budgets, failed = [spent(budget, held, Prices(), at)], {"nccl": 2, UNKNOWN: 1}
    accounts = Accounts({"model": {"m": 7200.0}}, held, budgets, failed, ["nccl", "quota"], at)
    told = samples(of_accounts(accounts))
    assert told["sluice_gpu_seconds_total", "m"] == 7200
    assert not [name for name in told if name[0] == "sluice_user_gpu_seconds_total"]
    service = held[0].service_id or held[0].service
    assert (told["sluice_service_gpus", service, "m"], told["sluice_service_gpus", "8", UNKNOWN]) == (2, 1)
    assert told["sluice_service_gpu_seconds", service, "m"] == 4 * HOUR
    assert (
        told["sluice_budget_used", "team", "GPU hours"] == 5 and told["sluice_budget_limit", "team", "GPU hours"] == 8
    )
    failures = {name[1]: value for name, value in told.items() if name[0] == "sluice_service_failures_total"}
    assert failures == {"nccl": 2, "quota": 0, UNKNOWN: 1}


# The queue


def lines(batch: str, model: str, *states: TaskState) -> Iterator[Any]:
    for number, state in enumerate(states):
        one = task(model=model)
        one.batch, one.custom_id, one.state = batch, f"r{number}", state
        yield one


def batch(name: str, state: BatchState) -> Batch:
    return Batch(
        id=name, created_at=START, actor="me", endpoint="/v1/chat/completions", completion_window="24h",
        input_file="file-1", expires_at=START, state=state,
    )  # fmt: skip


def test_the_queue_is_read_from_indices(tmp_path: Path) -> None:
    """Also when thousands of results are kept: nothing of them is looked at."""

    async def work() -> None:
        async with queueing(tmp_path) as queue:
            for name, state in (("open", BatchState.IN_PROGRESS), ("over", BatchState.COMPLETED)):
                await queue.tasks.batches.store.add(batch(name, state))
            queued, done, failed = TaskState.QUEUED, TaskState.DONE, TaskState.FAILED
            async with queue.store._writing() as session:
                session.add_all([*lines("over", "m", done, failed), *lines("open", "m", queued, done, queued)])
                await session.commit()
            queue.clock.advance(60)
            await queue.add(model="n")
            with asked(queue.store.connections.database.reading) as statements:
                backlog = await queue.store.backlog()
            assert backlog == Backlog({"m": 2, "n": 1}, START, {queued: 2, done: 1})
            facts = QueueFacts(backlog, {"m": 1}, {done: 5}, longest_wait=60.0)
            told = samples(of_queue(facts))
            assert (told["sluice_tasks", "queued", "m"], told["sluice_tasks", "running", "m"]) == (2, 1)
            assert (told["sluice_tasks_ended_total", "done"], told["sluice_tasks_ended_total", "failed"]) == (5, 0)
            assert (told["sluice_batch_lines", "queued"], told["sluice_batch_lines", "running"]) == (2, 0)
            assert told["sluice_task_longest_wait_seconds",] == 60
            assert [plan for plan in plans(tmp_path, statements) if "SCAN" in plan] == []
            with asked(queue.store.connections.database.reading) as statements:
                async with queue.store._session() as session:
                    assert [one.kind for one in await news(session, 0, 1)] == ["batch.created"]
            assert len(statements) == 1 and [plan for plan in plans(tmp_path, statements) if "SCAN" in plan] == []

    asyncio.run(work())


Asked = list[tuple[str, Any]]


@contextmanager
def asked(engine: AsyncEngine) -> Iterator[Asked]:
    """The statements that a database is given."""
    found: Asked = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        found.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


def plans(home: Path, statements: Asked) -> list[str]:
    """How SQLite would find what they ask for."""
    database = sqlite3.connect(home / "orchestrator.db")
    try:
        return [
            str(row[3])
            for statement, parameters in statements
            for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    finally:
        database.close()

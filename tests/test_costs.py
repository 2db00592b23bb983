"""What services have used and cost: known schedules to the second, windows, requeues, groups, prices."""

import asyncio
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.costs import Bill, Use, Window, bill, daily, grouped, held, run_ended, runs_of, total
from orchestrator.models import Job, JobState
from orchestrator.settings import Prices
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import START, orchestrated
from tests.test_keep_alive import EPOCH, HOUR, run

PRICES = Prices(currency="EUR", gpu_hour=2, core_hour=0.01, gpu_types={"a100": 3})
NOW = START + timedelta(hours=100)
EVER = Window(None, NOW)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def use(started: float | None, ended: float | None, *earlier: tuple[float, float], **more: Any) -> Use:
    """A job of four GPUs and ten cores; times in hours after START."""
    runs = [[at(start).isoformat(), at(end).isoformat()] for start, end in earlier]
    begun, over = (None if hours is None else at(hours) for hours in (started, ended))
    one = Use("s1", "7", "ana", "inference/r", "m", 4, None, 10, "7", begun, over, runs)
    return one._replace(**more)


@pytest.mark.parametrize(
    ("job", "window", "hours"),
    [
        (use(0, 2), EVER, 2),
        (use(99, None), EVER, 1),  # it runs
        (use(None, None), EVER, 0),  # it waits
        (use(None, 2), EVER, 0),  # cancelled in the queue
        (use(2, 2), EVER, 0),
        (use(3, 2), EVER, 0),  # clocks that do not agree
        (use(101, None), EVER, 0),  # it starts in the future, by the scheduler's clock
        (use(0, 2), Window(at(0), at(2)), 2),
        (use(0, 2), Window(at(1), at(2)), 1),
        (use(0, 2), Window(at(-1), at(0.5)), 0.5),
        (use(0, 2), Window(at(0.5), at(1.25)), 0.75),
        (use(0, 2), Window(at(2), at(3)), 0),
        (use(0, 2), Window(at(-2), at(0)), 0),
        (use(98, None), Window(at(99), at(500)), 1),  # not beyond now
        (use(5, 6, (0, 2), (3, 4)), EVER, 4),
        (use(None, None, (0, 2)), EVER, 2),  # it waits again
        (use(5, 6, (0, 2), (3, 4)), Window(at(1), at(5.5)), 2.5),
        (use(0, 6, (0, 2)), EVER, 6),  # the same run, told twice
        (use(1, 6, (0, 2)), EVER, 6),  # no moment counts twice
    ],
)
def test_how_long_a_job_held_its_nodes(job: Use, window: Window, hours: float) -> None:
    assert held(job, window, NOW) == timedelta(hours=hours)


def test_a_known_schedule_costs_what_it_costs_to_the_second() -> None:
    job = use(0, 0)._replace(ended_at=START + timedelta(hours=1, minutes=1, seconds=1))
    assert runs_of(job, NOW) == [(START, START + timedelta(seconds=3661))]
    assert bill(job, PRICES, EVER, NOW) == Bill(
        timedelta(seconds=3661), 4 * 3661 / 3600, 10 * 3661 / 3600, 3661 / 3600 * (4 * 2 + 10 * 0.01), 1
    )


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({}, 8.1),
        ({"gpu_type": "a100"}, 12.1),
        ({"gpu_type": "h100"}, 8.1),  # a type without a price of its own
        ({"gpus": 0}, 0.1),
        ({"price": 5.0}, 5),  # the model list's
        ({"price": 0.0}, 0),
        ({"gpus": 0, "cores": 0}, 0),
    ],
)
def test_the_table_of_prices(changes: dict[str, Any], cost: float) -> None:
    assert bill(use(0, 1, **changes), PRICES, EVER, NOW).cost == pytest.approx(cost)


def test_bills_are_added_up_by_group() -> None:
    uses = [
        use(0, 1),
        use(1, 3, service="s2", service_id="8", actor="bo", recipe="inference/q"),
        use(0, 1, service="s3", service_id=None, actor="bo", model=None, gpus=0, cores=0),
        use(None, None, service="s4", service_id="9", actor="cy"),
    ]

    def by(what: str, window: Window = EVER) -> dict[str | None, tuple[float, int]]:
        return {key: (one.gpu_hours, one.sessions) for key, one in grouped(uses, what, PRICES, window, NOW)}

    assert by("service") == {"8": (8, 1), "7": (4, 1), "s3": (0, 1)}
    assert list(by("service")) == ["8", "7", "s3"], "the highest cost first"
    assert by("user") == by("key") == {"ana": (4, 1), "bo": (8, 2)}
    assert by("model") == {"m": (12, 2), None: (0, 1)}
    assert by("recipe") == {"inference/r": (4, 2), "inference/q": (8, 1)}
    assert by("user", Window(at(2), at(9))) == {"bo": (4, 1)}
    assert total(uses, PRICES, EVER, NOW).gpu_hours == 12


def test_what_the_database_adds_up_is_what_the_jobs_have_used(tmp_path: Path) -> None:
    """Jobs at random times, by two people, some of which still run; periods that cut through them."""
    slurm, source = FakeSlurm(tmp_path), random.Random(1)

    async def work() -> None:
        async with orchestrated(tmp_path / "o", slurm.scheduler()) as parts:
            for number in range(24):
                parts.clock.advance(source.randrange(2 * HOUR))
                config = {"gpu": source.randrange(3), "cpu": 1, "model": source.choice(["gpt2", "m"])}
                await parts.services.start("vllm-single-node", config, actor=source.choice(["ana", "bo"]))
                begin = int(parts.clock.now.timestamp())
                end = {"state": "COMPLETED", "endtime": str(begin + source.randrange(5 * HOUR))}
                run_on = {"state": "RUNNING", "nodelist": "node1"}
                slurm.change(str(100 + number), starttime=str(begin), **(end if source.randrange(4) else run_on))
            parts.clock.advance(6 * HOUR)
            await parts.watcher.look()
            now = parts.clock.now
            for since in (None, *(START + timedelta(hours=hours) for hours in range(0, 30, 5))):
                short, whole = await parts.store.used(since=since), await parts.store.uses(since=since)
                assert since is not None or len(short) < len(whole)
                for actor in ("ana", "bo"):
                    for model in ("gpt2", "m"):
                        bills = [
                            total((u for u in uses if (u.actor, u.model) == (actor, model)), PRICES, window, now)
                            for uses in (short, whole)
                            for window in (Window(since, now),)
                        ]
                        assert bills[0].cost == pytest.approx(bills[1].cost)
                        assert bills[0].runtime == bills[1].runtime

    asyncio.run(work())


RAN = {"state": JobState.RUNNING, "started_at": START}


@pytest.mark.parametrize(
    ("job", "changes", "end"),
    [
        (RAN, {"started_at": None, "submitted_at": at(2)}, 2),  # Slurm's word of when it was requeued
        (RAN, {"started_at": None}, 3),  # else when it was noticed
        (RAN, {"started_at": None, "submitted_at": at(-1)}, 3),
        (RAN, {"started_at": at(2.5)}, 2.5),  # or when it started again
        (RAN, {"started_at": at(2.5), "submitted_at": at(2)}, 2),
        (RAN | {"state": JobState.REQUEUED}, {"started_at": None}, 3),
        (RAN, {"state": JobState.COMPLETED}, None),
        (RAN, {"started_at": START - timedelta(seconds=1)}, None),  # told more exactly
        (RAN | {"state": JobState.CONFIGURING}, {"started_at": at(0.1)}, None),  # its nodes have booted
        ({"state": JobState.PENDING}, {"started_at": at(1)}, None),
    ],
)
def test_when_a_run_is_over(job: dict[str, Any], changes: dict[str, Any], end: float | None) -> None:
    before = Job(submission_id="s1", service="s1", scheduler="slurm", name="n", recorded_at=START, **job)
    expected = None if end is None else [START.isoformat(), at(end).isoformat()]
    assert run_ended(before, changes, at(3)) == expected


def test_what_was_used_before_a_requeue_is_not_lost(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path)

    async def work() -> None:
        async with orchestrated(tmp_path / "o", slurm.scheduler()) as parts:
            service, _ = await parts.start({"resources": {"gpu": 2, "cpu": 3}})
            await run(parts, slurm, service.submission_id, "100", ends=EPOCH + 9 * HOUR)
            parts.clock.advance(HOUR + 7)
            slurm.change(
                "100", state="PENDING", nodelist="", starttime="N/A", endtime="N/A", restartcnt="1",
                submittime=str(EPOCH + HOUR),
            )  # fmt: skip
            await parts.watcher.look()
            parts.clock.advance(HOUR)
            await run(parts, slurm, service.submission_id, "100", ends=EPOCH + 9 * HOUR, restarts=1)
            again = parts.clock.now
            slurm.change("100", state="COMPLETED", endtime=str(int(again.timestamp()) + 100))
            parts.clock.advance(200)
            await parts.watcher.look()
            (one,) = await parts.store.uses(service=service.submission_id)
            assert (one.gpus, one.cores, one.actor, one.service_id, one.job_id) == (2, 3, "test", "100", "100")
            assert runs_of(one, parts.clock.now) == [
                (START, START + timedelta(seconds=HOUR)), (again, again + timedelta(seconds=100))
            ]  # fmt: skip
            for since, seconds in (
                (None, HOUR + 100),
                (START, HOUR + 100),
                (START + timedelta(hours=0.5), HOUR / 2 + 100),
            ):
                used = await parts.store.used(since=since)
                assert total(used, PRICES, Window(since, parts.clock.now), parts.clock.now).gpu_hours == pytest.approx(
                    2 * seconds / HOUR
                )
            assert await parts.store.uses(since=again + timedelta(seconds=100)) == []
            assert len(await parts.store.uses(since=again)) == 1

    asyncio.run(work())


def test_by_day_each_job_counts_on_the_days_on_which_it_ran() -> None:
    """START is noon."""
    uses = [use(0, 2), use(10, 38), use(None, None), use(98, None, (48, 49))]
    days = [(day, one.gpu_hours, one.sessions) for day, one in daily(uses, PRICES, EVER, NOW)]
    assert days == [
        ("2026-11-21", 4 * (2 + 2), 2), ("2026-11-22", 4 * 24, 1), ("2026-11-23", 4 * 3, 2),
        ("2026-11-25", 4 * 2, 1),
    ]  # fmt: skip
    window = Window(at(11), at(13))
    assert [(day, one.gpu_hours) for day, one in daily(uses, PRICES, window, NOW)] == [
        ("2026-11-21", 4), ("2026-11-22", 4),
    ]  # fmt: skip
    assert sum(one.gpu_hours for _, one in daily(uses, PRICES, EVER, NOW)) == total(uses, PRICES, EVER, NOW).gpu_hours

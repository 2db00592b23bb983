"""Services that nobody uses: what is concluded, turn by turn, and what survives a restart."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.idleness import UNSEEN, Act, Idleness, decide, ends_at, seen, warned_from
from orchestrator.models import Service, ServiceStatus
from orchestrator.replicas import Replica
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import START, Clock, Parts, orchestrated
from tests.test_keep_alive import EPOCH, HOUR, run


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@dataclass
class Turn:
    """One turn at START + `now` seconds, for a service with a timeout of 10 minutes that was ready at START."""

    name: str
    act: Act
    now: float
    idle: Idleness = field(default_factory=lambda: Idleness(since=START, looked_at=START))
    timeout: float | None = 10
    busy: bool = False
    on: bool = True


TURNS = [
    Turn("nothing yet", Act.NOTHING, 479),
    Turn("a fifth of the timeout before the end it is announced", Act.WARN, 480),
    Turn("at the end it is over", Act.END, 600),
    Turn("long after the end it is over", Act.END, 6000),
    Turn("an open request", Act.NOTHING, 6000, busy=True),
    Turn("a job that waits or loads", Act.NOTHING, 6000, on=False),
    Turn("without a timeout", Act.NOTHING, 6000, timeout=None),
    Turn("it has not answered yet", Act.NOTHING, 6000, Idleness()),
    Turn("a fraction of a minute", Act.END, 6, timeout=0.1),
    Turn("at most five minutes before", Act.NOTHING, 3299, timeout=60),
    Turn("five minutes before", Act.WARN, 3300, timeout=60),
]


@pytest.mark.parametrize("turn", TURNS, ids=[turn.name for turn in TURNS])
def test_what_a_turn_concludes(turn: Turn) -> None:
    assert decide(turn.idle, timeout=turn.timeout, busy=turn.busy, on=turn.on, now=at(turn.now)) is turn.act


def test_the_end_and_its_announcement() -> None:
    assert ends_at(START, 1) == at(60) and warned_from(at(60), 1) == at(48)
    assert ends_at(START, None) is None and ends_at(None, 1) is None


@dataclass
class Seen:
    """What a turn at START + `now` makes of an Idleness; `expected` is compared with those fields that it names."""

    name: str
    idle: Idleness
    expected: dict[str, Any]
    now: float = 100
    ready: float | None = 0
    used: float | None = None
    busy: bool = False
    on: bool = True


KNOWN = Idleness(since=START, looked_at=at(95))
SEEN = [
    Seen("the first answer", Idleness(), {"since": at(40), "looked_at": at(100), "last_activity": None}, ready=40),
    Seen("nothing new", KNOWN, {"since": START, "looked_at": at(100)}),
    Seen("a use", KNOWN, {"since": at(90), "last_activity": at(90), "stamp": at(90)}, used=90),
    Seen("the same use again", replace(KNOWN, stamp=at(0)), {"since": START}, used=0),
    Seen("an open request", KNOWN, {"since": at(100)}, used=10, busy=True),
    Seen("used before it first answered", Idleness(since=START), {"since": at(40), "looked_at": at(100)}, ready=40),
    Seen("it loads", Idleness(), {"since": None, "looked_at": None}, ready=None, on=False),
    Seen("it waits again", KNOWN, {"since": at(4905), "looked_at": at(5000)}, now=5000, on=False),
    Seen("used, but never counted", Idleness(since=START), {"since": START, "looked_at": None}, on=False),
    Seen("after a time away", KNOWN, {"since": START + timedelta(seconds=905) - UNSEEN}, now=1000),
    Seen("a short gap is idleness", KNOWN, {"since": START}, now=125),
    Seen("the clock was set back", KNOWN, {"since": at(-3600 + 5)}, now=-3600 + 100),
    Seen("a use by a clock set back since", KNOWN, {"since": at(100), "stamp": at(4000)}, used=4000),
    Seen("used before it was seen on", Idleness(), {"since": at(90), "last_activity": at(90)}, used=90, ready=40),
]


@pytest.mark.parametrize("case", SEEN, ids=[case.name for case in SEEN])
def test_what_a_turn_notes(case: Seen) -> None:
    ready_at = None if case.ready is None else at(case.ready)
    used = None if case.used is None else at(case.used)
    found = seen(case.idle, ready_at=ready_at, used=used, busy=case.busy, on=case.on, now=at(case.now))
    assert {name: getattr(found, name) for name in case.expected} == case.expected


# With a scheduler and a database


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


def script(work: Callable[[Parts, Service], Awaitable[None]], slurm: FakeSlurm, **config: Any) -> None:
    """A service with a timeout of one minute whose job 100 has just answered."""

    async def opened() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            service, _ = await parts.start({"idle_timeout": 1} | config)
            await run(parts, slurm, service.submission_id, "100", ends=EPOCH + 9 * HOUR)
            await parts.caretaker.look()
            await work(parts, service)

    asyncio.run(opened())


async def go_on(parts: Parts, seconds: float, step: float = 5) -> None:
    """Time goes by, with a turn now and then."""
    for _ in range(round(seconds / step)):
        parts.clock.advance(step)
        await parts.caretaker.look()


def only(parts: Parts, service: Service) -> Replica:
    (replica,) = parts.replicas.of(service.submission_id)
    return replica


async def ended(parts: Parts, service: Service) -> bool:
    found, _ = await parts.store.find(service.submission_id)
    return found.cancelled_at is not None


def test_an_idle_service_is_announced_and_ended(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        before = await parts.kinds(service)
        await go_on(parts, 45)
        assert await parts.kinds(service) == before
        await go_on(parts, 10)
        assert await parts.kinds(service) == [*before, "service.idle_warning"]
        await go_on(parts, 10)
        events = (await parts.store.events(service.submission_id))[len(before) :]
        assert [(event.kind, event.actor) for event in events] == [
            ("service.idle_warning", "idle"), ("service.idle_shutdown", "idle"), ("service.cancelled", "idle"),
        ]  # fmt: skip
        assert events[0].detail["shutdown_at"] == at(60).isoformat()
        assert events[1].detail == {"idle_minutes": 1.0, "idle_timeout": 1.0} and events[1].at == at(60)
        assert len(slurm.calls("scancel")) == 1
        assert await parts.status(service) is ServiceStatus.CANCELLED

    script(work, slurm)


def test_it_counts_from_the_end_of_the_last_request(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        with only(parts, service).lease(parts.clock):
            await go_on(parts, 600)
            found, job = await parts.store.find(service.submission_id)
            assert parts.caretaker.shutdown_at(found, job) is None
        assert "service.idle_warning" not in await parts.kinds(service)
        assert parts.caretaker.shutdown_at(found, job) == at(660)
        await go_on(parts, 55)
        assert not await ended(parts, service)
        await go_on(parts, 5)
        assert await ended(parts, service)

    script(work, slurm)


def test_what_only_looks_at_it_does_not_count(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        with only(parts, service).lease(parts.clock, used=False):
            await go_on(parts, 60)
            assert await ended(parts, service)

    script(work, slurm)


def test_activity_counts(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        await go_on(parts, 50)
        parts.replicas.touch(service.submission_id, parts.clock.now)
        await go_on(parts, 55)
        assert not await ended(parts, service)
        await go_on(parts, 5)
        assert await ended(parts, service)

    script(work, slurm)


def test_a_service_is_announced_again_when_it_was_used_meanwhile(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        for _ in range(2):
            await go_on(parts, 50)
            parts.replicas.touch(service.submission_id, parts.clock.now)
            await parts.caretaker.look()
        assert (await parts.kinds(service)).count("service.idle_warning") == 2

    script(work, slurm)


def test_time_in_the_queue_again_is_no_idleness(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        await go_on(parts, 30)
        slurm.change("100", state="PENDING", nodelist="", starttime="N/A", endtime="N/A", restartcnt="1")
        await parts.watcher.look()
        await go_on(parts, 3600, step=60)
        assert not await ended(parts, service)
        await run(parts, slurm, service.submission_id, "100", ends=EPOCH + 9 * HOUR, restarts=1)
        slurm.change("100", restartcnt="1")
        await parts.watcher.look()
        await parts.store.ready(service.submission_id, at=parts.clock.now, actor="watcher")
        await go_on(parts, 25)
        assert not await ended(parts, service)
        await go_on(parts, 5)
        assert await ended(parts, service), "30 s before the queue and 30 s after it"

    script(work, slurm)


def test_a_clock_set_ahead_ends_nothing(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        await go_on(parts, 10)
        parts.clock.jump(3600)
        await parts.caretaker.look()
        assert not await ended(parts, service)
        await go_on(parts, 60)
        assert await ended(parts, service)

    script(work, slurm)


def test_one_that_the_scheduler_does_not_end_goes_on_and_is_ended_later(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        slurm.behave("scancel", "echo 'scancel: error: busy' >&2; exit 1")
        await go_on(parts, 60)
        assert not await ended(parts, service) and not only(parts, service).draining
        slurm.behave("scancel")
        await go_on(parts, 5)
        assert await ended(parts, service)

    script(work, slurm)


def test_a_kept_service_ends_with_its_next_job(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        await go_on(parts, 60)
        found, _ = await parts.store.find(service.submission_id)
        assert found.cancelled_at is not None and not found.kept

    script(work, slurm, keep_alive=True)


@pytest.mark.parametrize("timeout", [0, None], ids=["never", "the site says nothing"])
def test_a_service_without_a_timeout_stays_and_its_last_use_is_kept(slurm: FakeSlurm, timeout: int | None) -> None:
    async def work(parts: Parts, service: Service) -> None:
        with only(parts, service).lease(parts.clock):
            pass
        await go_on(parts, 7200, step=600)
        assert not await ended(parts, service)
        found, job = await parts.store.find(service.submission_id)
        assert (found.last_activity, found.looked_at) == (START, None)
        assert parts.caretaker.shutdown_at(found, job) is None

    script(work, slurm, idle_timeout=timeout)


# Restarts


async def restarted(slurm: FakeSlurm, clock: Clock, up: float, down: float) -> bool:
    """One life of an orchestrator of `up` seconds, killed at its end and away for `down`; whether the service ended."""
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(orchestrated(slurm.home / "o", slurm.scheduler(), clock))
        await parts.watcher.look()
        await parts.caretaker.look()
        await go_on(parts, up, step=min(up, 20))
        ((service, _),) = await parts.store.services()
        over = await ended(parts, service)
    clock.advance(down)
    return over


async def first_life(slurm: FakeSlurm, clock: Clock, timeout: float) -> None:
    async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
        service, _ = await parts.start({"idle_timeout": timeout})
        await run(parts, slurm, service.submission_id, "100", ends=EPOCH + 99 * HOUR)
        await parts.caretaker.look()


def test_time_without_an_orchestrator_is_not_idle(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        await first_life(slurm, clock, timeout=10)
        assert not await restarted(slurm, clock, up=300, down=5 * HOUR)
        assert not await restarted(slurm, clock, up=240, down=0)
        assert await restarted(slurm, clock, up=40, down=0)

    asyncio.run(work())


def test_restarts_do_not_keep_a_service_for_ever(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        await first_life(slurm, clock, timeout=4)
        lives = 0
        while not await restarted(slurm, clock, up=5, down=300):
            lives += 1
            assert lives < 10, "of each gap 30 s count"

    asyncio.run(work())


def test_the_last_use_is_kept_over_a_restart(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            service, _ = await parts.start({"idle_timeout": 10})
            await run(parts, slurm, service.submission_id, "100", ends=EPOCH + 9 * HOUR)
            await go_on(parts, 100)
            with only(parts, service).lease(clock):
                pass
            used = clock.now
            await go_on(parts, 20)
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            found, job = await parts.store.find(service.submission_id)
            assert parts.caretaker.idleness(found, job).last_activity == used
            assert parts.caretaker.shutdown_at(found, job) == used + timedelta(minutes=10)

    asyncio.run(work())


def test_the_last_use_by_a_replica_that_is_gone_counts(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        await go_on(parts, 50)
        with only(parts, service).lease(parts.clock):
            pass
        parts.replicas.update(service.submission_id, service.submission_id, [])
        await go_on(parts, 55)
        assert not await ended(parts, service)

    script(work, slurm)


def test_the_last_use_of_a_service_that_has_ended_is_kept(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        await go_on(parts, 20)
        with only(parts, service).lease(parts.clock):
            pass
        used = parts.clock.now
        await parts.caretaker.look()
        found, job = await parts.store.find(service.submission_id)
        await parts.watcher.end(found, job, actor="test")
        await parts.caretaker.look()
        found, job = await parts.store.find(service.submission_id)
        assert found.last_activity == used
        assert parts.replicas.last_used(service.submission_id) == used  # of the replica that still drains
        assert parts.caretaker.shutdown_at(found, job) is None

    script(work, slurm)

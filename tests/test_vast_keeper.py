"""A rented machine is started once, paid for to the second, stopped when nobody uses it; its sessions close once."""

import asyncio
import json
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from orchestrator.errors import Conflict, NotStarted, NotStopped, OrchestratorError, RentalError, RentalUnknown
from orchestrator.vast.instance import Status
from orchestrator.vast.keeper import Check
from orchestrator.vast.ledger import runtime
from tests.fake_vast import ID, KEY, FakeVast, Mood, fake_vast
from tests.orchestrating import Clock, until
from tests.renting import ENGINE_KEY, Parts, engine, rented

ON = ["power_on_requested", "power_on_complete"]
OFF = ["power_off_requested", "power_off_complete"]
AUTO = ["auto_shutdown", "auto_shutdown_complete"]


Turn = Callable[..., None]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of the engine on the rented machine."""
    with engine() as port:
        yield port


@pytest.fixture
def turn(port: int, tmp_path: Path) -> Turn:
    """Do the work with a machine whose engine answers."""

    def begin(work: Callable[[Parts, FakeVast], Awaitable[None]], **more: Any) -> None:
        async def inner() -> None:
            with fake_vast(ports={8001: port}) as vast:
                async with rented(tmp_path / "o", vast, **more) as parts:
                    await work(parts, vast)

        asyncio.run(inner())

    return begin


def test_from_off_to_on_and_off_again(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        started = await parts.power_on()
        assert (started.status, started.message) == (Status.RUNNING, "Instance running and healthy")
        assert started.health_url == f"{started.endpoint}/health" == f"http://127.0.0.1:{vast.ports[8001]}/health"
        assert [r.ready for r in parts.replicas.of("vast")] == [True]
        parts.clock.advance(45.5 * 60)
        rental = await parts.keeper.power_off(actor="test")
        assert rental is not None
        assert runtime(rental) == timedelta(minutes=45.5)
        assert rental.cost == pytest.approx(0.45 * 45.5 / 60)
        assert parts.replicas.of("vast") == ()
        assert await parts.words() == ON + OFF
        assert vast.wishes == ["running", "stopped"]

    turn(work)


def test_twenty_power_ons_at_once_are_one_start(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        started = await asyncio.gather(*(parts.power_on(wait=bool(n % 4)) for n in range(20)))
        assert {one.status for one in started[1:4]} == {Status.RUNNING}
        assert await parts.power_on() == started[1]
        assert vast.wishes == ["running"]
        assert (await parts.words())[:2] == ON
        assert (await parts.keeper.ledger.totals()).sessions == 1

    turn(work)


def test_without_waiting_the_answer_comes_at_once_and_the_start_goes_on(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.starting = (("exited", "stopped"), ("loading", "running"), ("running", "running"))
        started = await parts.power_on(wait=False)
        assert started.status in (Status.SCHEDULING, Status.LOADING)
        assert (started.endpoint, started.health_url) == (None, None)
        await until(lambda: parts.replicas.answers("vast"))
        await parts.power_on()
        assert await parts.words() in ([*ON], [*ON, *ON])  # perhaps the first was over
        assert vast.wishes == ["running"]

    turn(work)


def test_a_start_with_another_health_check_is_a_conflict(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.starting = (("loading", "running"),)
        await parts.power_on(wait=False)
        with pytest.raises(Conflict, match="/health on port 8001"):
            await parts.keeper.power_on(Check(8001, "/ping"), wait=True, actor="test")

    turn(work)


def test_power_off_calls_a_start_off(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.starting = (("loading", "running"),)
        await parts.power_on(wait=False)
        waiting = asyncio.create_task(parts.power_on())
        await asyncio.sleep(0)
        assert await parts.keeper.power_off(actor="test") is None
        with pytest.raises(Conflict, match="switched off"):
            await waiting
        assert (await parts.words())[-2:] == OFF
        assert vast.wishes == ["running", "stopped"]

    turn(work)


@pytest.mark.parametrize(
    ("starting", "words"),
    [
        ([("loading", "running")], "it is loading"),
        ([("exited", "stopped")], "it is scheduling: it waits for its GPU"),
        ([(None, "running")], "it is creating"),
        ([("offline", "running")], "will not become healthy by itself"),
        ([("unknown", "running")], "will not become healthy by itself"),
        ([("exited", "running")], "container has ended by itself"),
    ],
)
def test_what_never_becomes_running_is_said_in_time(starting: list[tuple[str, str]], words: str, turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.starting = tuple(starting)
        with pytest.raises(NotStarted, match="Health check timeout") as failed:
            await parts.power_on()
        assert words in str(failed.value) and "power/off" in str(failed.value)
        assert await parts.words() == ["power_on_requested", "power_on_health_timeout"]
        assert (await parts.keeper.ledger.totals()).sessions == 0

    turn(work, wait_timeout_s=1)


def test_a_machine_that_runs_without_an_engine_is_not_healthy_but_costs(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.starting = (("running", "running"),)
        with pytest.raises(NotStarted, match=r"/broken answers 404"):
            await parts.keeper.power_on(Check(8001, "/broken"), wait=True, actor="test")
        parts.clock.advance(31 * 60)
        await parts.keeper.turn()  # and so it is stopped when its time is over
        assert await parts.words() == ["power_on_requested", "power_on_health_timeout", *AUTO]
        assert vast.wishes == ["running", "stopped"]

    turn(work, wait_timeout_s=1)


def test_a_port_that_is_not_mapped_is_said(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.ports, vast.starting = {8000: 1}, (("running", "running"),)
        with pytest.raises(NotStarted, match="does not map its port 8001"):
            await parts.power_on()

    turn(work, wait_timeout_s=1)


MOODS: list[tuple[Mood, type[OrchestratorError], str]] = [
    ("busy", RentalError, "429: too_many_requests: API requests too frequent; ask again in"),
    ("broken", RentalError, "500: internal: our database is away"),
    ("login page", RentalError, "answers something that is no instance"),
    ("sends us away", RentalError, "302.*VAST_API_URL"),
    ("cuts", RentalError, "cannot be reached"),
    ("forgets", RentalError, "no such instance"),
    ("hangs", RentalUnknown, r"did not answer within 0\.2 s"),
]


@pytest.mark.parametrize(("mood", "error", "words"), MOODS)
def test_vast_ai_in_its_moods(mood: Mood, error: type[OrchestratorError], words: str, turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        parts.keeper.sight.api.seconds = 0.2
        vast.becomes(mood)
        with pytest.raises(error, match=words) as failed:
            await parts.power_on()
        assert failed.value.status == (504 if error is RentalUnknown else 502)
        assert vast.wishes == []

    turn(work)


@pytest.mark.parametrize("mood", ["busy", "broken"])
def test_what_passes_is_tried_again(mood: Mood, turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.becomes(mood, times=3)
        await parts.power_on()
        assert vast.wishes == ["running"]

    turn(work)


def test_a_retry_after_that_is_too_long_is_passed_on(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.retry_after = "90"
        vast.becomes("busy")
        with pytest.raises(RentalError) as failed:
            await parts.power_on()
        assert failed.value.retry_after == 90
        assert len(vast.asked) == 1

    turn(work)


def test_a_wish_that_is_refused_is_said_and_changes_nothing(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.becomes("refuses")
        with pytest.raises(RentalError, match="insufficient_credit: Your account lacks credit"):
            await parts.power_on()
        vast.becomes("well")
        await parts.power_on()
        vast.becomes("refuses")
        with pytest.raises(RentalError, match="does not make it stopped"):
            await parts.keeper.power_off(actor="test")
        assert [r.draining for r in parts.replicas.of("vast")] == [False]
        rental = await parts.keeper.ledger.open()
        assert rental is not None and rental.stopping == ""

    turn(work)


def test_our_key_is_not_repeated(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        api = parts.keeper.sight.api
        api.settings = api.settings.model_copy(update={"api_key": SecretStr("wrong-key-0123456789")})
        with pytest.raises(RentalError, match=r"401: auth_error: Invalid user key \*\*\*; look at VAST_API_KEY"):
            await parts.power_on()

    turn(work)


def test_a_machine_that_does_not_stop_is_said_and_its_session_goes_on_until_it_does(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        vast.stopping = (("running", "running"),)
        parts.keeper.stop_seconds = 0.2
        with pytest.raises(NotStopped, match="has not stopped instance"):
            await parts.keeper.power_off(actor="test")
        assert await parts.words() == [*ON, "power_off_requested"]
        parts.clock.advance(60)
        await parts.keeper.turn()
        vast.stopped()
        parts.clock.advance(3600)
        await parts.keeper.turn()
        assert await parts.words() == ON + OFF
        assert (await parts.keeper.ledger.totals()).cost == pytest.approx(0.45 / 60)  # until it was last seen to run

    turn(work)


# Nobody uses it


def test_nobody_uses_it(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        parts.clock.advance(29 * 60)
        await parts.keeper.turn()
        parts.keeper.sight.used()
        parts.clock.advance(29 * 60)
        await parts.keeper.turn()
        assert await parts.words() == ON
        parts.clock.advance(90)
        await parts.keeper.turn()
        assert await parts.words() == ON + AUTO
        lines = await parts.keeper.ledger.audit(2)
        assert (lines[1].detail, lines[1].actor) == ({"inactive_minutes": 30.5}, "system")
        assert lines[0].detail["session_runtime_minutes"] == 59.5
        assert vast.wishes == ["running", "stopped"]
        await parts.keeper.turn()
        assert vast.wishes == ["running", "stopped"]

    turn(work)


def test_a_request_under_way_uses_it(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        (replica,) = parts.replicas.of("vast")
        with replica.lease(parts.clock):
            parts.clock.advance(3600)
            await parts.keeper.turn()
            assert vast.wishes == ["running"]
        parts.clock.advance(29 * 60)
        await parts.keeper.turn()  # it was used until a moment ago
        assert vast.wishes == ["running"]
        parts.clock.advance(60)
        await parts.keeper.turn()
        assert vast.wishes == ["running", "stopped"]

    turn(work)


def test_what_was_asked_before_is_answered_before_it_is_stopped(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        (replica,) = parts.replicas.of("vast")
        with replica.lease(parts.clock):
            stopping = asyncio.create_task(parts.keeper.power_off(actor="test"))
            await until(lambda: replica.draining)
            assert vast.wishes == ["running"]
        await stopping
        assert vast.wishes == ["running", "stopped"]

    turn(work)


def test_where_it_is_switched_off_nothing_is_stopped_by_itself(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        parts.clock.advance(10_000_000)
        await parts.keeper.turn()
        assert vast.wishes == ["running"]

    turn(work, auto_shutdown=False)


def test_a_shutdown_that_fails_is_done_by_a_later_turn(turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        parts.clock.advance(3600)
        vast.becomes("refuses")
        with pytest.raises(RentalError):
            await parts.keeper.turn()
        assert [r.draining for r in parts.replicas.of("vast")] == [False]
        vast.becomes("well")
        await parts.keeper.turn()
        assert (await parts.words())[-2:] == AUTO

    turn(work)


# Crashes, and what others do


@pytest.mark.parametrize("down", [False, True], ids=["still running", "stopped meanwhile"])
def test_a_session_is_closed_once_over_a_crash(down: bool, port: int, tmp_path: Path) -> None:
    clock = Clock()

    async def work() -> None:
        with fake_vast(ports={8001: port}) as vast:
            async with rented(tmp_path / "o", vast, clock, auto_shutdown_minutes=600) as parts:
                await parts.power_on()
                clock.advance(600)
                await parts.keeper.turn()
            clock.advance(1200)  # nobody looks
            if down:
                vast.stopped()
            async with rented(tmp_path / "o", vast, clock, auto_shutdown_minutes=600) as parts:
                await asyncio.gather(*(parts.keeper.turn() for _ in range(5)))
                totals = await parts.keeper.ledger.totals()
                assert (totals.sessions, totals.seconds) == (1, 600 if down else 1800)
                assert (await parts.keeper.ledger.open() is None) is down
                assert [r.submission_id for r in parts.replicas.of("vast")] == ([] if down else ["vast"])
                await parts.keeper.power_off(actor="test")
                assert (await parts.keeper.ledger.totals()).cost == pytest.approx(0.45 * totals.seconds / 3600)

    asyncio.run(work())
    closed = events(tmp_path / "o", "vast.session_closed")
    assert [json.loads(detail)["certain"] for detail in closed] == ([False] if down else [])
    assert len(events(tmp_path / "o", "power_off_complete")) == 1


def test_a_crash_between_the_wish_to_stop_and_the_end(port: int, tmp_path: Path) -> None:
    clock = Clock()

    async def work() -> None:
        with fake_vast(ports={8001: port}, stopping=(("running", "stopped"),) * 100_000) as vast:
            async with rented(tmp_path / "o", vast, clock) as parts:
                await parts.power_on()
                clock.advance(3600)
                killed = asyncio.create_task(parts.keeper.power_off(actor="test"))
                await until(lambda: "stopped" in vast.wishes)
                killed.cancel()
                await asyncio.wait({killed})
            vast.stopped()
            clock.advance(3600)
            async with rented(tmp_path / "o", vast, clock) as parts:
                for _ in range(3):
                    await parts.keeper.turn()
                assert await parts.words() == ON + OFF
                totals = await parts.keeper.ledger.totals()
                assert (totals.sessions, totals.seconds) == (1, 3600)
                assert totals.cost == pytest.approx(0.45)

    asyncio.run(work())


def test_a_start_that_a_crash_has_interrupted_is_followed_to_its_end(port: int, tmp_path: Path) -> None:
    clock = Clock()

    async def work() -> None:
        with fake_vast(ports={8001: port}, starting=(("loading", "running"),) * 100_000) as vast:
            async with rented(tmp_path / "o", vast, clock) as parts:
                await parts.power_on(wait=False)
            vast.steps = [("running", "running")]
            async with rented(tmp_path / "o", vast, clock) as parts:
                looping = asyncio.create_task(parts.keeper.run())
                await until(lambda: parts.replicas.answers("vast"))
                await parts.power_on()
                assert await parts.words() in (ON, [*ON, *ON])
                await parts.keeper.close(looping)
            assert vast.wishes == ["running"]

    asyncio.run(work())


def test_what_vast_ai_was_not_told_of_is_not_started_after_a_crash(tmp_path: Path) -> None:
    clock = Clock()

    async def work() -> None:
        with fake_vast() as vast:
            async with rented(tmp_path / "o", vast, clock) as parts:
                vast.becomes("refuses")
                with pytest.raises(RentalError):
                    await parts.power_on()
            vast.becomes("well")
            async with rented(tmp_path / "o", vast, clock) as parts:
                looping = asyncio.create_task(parts.keeper.run())
                await until(lambda: vast.looks >= 3)
                await parts.keeper.close(looping)
            assert vast.wishes == []

    asyncio.run(work())


def test_what_is_done_in_the_console_is_seen(turn: Turn, tmp_path: Path) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.runs()
        await parts.keeper.turn()
        await until(lambda: parts.replicas.answers("vast"))
        parts.clock.advance(60)
        vast.price = 0.9
        await parts.keeper.turn()
        parts.clock.advance(60)
        await parts.keeper.turn()
        vast.stopped()
        await parts.keeper.turn()
        assert parts.replicas.of("vast") == ()
        totals = await parts.keeper.ledger.totals()
        assert (totals.sessions, totals.seconds) == (1, 120)
        assert totals.cost == pytest.approx((0.45 + 0.9) / 60)  # the price has changed on the way
        assert await parts.words() == []
        assert len(events(tmp_path / "o", "vast.session_closed")) == 1

    turn(work)


@pytest.mark.parametrize("word", ["offline", "unknown", "rebooting"])
def test_unknown_is_not_gone(word: str, turn: Turn) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        vast.steps = [(word, "running")]
        await parts.keeper.turn()
        assert parts.replicas.of("vast") == ()
        assert await parts.keeper.ledger.open() is not None
        vast.runs()
        await parts.keeper.turn()
        assert (await parts.keeper.ledger.totals()).sessions == 1

    turn(work)


def test_the_database_has_one_open_session_of_an_instance(turn: Turn, tmp_path: Path) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        vast.runs()
        await asyncio.gather(*(parts.keeper.turn() for _ in range(10)))

    turn(work)
    with closing(sqlite3.connect(tmp_path / "o" / "orchestrator.db")) as database:
        assert database.execute("SELECT count(*) FROM rental").fetchone() == (1,)
        again = "INSERT INTO rental SELECT 2, instance_id, started_at, seen_at, active_at, NULL, 0, 0, '' FROM rental"
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(again)


# Files


def test_audit_and_state_are_copied_to_private_files(turn: Turn, tmp_path: Path) -> None:
    paths = {"audit_path": tmp_path / "audit.log", "state_path": tmp_path / "state.json"}

    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        paths["audit_path"].unlink()  # it is written again
        await asyncio.gather(*(parts.keeper.sight.export() for _ in range(5)))
        parts.clock.advance(3600)
        await parts.keeper.power_off(actor="test")

    turn(work, **paths)
    lines = [json.loads(line) for line in paths["audit_path"].read_text().splitlines()]
    assert [line["event"] for line in lines] == ON + OFF
    assert {tuple(line) for line in lines} == {("ts", "event", "actor", "meta")}
    state = json.loads(paths["state_path"].read_text())
    assert state["instance_id"] == ID and state["total_cost_usd"] == pytest.approx(0.45)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths.values()} == {0o600}


def test_a_file_that_cannot_be_written_keeps_nobody_from_anything(turn: Turn, tmp_path: Path) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        assert (await parts.power_on()).status is Status.RUNNING

    turn(work, audit_path=tmp_path / "nowhere" / "audit.log")


def test_no_secret_is_in_the_database(turn: Turn, tmp_path: Path) -> None:
    async def work(parts: Parts, vast: FakeVast) -> None:
        await parts.power_on()
        await parts.keeper.power_off(actor="test")

    turn(work)
    content = b"".join(path.read_bytes() for path in (tmp_path / "o").iterdir())
    assert KEY.encode() not in content and ENGINE_KEY.encode() not in content


def events(home: Path, kind: str) -> list[str]:
    """The details of the events of a kind."""
    with closing(sqlite3.connect(home / "orchestrator.db")) as database:
        return [detail for (detail,) in database.execute("SELECT detail FROM event WHERE kind = ?", (kind,))]

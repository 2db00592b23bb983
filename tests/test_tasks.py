"""Requests that are answered later: the queue in the database, and the loop that runs it on a clock of the test's."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.access import Caller
from orchestrator.errors import Invalid, NotFound
from orchestrator.models import TaskState
from orchestrator.task_store import MOST_ATTEMPTS, Outcome
from orchestrator.tasks import Answer, Collected, Verdict, pause_of, request_of, said, verdict
from tests.databases.place import Place
from tests.orchestrating import START, Clock
from tests.queueing import CHAT, EVERYBODY, KEEP, Queue, queueing, task, wake_up

QUEUED, RUNNING, DONE, FAILED, CANCELLED, EXPIRED = TaskState
ANSWERED = Outcome(DONE, 200, b"{}", None)


def work(place: Path | Place, steps: Callable[[Queue], Awaitable[None]], *models: str, **more: Any) -> None:
    async def opened() -> None:
        async with asyncio.timeout(60), queueing(place, *models, **more) as queue:
            await steps(queue)

    asyncio.run(opened())


# What becomes of an answer: pure


@pytest.mark.parametrize(
    ("status", "attempts", "away", "expected"),
    [
        (200, 1, False, Verdict.DONE), (201, 3, False, Verdict.DONE),
        (400, 1, False, Verdict.FAILED), (404, 1, False, Verdict.FAILED), (404, 1, True, Verdict.REST),
        (409, 1, False, Verdict.FAILED), (429, 3, False, Verdict.REST), (503, 3, False, Verdict.REST),
        (500, 1, False, Verdict.AGAIN), (502, 2, False, Verdict.AGAIN), (502, 3, False, Verdict.FAILED),
        (501, 1, False, Verdict.FAILED), (504, 1, False, Verdict.FAILED), (302, 1, False, Verdict.FAILED),
    ],
)  # fmt: skip
def test_what_becomes_of_a_task_by_its_answer(status: int, attempts: int, away: bool, expected: Verdict) -> None:
    assert verdict(status, attempts, away=away) is expected


@pytest.mark.parametrize(
    ("retry_after", "attempts", "seconds"),
    [(None, 1, 2), (None, 2, 4), (None, 9, 30), (0, 1, 1), (7, 2, 7), (86400, 1, 30)],
)
def test_how_long_until_the_next_attempt(retry_after: int | None, attempts: int, seconds: int) -> None:
    assert pause_of(Answer(503, b"", retry_after), attempts) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"], Answer(200, b"{}")),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n", b"\r\n1\r\n{\r\n", b"1\r\n}\r\n0\r\n\r\n"],
         Answer(200, b"{}")),
        ([b"HTTP/1.1 503 X\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n"], Answer(503, b"", 7)),
        ([b"HTTP/1.1 503 X\r\nretry-after: Fri, 31 Dec\r\ncontent-length: 0\r\n\r\n"], Answer(503, b"")),
    ],
)  # fmt: skip
def test_an_answer_is_collected(written: list[bytes], answer: Answer) -> None:
    reply = Collected(1000)
    for data in written:
        reply.write(data)
    assert not reply.over.is_set()
    reply.finish()
    assert reply.over.is_set() and reply.ended
    assert reply.answer() == answer


def test_an_answer_that_breaks_off_or_is_too_large_is_an_error() -> None:
    broken, large = Collected(1000), Collected(1 << 20)
    broken.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
    broken.cut("the engine died")
    assert (broken.answer().status, said(broken.answer())) == (502, "the engine died")
    for _ in range(3):
        large.write(b"x" * (1 << 19))
    assert large.over.is_set() and not large.ended, "whoever asked has to leave"
    assert (large.answer().status, said(large.answer())) == (501, "the answer is larger than 1 MiB")


def test_the_request_of_a_task_is_the_client_s() -> None:
    one = task("hi")
    request = request_of(one)
    assert (request.method, request.target, request.length) == (b"POST", CHAT.encode(), len(one.body or b""))
    assert request.id == one.id.encode()
    assert request.header(b"x-sluice-actor") == b"me"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"detail": "why"}', "why"),
        (b"\xff!", "\ufffd!"),
        (b"", "status 500"),
    ],
)
def test_an_error_s_words(body: bytes, words: str) -> None:
    assert said(Answer(500, body)) == words


# The queue in the database


def test_tasks_are_taken_in_order_and_each_once(place: Place) -> None:
    async def steps(queue: Queue) -> None:
        made = [await queue.add(str(n), "ab"[n % 2]) for n in range(6)]
        assert [await queue.store.position(one) for one in made] == [1, 2, 3, 4, 5, 6]
        taken = [await queue.store.take(START, {"b"}) for _ in range(2)]
        assert [one.id for one in taken if one] == [made[0].id, made[2].id]
        rest = await asyncio.gather(*(queue.store.take(START, ()) for _ in range(6)))
        assert {one.id for one in rest if one} == {made[n].id for n in (1, 3, 4, 5)}
        assert [await queue.state(one) for one in made] == [RUNNING] * 6
        assert taken[0] is not None and taken[0].body == made[0].body

    work(place, steps)


def test_a_result_is_recorded_once(place: Place) -> None:
    async def steps(queue: Queue) -> None:
        await queue.add()
        first = await queue.store.take(START, ())
        assert first is not None
        await queue.store.put_back(first, not_before=START, error="", asked=True)
        second = await queue.store.take(START, ())
        assert second is not None and second.attempts == 2
        kept = {"at": START, "expires_at": START + KEEP}
        assert not await queue.store.end(first, ANSWERED._replace(result=b"late"), **kept), "another attempt runs"
        ends = await asyncio.gather(*(queue.store.end(second, ANSWERED, **kept) for _ in range(5)))
        assert sorted(ends) == [False] * 4 + [True]
        assert (await queue.now(second)).result == b"{}"
        assert await queue.store.take(START, ()) is None
        await queue.store.recover(START, KEEP)
        assert await queue.store.take(START, ()) is None

    work(place, steps)


def test_after_a_crash_what_ran_waits_again_until_it_has_had_its_attempts(place: Place) -> None:
    async def crash(queue: Queue) -> None:
        assert await queue.store.take(START, ()) is not None

    async def recovered(queue: Queue) -> None:
        await queue.store.recover(START, KEEP)

    work(place, lambda queue: queue.add())  # type: ignore[arg-type, return-value]
    for _ in range(MOST_ATTEMPTS):
        work(place, crash)
        work(place, recovered)

    async def steps(queue: Queue) -> None:
        (one,) = await queue.store.tasks(EVERYBODY, limit=10)
        assert (one.state, one.attempts) == (FAILED, MOST_ATTEMPTS)
        assert one.error == "the orchestrator ended 3 times while an engine was asked"
        assert await queue.store.take(START, ()) is None

    work(place, steps)


def test_the_same_key_is_the_same_task(place: Place) -> None:
    async def steps(queue: Queue) -> None:
        made = await asyncio.gather(*(queue.add("hi", key="k") for _ in range(5)))
        assert len({one.id for one in made}) == 1
        with pytest.raises(Invalid, match=f"belongs to another request, which became {made[0].id}"):
            await queue.add("ho", key="k")
        assert (await queue.add("ho", key="k", actor="you")).id != made[0].id
        assert await queue.store.count(EVERYBODY) == 2

    work(place, steps)


def test_who_sees_what(place: Place) -> None:
    async def steps(queue: Queue) -> None:
        mine, yours = await queue.add(), await queue.add(actor="you")
        you = Caller("you", sees_all=False)
        assert (await queue.store.find(yours.id, you)).id == yours.id
        assert [one.id for one in await queue.store.tasks(you, limit=10)] == [yours.id]
        assert await queue.store.count(you) == 1
        for ask in (queue.store.find(mine.id, you), queue.tasks.cancel(mine.id, you)):
            with pytest.raises(NotFound):
                await ask
        assert await queue.state(mine) is QUEUED
        assert [one.id for one in await queue.store.tasks(EVERYBODY, limit=1, offset=1)] == [mine.id]
        assert await queue.store.tasks(EVERYBODY, state=DONE, limit=10) == []

    work(place, steps)


def test_what_is_queued_is_cancelled_and_what_has_ended_stays(place: Place) -> None:
    async def steps(queue: Queue) -> None:
        one = await queue.add()
        assert [(await queue.tasks.cancel(one.id, EVERYBODY))[1] for _ in range(2)] == [QUEUED, CANCELLED]
        assert await queue.store.take(START, ()) is None
        found = await queue.now(one)
        assert (found.state, found.cancel_requested_at, found.ended_at) == (CANCELLED, START, START)

    work(place, steps)


# The loop


def test_a_task_is_answered_as_a_client_would_be(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        good, bad = await queue.add("hello"), await queue.add("status 418")
        await queue.turn()
        done, failed = await queue.now(good), await queue.now(bad)
        assert (done.state, done.status, done.attempts, done.error) == (DONE, 200, 1, None)
        assert json.loads(done.result or b"")["choices"][0]["message"]["content"].startswith("hello | m")
        assert (failed.state, failed.status, failed.error) == (FAILED, 418, "told to answer 418")
        assert json.loads(failed.result or b"")["error"]["message"] == "told to answer 418"
        assert {replica.in_flight for replica in queue.replicas.every()} == {0}

    work(tmp_path, steps, "m")


def test_no_more_than_so_many_of_a_model_run_at_once(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        slow = [await queue.add("sleep 30", "slow") for _ in range(5)]
        fast = await queue.add("hi", "fast")
        await queue.tasks.look()
        await queue.until(lambda: queue.engines["slow"].running == 2)
        assert [await queue.state(one) for one in slow] == [RUNNING, RUNNING, QUEUED, QUEUED, QUEUED]
        await queue.until(lambda: len(queue.tasks.running) == 2)
        assert await queue.state(fast) is DONE

    work(tmp_path, steps, "slow", "fast", concurrency=2)


def test_an_engine_that_fails_is_asked_three_times(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        one = await queue.add("status 500")
        for seconds in (0, 2, 4):
            assert await queue.state(one) is QUEUED
            queue.clock.advance(seconds - 0.1)
            await queue.turn()
            queue.clock.advance(0.1)
            await queue.turn()
        found = await queue.now(one)
        assert (found.state, found.attempts, found.status) == (FAILED, 3, 500)

    work(tmp_path, steps, "m")


def test_the_tasks_of_a_model_that_sleeps_wait_without_losing_attempts(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        queue.asleep.add("late")
        made = [await queue.add("hi", "late") for _ in range(6)]
        for _ in range(4):
            queue.clock.advance(5)
            await queue.turn()
        assert [(await queue.now(one)).attempts for one in made] == [0] * 6
        assert queue.tasks.rests("late") == "it loads"
        async with AsyncExitStack() as stack:
            await wake_up(queue, stack, "late")
            await queue.turn()  # at once, without an advance of the clock
            await queue.turn()
            assert [await queue.state(one) for one in made] == [DONE] * 6
            assert queue.tasks.rests("late") is None

    work(tmp_path, steps)


def test_a_model_whose_service_has_gone_may_come_back(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        one = await queue.add("hi", "gone")
        await queue.turn()
        assert (await queue.state(one), queue.tasks.rests("gone")) == (QUEUED, "no 'gone'")

    work(tmp_path, steps)


def test_the_engine_of_a_task_that_is_cancelled_is_left(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        one = await queue.add("sleep 30")
        await queue.tasks.look()
        await queue.until(lambda: queue.engines["m"].running == 1)
        assert (await queue.tasks.cancel(one.id, EVERYBODY))[1] is RUNNING
        await queue.until(lambda: queue.engines["m"].running == 0)
        assert (await queue.state(one), queue.engines["m"].succeeded) == (CANCELLED, 0)
        assert {replica.in_flight for replica in queue.replicas.every()} == {0}

    work(tmp_path, steps, "m")


def test_what_is_cancelled_just_before_it_is_run_reaches_no_engine(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        await queue.add()
        one = await queue.store.take(START, ())
        assert one is not None
        assert (await queue.tasks.cancel(one.id, EVERYBODY))[1] is RUNNING
        await queue.tasks._run(one)
        assert (await queue.state(one), queue.engines["m"].accepted) == (CANCELLED, 0)

    work(tmp_path, steps, "m")


def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        one = await queue.add("sleep 30")
        await queue.turn()
        found = await queue.now(one)
        assert (found.state, found.status) == (FAILED, 504)
        await queue.until(lambda: queue.engines["m"].running == 0)

    work(tmp_path, steps, "m", answering=0.2)


def test_a_loop_that_is_ended_puts_back_what_runs(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        one = await queue.add("sleep 30")
        loop = asyncio.create_task(queue.tasks.run())
        await queue.until(lambda: queue.engines["m"].running == 1)
        loop.cancel()
        await asyncio.wait({loop})
        found = await queue.now(one)
        assert (found.state, found.attempts, found.started_at) == (QUEUED, 0, None)

    work(tmp_path, steps, "m")


def test_what_waits_too_long_and_what_was_kept_long_enough_expires(place: Place) -> None:
    clock = Clock()

    async def expire(queue: Queue) -> None:
        while await queue.store.expire(clock(), KEEP):
            pass

    async def steps(queue: Queue) -> None:
        done, waits = await queue.add("hi"), await queue.add("hi", "nobody")
        await queue.turn()
        clock.advance(24 * 3600 - 1)
        await expire(queue)
        assert [await queue.state(one) for one in (done, waits)] == [DONE, QUEUED]
        clock.advance(1)
        await expire(queue)
        found = await queue.now(waits)
        assert (found.state, found.body, found.ended_at) == (EXPIRED, None, clock())
        assert (found.error or "").startswith("it waited for 24.0 hours and no engine answered it: no 'nobody'")
        clock.advance(48 * 3600 - 1)
        await expire(queue)
        assert (await queue.now(done)).result
        clock.advance(1)
        await expire(queue)
        found = await queue.now(done)
        assert (found.state, found.body, found.result, found.status) == (EXPIRED, None, None, 200)
        clock.advance(72 * 3600)
        await expire(queue)
        assert await queue.store.count(EVERYBODY) == 0

    work(place, steps, "m", clock=clock)


def test_a_long_queue_is_taken_from_quickly(place: Place) -> None:
    async def steps(queue: Queue) -> None:
        async with queue.store._writing() as session:
            session.add_all(task("x", "ab"[n % 2]) for n in range(1000))
            await session.commit()
        began = time.process_time()
        for _ in range(50):
            assert await queue.store.take(START, {"a"}) is not None
        assert time.process_time() - began < 2
        tally = {(row.model, row.state): row.number for row in await queue.store.tally()}
        assert tally == {("a", QUEUED): 500, ("b", QUEUED): 450, ("b", RUNNING): 50}

    work(place, steps)

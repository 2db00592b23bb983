"""The cache: one question at a time, answers for a while, the least recently used dropped first."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from orchestrator.cache import Cache
from orchestrator.errors import NotReady
from tests.orchestrating import Clock


def cache_of(clock: Clock, room: int = 3) -> Cache[str]:
    return Cache(clock, keep=timedelta(seconds=60), keep_error=timedelta(seconds=5), room=room, weight=len)


class Source:
    """Answers with `answer` when `gate` is open, and counts."""

    def __init__(self, answer: str | Exception = "a") -> None:
        self.answer, self.asked, self.gate = answer, 0, asyncio.Event()
        self.gate.set()

    async def __call__(self) -> str:
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def running() -> None:
        await test()

    asyncio.run(running())


def test_those_who_wait_share_one_question_and_one_who_leaves_does_not_take_it_along() -> None:
    async def test() -> None:
        cache, source = cache_of(Clock()), Source()
        source.gate.clear()
        waiting = [asyncio.create_task(cache.get("key", source)) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        source.gate.set()
        assert await asyncio.gather(*waiting[1:]) == ["a"] * 19
        assert (source.asked, waiting[0].cancelled()) == (1, True)

    run(test)


@pytest.mark.parametrize(("answer", "seconds"), [("a", 60), (NotReady("later"), 5)])
def test_how_long_an_answer_is_kept(answer: str | Exception, seconds: float) -> None:
    async def test() -> None:
        clock = Clock()
        cache, source = cache_of(clock), Source(answer)
        for passed, asked in ((0, 1), (seconds - 1, 1), (1, 2)):
            clock.advance(passed)
            await asyncio.gather(cache.get("key", source), return_exceptions=True)
            assert source.asked == asked

    run(test)


def test_a_fault_of_ours_is_never_kept() -> None:
    async def test() -> None:
        cache, source = cache_of(Clock()), Source(RuntimeError("a bug"))
        for asked in (1, 2):
            with pytest.raises(RuntimeError):
                await cache.get("key", source)
            assert source.asked == asked

    run(test)


def test_what_was_used_last_stays() -> None:
    async def test() -> None:
        cache, sources = cache_of(Clock(), room=3), {key: Source() for key in "abcd"}
        for key in "abcad":  # d makes four: b is the one that was not used for longest
            await cache.get(key, sources[key])
        for key in "acd":
            await cache.get(key, sources[key])
        assert [source.asked for source in sources.values()] == [1, 1, 1, 1]
        await cache.get("b", sources["b"])
        assert sources["b"].asked == 2

    run(test)


def test_an_answer_that_is_larger_than_the_room_is_kept_alone() -> None:
    async def test() -> None:
        cache, small, large = cache_of(Clock(), room=3), Source(), Source("large")
        for source in (small, large, large, small):
            await cache.get(source, source)
        assert (small.asked, large.asked) == (2, 1)

    run(test)


def test_closing_ends_what_is_being_asked() -> None:
    async def test() -> None:
        cache, source = cache_of(Clock()), Source()
        source.gate.clear()
        waiting = asyncio.create_task(cache.get("key", source))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cache.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(test)

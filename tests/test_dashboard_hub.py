"""What all tabs watch: one look for all of them, only what is new, and nobody waits for a slow one."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.dashboard.asking import Asker, Away
from gateway.dashboard.hub import Crowded, Hub, Topic, changes, json_piece
from gateway.link import LinkState, LinkStatus
from orchestrator.keys import Scope, now

pytestmark = pytest.mark.anyio
NOBODY: Any = None  # an Asker that no look here asks


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("before", "after", "different", "gone"),
    [
        ({}, {"a": "1"}, {"a": "1"}, []),
        ({"a": "1"}, {"a": "1"}, {}, []),
        ({"a": "1", "b": "1"}, {"c": "1", "a": "2"}, {"c": "1", "a": "2"}, ["b"]),
    ],
)
def test_changes(before: dict[str, str], after: dict[str, str], different: dict[str, str], gone: list[str]) -> None:
    assert changes(before, after) == (different, gone)
    assert list(changes(before, after)[0]) == [piece for piece in after if piece in different], "in their order"


def test_data_is_one_line() -> None:
    assert json_piece({"a": "x\ny"}) == '{"a":"x\\ny"}'


class World:
    """What is looked at, and how often it was."""

    def __init__(self) -> None:
        self.pieces: dict[str, str] = {"a": "<p>1</p>"}
        self.looks = 0
        self.away = False

    async def look(self, asker: Asker) -> dict[str, str]:
        self.looks += 1
        if self.away:
            raise Away(LinkStatus(LinkState.DOWN, "there", now()))
        return dict(self.pieces)

    async def look_at(self, asker: Asker, argument: str) -> dict[str, str]:
        return {"of": argument}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def hub(world: World) -> AsyncIterator[Hub]:
    topics = (
        Topic("all", world.look, every=0.01),
        Topic("one", world.look_at, every=0.01, of_one=True),
        Topic("secret", world.look, scope=Scope.ADMIN),
    )
    async with Hub(topics, NOBODY) as hub:
        yield hub


async def said(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    """The next event that says something."""
    async with asyncio.timeout(5):
        async for data in stream:
            if data.startswith(b"data: "):
                told: dict[str, Any] = json.loads(data[6:])
                return told
    raise AssertionError("the stream has ended")


def watch(hub: Hub, *names: str) -> AsyncIterator[bytes]:
    return hub.watch(hub.allowed(names, None))


async def test_everything_at_first_then_what_is_different(hub: Hub, world: World) -> None:
    stream = watch(hub, "all")
    assert await said(stream) == {"topic": "all", "whole": True, "pieces": {"a": "<p>1</p>"}, "gone": []}
    world.pieces = {"b": "<p>2</p>"}
    assert await said(stream) == {"topic": "all", "whole": False, "pieces": {"b": "<p>2</p>"}, "gone": ["a"]}
    late = watch(hub, "all")
    assert await said(late) == {"topic": "all", "whole": True, "pieces": {"b": "<p>2</p>"}, "gone": []}


async def test_all_who_watch_cost_one_look_and_nobody_none(hub: Hub, world: World) -> None:
    assert world.looks == 0
    streams = [watch(hub, "all") for _ in range(20)]
    for stream in streams:
        await said(stream)
    assert world.looks <= 2
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    looks = world.looks
    await asyncio.sleep(0.05)
    assert world.looks == looks


async def test_a_topic_of_one(hub: Hub) -> None:
    stream = watch(hub, "one:3652098:8001")
    told = await said(stream)
    assert (told["topic"], told["pieces"]) == ("one:3652098:8001", {"of": "3652098:8001"})


async def test_what_may_be_watched(hub: Hub) -> None:
    def names(scope: Scope | None, *asked: str) -> set[str]:
        return {topic.name for topic in hub.allowed(asked, scope)}

    assert names(Scope.USE, "all", "secret", "one:1", "nothing") == {"all", "one:1"}
    assert names(Scope.ADMIN, "secret") == {"secret"} == names(None, "secret")
    assert names(None, "one", "one:", "all:1", "one:" + "x" * 101) == set()
    assert len(names(None, *(f"one:{number}" for number in range(1000)))) == 64


async def test_who_does_not_keep_up_is_let_go(hub: Hub, world: World) -> None:
    slow, quick = watch(hub, "all"), watch(hub, "all")
    await said(slow)
    await said(quick)
    for number in range(100):
        world.pieces = {"a": f"<p>{number + 2}</p>"}
        assert (await said(quick))["pieces"] == world.pieces
    with pytest.raises(AssertionError, match="ended"):
        await said(slow)


async def test_while_it_is_away_nothing_is_said_and_nothing_is_gone(hub: Hub, world: World) -> None:
    stream = watch(hub, "all")
    await said(stream)
    world.away = True
    looks = world.looks
    async with asyncio.timeout(5):
        while world.looks < looks + 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    world.away, world.pieces = False, {"a": "<p>9</p>"}
    assert (await said(stream))["pieces"] == {"a": "<p>9</p>"}


async def test_the_end(hub: Hub, world: World) -> None:
    stream = watch(hub, "all")
    await said(stream)
    hub.close()
    with pytest.raises(AssertionError, match="ended"):
        await said(stream)
    with pytest.raises(Crowded):
        hub.check_room()

"""What all open pages watch, looked at once for all of them.

A topic's look gives pieces: HTML by the id of its element. The hub keeps what it gave last, and tells those who watch
what is new, different or gone. It looks while somebody watches, and not otherwise. One task writes; who watches has a
queue with an end, and one that does not keep up is let go: its browser comes back, and gets everything.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.dashboard.asking import Asker, Away, Refused
from orchestrator.keys import Scope

log = logging.getLogger(__name__)

_MOST_QUEUED = 64  # messages to one who watches
_MOST_WATCHING = 200
_MOST_TOPICS = 64  # of one who watches
_MOST_ARGUMENT = 100  # characters
_ALIVE_SECONDS = 15.0  # between two signs of life

Pieces = Mapping[str, str]


@dataclass(frozen=True)
class Topic:
    """`every`: seconds. `scope`: of the keys that may watch it.

    `of_one`: it is watched as `name:argument`, such as `service:3652098`, and its look has the argument as well.
    """

    name: str
    look: Callable[..., Awaitable[Pieces]]  # (asker) or, of one, (asker, argument)
    every: float = 1.0
    scope: Scope = Scope.USE
    of_one: bool = False

    def of(self, argument: str) -> "Topic":
        return replace(self, name=f"{self.name}:{argument}", look=lambda asker: self.look(asker, argument))


def json_piece(value: Any) -> str:
    """A piece that is data for a script: it is not put into the page."""
    return json.dumps(value, separators=(",", ":"))


def changes(before: Pieces, now: Pieces) -> tuple[dict[str, str], list[str]]:
    """The pieces that are new or different, and the ids of those that are gone."""
    return (
        {piece: html for piece, html in now.items() if before.get(piece) != html},
        [piece for piece in before if piece not in now],
    )


def message(topic: str, pieces: Pieces, gone: Sequence[str] = (), *, whole: bool = False) -> bytes:
    """As an event of a stream. `whole`: what is not in it is gone."""
    said = {"topic": topic, "whole": whole, "pieces": pieces, "gone": list(gone)}
    return f"data: {json.dumps(said, separators=(',', ':'))}\n\n".encode()


class Crowded(Exception):
    """As many watch already as may."""


@dataclass(eq=False)
class Watcher:
    """One connection of a browser, and the topics that its tabs show."""

    topics: frozenset[str]
    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(_MOST_QUEUED))

    def tell(self, data: bytes) -> bool:
        """False where it does not keep up."""
        with contextlib.suppress(asyncio.QueueFull):
            self.queue.put_nowait(data)
            return True
        return False


class Hub:
    """Opened by `async with`. `asker` asks for all who watch."""

    def __init__(self, topics: Sequence[Topic], asker: Asker) -> None:
        self._topics = {topic.name: topic for topic in topics}
        self._asker = asker
        self._watchers: set[Watcher] = set()
        self._last: dict[str, Pieces] = {}  # of the topics that somebody watches
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    async def __aenter__(self) -> "Hub":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
        loops = list(self._loops.values())
        for task in loops:
            task.cancel()
        if loops:
            await asyncio.wait(loops)

    def close(self) -> None:
        """Nobody may watch any more. End all streams: their browsers come back to whoever comes after us."""
        self._closed = True
        for watcher in list(self._watchers):
            self._drop(watcher)

    def allowed(self, names: Collection[str], scope: Scope | None) -> frozenset[Topic]:
        """Those of the named topics that there are and that may be watched."""
        known = [topic for name in list(names)[:_MOST_TOPICS] if (topic := self._named(name)) is not None]
        return frozenset(topic for topic in known if scope is None or scope.covers(topic.scope))

    def _named(self, name: str) -> Topic | None:
        kind, colon, argument = name.partition(":")
        topic = self._topics.get(kind)
        if topic is None or topic.of_one != bool(argument) or len(argument) > _MOST_ARGUMENT:
            return None
        return topic.of(argument) if colon else topic

    def check_room(self) -> None:
        """Raises Crowded where nobody more may watch."""
        if len(self._watchers) >= _MOST_WATCHING or self._closed:
            raise Crowded

    async def watch(self, topics: Collection[Topic]) -> AsyncIterator[bytes]:
        """The events of these topics, everything first. Ends when the hub is closed or this does not keep up."""
        with self._joined(topics) as watcher:
            yield b"retry: 2000\n\n"
            while True:
                try:
                    async with asyncio.timeout(_ALIVE_SECONDS):
                        data = await watcher.queue.get()
                except TimeoutError:
                    data = b": alive\n\n"
                if data is None:
                    return
                yield data

    @contextlib.contextmanager
    def _joined(self, topics: Collection[Topic]) -> Iterator[Watcher]:
        watcher = Watcher(frozenset(topic.name for topic in topics))
        self._watchers.add(watcher)
        for topic in topics:
            if topic.name in self._last:
                watcher.tell(message(topic.name, self._last[topic.name], whole=True))
            if topic.name not in self._loops:
                self._loops[topic.name] = asyncio.create_task(self._follow(topic))
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            self._rest()

    def _rest(self) -> None:
        """End the loops of topics that nobody watches any more."""
        for name in set(self._loops) - {topic for watcher in self._watchers for topic in watcher.topics}:
            self._loops.pop(name).cancel()
            self._last.pop(name, None)

    async def _follow(self, topic: Topic) -> None:
        while True:
            await self.look(topic)
            await asyncio.sleep(topic.every)

    async def look(self, topic: Topic) -> None:
        """One turn. What cannot be asked stays as it is: the topic `link` says that it is away."""
        try:
            now = await topic.look(self._asker)
        except (Away, Refused) as exc:
            log.debug("%s: %s", topic.name, exc)
            return
        except Exception:  # the top of a loop
            log.exception("the dashboard's topic %s could not be looked at", topic.name)
            return
        before = self._last.get(topic.name)
        self._last[topic.name] = now
        if before is None:
            self._tell(topic.name, message(topic.name, now, whole=True))
        elif before != now:
            different, gone = changes(before, now)
            self._tell(topic.name, message(topic.name, different, gone))

    def _tell(self, name: str, data: bytes) -> None:
        for watcher in [one for one in self._watchers if name in one.topics]:
            if not watcher.tell(data):
                self._drop(watcher)

    def _drop(self, watcher: Watcher) -> None:
        """End its stream, without what it has not taken yet."""
        self._watchers.discard(watcher)
        while not watcher.queue.empty():
            watcher.queue.get_nowait()
        watcher.queue.put_nowait(None)

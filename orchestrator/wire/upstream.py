"""The side that asks: connections to engines, kept while they are idle, each with one request at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, cast

from orchestrator.wire.http1 import HEAD_END, MOST_HEAD, Extent, Malformed, Response, Unbounded, parse_response

IDLE_SECONDS = 4.0  # below the 5 s after which uvicorn, and so vLLM, closes an idle connection
MOST_IDLE = 64  # kept for one address
_READ_BUFFER = 256 * 1024


class Taker(Protocol):
    """Whoever asked. Nothing is called after `done` or `broken`."""

    def answered(self, response: Response, head: bytes) -> None:
        """The head of the answer, parsed and as it came."""

    def data(self, data: bytes) -> None:
        """Bytes of the body in its framing, as they came."""

    def done(self) -> None:
        """The answer is complete."""

    def broken(self, why: str) -> None:
        """The connection ended before the answer was complete, or what came is no HTTP."""

    def full(self, full: bool) -> None:
        """Whether the engine takes no more of the request for now."""


class Connection(asyncio.Protocol):
    """One connection to an engine."""

    transport: asyncio.Transport

    def __init__(self, pool: "Pool", address: tuple[str, int]) -> None:
        self._pool = pool
        self._address = address
        self._taker: Taker | None = None
        self._to_head = False
        self._head: bytes | None = b""  # of the answer; None once it is complete
        self._extent: Extent | None = None
        self._keep = False
        self._paused = False
        self.idle_since = 0.0
        self.fresh = True  # no answer has come on it yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from asyncio's

    def ask(self, taker: Taker, data: bytes, *, to_head: bool = False) -> None:
        """Send a request: its head, and as much of its body as there is."""
        self._taker, self._to_head = taker, to_head
        self._head, self._extent = b"", None
        self.transport.write(data)

    def send(self, data: bytes) -> None:
        """More of the request's body."""
        self.transport.write(data)

    def pause(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """Give the request up; the engine notices at once."""
        self._taker = None
        self.transport.abort()

    @property
    def usable(self) -> bool:
        return not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        taker = self._taker
        if taker is None:
            self.transport.abort()  # nobody asked
            return
        try:
            if self._extent is None:
                self._take_head(taker, data)
            else:
                self._take_body(taker, data, self._extent)
        except Malformed as exc:
            self._break(str(exc))

    def _take_head(self, taker: Taker, data: bytes) -> None:
        data = self._head + data if self._head else data
        self._head = b""
        while True:
            end = data.find(HEAD_END) + len(HEAD_END)
            if end < len(HEAD_END):
                if len(data) > MOST_HEAD:
                    raise Malformed(f"the head of the answer is longer than {MOST_HEAD} bytes")
                self._head = data
                return
            response = parse_response(data[:end], to_head=self._to_head)
            if response.status >= 200:
                break
            if response.status == 101:
                raise Malformed("the engine changed the protocol")
            data = data[end:]  # an interim answer is for this hop
        self._extent, self._keep, self.fresh = response.extent, response.keep_alive, False
        taker.answered(response, data[:end])
        if self._taker is taker:
            self._take_body(taker, data[end:], response.extent)

    def _take_body(self, taker: Taker, data: bytes, extent: Extent) -> None:
        end = extent.take(data)
        if end < 0:
            if data:
                taker.data(data)
            return
        surplus = end < len(data)
        if end:
            taker.data(data[:end] if surplus else data)
        if self._taker is not taker:
            return
        self._taker = None
        if surplus or not self._keep:
            self.transport.abort()
        else:
            self.resume()
            self._pool.give_back(self._address, self)
        taker.done()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self._address, self)
        taker, self._taker = self._taker, None
        if taker is None:
            return
        if exc is None and isinstance(self._extent, Unbounded):
            taker.done()
        else:
            taker.broken(f"the connection ended ({exc or 'closed by the engine'})")

    def _break(self, why: str) -> None:
        taker, self._taker = self._taker, None
        self.transport.abort()
        if taker is not None:
            taker.broken(why)

    def pause_writing(self) -> None:
        if self._taker is not None:
            self._taker.full(True)

    def resume_writing(self) -> None:
        if self._taker is not None:
            self._taker.full(False)


class Pool:
    """The idle connections, by address (host, port). Opened and closed with its owner."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connect_seconds: float = 5.0) -> None:
        self._loop = loop
        self._connect_seconds = connect_seconds
        self._idle: dict[tuple[str, int], deque[Connection]] = {}

    def idle(self, address: tuple[str, int]) -> Connection | None:
        """One that can be used at once; the youngest, because the oldest may be closing."""
        waiting = self._idle.get(address)
        while waiting:
            connection = waiting.pop()
            if connection.usable and self._loop.time() - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.transport.abort()
        return None

    async def connect(self, address: tuple[str, int]) -> Connection:
        """A new one. Raises OSError, TimeoutError included."""
        async with asyncio.timeout(self._connect_seconds):
            _, connection = await self._loop.create_connection(lambda: Connection(self, address), *address)
        return connection

    def give_back(self, address: tuple[str, int], connection: Connection) -> None:
        waiting = self._idle.setdefault(address, deque())
        if len(waiting) >= MOST_IDLE:
            connection.transport.abort()
            return
        connection.idle_since = self._loop.time()
        waiting.append(connection)

    def forget(self, address: tuple[str, int], connection: Connection) -> None:
        waiting = self._idle.get(address)
        if waiting and connection in waiting:
            waiting.remove(connection)
        if not waiting:
            self._idle.pop(address, None)

    def close(self) -> None:
        for waiting in list(self._idle.values()):
            for connection in list(waiting):
                connection.transport.abort()
        self._idle.clear()


@asynccontextmanager
async def open_pool() -> AsyncIterator[Pool]:
    pool = Pool(asyncio.get_running_loop())
    try:
        yield pool
    finally:
        pool.close()

"""The side that asks: connections to engines, kept while they are idle, each with one request at a time."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, Self, cast

from orchestrator.wire import Reply
from orchestrator.wire.http1 import (
    HEAD_END,
    MOST_HEAD,
    Extent,
    Heads,
    Malformed,
    Request,
    Response,
    Unbounded,
    response_head,
    whole_head,
)

IDLE_SECONDS = 4.0  # below the 5 s after which uvicorn, and so vLLM, closes an idle connection
MOST_IDLE = 64  # kept for one address
_READ_BUFFER = 256 * 1024


class Taker(Protocol):
    """Whoever asked. Nothing is called after `done` or `broken`."""

    def answered(self, response: Response, head: bytes) -> None:
        """The head of the answer, parsed and as it came."""

    def whole(self, response: Response, data: bytes, end: int) -> None:
        """An answer that came in one piece, in place of all other calls: its head up to `end`, then its body."""

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
        self._head = b""  # what has come of the answer's head
        self._extent: Extent | None = None
        self._keep = False
        self._paused = False
        self.idle_since = 0.0

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
        if self._head:
            data, self._head = self._head + data, b""
        while True:
            end = data.find(HEAD_END) + len(HEAD_END)
            if end < len(HEAD_END):
                if len(data) > MOST_HEAD:
                    raise Malformed(f"the head of the answer is longer than {MOST_HEAD} bytes")
                self._head = data
                return
            response = self._pool.heads.response(data[:end], to_head=self._to_head)
            if response.status >= 200:
                break
            if response.status == 101:
                raise Malformed("the engine changed the protocol")
            data = data[end:]  # an interim answer is for this hop
        self._keep = response.keep_alive
        if response.length == len(data) - end:
            self._taker = None
            self._let_go(surplus=False)
            taker.whole(response, data, end)
            return
        self._extent = extent = response.extent()
        taker.answered(response, data[:end])
        if self._taker is taker:
            self._take_body(taker, data[end:], extent)

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
        self._let_go(surplus=surplus)
        taker.done()

    def _let_go(self, *, surplus: bool) -> None:
        """The answer is complete: the connection waits for the next request, if it can be trusted with one."""
        if surplus or not self._keep or self.transport.get_write_buffer_size():  # of a request that is still leaving
            self.transport.abort()
        else:
            self.resume()
            self._pool.give_back(self._address, self)

    @property
    def between_chunks(self) -> bool:
        """Nothing of a chunk is outstanding."""
        return self._extent is None or self._extent.whole

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
    """The idle connections, by address (host, port), and new ones made by `open_connection`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, open_connection: "OpenConnection", connect_seconds: float = 5.0
    ) -> None:
        self._loop = loop
        self._open = open_connection
        self._connect_seconds = connect_seconds
        self._idle: dict[tuple[str, int], deque[Connection]] = {}
        self.heads = Heads()

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
        connection = Connection(self, address)
        async with asyncio.timeout(self._connect_seconds):
            await self._open(lambda: connection, address)
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        for waiting in list(self._idle.values()):
            for connection in list(waiting):
                connection.transport.abort()
        self._idle.clear()


OpenConnection = Callable[[Callable[[], Connection], tuple[str, int]], Awaitable[None]]
"""Connects to an address with the protocol that the factory makes. Raises OSError."""


class Asked:
    """The Exchange of one request that is passed on over a connection of its own, as plain HTTP, and its Taker."""

    def __init__(self, pool: Pool, address: tuple[str, int], request: Request, head: bytes, reply: Reply) -> None:
        """`head` is without the length of the body and the request's id."""
        self._reply = reply
        self._chunked = request.length is None
        self._to_head = request.method == b"HEAD"
        self._ended = False
        self._connection: Connection | None = None
        self._out: list[bytes] = [whole_head(head, request)]  # until there is a connection
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._connect(pool, address))

    async def _connect(self, pool: Pool, address: tuple[str, int]) -> None:
        try:
            connection = pool.idle(address) or await pool.connect(address)
        except OSError as exc:
            self._task = None
            self._reply.cut(str(exc) or type(exc).__name__, reached=False)
            return
        self._task, self._connection = None, connection
        connection.ask(self, b"".join(self._out), to_head=self._to_head)
        self._reply.resume()

    def _send(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.send(data)
        else:
            self._out.append(data)
            self._reply.pause()

    def feed(self, data: bytes) -> None:
        self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        self._ended = True
        if self._chunked:
            self._send(b"0\r\n\r\n")

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.abort()

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def whole(self, response: Response, data: bytes, end: int) -> None:
        self._reply.write(response_head(response, data[:end]) + data[end:])
        self.done()

    def answered(self, response: Response, head: bytes) -> None:
        self._reply.write(response_head(response, head))

    def data(self, data: bytes) -> None:
        self._reply.write(data)

    def done(self) -> None:
        if self._connection is not None and not self._ended:
            self._connection.abort()  # the rest of the request's body would be taken for the next request
        self._connection = None
        self._reply.finish()

    def broken(self, why: str) -> None:
        self._connection = None
        self._reply.cut(why)

    def full(self, full: bool) -> None:
        if full:
            self._reply.pause()
        else:
            self._reply.resume()


def open_pool() -> Pool:
    """Connections to engines, over TCP; for `async with`, in the event loop that runs."""
    loop = asyncio.get_running_loop()

    async def connect(factory: Callable[[], Connection], address: tuple[str, int]) -> None:
        await loop.create_connection(factory, *address)

    return Pool(loop, connect)

"""Small programs around the data path: a handler that writes down what it is told, sockets that speak to it."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orchestrator.wire import Exchange, Reply
from orchestrator.wire.front import Front
from orchestrator.wire.http1 import Request, answer
from orchestrator.wire.mux import AskingSession
from orchestrator.wire.server import Server

SECONDS = 20  # for whatever is waited for


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until `condition` holds. Fails after `SECONDS`."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


class Noted:
    """An Exchange that writes down what it is told. `on_end` answers."""

    def __init__(self, request: Request, reply: Reply, on_end: Callable[["Noted"], None]) -> None:
        self.request, self.reply, self._on_end = request, reply, on_end
        self.body = bytearray()
        self.calls: list[str] = []

    def feed(self, data: bytes) -> None:
        assert data
        self.body += data

    def end(self) -> None:
        self.calls.append("end")
        self._on_end(self)

    def abort(self) -> None:
        self.calls.append("abort")

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")


def echo(noted: Noted) -> None:
    """Answer with the path and the length of the body."""
    noted.reply.write(answer(200, json.dumps([noted.request.path, len(noted.body)]).encode()))
    noted.reply.finish()


def silent(noted: Noted) -> None:
    """Answer later, or never."""


@dataclass
class Handler:
    """Makes a Noted of each request."""

    on_end: Callable[[Noted], None] = echo
    noted: list[Noted] = field(default_factory=list)

    def __call__(self, request: Request, reply: Reply) -> Exchange:
        self.noted.append(Noted(request, reply, self.on_end))
        return self.noted[-1]


@dataclass
class Serving:
    """`answered` has (status, path) of each request that is over."""

    server: Server
    port: int
    answered: list[tuple[int, str]]
    fronts: list[Front]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)

    async def send(self, data: bytes) -> bytes:
        """All that comes back until the connection ends."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(SECONDS):
            try:
                return await reader.read()
            finally:
                writer.close()

    async def ask_mux(self) -> AskingSession:
        loop = asyncio.get_running_loop()
        _, session = await loop.create_connection(lambda: AskingSession(loop), "127.0.0.1", self.port)
        await session.ready
        return session


@asynccontextmanager
async def serving(handle: Callable[[Request, Reply], Exchange], *, muxed: bool = False) -> AsyncIterator[Serving]:
    """A server of the data path on loopback. No request is left in flight at its end."""
    loop = asyncio.get_running_loop()
    answered: list[tuple[int, str]] = []

    def render(path: str, status: int, text: str) -> bytes:
        return answer(status, json.dumps({"detail": text}).encode(), [(b"connection", b"close")])

    def observe(request: Request, status: int, seconds: float) -> None:
        answered.append((status, request.path))

    server = Server(handle=handle, render=render, observe=observe, muxed=muxed)
    fronts: list[Front] = []

    def make() -> Front:
        fronts.append(Front(server, loop))
        return fronts[-1]

    listener = await loop.create_server(make, "127.0.0.1", 0)
    try:
        yield Serving(server, listener.sockets[0].getsockname()[1], answered, fronts)
    finally:
        listener.close()
        for connection in list(server.registry):
            connection.transport.abort()
        await until(lambda: not server.registry)
        gc.collect()  # what was never closed is told by a ResourceWarning
    assert server.in_flight == 0


def transport_of(writer: asyncio.StreamWriter) -> asyncio.Transport:
    assert isinstance(writer.transport, asyncio.Transport)  # one that reads, too
    return writer.transport


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head and body of an answer with a length."""
    async with asyncio.timeout(SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        return int(head[9:12]), head, await reader.readexactly(length)


class Taken:
    """A Reply that keeps what it is told."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls: list[str] = []

    def write(self, data: bytes) -> None:
        if not self.data:
            int(data[9:12])  # as every Reply may: the first bytes are a whole status line
        self.data += data

    def finish(self) -> None:
        self.calls.append("finish")

    def cut(self, why: str, *, reached: bool = True) -> None:
        self.calls.append("cut")

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

"""Connections to engines: kept, closed, broken. The engine is a program that says what it is told to, byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from orchestrator.wire import Exchange, Reply
from orchestrator.wire.http1 import HEAD_END, Request, Response, end_to_end, parse_request, request_head
from orchestrator.wire.upstream import IDLE_SECONDS, Asked, Connection, Pool, open_pool
from tests.wire.parts import Serving, read_answer, serving, until

pytestmark = pytest.mark.anyio

ASK = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Noting:
    """A Taker that writes down what it is told."""

    calls: list[str] = field(default_factory=list)
    body: bytes = b""
    statuses: list[int] = field(default_factory=list)

    def answered(self, response: Response, head: bytes) -> None:
        self.statuses.append(response.status)

    def whole(self, response: Response, data: bytes, end: int) -> None:
        assert not self.statuses
        self.answered(response, data[:end])
        self.body = data[end:]
        self.done()

    def data(self, data: bytes) -> None:
        assert data
        self.body += data

    def done(self) -> None:
        self.calls.append("done")

    def broken(self, why: str) -> None:
        self.calls.append(f"broken: {why}")

    def full(self, full: bool) -> None:
        self.calls.append(f"full {full}")


@dataclass
class Engine:
    address: tuple[str, int]
    accepted: int = 0


@asynccontextmanager
async def engine(talk: Talk) -> AsyncIterator[Engine]:
    found = Engine(("127.0.0.1", 0))

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.accepted += 1
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # whoever asked has left
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    found.address = server.sockets[0].getsockname()[:2]
    try:
        yield found
    finally:
        server.close()


def saying(*answers: bytes) -> Talk:
    """Answer each request by the next of `answers`; then close."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for words in answers:
            await reader.readuntil(HEAD_END)
            writer.write(words)
            await writer.drain()

    return talk


async def ask(pool: Pool, found: Engine, data: bytes = ASK, *, to_head: bool = False) -> tuple[Noting, Connection]:
    """Until the answer is over."""
    taker = Noting()
    connection = pool.idle(found.address) or await pool.connect(found.address)
    connection.ask(taker, data, to_head=to_head)
    await until(lambda: bool(taker.calls))
    return taker, connection


async def test_a_connection_is_used_again() -> None:
    async with open_pool() as pool, engine(saying(OK, OK, OK)) as found:
        connections = {(await ask(pool, found))[1] for _ in range(3)}
        assert (len(connections), found.accepted) == (1, 1)


@pytest.mark.parametrize(
    "words",
    [
        OK + b"surplus", OK + OK, OK.replace(b"1.1", b"1.0"), OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        b"HTTP/1.1 204 No Content\r\n\r\nbody", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP",
    ],
    ids=["surplus", "two answers", "HTTP/1.0", "close", "a body that may not be", "surplus behind chunks"],
)  # fmt: skip
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(words: bytes) -> None:
    async with open_pool() as pool, engine(saying(words, OK)) as found:
        taker, connection = await ask(pool, found)
        assert (taker.calls, connection.usable, pool.idle(found.address)) == (["done"], False, None)
        assert taker.body in (b"ok", b"", b"0\r\n\r\n")
        again, _ = await ask(pool, found, ASK)
        assert again.calls == ["done"]
        assert found.accepted == 2


async def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    talked = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(HEAD_END)
        writer.write(OK)
        await talked.wait()
        writer.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await reader.read()

    async with open_pool() as pool, engine(talk) as found:
        taker, connection = await ask(pool, found)
        talked.set()
        await until(lambda: not connection.usable)
        assert (taker.body, taker.calls) == (b"ok", ["done"])


async def test_an_idle_connection_that_is_old_or_closed_is_not_used() -> None:
    async with open_pool() as pool, engine(saying(OK, OK)) as found:
        _, old = await ask(pool, found)
        old.idle_since -= IDLE_SECONDS + 1
        assert pool.idle(found.address) is None
        _, closed = await ask(pool, found)
        closed.transport.abort()
        assert pool.idle(found.address) is None


async def test_an_idle_connection_that_the_engine_closes_is_forgotten() -> None:
    async with open_pool() as pool, engine(saying(OK)) as found:
        await ask(pool, found)
        await until(lambda: not pool._idle)


async def test_interim_answers_are_for_this_hop() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with open_pool() as pool, engine(saying(early + OK)) as found:
        taker, _ = await ask(pool, found)
        assert (taker.statuses, taker.body, taker.calls) == ([200], b"ok", ["done"])


@pytest.mark.parametrize(
    "words",
    [
        b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "another protocol", "no chunk", "no HTTP",
         "an endless head", "an interim answer only"],
)  # fmt: skip
async def test_an_engine_that_breaks_off_is_told_once(words: bytes) -> None:
    async with open_pool() as pool, engine(saying(words)) as found:
        taker, connection = await ask(pool, found)
        await until(lambda: not connection.usable)
        assert ([call[:6] for call in taker.calls], pool.idle(found.address)) == (["broken"], None)


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with open_pool() as pool, engine(saying(b"HTTP/1.1 200 OK\r\n\r\nall of it")) as found:
        taker, connection = await ask(pool, found)
        assert (taker.body, taker.calls, connection.usable) == (b"all of it", ["done"], False)


async def test_an_answer_to_head_has_no_body() -> None:
    words = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    async with open_pool() as pool, engine(saying(words, OK)) as found:
        taker, _ = await ask(pool, found, to_head=True)
        assert (taker.calls, taker.body) == (["done"], b"")
        assert (await ask(pool, found))[0].body == b"ok"
        assert found.accepted == 1


async def test_an_answer_before_the_request_has_left_is_the_last_on_its_connection() -> None:
    """The engine has not read it: what follows would be taken for the rest of it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(HEAD_END)
        writer.write(OK)
        await asyncio.Event().wait()

    async with open_pool() as pool, engine(talk) as found:
        taker = Noting()
        connection = await pool.connect(found.address)
        connection.ask(taker, ASK + bytes(64 << 20))
        await until(lambda: "done" in taker.calls)
        assert (connection.usable, pool.idle(found.address)) == (False, None)


async def test_nobody_listens() -> None:
    async with open_pool() as pool:
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await pool.connect(("127.0.0.1", 1))


# From a client to an engine


@asynccontextmanager
async def passing(found: Engine) -> AsyncIterator[Serving]:
    """A server that passes each request on as it is."""
    async with open_pool() as pool:

        def handle(request: Request, reply: Reply) -> Exchange:
            framing = [(b"transfer-encoding", b"chunked")] if request.length is None else []
            headers = end_to_end(request.headers, frozenset({b"content-length", b"x-request-id"}))
            head = request_head(request.method, request.target, headers + framing)
            return Asked(pool, found.address, request, head, reply)

        async with serving(handle) as served:
            yield served


async def test_surplus_never_reaches_a_client() -> None:
    async with engine(saying(OK + b"HTTP/1.1 200 OK\r\n\r\nevil", OK)) as found, passing(found) as served:
        got = await served.send(ASK + ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (got.count(b"ok"), b"evil" in got, found.accepted) == (2, False, 2)


async def test_an_interim_answer_of_the_engine_does_not_reach_the_client() -> None:
    async with engine(saying(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as found, passing(found) as served:
        reader, writer = await served.connect()
        writer.write(ASK)
        assert (await read_answer(reader))[0] == 200
        writer.close()


async def test_a_status_that_nobody_knows_reaches_the_client() -> None:
    words = b"HTTP/1.1 520 Odd\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
    async with engine(saying(words)) as found, passing(found) as served:
        reader, writer = await served.connect()
        writer.write(ASK)
        status, _, content = await read_answer(reader)
        assert (status, content) == (520, b"ok")
        writer.close()


async def test_an_early_answer_does_not_spoil_the_next_request() -> None:
    """The client has sent half of its body when the engine refuses it."""
    half = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf"
    refused = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"
    async with engine(saying(refused, OK)) as found, passing(found) as served:
        assert (await served.send(half)).startswith(b"HTTP/1.1 413")
        reader, writer = await served.connect()
        writer.write(ASK)
        assert (await read_answer(reader))[0] == 413  # the first answer on a connection of its own
        assert found.accepted == 2
        writer.close()


async def test_a_client_that_leaves_ends_the_engines_work() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(HEAD_END)
        asked.set()
        try:
            await reader.read()
        finally:
            left.set()

    async with engine(talk) as found, passing(found) as served:
        _, writer = await served.connect()
        writer.write(ASK)
        await until(asked.is_set)
        writer.transport.abort()
        await until(left.is_set)


async def test_an_engine_that_reads_slowly_pauses_the_client() -> None:
    going = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = parse_request(await reader.readuntil(HEAD_END))
        await going.wait()
        await reader.readexactly(request.length or 0)
        writer.write(OK)

    size = 100 << 20
    async with engine(talk) as found, passing(found) as served:
        reader, writer = await served.connect()
        writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await until(lambda: bool(served.fronts) and not served.fronts[0]._reading)
        going.set()
        assert (await read_answer(reader))[2] == b"ok"
        writer.close()

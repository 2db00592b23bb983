"""The ASGI application behind the data path: whatever it does, the client's connection stays in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from orchestrator.wire.hosted import Application
from orchestrator.wire.http1 import HEAD_END
from tests.wire.parts import Serving, read_answer, serving, transport_of, until

pytestmark = pytest.mark.anyio

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]
GET = b"GET /a%20b?q=1 HTTP/1.1\r\nHost: a\r\n\r\n"
START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
SIZED = {**START, "headers": [(b"content-length", b"2")]}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@asynccontextmanager
async def hosting(app: App) -> AsyncIterator[Serving]:
    """Nothing of a request is left in uvicorn's books at the end."""
    config = Config(app, log_config=None, lifespan="off", http="httptools", ws="none")
    config.load()
    state = ServerState()
    application = Application(config, state, {"known": 1})
    async with serving(application.exchange) as served:
        yield served
    await until(lambda: not state.connections and not state.tasks)


async def read_all(receive: Receive) -> bytes:
    data, more = b"", True
    while more:
        message = await receive()
        data, more = data + message.get("body", b""), message.get("more_body", False)
    return data


async def test_what_an_application_is_told() -> None:
    scopes: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await send(SIZED)
        await send(body(b"ok"))

    async with hosting(app) as served:
        reader, writer = await served.connect()
        for _ in range(2):
            writer.write(GET)
            status, head, content = await read_answer(reader)
            assert (status, content, b"x-request-id: " in head, b"connection" in head) == (200, b"ok", True, False)
        writer.close()
    assert (scopes[0]["path"], scopes[0]["query_string"], scopes[0]["state"]) == ("/a b", b"q=1", {"known": 1})
    assert len(scopes) == 2


async def test_an_answer_that_streams() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send(START)
        for i in range(100):
            await send(body(b"%d," % i, more=True))
        await send(body(b""))

    async with hosting(app) as served:
        reader, writer = await served.connect()
        writer.write(GET * 2)
        for _ in range(2):
            assert b"transfer-encoding: chunked" in (await reader.readuntil(HEAD_END)).lower()
            chunks = await reader.readuntil(b"0\r\n\r\n")
            assert chunks.count(b",\r\n") == 100
        writer.close()


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: 6"])
async def test_uploads_arrive_whole(framing: bytes) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        data = await read_all(receive)
        await send(SIZED)
        await send(body(b"%02d" % len(data)))

    sent = b"2\r\nab\r\n4;x=y\r\ncdef\r\n0\r\n\r\n" if b"chunked" in framing else b"abcdef"
    async with hosting(app) as served:
        reader, writer = await served.connect()
        for byte in b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n" + sent:
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await read_answer(reader))[2] == b"06"
        writer.close()


async def test_an_application_that_does_not_read_pauses_the_client_and_gets_all_later() -> None:
    going = asyncio.Event()
    size = 20 << 20

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await going.wait()
        assert len(await read_all(receive)) == size
        await send(SIZED)
        await send(body(b"ok"))

    async with hosting(app) as served:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await until(lambda: bool(served.fronts) and not served.fronts[0]._reading)
        going.set()
        assert (await read_answer(reader))[2] == b"ok"
        writer.close()


async def test_a_client_that_leaves_is_told_to_the_application() -> None:
    told: list[str] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"x", more=True))
        while not told:
            message = await receive()
            if message["type"] == "http.disconnect":
                told.append("left")

    async with hosting(app) as served:
        reader, writer = await served.connect()
        writer.write(GET)
        await reader.readuntil(b"x")
        writer.transport.abort()
        await until(lambda: told == ["left"])


async def test_a_client_that_does_not_read_pauses_the_application() -> None:
    sent = 0

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(START)
        while sent < 200 << 20:
            await send(body(bytes(65536), more=True))
            sent += 65536

    async with hosting(app) as served:
        _, writer = await served.connect()
        transport_of(writer).pause_reading()
        writer.write(GET)
        await until(lambda: bool(served.fronts) and served.fronts[0]._full)
        before = sent
        for _ in range(1000):
            await asyncio.sleep(0)
        assert sent - before < 1 << 20
        writer.transport.abort()


async def test_an_application_that_fails_before_its_answer_is_a_500() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        raise ValueError("a bug")

    async with hosting(app) as served:
        reader, writer = await served.connect()
        writer.write(GET)
        assert (await read_answer(reader))[0] == 500
        writer.close()


async def test_an_application_that_fails_within_its_answer_does_not_look_whole() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"half", more=True))
        raise ValueError("a bug")

    async with hosting(app) as served:
        reader, writer = await served.connect()
        writer.write(GET)
        await reader.readuntil(HEAD_END)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"0\r\n\r\n")
        writer.close()


async def test_an_application_that_says_nothing_is_no_answer() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None: ...

    async with hosting(app) as served:
        reader, writer = await served.connect()
        writer.write(GET)
        assert (await read_answer(reader))[0] == 500
        writer.close()


async def test_an_early_refusal_is_the_last_answer() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({**SIZED, "status": 413})
        await send(body(b"no"))

    async with hosting(app) as served:
        got = await served.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
        )
    answers = got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answers.startswith(b"HTTP/1.1 413")
    assert (answers.count(b"HTTP/1.1"), answers.count(b"connection: close")) == (1, 1)


@pytest.mark.parametrize("target", [b"*", b"//", b"http://evil.example/x", b"/%zz"])
async def test_an_odd_target_is_answered(target: bytes) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send(SIZED)
        await send(body(b"ok"))

    async with hosting(app) as served:
        got = await served.send(b"OPTIONS %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
    assert got[:10] in (b"HTTP/1.1 2", b"HTTP/1.1 4")

"""A client's connection, over real sockets on loopback."""

import asyncio
import tracemalloc
from collections.abc import Callable

import pytest

from orchestrator.wire import Exchange, Reply
from orchestrator.wire.front import Front
from orchestrator.wire.http1 import HEAD_END, Request, answer
from orchestrator.wire.server import CLIENT_LEFT, Answered
from tests.wire.parts import SECONDS, Handler, Noted, Serving, echo, read_answer, serving, silent, transport_of, until

pytestmark = pytest.mark.anyio

LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
MIB = 1 << 20


def get(path: str, headers: bytes = b"") -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n" % (path.encode(), headers)


def post(path: str, body: bytes, headers: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n%s" % (path.encode(), headers, len(body), body)


def chunks(path: str, body: bytes) -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
    return head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


def front_of(served: Serving) -> Front:
    (front,) = served.fronts
    return front


# One after the other


async def test_a_hundred_requests_in_one_write_are_answered_in_order() -> None:
    kinds: list[Callable[[str], bytes]] = [get, lambda path: post(path, b"body"), lambda path: chunks(path, b"chunks")]
    handler = Handler()
    async with serving(handler) as served:
        sent = b"".join(kinds[i % 3](f"/{i}") for i in range(100))
        got = await served.send(sent + LAST)
    assert [path for _, path in served.answered] == [f"/{i}" for i in range(100)] + ["/last"]
    places = [got.index(b'"/%d"' % i) for i in range(100)]
    assert places == sorted(places)
    assert [len(noted.body) for noted in handler.noted[:3]] == [0, 4, 6]


async def test_requests_in_single_bytes() -> None:
    async with serving(Handler()) as served:
        reader, writer = await served.connect()
        for byte in get("/a") + b"\r\n" + chunks("/b", b"xyz") + post("/c", b"12") + LAST:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 4
        writer.close()


async def test_the_second_request_waits_for_the_first_answer() -> None:
    handler = Handler(silent)
    async with serving(handler) as served:
        reader, writer = await served.connect()
        writer.write(get("/a") + get("/b"))
        await until(lambda: len(handler.noted) == 1)
        handler.noted[0].reply.write(answer(200, b"1"))
        handler.noted[0].reply.finish()
        assert (await read_answer(reader))[2] == b"1"
        await until(lambda: len(handler.noted) == 2)
        writer.close()


async def test_what_is_sent_ahead_is_held_back_beyond_64_kib() -> None:
    handler = Handler(silent)
    async with serving(handler) as served:
        reader, writer = await served.connect()
        writer.write(get("/a"))
        await until(lambda: len(handler.noted) == 1)
        writer.write(get("/x", b"X-A: %s\r\n" % (b"x" * 1000)) * 20_000)
        front = front_of(served)
        await until(lambda: not front._reading)
        assert len(front._ahead) < MIB
        handler.on_end = echo
        handler.noted[0].reply.write(answer(200, b"1"))
        handler.noted[0].reply.finish()
        for _ in range(20_001):
            assert (await read_answer(reader))[0] == 200
        writer.close()


# Clients that leave


@pytest.mark.parametrize(
    ("sent", "begun"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", 1),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab", 1),
        (post("/", b"abcde"), 1),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 1),
        (b"POST / HTTP/1.1\r\nHost", 0),
        (b"", 0),
    ],
)
@pytest.mark.parametrize("half", [False, True], ids=["closed", "half closed"])
async def test_a_client_that_leaves_is_told_exactly_once(sent: bytes, begun: int, half: bool) -> None:
    """Also one that only closes its sending side: such clients are not waited for."""
    handler = Handler(silent)
    async with serving(handler) as served:
        _, writer = await served.connect()
        writer.write(sent)
        await until(lambda: len(handler.noted) == begun and len(served.fronts) == 1)
        if half:
            writer.write_eof()
        else:
            writer.close()
        await until(lambda: not served.server.registry)
        assert [noted.calls.count("abort") for noted in handler.noted] == [1] * begun
        writer.close()
    assert [status for status, _ in served.answered] == [CLIENT_LEFT] * begun


async def test_a_client_that_leaves_during_the_answer() -> None:
    handler = Handler(lambda noted: noted.reply.write(ENDLESS))
    async with serving(handler) as served:
        reader, writer = await served.connect()
        writer.write(get("/"))
        await reader.readuntil(HEAD_END)
        writer.transport.abort()
        await until(lambda: "abort" in handler.noted[0].calls)
    assert (handler.noted[0].calls, served.answered) == (["end", "abort"], [(200, "/")])


async def test_a_client_that_left_after_its_answer_is_not_told_of() -> None:
    handler = Handler()
    async with serving(handler) as served:
        assert (await served.send(LAST)).startswith(b"HTTP/1.1 200")
        await until(lambda: not served.server.registry)
    assert handler.noted[0].calls == ["end"]


# Answers that come early, and those that break off


def refusing(request: Request, reply: Reply) -> Answered:
    """Answers 413 as soon as it has seen the head."""
    reply.write(answer(413, b"too much"))
    reply.finish()
    return Answered()


@pytest.mark.parametrize("headers", [b"", b"Expect: 100-continue\r\n"])
async def test_an_early_answer_is_the_last_one_and_needs_no_body(headers: bytes) -> None:
    async with serving(refusing) as served:
        got = await served.send(b"POST / HTTP/1.1\r\nHost: a\r\n%sContent-Length: 100\r\n\r\n" % headers)
    assert got.startswith(b"HTTP/1.1 413")
    assert (got.count(b"HTTP/1.1"), got.count(b"connection: close")) == (1, 1)


async def test_an_early_answer_arrives_though_the_body_is_being_sent() -> None:
    async with serving(refusing) as served:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + bytes(900_000) + get("/no"))
        assert (await read_answer(reader))[0] == 413
        assert await reader.read() == b""
        writer.close()
    assert served.answered == [(413, "/")]


async def test_a_body_that_nobody_wants_is_not_read_for_ever() -> None:
    async with serving(refusing) as served:
        _, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
                await writer.drain()
        writer.close()


async def test_an_answer_to_a_whole_body_keeps_the_connection() -> None:
    async with serving(refusing) as served:
        reader, writer = await served.connect()
        for _ in range(3):
            writer.write(post("/", b"abc"))
            status, head, _ = await read_answer(reader)
            assert (status, b"connection" in head) == (413, False)
        writer.close()


@pytest.mark.parametrize(("reached", "status"), [(True, 502), (False, 503)])
async def test_no_answer_is_an_error_of_ours(reached: bool, status: int) -> None:
    async with serving(Handler(lambda noted: noted.reply.cut("why", reached=reached))) as served:
        got = await served.send(get("/"))
    assert got.startswith(b"HTTP/1.1 %d" % status)
    assert b"why" in got


async def test_half_an_answer_does_not_look_whole() -> None:
    def break_off(noted: Noted) -> None:
        noted.reply.write(ENDLESS + b"1\r\na\r\n")
        asyncio.get_running_loop().call_soon(noted.reply.cut, "why")

    async with serving(Handler(break_off)) as served:
        reader, writer = await served.connect()
        writer.write(get("/"))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"0\r\n\r\n")
        writer.close()
    assert served.answered == [(200, "/")]


async def test_a_handler_that_fails_is_a_500() -> None:
    def fail(request: Request, reply: Reply) -> Exchange:
        raise ValueError("a bug")

    async with serving(fail) as served:
        got = await served.send(get("/"))
    assert got.startswith(b"HTTP/1.1 500")


# Versions, methods, words


async def test_a_client_that_waits_before_its_body_is_told_to_go_on() -> None:
    handler = Handler()
    async with serving(handler) as served:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(HEAD_END) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ab")
        assert (await read_answer(reader))[0] == 200
        writer.close()
    assert bytes(handler.noted[0].body) == b"ab"


async def test_http_1_0_gets_no_chunks_and_one_answer() -> None:
    def stream(noted: Noted) -> None:
        noted.reply.write(ENDLESS[:30])
        noted.reply.write(ENDLESS[30:] + b"2\r\na")
        noted.reply.write(b"b\r\n1\r\nc\r\n0\r\n\r\n")
        noted.reply.finish()

    async with serving(Handler(stream)) as served:
        got = await served.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get("/no"))
    head, _, body = got.partition(HEAD_END)
    assert (body, b"chunked" in head, head.count(b"connection: close")) == (b"abc", False, 1)
    assert served.answered == [(200, "/")]


async def test_head_has_no_body_and_keeps_the_connection() -> None:
    def headed(noted: Noted) -> None:
        noted.reply.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        noted.reply.finish()

    async with serving(Handler(headed)) as served:
        got = await served.send(b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n" + LAST.replace(b"GET", b"HEAD"))
    assert (got.count(b"HTTP/1.1 200 OK"), got.count(b"connection: close")) == (2, 1)


async def test_an_answer_to_head_loses_the_body_that_its_handler_gave_it() -> None:
    def in_pieces(noted: Noted) -> None:
        for piece in (b"HTTP/1.1 200 OK\r\n", b"content-length: 4\r\n\r", b"\nbo", b"dy"):
            noted.reply.write(piece)
        noted.reply.finish()

    async with serving(Handler(in_pieces)) as served:
        got = await served.send(b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n" + LAST.replace(b"GET", b"HEAD"))
    assert (got.count(b"HTTP/1.1 200 OK"), got.count(b"content-length: 4"), b"bo" in got) == (2, 2, False)


async def test_each_request_has_an_id_its_own_or_one_of_ours() -> None:
    handler = Handler()
    async with serving(handler) as served:
        await served.send(get("/a") * 2 + get("/a", b"X-Request-ID: mine\r\n") + get("/a") + LAST)
    ids = [noted.request.id for noted in handler.noted]
    assert (ids[2], ids.count(b"mine"), len(set(ids)), b"" in ids) == (b"mine", 1, 5, False)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"FOO", 400),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (get("/", b"X: %s\r\n" % (b"x" * 65536)), 431),
        (b"GET /" + b"x" * 70_000, 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n" + b"X: y\r\n" * 1000, 400),
    ],
)
async def test_what_is_no_request_is_refused_at_once_and_counts_as_none(sent: bytes, status: int) -> None:
    handler = Handler()
    async with serving(handler) as served:
        got = await served.send(sent)
        assert (got.startswith(b"HTTP/1.1 %d" % status), got.count(b"connection: close")) == (True, 1)
        assert [served.server.in_flight, handler.noted] == [0, []]


async def test_a_broken_chunk_behind_a_good_one_ends_the_work() -> None:
    handler = Handler()
    async with serving(handler) as served:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        await until(lambda: bool(handler.noted) and bytes(handler.noted[0].body) == b"ab")
        writer.write(b"0x5\r\n")
        assert (await read_answer(reader))[0] == 400
        writer.close()
    assert (handler.noted[0].calls, served.answered) == (["abort"], [(400, "/")])


# Time


@pytest.mark.parametrize(
    ("sent", "after", "status"),
    [
        (b"GET / HT", 31, 408),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab", 61, 408),
        (b"", 121, 0),
    ],
    ids=["head", "body", "idle"],
)
async def test_a_client_that_says_nothing_is_given_up(sent: bytes, after: int, status: int) -> None:
    async with serving(Handler()) as served:
        reader, writer = await served.connect()
        writer.write(sent)
        await until(lambda: len(served.fronts) == 1)
        front = front_of(served)
        await until(lambda: bool(front._ahead) or front._extent is not None or not sent)
        served.server.sweep(asyncio.get_running_loop().time() + after - 2)
        assert not front.transport.is_closing()
        served.server.sweep(asyncio.get_running_loop().time() + after)
        got = await reader.read()
        assert (got[9:12], got.count(b"connection: close")) == ((b"408", 1) if status else (b"", 0))
        writer.close()


async def test_connections_beyond_the_bound_are_told_so_and_far_beyond_it_just_ended() -> None:
    handler = Handler()
    async with serving(handler) as served:
        served.server.most = 2
        kept = [await served.connect() for _ in range(2)]
        await until(lambda: len(served.fronts) == 2)
        got = await served.send(get("/too-many"))
        assert got.startswith(b"HTTP/1.1 503 ")
        assert b"all 2 connections are taken" in got
        silent_ones = [await served.connect() for _ in range(256)]
        await until(lambda: len(served.server.registry) == 258)
        ended, writer = await served.connect()
        assert await ended.read() == b""
        writer.close()
        for reader, writer in kept:  # who was here before has lost nothing
            writer.write(get("/kept"))
            assert (await read_answer(reader))[0] == 200
        served.server.sweep(asyncio.get_running_loop().time() + 6)
        await until(lambda: len(served.server.registry) == 2)
        assert [await reader.read() for reader, _ in silent_ones] == [b""] * 256
        for _, writer in (*kept, *silent_ones):
            writer.close()
        await until(lambda: not served.server.registry)
        assert (await served.send(get("/again", b"Connection: close\r\n"))).startswith(b"HTTP/1.1 200 ")
    assert [one.request.path for one in handler.noted] == ["/kept", "/kept", "/again"]


async def test_a_head_that_trickles_gets_no_more_time() -> None:
    async with serving(Handler()) as served:
        _, writer = await served.connect()
        writer.write(b"GET / HT")
        await until(lambda: bool(served.fronts) and front_of(served)._ahead == b"GET / HT")
        since = front_of(served)._since
        writer.write(b"TP/1.1\r\n")
        await until(lambda: len(front_of(served)._ahead) == 16)
        assert front_of(served)._since == since
        writer.close()


async def test_a_request_that_is_being_answered_has_all_the_time() -> None:
    handler = Handler(silent)
    async with serving(handler) as served:
        reader, writer = await served.connect()
        writer.write(get("/"))
        await until(lambda: bool(handler.noted))
        served.server.sweep(asyncio.get_running_loop().time() + 100_000)
        handler.noted[0].reply.write(answer(200, b"ok"))
        handler.noted[0].reply.finish()
        assert (await read_answer(reader))[2] == b"ok"
        writer.close()


async def test_a_server_that_ends_waits_for_the_answer() -> None:
    handler = Handler(silent)
    async with serving(handler) as served:
        reader, writer = await served.connect()
        idle, other = await served.connect()
        writer.write(get("/"))
        await until(lambda: bool(handler.noted) and len(served.fronts) == 2)
        for front in served.fronts:
            front.shutdown()
        assert await idle.read() == b""
        handler.noted[0].reply.write(answer(200, b"ok"))
        handler.noted[0].reply.finish()
        assert b"connection: close" in await reader.read()
        writer.close()
        other.close()


# Much


class Source(Noted):
    """Answers without an end, as long as it is not paused."""

    written = 0
    running = True

    def end(self) -> None:
        self.reply.write(ENDLESS)
        self.resume()

    def _more(self) -> None:
        """One chunk a turn of the loop: else nothing would tell us that the client has left."""
        if "abort" not in self.calls:
            self.written += 65536
            self.reply.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            if self.running:
                self.resume()

    def pause(self) -> None:
        self.running = False
        self._next.cancel()

    def resume(self) -> None:
        self.running = True
        self._next = asyncio.get_running_loop().call_soon(self._more)


async def test_a_slow_reader_stops_the_source_and_gets_it_all_later() -> None:
    sources: list[Source] = []

    def handle(request: Request, reply: Reply) -> Exchange:
        sources.append(Source(request, reply, silent))
        return sources[-1]

    async with serving(handle) as served:
        reader, writer = await served.connect()
        transport_of(writer).pause_reading()
        writer.write(get("/"))
        await until(lambda: bool(sources) and not sources[0].running)
        assert front_of(served).transport.get_write_buffer_size() < MIB
        transport_of(writer).resume_reading()
        tracemalloc.start()
        try:
            taken = 0
            while taken < 100 * MIB:
                taken += len(await reader.read(MIB))
            assert tracemalloc.get_traced_memory()[1] < 16 * MIB
        finally:
            tracemalloc.stop()
        writer.transport.abort()
        await until(lambda: "abort" in sources[0].calls)


async def test_a_client_that_takes_nothing_is_given_up() -> None:
    sources: list[Source] = []

    def handle(request: Request, reply: Reply) -> Exchange:
        sources.append(Source(request, reply, silent))
        return sources[-1]

    async with serving(handle) as served:
        _, writer = await served.connect()
        transport_of(writer).pause_reading()
        writer.write(get("/"))
        await until(lambda: bool(sources) and not sources[0].running)
        served.server.sweep(front_of(served)._full_since + 599)
        assert not front_of(served).transport.is_closing()
        served.server.sweep(front_of(served)._full_since + 601)
        await until(lambda: "abort" in sources[0].calls)
        assert served.answered == [(200, "/")]
        writer.transport.abort()


async def test_answers_that_nobody_reads_stop_the_requests() -> None:
    """Each is short and complete, so that no exchange could be paused."""

    def much(noted: Noted) -> None:
        noted.reply.write(answer(200, bytes(100_000)))
        noted.reply.finish()

    handler = Handler(much)
    async with serving(handler) as served:
        reader, writer = await served.connect()
        transport_of(writer).pause_reading()
        writer.write(get("/") * 1000 + LAST)
        await until(lambda: bool(served.fronts) and front_of(served)._full)
        assert len(handler.noted) < 200
        assert front_of(served).transport.get_write_buffer_size() < MIB
        transport_of(writer).resume_reading()
        for _ in range(1001):
            assert (await read_answer(reader))[0] == 200
        writer.close()


async def test_a_hundred_mib_up_with_a_taker_that_pauses() -> None:
    class Slow(Noted):
        """Takes a piece, and pauses the client until the event loop has turned."""

        size = 0

        def feed(self, data: bytes) -> None:
            self.size += len(data)
            self.reply.pause()
            asyncio.get_running_loop().call_soon(self.reply.resume)

    slow: list[Slow] = []

    def answer_size(noted: Noted) -> None:
        noted.reply.write(answer(200, b"%d" % slow[0].size))
        noted.reply.finish()

    def handle(request: Request, reply: Reply) -> Exchange:
        slow.append(Slow(request, reply, answer_size))
        return slow[-1]

    async with serving(handle) as served:
        reader, writer = await served.connect()
        tracemalloc.start()
        try:
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (100 * MIB))
            for _ in range(100):
                writer.write(bytes(MIB))
                await writer.drain()
            async with asyncio.timeout(SECONDS):
                assert (await read_answer(reader))[2] == b"%d" % (100 * MIB)
            assert tracemalloc.get_traced_memory()[1] < 16 * MIB
        finally:
            tracemalloc.stop()
        writer.close()


async def test_a_client_that_is_paused_is_not_read() -> None:
    handler = Handler(silent)
    async with serving(handler) as served:
        _, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
        await until(lambda: bool(handler.noted))
        handler.noted[0].reply.pause()
        writer.write(bytes(64 * MIB))
        before = len(handler.noted[0].body)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(handler.noted[0].body) == before
        served.server.sweep(asyncio.get_running_loop().time() + 1000)  # it is not the client who is slow
        handler.noted[0].reply.resume()
        await until(lambda: handler.noted[0].calls == ["end"])
        assert len(handler.noted[0].body) == 64 * MIB
        writer.transport.abort()

"""Many requests over one connection: frames in every split, credit, endings."""

import asyncio
import random
import struct

import pytest

from orchestrator.wire import Exchange, Reply
from orchestrator.wire.http1 import Request, answer, parse_request
from orchestrator.wire.mux import UPGRADE, WINDOW, AskingSession, BrokenSession, Stream
from tests.wire.parts import SECONDS, Handler, Noted, Serving, Taken, echo, read_answer, serving, silent, until

pytestmark = pytest.mark.anyio

OPEN, DATA, CREDIT, RESET, PING, PONG, END = 0, 1, 2, 3, 4, 5, 0x10
HEAD = b"POST /%d HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
KNOWN = parse_request(HEAD % 0).head
STATUS = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!IIB", len(payload), stream, kind) + payload


def opening(head: bytes, body: bytes = b"", *, length: int = -1) -> bytes:
    """The payload of an OPEN."""
    return struct.pack("!qBI", length, 2, len(head)) + b"id" + head + body


def opened_by(session: AskingSession, head: bytes, reply: Reply, *, length: int | None = None) -> Stream:
    return session.open(Request(KNOWN, length, b"id"), head, reply)


class Pipe(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def asking() -> tuple[AskingSession, Pipe]:
    session, pipe = AskingSession(asyncio.get_running_loop()), Pipe()
    session.connection_made(pipe)
    assert pipe.data == UPGRADE
    session.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    pipe.data.clear()
    return session, pipe


async def frames_of(pipe: Pipe) -> list[tuple[int, int, bytes]]:
    await asyncio.sleep(0)
    found, at, data = [], 0, bytes(pipe.data)
    while at < len(data):
        length, stream, kind = struct.unpack_from("!IIB", data, at)
        found.append((kind, stream, data[at + 9 : at + 9 + length]))
        at += 9 + length
    pipe.data.clear()
    return found


# Frames


def split_at_each(data: bytes) -> list[list[bytes]]:
    rng = random.Random(1)
    anywhere = [sorted(rng.randrange(len(data)) for _ in range(6)) for _ in range(50)]
    cuts = [list(range(1, len(data))), *([i] for i in range(1, len(data))), *anywhere]
    return [[data[a:b] for a, b in zip([0, *c], [*c, len(data)], strict=True)] for c in cuts]


async def test_frames_are_the_same_in_every_split() -> None:
    sent = (
        frame(PING, 0, b"x") + frame(DATA, 1, STATUS[:40]) + frame(CREDIT, 2, struct.pack("!I", 5)) + frame(DATA, 2)
        + frame(DATA | END, 2, STATUS) + frame(DATA, 1, STATUS[40:]) + frame(DATA | END, 1)
        + frame(DATA | END, 9, b"no")
    )  # fmt: skip
    for pieces in split_at_each(sent):
        session, pipe = asking()
        replies = Taken(), Taken()
        for reply in replies:
            opened_by(session, b"head", reply)
        for piece in pieces:
            session.data_received(piece)
        assert [(bytes(reply.data), reply.calls) for reply in replies] == [(STATUS, ["finish"])] * 2
        assert (session.streams, (await frames_of(pipe))[-1]) == ({}, (PONG, 0, b"x"))


async def test_the_end_rides_on_the_last_frame() -> None:
    session, pipe = asking()
    first, second = opened_by(session, b"one", Taken()), opened_by(session, b"two", Taken())
    first.feed(b"body")
    first.end()
    second.end()
    assert await frames_of(pipe) == [
        (OPEN, 1, opening(b"one")), (OPEN, 2, opening(b"two")), (DATA | END, 1, b"body"), (DATA | END, 2, b"")
    ]  # fmt: skip
    third = opened_by(session, b"three", Taken(), length=0)
    third.end()
    assert await frames_of(pipe) == [(OPEN | END, 3, opening(b"three", length=0))]


async def test_a_small_body_travels_with_its_head() -> None:
    session, pipe = asking()
    stream = opened_by(session, b"head", Taken(), length=5)
    stream.feed(b"bo")
    stream.feed(b"dy!")
    stream.end()
    assert await frames_of(pipe) == [(OPEN | END, 1, opening(b"head", b"body!", length=5))]
    stream = opened_by(session, b"head", Taken(), length=1 << 20)
    for size in (100_000, 1):
        stream.feed(bytes(size))
    assert await frames_of(pipe) == [(OPEN, 2, opening(b"head", bytes(100_000), length=1 << 20)), (DATA, 2, b"\0")]
    stream.feed(b"x")
    assert await frames_of(pipe) == [(DATA, 2, b"x")]


async def test_what_travels_with_the_head_counts_against_the_credit() -> None:
    handler, reply = Handler(silent), Taken()
    async with serving(handler, muxed=True) as served:
        session = await served.ask_mux()
        stream = opened_by(session, HEAD % 1, reply, length=WINDOW)
        stream.feed(bytes(WINDOW // 2))
        await until(lambda: bool(handler.noted))
        noted = handler.noted[0]
        assert (noted.request.length, noted.request.id) == (WINDOW, b"id")
        stream.feed(bytes(WINDOW // 2))
        stream.end()
        await until(lambda: noted.calls == ["end"])
        assert len(noted.body) == WINDOW
        await until(lambda: stream._credit > WINDOW - WINDOW // 4)  # less is not given back in small change
        session.transport.abort()


@pytest.mark.parametrize("length", [0, 1, 70_000, WINDOW])
async def test_the_first_of_a_body_arrives_in_every_size(length: int) -> None:
    def back(noted: Noted) -> None:
        noted.reply.write(answer(200, bytes(noted.body)))
        noted.reply.finish()

    body, reply = random.Random(length).randbytes(length), Taken()
    async with serving(Handler(back), muxed=True) as served:
        session = await served.ask_mux()
        stream = opened_by(session, HEAD % 1, reply, length=length)
        if body:
            stream.feed(body)
        stream.end()
        await until(lambda: reply.calls[-1:] == ["finish"])
        assert reply.data == answer(200, body)
        session.transport.abort()


async def test_an_end_without_an_answer_is_none() -> None:
    session, _ = asking()
    reply = Taken()
    opened_by(session, b"head", reply)
    session.data_received(frame(DATA | END, 1))
    assert (reply.calls, session.streams) == (["cut"], {})


@pytest.mark.parametrize("sent", [b"no status\r\n", b"HTTP/1.1 2x0 OK\r\n", b"HTTP/2 200\r\n", b"x" * (1 << 17)])
async def test_an_answer_that_is_none_ends_the_session_and_each_of_its_streams_once(sent: bytes) -> None:
    session, pipe = asking()
    replies = Taken(), Taken()
    for reply in replies:
        opened_by(session, b"head", reply)
    for at in range(0, len(sent), 1 << 15):
        session.data_received(frame(DATA, 1, sent[at : at + (1 << 15)]))
    assert pipe.aborted
    session.connection_lost(None)
    assert [(bytes(reply.data), reply.calls) for reply in replies] == [(b"", ["cut"])] * 2


async def test_a_head_that_is_not_complete_is_refused() -> None:
    """Its stream is, and others go on."""
    handler = Handler()
    async with serving(handler, muxed=True) as served:
        session = await served.ask_mux()
        replies = Taken(), Taken()
        opened_by(session, HEAD[:-2] % 1, replies[0]).end()
        opened_by(session, HEAD % 2, replies[1]).end()
        await until(lambda: bool(replies[0].calls and replies[1].calls))
        assert [reply.calls for reply in replies] == [["cut"], ["finish"]]
        assert [noted.request.path for noted in handler.noted] == ["/2"]
        session.transport.abort()


@pytest.mark.parametrize(
    "sent",
    [
        frame(7, 1), frame(CREDIT, 1, b"x"), frame(OPEN, 5, b"GET / HTTP/1.1\r\n\r\n"),
        struct.pack("!IIB", 1 << 30, 1, RESET), struct.pack("!IIB", 1 << 31, 0, PING),
    ],
    ids=["unknown", "short credit", "opened by the server", "huge reset", "huge ping"],
)  # fmt: skip
async def test_what_is_no_frame_ends_the_session(sent: bytes) -> None:
    session, pipe = asking()
    opened_by(session, b"head", Taken())
    session.data_received(sent)
    assert pipe.aborted


async def test_pings_are_counted_until_they_are_answered() -> None:
    session, pipe = asking()
    assert [session.ping(), session.ping(), session.ping()] == [0, 1, 2]
    session.data_received(frame(PONG, 0))
    assert session.ping() == 0
    assert await frames_of(pipe) == [(PING, 0, b"")] * 4


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)
async def test_an_orchestrator_that_knows_no_mux_is_found_out(greeting: bytes) -> None:
    session, pipe = AskingSession(asyncio.get_running_loop()), Pipe()
    session.connection_made(pipe)
    session.data_received(greeting)
    with pytest.raises(BrokenSession) as told:
        await session.ready
    assert (told.value.answered, pipe.aborted) == (True, True)


async def test_a_greeting_that_comes_too_late_ends_the_connection() -> None:
    session, pipe = AskingSession(asyncio.get_running_loop()), Pipe()
    session.connection_made(pipe)
    session.ready.cancel()
    session.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert pipe.aborted


# Credit


async def test_a_sender_stops_at_its_credit_and_goes_on_with_more() -> None:
    session, _ = asking()
    reply = Taken()
    stream = opened_by(session, b"head", reply)
    stream.feed(bytes(WINDOW - 1))
    assert reply.calls == []
    stream.feed(b"1")
    assert reply.calls == ["pause"]
    session.data_received(frame(CREDIT, 1, struct.pack("!I", 1)))
    assert reply.calls == ["pause", "resume"]


async def test_a_full_connection_stops_the_sources_until_it_is_not() -> None:
    session, pipe = asking()
    reply = Taken()
    stream = opened_by(session, b"head", reply)
    await frames_of(pipe)
    session.pause_writing()
    stream.feed(b"1")
    session.resume_writing()
    assert reply.calls == ["pause", "resume"]


async def test_credit_is_given_for_what_is_taken_only() -> None:
    session, pipe = asking()
    stream = opened_by(session, b"head", Taken())
    await frames_of(pipe)
    stream.pause()
    session.data_received(frame(DATA, 1, STATUS + bytes(WINDOW // 2)))
    assert await frames_of(pipe) == []
    stream.resume()
    assert await frames_of(pipe) == [(CREDIT, 1, struct.pack("!I", WINDOW // 2 + len(STATUS)))]


class Source(Noted):
    """Answers 4 MiB, as fast as it may."""

    left = 4 << 20
    running = True

    def end(self) -> None:
        self.reply.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self.left)
        self._more()

    def _more(self) -> None:
        while self.running and self.left and "abort" not in self.calls:
            self.left -= 16384
            self.reply.write(bytes(16384))
        if not self.left and self.running:
            self.running = False
            self.reply.finish()

    def pause(self) -> None:
        self.running = False

    def resume(self) -> None:
        self.running = True
        self._more()


async def test_a_slow_stream_stops_only_itself() -> None:
    sources: list[Source] = []

    def handle(request: Request, reply: Reply) -> Exchange:
        sources.append(Source(request, reply, silent))
        return sources[-1]

    async with serving(handle, muxed=True) as served:
        session = await served.ask_mux()
        replies = [Taken(), Taken()]
        slow, quick = (opened_by(session, HEAD % i, replies[i]) for i in range(2))
        slow.pause()
        slow.end()
        quick.end()
        await until(lambda: replies[1].calls == ["finish"])
        assert len(replies[1].data) > 4 << 20
        assert WINDOW // 2 < len(replies[0].data) < 2 * WINDOW
        assert sources[0].left > 3 << 20
        slow.resume()
        await until(lambda: replies[0].calls == ["finish"])
        assert replies[0].data == replies[1].data
        session.transport.abort()


# Endings


async def test_a_thousand_streams_at_once_each_with_its_own_bytes() -> None:
    def back(noted: Noted) -> None:
        noted.reply.write(answer(200, bytes(noted.body)))
        noted.reply.finish()

    async with serving(Handler(back), muxed=True) as served:
        session = await served.ask_mux()
        rng = random.Random(3)
        bodies = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(1000)]
        replies = [Taken() for _ in bodies]
        streams = [opened_by(session, HEAD % i, reply) for i, reply in enumerate(replies)]
        for stream, body in zip(streams, bodies, strict=True):
            stream.feed(body[: len(body) // 2] or body[:1])
        for stream, body in zip(streams, bodies, strict=True):
            if rest := body[max(len(body) // 2, 1) :]:
                stream.feed(rest)
            stream.end()
        await until(lambda: all(reply.calls == ["finish"] for reply in replies))
        assert [bytes(reply.data) == answer(200, body) for reply, body in zip(replies, bodies, strict=True)].count(
            False
        ) == 0
        assert session.streams == {}
        session.transport.abort()


async def opened(served: Serving, handler: Handler, reply: Taken) -> tuple[AskingSession, Stream]:
    session = await served.ask_mux()
    stream = opened_by(session, HEAD % 1, reply)
    stream.end()
    await until(lambda: bool(handler.noted))
    return session, stream


async def test_a_client_that_leaves_resets_the_stream() -> None:
    handler = Handler(silent)
    async with serving(handler, muxed=True) as served:
        session, stream = await opened(served, handler, Taken())
        stream.abort()
        await until(lambda: handler.noted[0].calls == ["end", "abort"])
        assert (session.streams, served.answered) == ({}, [(499, "/1")])
        session.transport.abort()


async def test_an_answer_that_breaks_off_resets_the_stream() -> None:
    handler, reply = Handler(lambda noted: noted.reply.cut("why")), Taken()
    async with serving(handler, muxed=True) as served:
        session, _ = await opened(served, handler, reply)
        await until(lambda: reply.calls == ["cut"])
        assert (session.streams, served.answered) == ({}, [(502, "/1")])
        session.transport.abort()


async def test_a_head_that_is_none_resets_its_stream_only() -> None:
    handler, replies = Handler(echo), (Taken(), Taken())
    async with serving(handler, muxed=True) as served:
        session = await served.ask_mux()
        opened_by(session, b"no head at all", replies[0]).end()
        opened_by(session, HEAD % 1, replies[1]).end()
        await until(lambda: bool(replies[0].calls and replies[1].calls))
        assert [reply.calls for reply in replies] == [["cut"], ["finish"]]
        session.transport.abort()


@pytest.mark.parametrize("side", ["asking", "serving"])
async def test_a_session_that_is_lost_tells_each_stream_once(side: str) -> None:
    handler, replies = Handler(silent), [Taken() for _ in range(50)]
    async with serving(handler, muxed=True) as served:
        session = await served.ask_mux()
        for i, reply in enumerate(replies):
            opened_by(session, HEAD % i, reply).end()
        await until(lambda: len(handler.noted) == 50)
        (theirs,) = served.server.registry
        (session if side == "asking" else theirs).transport.abort()
        await until(lambda: session.over and all(noted.calls[1:] for noted in handler.noted))
        assert [reply.calls for reply in replies] == [["cut"]] * 50
        assert [noted.calls for noted in handler.noted] == [["end", "abort"]] * 50
        assert (session.streams, theirs.streams, len(served.answered)) == ({}, {}, 50)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("!IIB", 1 << 30, 1, OPEN),
        frame(OPEN, 0, b"x"),
        frame(OPEN, 3, b"x") + frame(OPEN, 3, b"x"),
        frame(OPEN | END, 3, opening(HEAD % 1)) * 2,
        frame(OPEN | END, 3, opening(HEAD % 1)) + frame(DATA, 3, b"more"),
        frame(OPEN | END, 3, opening(HEAD % 1)) + frame(DATA | END, 3),
    ],
    ids=["oversized", "number 0", "a number twice", "a stream twice", "more behind the end", "two ends"],
)
async def test_a_gateway_that_breaks_the_protocol_loses_its_session_and_nobody_else_does(sent: bytes) -> None:
    handler = Handler(lambda noted: echo(noted) if noted.request.path == "/alive" else None)
    async with serving(handler, muxed=True) as served:
        reader, writer = await served.connect()
        writer.write(UPGRADE + sent)
        async with asyncio.timeout(SECONDS):
            got = await reader.read()
        assert got.startswith(b"HTTP/1.1 101 ")
        writer.close()
        other, more = await served.connect()
        more.write(b"GET /alive HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await read_answer(other))[0] == 200
        more.close()


async def test_a_session_that_shall_end_lets_its_requests_end_first() -> None:
    handler, reply = Handler(silent), Taken()
    async with serving(handler, muxed=True) as served:
        session, _ = await opened(served, handler, reply)
        (theirs,) = served.server.registry
        theirs.shutdown()
        handler.noted[0].reply.write(STATUS)
        handler.noted[0].reply.finish()
        await until(lambda: session.over)
        assert (bytes(reply.data), reply.calls) == (STATUS, ["finish"])


async def test_a_session_that_shall_end_refuses_what_comes_then_and_says_that_nothing_was_done() -> None:
    handler, reply, late = Handler(silent), Taken(), Unreached()
    async with serving(handler, muxed=True) as served:
        session, _ = await opened(served, handler, reply)
        (theirs,) = served.server.registry
        theirs.shutdown()
        opened_by(session, HEAD % 2, late).end()
        await until(lambda: late.calls != [])
        assert (late.calls, late.reached) == (["cut"], False)
        assert session.over, "the next request looks for another connection"
        assert len(handler.noted) == 1
        handler.noted[0].reply.write(STATUS)
        handler.noted[0].reply.finish()
        await until(lambda: session.transport.is_closing())
        assert (bytes(reply.data), reply.calls) == (STATUS, ["finish"])


class Unreached(Taken):
    """Keeps whether the request may have been looked at."""

    reached = True

    def cut(self, why: str, *, reached: bool = True) -> None:
        super().cut(why, reached=reached)
        self.reached = reached


async def test_who_does_not_offer_it_takes_the_upgrade_for_a_request() -> None:
    async with serving(Handler()) as served:
        reader, writer = await served.connect()
        writer.write(UPGRADE)
        assert (await read_answer(reader))[0] == 200
        writer.close()

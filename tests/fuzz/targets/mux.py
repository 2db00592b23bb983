"""Both ends of a connection with many requests, against any bytes in any cut.

Nothing is raised out of data_received, every exchange and every answer has one end, and none is left after the last
byte. What is told does not depend on the cut.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import cast

from orchestrator.wire import Exchange, Reply
from orchestrator.wire.http1 import Request, answer, parse_request
from orchestrator.wire.mux import AskingSession, ServingSession
from orchestrator.wire.server import Server
from tests.fuzz.target import Target, cut, uncut

Facts = list[tuple[object, ...]]
_HEAD = b"POST /1 HTTP/1.1\r\nhost: a\r\n\r\n"
_GREETING = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
_OPEN, _DATA, _CREDIT, _RESET, _PING, _PONG, _END = 0, 1, 2, 3, 4, 5, 0x10
_KNOWN = parse_request(_HEAD).head


class _Loop:
    """As much of an event loop as is asked of it here, in which nothing waits."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], object]] = []

    @property
    def as_asyncio(self) -> asyncio.AbstractEventLoop:
        return cast(asyncio.AbstractEventLoop, self)

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._soon.append(callback)

    def turn(self) -> None:
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()

    def time(self) -> float:
        return 0.0

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.Future(loop=self.as_asyncio)

    def get_debug(self) -> bool:
        return False


class _Pipe(asyncio.Transport):
    """A transport that forgets what is written."""

    closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


class _Heard:
    """An Exchange. It answers by the target: `/1` at the end, `/2` at once, `/3` never, `/4` breaks off at the end."""

    def __init__(self, request: Request, reply: Reply) -> None:
        self.request, self.reply = request, reply
        self.body, self.ends = b"", [""]
        if request.target == b"/2":
            self._finish()

    def feed(self, data: bytes) -> None:
        assert data and self.ends in ([""], ["", "finish"]), self.ends
        self.body += data

    def end(self) -> None:
        self.ends.append("end")
        if self.request.target == b"/1":
            self._finish()
        elif self.request.target == b"/4":
            self.reply.cut("why\udcff".encode(errors="replace").decode())

    def _finish(self) -> None:
        self.reply.write(answer(200, self.body))
        self.reply.finish()
        self.ends.append("finish")

    def abort(self) -> None:
        assert "abort" not in self.ends and "finish" not in self.ends
        self.ends.append("abort")

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    @property
    def facts(self) -> tuple[object, ...]:
        identity = b"" if self.request.id.startswith(b"req-") else self.request.id  # ours is a random one
        return identity, self.request.target, self.request.length, self.body, *self.ends


class _Told:
    """A Reply."""

    def __init__(self) -> None:
        self.data, self.end = b"", ""

    def write(self, data: bytes) -> None:
        assert data and not self.end
        if not self.data:
            int(data[9:12])  # as every Reply may
        self.data += data

    def finish(self) -> None:
        assert not self.end
        self.end = "finish"

    def cut(self, why: str, *, reached: bool = True) -> None:
        assert not self.end and why is not None
        self.end = "cut"

    def pause(self) -> None: ...

    def resume(self) -> None: ...


def _run(data: bytes) -> None:
    if len(data) < 2:
        return
    pieces = cut(data[1:])
    hear = _served if data[0] % 2 else _asked
    assert hear([b"".join(pieces)]) == hear(pieces)


def _served(pieces: list[bytes]) -> Facts:
    heard: list[_Heard] = []

    def handle(request: Request, reply: Reply) -> Exchange:
        heard.append(_Heard(request, reply))
        return heard[-1]

    server = Server(handle=handle, render=lambda path, status, text: answer(status, b""), observe=_observe, muxed=True)
    loop, pipe = _Loop(), _Pipe()
    session = ServingSession(loop.as_asyncio, pipe, server)
    _feed(loop, session, pipe, pieces)
    assert server.in_flight == 0 and not session.streams
    for exchange in heard:
        assert len(exchange.ends) > 1, "left open"
    return [exchange.facts for exchange in heard]


def _observe(request: Request, status: int, seconds: float) -> None:
    assert 200 <= status <= 999


def _asked(pieces: list[bytes]) -> Facts:
    loop, pipe = _Loop(), _Pipe()
    session = AskingSession(loop.as_asyncio)
    session.connection_made(pipe)
    session.data_received(_GREETING)
    replies = [_Told() for _ in range(3)]
    for number, reply in enumerate(replies):
        stream = session.open(Request(_KNOWN, number or None, b"id"), _HEAD, reply)
        stream.feed(b"body")
        stream.end()
    _feed(loop, session, pipe, pieces)
    assert not session.streams and all(reply.end for reply in replies)
    return [(reply.data, reply.end) for reply in replies]


def _feed(loop: _Loop, session: AskingSession | ServingSession, pipe: _Pipe, pieces: list[bytes]) -> None:
    for piece in pieces:
        if pipe.closed:
            break
        session.data_received(piece)
    loop.turn()
    session.connection_lost(None)


def _frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!IIB", len(payload), stream, kind) + payload


def _opening(target: int, body: bytes = b"", length: int = -1) -> bytes:
    head = _HEAD.replace(b"/1", b"/%d" % target)
    return struct.pack("!qBI", length, 2, len(head)) + b"id" + head + body


_STATUS = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"
_FOUR = b"".join(_frame(_OPEN | _END * (n % 2), n, _opening(n, b"b", 1)) for n in (1, 2, 3, 4))
_STREAM = _frame(_OPEN, 1, _opening(1)) + _frame(_DATA, 1, b"a" * 9) + _frame(_DATA | _END, 1)
_ANSWERS = _frame(_RESET, 2, b"why\xff") + _frame(_DATA, 3, _STATUS) + _frame(_CREDIT, 3, b"\0\0\1\0")
_IN_TWO = _frame(_DATA, 1, _STATUS[:12]) + _frame(_DATA | _END, 1, _STATUS[12:]) + _frame(_PONG, 0)
_BROKEN = _frame(_DATA, 1, b"no status\r\n") + _frame(_OPEN, 9, _opening(1)) + _frame(9, 1)
_AT_ONCE = _frame(_OPEN | _END, 7, _opening(2)) + _frame(_CREDIT, 7, b"\0\0\0\5") + _frame(_PING, 0)
TARGET = Target(
    _run,
    seeds=[
        b"\x01" + uncut(_STREAM, 5, 9, 40, 20),
        b"\x01" + uncut(_FOUR + _frame(_RESET, 3, b"left") + _frame(_DATA | _END, 4, b"x"), 200, 7),
        b"\x01" + uncut(_AT_ONCE, 30),
        b"\x01" + uncut(_frame(_OPEN, 1, _opening(3)) + _frame(_OPEN, 1, _opening(3))),
        b"\x00" + uncut(_IN_TWO, 9, 3),
        b"\x00" + uncut(_ANSWERS, 11),
        b"\x00" + uncut(_BROKEN),
    ],
    words=[
        _frame(_DATA, 1), _frame(_DATA | _END, 1), _frame(_OPEN, 5, _opening(1)), _frame(_RESET, 1), _frame(_CREDIT, 1),
        _frame(_PING, 0), _HEAD, _STATUS, b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\r\n",
    ],
)  # fmt: skip

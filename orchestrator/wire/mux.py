"""Many requests over one connection between the two halves.

A frame is a header of 9 bytes — length of the payload (u32), number of the stream (u32), kind (u8), network order — and
the payload. The client side opens streams, with numbers that only grow; each carries one request and its answer:

    OPEN     the length of the request's body (i64, -1 when it is not known), the lengths of its id (u8) and head (u32),
             the id, the head without these two, as HTTP/1.1 text (the same for many requests, so it is parsed once),
             and the first of the body
    DATA     more of the request's body, or of the answer; the answer begins with its head, as HTTP/1.1 text
    CREDIT   u32: so many bytes more of DATA may be sent on this stream
    RESET    the client has left, or the answer broke off; the payload says why. With END: nothing was done with the
             request, and no further stream is taken here, because the process ends
    PING     answered by PONG, both on stream 0

The bit END on OPEN or DATA ends that direction. Each direction of a stream begins with a credit of `WINDOW` bytes; a
sender pauses its source when that is used up, so a slow client fills no memory and stops nobody else. Frames of one
pass of the event loop leave in one write: all tokens of an engine's step are one packet of SSH.
"""

import asyncio
import logging
import re
import struct
from typing import Any, cast

from orchestrator.wire import Exchange, Reply
from orchestrator.wire.http1 import HEAD_END, MOST_HEAD, Malformed, Request
from orchestrator.wire.server import CLIENT_LEFT, Server

log = logging.getLogger(__name__)

PROTOCOL = b"sluicegate-mux/1"
UPGRADE = b"GET /mux HTTP/1.1\r\nHost: orchestrator\r\nConnection: upgrade\r\nUpgrade: " + PROTOCOL + b"\r\n\r\n"
WINDOW = 256 * 1024

_END = 0x10
_OPEN, _DATA, _CREDIT, _RESET, _PING, _PONG = range(6)
_HEADER = struct.Struct("!IIB")
_U32 = struct.Struct("!I")
_OPENING = struct.Struct("!qBI")
_MOST_EXTENDED = MOST_HEAD + 1024  # of an OPEN frame before its body
_MOST_CONTROL = _MOST_EXTENDED + WINDOW  # payload of a frame that is not DATA
_STATUS_LINE = re.compile(rb"HTTP/1\.1 [0-9]{3}[ \r]")
_GRANT = WINDOW // 4  # bytes that are taken before their credit is given back
_WRITE_BUFFER = 1024 * 1024


class BrokenSession(Exception):
    """The other side does not speak this protocol (`answered`: but it does speak HTTP), or has gone."""

    def __init__(self, text: str, *, answered: bool = False) -> None:
        super().__init__(text)
        self.answered = answered


class _Stream:
    """What both ends of a stream do: keep to the credit, and give it back."""

    _credit: int  # what may still be sent; below 0 by at most one piece
    _taken = 0  # received, and its credit not given back yet
    _held = False  # whoever takes what is received is slow
    _stopped = False  # the source of what is sent has been paused
    _closed = False

    def __init__(self, session: "_Session", number: int) -> None:
        self._session = session
        self._id = number
        self._credit = WINDOW

    def _send(self, data: bytes, flags: int = 0) -> None:
        self._credit -= len(data)
        self._session.send(_DATA | flags, self._id, data)
        if not self._stopped and (self._credit <= 0 or self._session.full):
            self._stopped = True
            self.stop_source()

    def took(self, size: int) -> None:
        self._taken += size
        if self._taken >= _GRANT and not self._held:
            self._grant()

    def _grant(self) -> None:
        if self._taken and not self._closed:
            self._session.send(_CREDIT, self._id, _U32.pack(self._taken))
            self._taken = 0

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        if self._taken >= _GRANT:
            self._grant()

    def credited(self, more: int) -> None:
        self._credit += more
        self.go_on()

    def go_on(self) -> None:
        """Let the source run again if nothing is in its way."""
        if self._stopped and self._credit > 0 and not self._session.full and not self._closed:
            self._stopped = False
            self.start_source()

    def _close(self) -> None:
        self._closed = True
        self._session.streams.pop(self._id, None)

    def stop_source(self) -> None:
        raise NotImplementedError

    def start_source(self) -> None:
        raise NotImplementedError

    def received(self, data: bytes) -> None:
        raise NotImplementedError

    def ended(self) -> None:
        """The other side has sent all."""
        raise NotImplementedError

    def broken(self, why: str, *, reached: bool = True) -> None:
        """The other side has reset the stream, or the session is gone. `reached`: something may have been done."""
        raise NotImplementedError


class Stream(_Stream):
    """The asking end: the Exchange of a request that goes through a session."""

    _begun = False
    _first = b""  # of the answer, until there is enough of it to see its status

    def __init__(self, session: "_Session", number: int, reply: Reply) -> None:
        self._session = session
        self._id = number
        self._credit = WINDOW
        self._reply = reply

    def feed(self, data: bytes) -> None:
        if self._session.extend(self._id, data):
            self._credit -= len(data)
        else:
            self._send(data)

    def end(self) -> None:
        self._session.send_end(self._id)

    def abort(self) -> None:
        self._close()
        self._session.send(_RESET, self._id, b"the client left")

    def pause(self) -> None:
        self.hold()

    def resume(self) -> None:
        self.release()

    def stop_source(self) -> None:
        self._reply.pause()

    def start_source(self) -> None:
        self._reply.resume()

    def received(self, data: bytes) -> None:
        self.took(len(data))
        if not self._begun:
            data = self._first + data
            if b"\r\n" not in data[:MOST_HEAD]:  # a frame may come in pieces of any size, a Reply wants a status line
                self._first = data
                if len(data) <= MOST_HEAD:
                    return
            if not _STATUS_LINE.match(data):
                raise BrokenSession(f"an answer begins with {data[:40]!r}")
            self._begun = True
        self._reply.write(data)

    def ended(self) -> None:
        self._close()
        if self._begun:
            self._reply.finish()
        else:
            self._reply.cut("the orchestrator ended the answer before it began")

    def broken(self, why: str, *, reached: bool = True) -> None:
        self._close()
        self._reply.cut(why, reached=reached)


class Served(_Stream):
    """The answering end: the Reply to a request that came through a session."""

    _request: Request
    _exchange: Exchange | None = None
    _status = 0
    _complete = False  # all of the request is here

    def __init__(self, session: "_Session", number: int, server: Server) -> None:
        self._session = session
        self._id = number
        self._credit = WINDOW
        self._server = server
        self._began = session.loop.time()

    def begin(self, payload: bytes) -> None:
        try:
            length, id_size, head_size = _OPENING.unpack_from(payload)
            head_at = _OPENING.size + id_size
            body_at = head_at + head_size
            identity, template = payload[_OPENING.size : head_at], payload[head_at:body_at]
            if len(template) != head_size or not template.endswith(HEAD_END):
                raise Malformed(f"the head of stream {self._id} is not complete")
            self._request = self._server.heads.template(template, None if length < 0 else length, identity)
        except (Malformed, struct.error) as exc:
            self._close()
            self._session.send(_RESET, self._id, str(exc).encode())
            return
        exchange = self._server.begin(self._request, self)
        if not self._closed:
            self._exchange = exchange
            if body_at < len(payload):
                self.received(payload[body_at:])

    def write(self, data: bytes) -> None:
        if not self._status:
            self._status = int(data[9:12])
        self._send(data)

    def finish(self) -> None:
        self._over(self._status)
        self._session.send_end(self._id)

    def cut(self, why: str, *, reached: bool = True) -> None:
        self._over(self._status or 502)
        self._session.send(_RESET, self._id, why.encode()[:1000])

    def pause(self) -> None:
        self.hold()

    def resume(self) -> None:
        self.release()

    def stop_source(self) -> None:
        if self._exchange is not None:
            self._exchange.pause()

    def start_source(self) -> None:
        if self._exchange is not None:
            self._exchange.resume()

    def received(self, data: bytes) -> None:
        if self._complete:
            raise BrokenSession(f"stream {self._id} goes on behind its end")
        if self._exchange is not None:
            self._exchange.feed(data)
            self.took(len(data))

    def ended(self) -> None:
        if self._complete:
            raise BrokenSession(f"stream {self._id} ends twice")
        self._complete = True
        if self._exchange is not None:
            self._exchange.end()

    def broken(self, why: str, *, reached: bool = True) -> None:
        self._over(self._status or CLIENT_LEFT)
        if self._exchange is not None:
            self._exchange.abort()

    def _over(self, status: int) -> None:
        self._close()
        self._server.answered(self._request, status, self._session.loop.time() - self._began)


class _Session(asyncio.Protocol):
    """One connection full of streams: frames in, frames out."""

    transport: Any = None  # a WriteTransport, from connection_made on

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.streams: dict[int, Stream | Served] = {}
        self.full = False  # the connection does not take more for now
        self.loop = loop
        self._out: list[bytes] = []  # header, payload, header, payload, …
        self._last = 0  # the stream of the last frame in `_out`, and where that frame is
        self._frame_at = self._last_kind = self._last_size = 0
        self._rest = b""  # of a frame that is not complete
        self._kind = 0  # of the DATA frame whose payload is coming
        self._stream = 0
        self._left = 0

    # Out

    def send(self, kind: int, stream: int, *payload: bytes) -> None:
        if not self._out:
            self.loop.call_soon(self._flush)
        size = len(payload[0]) if len(payload) == 1 else sum(map(len, payload))
        self._last, self._frame_at = stream, len(self._out)
        self._last_kind, self._last_size = kind, size
        self._out += (_HEADER.pack(size, stream, kind), *payload)

    def extend(self, stream: int, data: bytes) -> bool:
        """Put the first of a body behind its head, if that is still here."""
        if not self._out or self._last != stream or self._last_kind != _OPEN or self._last_size > _MOST_EXTENDED:
            return False
        self._last_size += len(data)
        self._out[self._frame_at] = _HEADER.pack(self._last_size, stream, _OPEN)
        self._out.append(data)
        return True

    def send_end(self, stream: int) -> None:
        """End a direction of a stream: with its last frame, if that is still here."""
        if self._out and self._last == stream and self._last_kind in (_OPEN, _DATA):
            self._out[self._frame_at] = _HEADER.pack(self._last_size, stream, self._last_kind | _END)
            self._last_kind |= _END
            return
        self.send(_DATA | _END, stream, b"")

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not self.transport.is_closing():
            self.transport.writelines(out)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        for stream in list(self.streams.values()):
            stream.go_on()

    # In

    def data_received(self, data: bytes) -> None:
        try:
            self._take(data)
        except (BrokenSession, struct.error) as exc:
            log.error("the other side of a connection with many requests does not keep to the protocol: %s", exc)
            self.transport.abort()

    def _take(self, data: bytes) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, size = 0, len(data)
        if self._kind:
            at = self._go_on(data)
        while size - at >= _HEADER.size:
            length, number, kind = _HEADER.unpack_from(data, at)
            begin = at + _HEADER.size
            at = begin + length
            if at > size:
                at = self._partly(kind, number, length, data, begin)
                break
            if kind & ~_END == _DATA:
                self._hand_on(number, data[begin:at], kind & _END)
            else:
                self._frame(kind, number, data[begin:at])
        if at < size:
            self._rest = data[at:] if at else data

    def _partly(self, kind: int, number: int, length: int, data: bytes, begin: int) -> int:
        """A frame of which a part is here: of DATA that is handed on; where the rest begins."""
        if kind & ~_END != _DATA:
            if length > _MOST_CONTROL:
                raise BrokenSession(f"a frame of kind {kind} with {length} bytes")
            return begin - _HEADER.size
        self._kind, self._stream, self._left = kind, number, length
        return self._go_on(data, begin)

    def _go_on(self, data: bytes, at: int = 0) -> int:
        """Hand on what is here of a DATA frame, without waiting for the rest; where it ends."""
        end = min(at + self._left, len(data))
        ends = self._kind & _END
        self._left -= end - at
        if not self._left:
            self._kind = 0
        self._hand_on(self._stream, data[at:end], 0 if self._left else ends)
        return end

    def _hand_on(self, number: int, data: bytes, ends: int) -> None:
        stream = self.streams.get(number)
        if stream is None:
            return
        if data:
            stream.received(data)
        if ends and self.streams.get(number) is stream:
            stream.ended()

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == _PING:
            self.send(_PONG, 0, payload)
        elif kind == _PONG:
            self.ponged()
        elif kind & ~_END == _OPEN:
            self.opened(number, payload, ends=bool(kind & _END))
        elif (stream := self.streams.get(number)) is not None:
            if kind == _RESET | _END:
                self.refused()
                stream.broken(payload.decode(errors="replace"), reached=False)
            elif kind == _CREDIT:
                stream.credited(_U32.unpack(payload)[0])
            elif kind == _RESET:
                stream.broken(payload.decode(errors="replace"))
            else:
                raise BrokenSession(f"a frame of kind {kind}")

    def ponged(self) -> None:
        """A PING has been answered."""

    def refused(self) -> None:
        """The other side takes no more streams."""

    def opened(self, number: int, payload: bytes, *, ends: bool) -> None:
        raise BrokenSession("the serving side opened a stream")

    def lost(self, why: str) -> None:
        """All streams break."""
        for stream in list(self.streams.values()):
            stream.broken(why)
        self.streams.clear()


class AskingSession(_Session):
    """The gateway's end. Usable from when `ready` is done until it is `over`: gone, or for what is under way only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.ready: asyncio.Future[None] = loop.create_future()
        self.over = False
        self._greeting: bytes | None = b""  # None once it is complete
        self._number = 0
        self._unanswered = 0  # pings

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's are not derived from asyncio's
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        self.transport.write(UPGRADE)

    def connection_lost(self, exc: Exception | None) -> None:
        why = f"the connection to the orchestrator ended ({exc or 'closed by the other side'})"
        if not self.ready.done():
            self.ready.set_exception(BrokenSession(why))
        self.over = True
        self.lost(why)

    def data_received(self, data: bytes) -> None:
        if self._greeting is None:
            super().data_received(data)
            return
        self._greeting += data
        end = self._greeting.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END):
            return
        if self.ready.done():  # whoever waited has given up
            self.transport.abort()
            return
        greeting, rest, self._greeting = self._greeting[:end], self._greeting[end:], None
        if not greeting.startswith(b"HTTP/1.1 101 "):
            self.ready.set_exception(
                BrokenSession(f"the orchestrator does not speak {PROTOCOL.decode()}", answered=True)
            )
            self.transport.abort()
            return
        self.ready.set_result(None)
        if rest:
            super().data_received(rest)

    def open(self, request: Request, head: bytes, reply: Reply) -> Stream:
        """Send a request's head, without the length of its body and its id; the Exchange for the body."""
        self._number += 1
        stream = Stream(self, self._number, reply)
        self.streams[self._number] = stream
        identity = request.id[:255]
        opening = _OPENING.pack(-1 if request.length is None else request.length, len(identity), len(head))
        self.send(_OPEN, self._number, opening, identity, head)
        return stream

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        if self.transport is not None:
            self.transport.abort()

    def ping(self) -> int:
        """Ask for a sign of life; how many of the last ones have not been answered."""
        self._unanswered += 1
        self.send(_PING, 0, b"")
        return self._unanswered - 1

    def ponged(self) -> None:
        self._unanswered = 0

    def refused(self) -> None:
        self.over = True


class ServingSession(_Session):
    """The orchestrator's end: every stream is a request for the server's handler."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, server: Server) -> None:
        super().__init__(loop)
        self.transport = transport
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        self._server = server
        self._newest = 0
        self._closing = False
        server.joined(self)

    def opened(self, number: int, payload: bytes, *, ends: bool) -> None:
        if number <= self._newest:
            raise BrokenSession(f"stream {number} was opened after stream {self._newest}")
        self._newest = number
        if self._closing:  # else a busy client would keep us from ever ending
            self.send(_RESET | _END, number, b"the orchestrator is ending; ask again")
            return
        stream = Served(self, number, self._server)
        self.streams[number] = stream
        stream.begin(payload)
        if ends and self.streams.get(number) is stream:
            stream.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.left(self)
        self.lost("the connection is gone")

    def sweep(self, now: float) -> None:
        if self._closing and not self.streams:
            self.transport.close()

    def shutdown(self) -> None:
        self._closing = True
        self.sweep(self.loop.time())

    def _flush(self) -> None:
        super()._flush()
        if self._closing and not self.streams:
            self.transport.close()

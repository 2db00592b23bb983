"""The side of a connection that receives requests: HTTP/1.1 over TCP or a UNIX socket.

One request at a time; what a client sends ahead waits. Nothing here knows what a request means: see `Handle`.
"""

import asyncio
import socket
from typing import cast

from orchestrator.wire import Exchange
from orchestrator.wire.http1 import (
    HEAD_END,
    MOST_HEAD,
    Chunked,
    Extent,
    Malformed,
    Request,
    Sized,
    check_beginning,
    closing,
)
from orchestrator.wire.mux import PROTOCOL, ServingSession
from orchestrator.wire.server import CLIENT_LEFT, Server
from orchestrator.wire.unchunked import Unchunked

_MOST_AHEAD = 64 * 1024  # bytes of further requests that are kept while one is being answered
_MOST_IGNORED = 1024 * 1024  # bytes of a body that nobody wants any more, read so that the answer arrives
_LINGER_SECONDS = 5  # for what nobody wants any more
_MOST_TURNED_AWAY = 256  # connections at once that are told why; those beyond them are just ended
_WRITE_BUFFER = 256 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Front(asyncio.Protocol):
    """One client's connection. It is the Reply of its requests, one after the other."""

    transport: asyncio.Transport

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._time = loop.time
        self._since = loop.time()  # when its head began, more of its body came, or it was answered
        self._ahead = b""  # bytes that have not been looked at
        self._request: Request | None = None
        self._exchange: Exchange | None = None
        self._extent: Extent | None = None  # of the request's body, None when all of it is here
        self._ignored = 0
        self._status = 0  # of the answer, 0 before it has begun
        self._answered = False
        self._closing = False
        self._reading = True
        self._full = False  # the client does not take what has been written
        self._full_since = 0.0
        self._began = 0.0
        self._unwelcome = False  # there are too many others

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from asyncio's
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        if self._server.remote is not None and self._is_remote():
            self._server = self._server.remote
        self._server.joined(self)
        if self._server.crowd > _MOST_TURNED_AWAY:
            self.transport.abort()
        elif self._server.crowd > 0:
            self._unwelcome = True

    def _is_remote(self) -> bool:
        return bool(self.transport.get_extra_info("socket").family != socket.AF_UNIX)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.left(self)
        self._closing = True
        if self._request is not None and not self._answered:
            self._over(self._status or CLIENT_LEFT)
            if self._exchange is not None:
                self._exchange.abort()

    def data_received(self, data: bytes) -> None:
        if self._unwelcome:
            # Only now, so that a client that asks before it listens has its answer and not a broken connection.
            self._refuse("", 503, f"all {self._server.most} connections are taken; close some, or try again in a while")
        elif self._extent is not None:
            self._since = self._time()
            self._take_body(data)
        elif self._request is not None or self._closing or self._full:
            self._take_ahead(data)
        else:
            self._take_head(self._ahead + data if self._ahead else data)

    def pause_writing(self) -> None:
        self._full = True
        self._full_since = self._time()
        if self._exchange is not None and not self._answered:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._full = False
        if self._request is None:
            self._read(True)
            self._next()
        elif self._exchange is not None and not self._answered:
            self._exchange.resume()

    def sweep(self, now: float) -> None:
        silent, limits = now - self._since, self._server.timeouts
        if self._full and now - self._full_since > limits.taken:
            self._close(at_once=True)
        elif self._extent is not None and self._reading:
            if silent > (_LINGER_SECONDS if self._answered else limits.body):
                self._give_up(408, f"nothing of the body came for {limits.body:g} s")
        elif self._request is None and not self._full:
            if self._ahead and silent > limits.head:
                self._refuse("", 408, f"the head was not complete within {limits.head:g} s")
            elif not self._ahead and silent > (_LINGER_SECONDS if self._unwelcome else limits.idle):
                self.transport.close()

    def shutdown(self) -> None:
        if self._request is None:
            self.transport.close()
        else:
            self._request.keep_alive = False
            self._server.ending()

    # A request

    def _take_head(self, data: bytes) -> None:
        end = data.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END) or end > MOST_HEAD:
            self._keep_head(data)
            return
        self._ahead = b""
        try:
            request = self._server.heads.request(data[:end])
        except Malformed as exc:
            self._refuse("", 400, str(exc))
            return
        if self._server.muxed and request.header(b"upgrade") == PROTOCOL:
            self._upgrade(data[end:])
        elif request.length == len(data) - end and request.head.minor:
            self._begin_whole(request, data[end:])
        else:
            self._begin(request, data[end:])

    def _keep_head(self, data: bytes) -> None:
        """A head that is not complete, unless it can never become one."""
        if len(data) > MOST_HEAD:
            self._refuse("", 431, f"The request's headers are larger than {MOST_HEAD >> 10} KiB.")
            return
        try:
            check_beginning(data)
        except Malformed as exc:
            self._refuse("", 400, str(exc))
            return
        if not self._ahead:
            if data.lstrip(b"\r\n") == b"":
                return  # an empty line before a request is allowed
            self._since = self._time()
        self._ahead = data

    def _begin_whole(self, request: Request, body: bytes) -> None:
        """A request that is here from its first to its last byte, which is the rule."""
        self._request, self._exchange, self._began = request, None, self._time()
        self._status, self._answered = 0, False
        self._exchange = exchange = self._server.begin(request, self)
        if body and not self._answered:
            exchange.feed(body)
        if not self._answered:
            exchange.end()

    def _begin(self, request: Request, rest: bytes) -> None:
        self._request, self._exchange, self._since = request, None, self._time()
        self._began = self._since
        self._status, self._answered, self._ignored = 0, False, 0
        pieces: list[bytes] = []
        if request.length != 0:
            self._extent = Chunked() if request.length is None else Sized(request.length)
            try:
                self._measure(rest, pieces)
            except Malformed as exc:
                self._extent = self._request = None
                self._refuse(request.path, 400, str(exc))  # nobody has been given it
                return
        elif rest:
            self._take_ahead(rest)
        reply = self if request.head.minor else Unchunked(self, to_head=request.method == b"HEAD")
        self._exchange = self._server.begin(request, reply)
        self._pass_on(pieces)
        if self._extent is not None and not rest and not self._status and request.head.expects:
            self.transport.write(_CONTINUE)

    def _measure(self, data: bytes, pieces: list[bytes]) -> None:
        """Take what of `data` is the request's body. Raises Malformed."""
        assert self._extent is not None
        end = self._extent.take(data, 0, pieces)
        if end >= 0:
            self._extent = None
            if end < len(data):
                self._take_ahead(data[end:])

    def _pass_on(self, pieces: list[bytes]) -> None:
        """Feed the exchange, as long as it has not answered; then what is behind this request."""
        exchange = self._exchange
        assert exchange is not None
        for piece in pieces:
            if not self._answered:
                exchange.feed(piece)
        if self._extent is None and not self._answered:
            exchange.end()

    def _take_body(self, data: bytes) -> None:
        pieces: list[bytes] = []
        try:
            self._measure(data, pieces)
        except Malformed as exc:
            self._give_up(400, str(exc))
            return
        if not self._answered:
            self._pass_on(pieces)
            return
        self._ignored += len(data)
        if self._extent is not None and self._ignored > _MOST_IGNORED:
            self._close()
        self._maybe_next()

    def _take_ahead(self, data: bytes) -> None:
        if self._closing:
            return
        self._ahead += data
        if len(self._ahead) > _MOST_AHEAD:
            self._read(False)

    def _maybe_next(self) -> None:
        """The next request, when the answer is complete and so is the body of this one."""
        if not self._answered or self._extent is not None or self._request is None:
            return
        keep = self._request.keep_alive
        self._request = self._exchange = None
        if not keep:
            self._close()
            return
        if not self._reading:
            self._read(True)
        if self._ahead:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self._request is None and self._ahead and not self._closing and not self._full:
            data, self._ahead = self._ahead, b""
            self._take_head(data)

    # The answer

    def write(self, data: bytes) -> None:
        if not self._status:
            self._status = int(data[9:12])
            assert self._request is not None
            if self._extent is not None:
                self._request.keep_alive = False  # what is still to come of the body may be much, and unwanted
            if not self._request.keep_alive:
                data = closing(data)
        self.transport.write(data)

    def finish(self) -> None:
        self._over(self._status)
        self._since = self._time()
        if self._extent is not None and not self.transport.is_closing():
            # The client is still sending what nobody wants: it gets to read the answer, but no second one.
            self._read(True)
            self.transport.write_eof()
        self._maybe_next()

    def cut(self, why: str, *, reached: bool = True) -> None:
        if not self._status:
            self._fail(502 if reached else 503, why)
            return
        self._over(self._status)
        self._exchange = None
        self._close(at_once=True)

    def pause(self) -> None:
        if self._extent is not None:
            self._read(False)

    def resume(self) -> None:
        if self._extent is not None:
            self._read(True)

    def _over(self, status: int) -> None:
        assert self._request is not None
        self._answered = True
        self._server.answered(self._request, status, self._time() - self._began)

    def _fail(self, status: int, text: str) -> None:
        """Answer with an error of ours, which is the last thing on this connection."""
        assert self._request is not None
        self._request.keep_alive = False
        self.write(self._server.render(self._request.path, status, text))
        self.finish()

    def _give_up(self, status: int, text: str) -> None:
        """The request's body cannot be read to its end."""
        if self._answered or self._exchange is None:
            self._close(at_once=True)
            return
        self._exchange.abort()
        self._extent = None
        if self._status:
            self.cut(text)
        else:
            self._fail(status, text)

    def _refuse(self, path: str, status: int, text: str) -> None:
        """Answer what is no request."""
        self._ahead = b""
        if not self._closing:
            self.transport.write(self._server.render(path, status, text))
            self._close()

    def _upgrade(self, rest: bytes) -> None:
        lines = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n"
        self.transport.write(lines % PROTOCOL)
        self._server.left(self)
        session = ServingSession(self._loop, self.transport, self._server)
        self.transport.set_protocol(session)
        if rest:
            session.data_received(rest)

    def _read(self, wanted: bool) -> None:
        if wanted != self._reading and not self.transport.is_closing():
            self._reading = wanted
            if wanted:
                self._since = self._time()
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def _close(self, at_once: bool = False) -> None:
        self._closing, self._ahead = True, b""
        if at_once:
            self.transport.abort()
        else:
            self.transport.close()

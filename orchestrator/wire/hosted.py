"""The ASGI application of this process as a place where requests go: everything that is not the data path.

uvicorn's own HTTP protocol serves it, on a transport that leads to a Reply instead of a socket.
"""

import asyncio
from contextvars import ContextVar
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from orchestrator.wire import Reply
from orchestrator.wire.http1 import HEAD_END, Extent, Request, end_to_end, parse_response, request_head, response_head

_OURS = frozenset({b"expect", b"content-length", b"x-request-id"})
_WITH_BODY = (b"POST", b"PUT", b"PATCH")


SERVED: ContextVar[bytes] = ContextVar("SERVED", default=b"")
"""The id of the request that the application is serving."""


class Application:
    """An ASGI application as uvicorn has loaded it. `state` is what its lifespan has yielded."""

    def __init__(self, config: Config, server_state: ServerState, state: dict[str, Any]) -> None:
        self._config, self._server_state, self._state = config, server_state, state

    def exchange(self, request: Request, reply: Reply) -> "Hosted":
        return Hosted(HttpToolsProtocol(self._config, self._server_state, self._state), request, reply)


class Hosted(asyncio.Transport):
    """The Exchange of one request, and the transport of the protocol that serves it."""

    def __init__(self, protocol: HttpToolsProtocol, request: Request, reply: Reply) -> None:
        super().__init__()
        self._protocol = protocol
        self._reply = reply
        self._to_head = request.method == b"HEAD"
        self._chunked = request.length is None
        self._head = b""
        self._extent: Extent | None = None  # of the answer's body, once its head is complete
        self._over = False
        protocol.connection_made(self)
        self._id = request.id
        headers = end_to_end(request.headers, _OURS)
        headers.append((b"x-request-id", request.id))
        if self._chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        elif request.length or request.method in _WITH_BODY:
            headers.append((b"content-length", b"%d" % (request.length or 0)))
        # The application's task inherits it, and so does every line of the log that it writes.
        before = SERVED.set(request.id)
        protocol.data_received(request_head(request.method, request.target, headers))
        SERVED.reset(before)

    # The exchange

    def feed(self, data: bytes) -> None:
        self._protocol.data_received(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        if self._chunked:
            self._protocol.data_received(b"0\r\n\r\n")

    def abort(self) -> None:
        self._leave()

    def pause(self) -> None:
        self._protocol.pause_writing()

    def resume(self) -> None:
        self._protocol.resume_writing()

    # The transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._over:
            return
        data = bytes(data)
        if self._extent is None:
            data = self._with_head(data)
            if self._extent is None:
                return
            ends = self._extent.take(data, data.find(HEAD_END) + len(HEAD_END)) >= 0
        else:
            ends = self._extent.take(data) >= 0
        self._reply.write(data)
        if ends:
            self._over = True
            self._reply.finish()
            self._protocol.loop.call_soon(self._leave)  # not now: the protocol is in the middle of its work

    def _with_head(self, data: bytes) -> bytes:
        """All that has come so far, once that is a whole head."""
        self._head += data
        end = self._head.find(HEAD_END) + len(HEAD_END)
        if end >= len(HEAD_END):
            response = parse_response(self._head[:end], to_head=self._to_head)
            self._extent = response.extent()
            mine = () if response.named else ((b"x-request-id", self._id),)
            return response_head(response, self._head[:end], *mine) + self._head[end:]
        return self._head

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._reply.cut("the application broke off within its answer")
            self._protocol.loop.call_soon(self._leave)

    def is_closing(self) -> bool:
        return self._over

    def pause_reading(self) -> None:
        if not self._over:
            self._reply.pause()

    def resume_reading(self) -> None:
        if not self._over:
            self._reply.resume()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def _leave(self) -> None:
        self._over = True
        self._protocol.connection_lost(None)

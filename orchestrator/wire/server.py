"""What all connections of one server share: the handler, the rendering of errors, the count of what was answered."""

import itertools
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.wire import Exchange, Handle, Reply
from orchestrator.wire.bodiless import Bodiless
from orchestrator.wire.http1 import Heads, Request

log = logging.getLogger(__name__)

CLIENT_LEFT = 499  # as nginx has it: the client went away before its answer was complete


@dataclass(frozen=True)
class Timeouts:
    """In seconds. `idle` is longer than any client's pool keeps a connection: else it would send into a closing one."""

    head: float = 30
    body: float = 60  # without a byte of it
    idle: float = 120
    taken: float = 600  # without the client taking anything of what waits for it


class Connection(Protocol):
    """What a server has open."""

    def sweep(self, now: float) -> None:
        """Close it if it has been waited for too long. `now`: the event loop's time."""

    def shutdown(self) -> None:
        """End as soon as no request is being answered."""


@dataclass
class Server:
    """`render`: a request's path, a status and a text in, a complete answer out.

    `observe` is told of each answered request: its status, and how many seconds it took. `muxed`: whether clients may
    ask for many requests over one connection. `most`: connections at once; further ones are told to come back.
    `remote`: the server of the connections that come over TCP, where these are treated otherwise.
    """

    handle: Handle
    render: Callable[[str, int, str], bytes]
    observe: Callable[[Request, int, float], None]
    muxed: bool = False
    most: int | None = None
    remote: "Server | None" = None
    timeouts: Timeouts = Timeouts()
    heads: Heads = field(default_factory=Heads)
    tick: Callable[[], None] = lambda: None  # once a second
    ending: Callable[[], None] = lambda: None  # this process is to end: by each connection with a request under way
    registry: set[Any] = field(default_factory=set)  # uvicorn's, for whom to ask to end
    in_flight: int = 0  # requests that are being answered
    leaving: bool = False  # another process takes the new connections: each of ours ends with its next answer
    _open: set[Connection] = field(default_factory=set)
    _prefix: bytes = field(default_factory=lambda: b"req-" + secrets.token_hex(4).encode())
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def crowd(self) -> int:
        """How many connections there are beyond those that are served."""
        return 0 if self.most is None else len(self._open) - self.most

    def joined(self, connection: Connection) -> None:
        self._open.add(connection)
        self.registry.add(connection)

    def left(self, connection: Connection) -> None:
        self._open.discard(connection)
        self.registry.discard(connection)

    def begin(self, request: Request, reply: Reply) -> Exchange:
        """Hand a request over. What fails in an unforeseen way is answered too."""
        if not request.id:
            request.id = request.head.first.get(b"x-request-id") or b"%s-%x" % (self._prefix, next(self._numbers))
        self.in_flight += 1
        if self.leaving:
            request.keep_alive = False
        if request.head.method == b"HEAD":
            reply = Bodiless(reply)
        try:
            return self.handle(request, reply)
        except Exception:
            path = request.path[:200]
            log.exception("%r %s could not be handled", request.method, path, extra={"request": request.id})
            request.keep_alive = False  # as `render` says
            reply.write(self.render(request.path, 500, "an unexpected error; the log has it"))
            reply.finish()
            return Answered()

    def answered(self, request: Request, status: int, seconds: float) -> None:
        """A request is over."""
        self.in_flight -= 1
        self.observe(request, status, seconds)

    def sweep(self, now: float) -> None:
        for connection in list(self._open):
            connection.sweep(now)


class Answered:
    """The Exchange of a request that has been answered already."""

    def feed(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def abort(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

"""A request for a model on its way to the replicas that serve it: chosen, asked, passed over when they fail.

received ─▶ choosing ─▶ asking ─▶ answering ─▶ over
               ▲           │ a replica fails before the first byte of its answer
               └───────────┘
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.asked import Asked, look
from orchestrator.envelope import envelope, event, translated
from orchestrator.errors import BadRequest, NotReady, OrchestratorError
from orchestrator.replicas import Replica, Replicas
from orchestrator.routing import POLICIES
from orchestrator.wire import Reply
from orchestrator.wire.http1 import (
    Chunked,
    Request,
    Response,
    Unbounded,
    answer,
    end_to_end,
    request_head,
    response_head,
    status_line,
)
from orchestrator.wire.upstream import Connection, Pool

log = logging.getLogger(__name__)

MOST_BODY = 256 * 1024 * 1024  # bytes of a request; it is kept until an engine answers, so that another can be asked
KEEP_ALIVE_TICKS = 15  # of a second each, without a byte from the engine, until a stream's client gets a comment
_COMMENT = b": keep-alive\n\n"
_SSE_HEAD = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n"
)
# What is between a client and us, not for the engine.
_OURS = frozenset(
    {b"host", b"expect", b"content-length", b"authorization", b"x-api-key", b"api-key", b"cookie", b"idempotency-key",
     b"x-sluice-actor", b"session"}
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Which replicas are meant: those of a service, by its id or submission id, perhaps only the one on `port`; else
    all of the model that the body names."""

    service: str | None = None
    port: int | None = None


Explain = Callable[[Group, str | None], Coroutine[Any, Any, OrchestratorError]]
"""Why no replica answers for this service or model: asked only then, because it looks into the database."""


@dataclass
class Inferences:
    """All that are under way, and what they need.

    `most_in_flight`: requests that one replica is sent at once; further ones are told to come back.
    """

    replicas: Replicas
    pool: Pool
    clock: Callable[[], datetime]
    explain: Explain
    most_in_flight: int = 1024
    active: "set[Inference]" = field(default_factory=set)
    _turns: Iterator[int] = field(default_factory=itertools.count)

    def begin(self, request: Request, reply: Reply, target: bytes, wanted: Group) -> "Inference":
        """`target` is what the engine is asked for."""
        return Inference(self, request, reply, target, wanted)

    def candidates(self, asked: Asked, wanted: Group, without: Sequence[Replica]) -> list[Replica]:
        """Those that answer now; resting ones only when all rest."""
        if wanted.service is None:
            group = self.replicas.serving(asked.model)
        else:
            group = self.replicas.named(wanted.service, wanted.port)
        ready = [r for r in group if r.ready and not r.draining and r not in without]
        if any(r.resting_until is not None for r in ready):
            now = self.clock()
            ready = [r for r in ready if r.resting_until is None or r.resting_until <= now] or ready
        return ready

    def choose(self, candidates: Sequence[Replica], asked: Asked) -> Replica:
        """Raises NotReady when all have as much to do as they may."""
        free = [r for r in candidates if r.in_flight < self.most_in_flight]
        if not free:
            raise NotReady(f"each replica has {self.most_in_flight} requests under way; try again", retry_after=1)
        return free[POLICIES[free[0].routing].choose(free, asked, next(self._turns)) if len(free) > 1 else 0]

    def tick(self) -> None:
        """Called once a second."""
        for inference in list(self.active):
            inference.tick()


class Inference:
    """The Exchange of one request, and the Taker of its engines' answers."""

    def __init__(self, all_of_them: Inferences, request: Request, reply: Reply, target: bytes, wanted: Group) -> None:
        self._all = all_of_them
        self._request = request
        self._reply = reply
        self._target = target
        self._wanted = wanted
        self._id = request.id
        self._received: list[bytes] = []
        self._size = 0
        self._body = b""
        self._asked = Asked(None)
        self._tried: list[Replica] = []
        self._replica: Replica | None = None
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None  # connecting, or explaining
        self._reused = False  # the connection had been idle
        self._refusal: tuple[Response, list[bytes]] | None = None  # an error that is being received
        self._begun = False  # something has been sent to the client
        self._head: bytes | None = None  # of the answer, until its first bytes are here
        self._response: Response | None = None
        self._wrap = False  # the engine's body gets chunks of ours
        self._events = False  # the answer is a stream of events
        self._last = b""  # what the engine sent last
        self._silent = 0  # ticks
        self._over = False

    # The exchange

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= MOST_BODY:
            self._received.append(data)
        elif not self._over:
            self._refuse(413, f"the body is longer than {MOST_BODY} bytes")

    def end(self) -> None:
        if self._over:
            return
        self._body = self._received[0] if len(self._received) == 1 else b"".join(self._received)
        self._received.clear()
        try:
            if self._request.method == b"POST":
                kind = self._request.header(b"content-type") or b""
                self._asked = look(kind, self._body, self._request.header(b"session") or b"")
        except BadRequest as exc:
            if self._wanted.service is None:
                self._refuse(400, str(exc))
                return
        self._all.active.add(self)
        self._next()

    def abort(self) -> None:
        self._end()

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    # Asking

    def _next(self) -> None:
        """Ask the next replica."""
        candidates = self._all.candidates(self._asked, self._wanted, self._tried)
        if not candidates:
            self._task = asyncio.get_running_loop().create_task(self._explain())
            return
        try:
            replica = self._all.choose(candidates, self._asked)
        except NotReady as exc:
            self._refuse(429, str(exc), retry_after=exc.retry_after)
            return
        self._replica = replica
        replica.take(self._all.clock(), self.replica_lost)
        connection = self._all.pool.idle(replica.address)
        if connection is not None:
            self._ask(connection, reused=True)
        else:
            self._connect(replica)

    def _connect(self, replica: Replica) -> None:
        self._task = asyncio.get_running_loop().create_task(self._connected(replica))

    async def _connected(self, replica: Replica) -> None:
        try:
            connection = await self._all.pool.connect(replica.address)
        except OSError as exc:
            self._task = None
            if isinstance(exc, ConnectionRefusedError):
                replica.down("the engine refused the connection")
            self._failed(f"no connection ({exc or type(exc).__name__})")
            return
        self._task = None
        self._ask(connection, reused=False)

    def _ask(self, connection: Connection, *, reused: bool) -> None:
        assert self._replica is not None
        self._connection, self._reused = connection, reused
        headers = end_to_end(self._request.headers, _OURS)
        headers.append((b"host", self._replica.host))
        if self._replica.key:
            headers.append((b"authorization", b"Bearer " + self._replica.key.encode()))
        if self._body or self._request.method == b"POST":
            headers.append((b"content-length", b"%d" % len(self._body)))
        head = request_head(self._request.method, self._target, headers)
        connection.ask(self, head + self._body, to_head=self._request.method == b"HEAD")

    def _failed(self, why: str) -> None:
        """A replica gave no answer, or an error of its own: another one is asked."""
        replica = self._release()
        log.info("replica %s: %s", replica.id, why)
        replica.failed(self._all.clock())
        self._tried.append(replica)
        self._connection = self._response = None
        if self._all.candidates(self._asked, self._wanted, self._tried):
            self._next()
        elif self._refusal is not None:
            self._pass_refusal()
        else:
            self._refuse(502, f"replica {replica.id}: {why}")

    def _release(self) -> Replica:
        replica, self._replica = self._replica, None
        assert replica is not None
        replica.release(self.replica_lost)
        return replica

    async def _explain(self) -> None:
        error = await self._all.explain(self._wanted, self._asked.model)
        self._task = None
        code = "model_not_found" if error.status == 404 else None
        self._refuse(error.status, str(error), retry_after=error.retry_after, code=code)

    def replica_lost(self) -> None:
        """The health checks have given the replica up: that bounds how long a request waits for one that hangs."""
        if self._begun or self._replica is None:
            return
        problem = self._replica.problem
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._connection is not None:
            self._connection.abort()
        self._failed(f"it stopped answering: {problem}")

    # Answering: the Taker

    def answered(self, response: Response, head: bytes) -> None:
        self._response = response
        if response.status >= 400:
            self._refusal = response, []
            return
        assert self._replica is not None
        self._replica.succeeded()
        self._events = (response.header(b"content-type") or b"").startswith(b"text/event-stream")
        self._wrap = isinstance(response.extent, Unbounded)
        if self._begun:  # by comments: the client has a head already, of a body in chunks
            self._wrap = self._wrap or not isinstance(response.extent, Chunked)
            return
        more = [] if response.header(b"x-request-id") else [(b"x-request-id", self._id)]
        if self._wrap:
            more.append((b"transfer-encoding", b"chunked"))
        self._head = response_head(response, head, *more)

    def data(self, data: bytes) -> None:
        if self._refusal is not None:
            self._refusal[1].append(data)
            return
        self._silent, self._last = 0, data
        if self._wrap:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        if self._head is not None:
            data, self._head = self._head + data, None
        self._begun = True
        self._reply.write(data)

    def done(self) -> None:
        if self._refusal is not None:
            self._refused()
            return
        rest = (self._head or b"") + (b"0\r\n\r\n" if self._wrap else b"")
        if rest:
            self._reply.write(rest)
        self._finish()

    def broken(self, why: str) -> None:
        if self._begun:
            self._break(why)
        elif self._reused and self._response is None and self._replica is not None and self._replica.ready:
            self._connection = None
            self._connect(self._replica)  # it had been closed while it was idle: that says nothing of the engine
        else:
            self._failed(why)

    def full(self, full: bool) -> None:
        """The whole request has been written already; it waits in the connection."""

    # Endings

    def _break(self, why: str) -> None:
        """The answer had begun. A stream of events can still say so; other answers can only be cut."""
        assert self._replica is not None
        if self._events and b"data: [DONE]" in self._last and self._at_border():
            self._reply.write(b"0\r\n\r\n")
            self._finish()
            return
        self._replica.failed(self._all.clock())
        log.warning("replica %s broke off within its answer: %s", self._replica.id, why)
        if self._events and self._at_border():
            begun = b"" if self._last.rstrip(b"\r").endswith((b"\n\n", b"\n\n\r\n")) or not self._last else b"\n\n"
            self._write_chunk(begun + event(502, f"the model's server broke off: {why}"))
            self._reply.write(b"0\r\n\r\n")
            self._finish()
        else:
            self._end()
            self._reply.cut(why)

    def _at_border(self) -> bool:
        """Whether a chunk of ours may follow what the client has."""
        return self._wrap or self._response is None or self._response.extent.whole

    def _write_chunk(self, data: bytes) -> None:
        self._begun = True
        self._reply.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _refused(self) -> None:
        """The engine's error is complete. One of its own (5xx) is another replica's chance."""
        assert self._refusal is not None
        if self._refusal[0].status >= 500:
            self._failed(f"it answered {self._refusal[0].status}")
        else:
            if self._replica is not None:
                self._replica.succeeded()
            self._pass_refusal()

    def _pass_refusal(self) -> None:
        assert self._refusal is not None
        response, pieces = self._refusal
        body = b"".join(pieces)
        if isinstance(response.extent, Chunked):
            content: list[bytes] = []
            Chunked().take(body, 0, content)
            body = b"".join(content)
        kept = (b"retry-after", b"x-request-id", b"x-should-retry", b"www-authenticate")
        headers = [(name, value) for name, value in response.headers if name in kept and response.status != 401]
        self._answer_error(response.status, translated(response.status, body), headers)

    def _refuse(self, status: int, text: str, *, retry_after: int | None = None, code: str | None = None) -> None:
        headers = [] if retry_after is None else [(b"retry-after", b"%d" % retry_after)]
        self._answer_error(status, envelope(status, text, code=code), headers)

    def _answer_error(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        if self._begun:  # by comments
            self._write_chunk(b"data: %s\n\n" % body)
            self._reply.write(b"0\r\n\r\n")
        else:
            if not any(name == b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", self._id))
            self._reply.write(answer(status, body, headers))
        self._finish()

    def _finish(self) -> None:
        self._connection = None
        self._end()
        self._reply.finish()

    def _end(self) -> None:
        """Let go of everything."""
        self._over = True
        self._all.active.discard(self)
        if self._replica is not None:
            self._release()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    # Time

    def tick(self) -> None:
        """A second has passed. The client of a silent stream gets a comment now and then, so that nothing between us
        takes the connection for dead."""
        self._silent += 1
        if self._silent < KEEP_ALIVE_TICKS or not self._asked.stream or self._refusal is not None:
            return
        self._silent = 0
        if not self._begun:
            head = b"%s%sx-request-id: %s\r\n\r\n" % (status_line(200), _SSE_HEAD, self._id)
            self._reply.write(head)
            self._events = True
            self._head = None
            self._write_chunk(_COMMENT)
        elif self._events and self._at_border() and self._last.endswith((b"\n\n", b"\n\n\r\n", b"")):
            self._write_chunk(_COMMENT)

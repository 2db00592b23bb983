"""A request for a model on its way to the replicas that serve it: chosen, asked, passed over when they fail.

received ─▶ choosing ─▶ asking ─▶ answering ─▶ over
               ▲           │ a replica fails before the first byte of its answer
               └───────────┘
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from orchestrator.access import ACTOR, BETWEEN_US
from orchestrator.asked import Asked, look, without_async
from orchestrator.envelope import envelope, event, in_a_stream, translated
from orchestrator.errors import BadRequest, NotReady, OrchestratorError
from orchestrator.events import LAST_CHUNK, Tail
from orchestrator.replicas import Replica, Replicas
from orchestrator.routing import POLICIES
from orchestrator.wire import Reply
from orchestrator.wire.http1 import (
    Chunked,
    Request,
    Response,
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
MOST_LOST_TICKS = 5  # without a byte from an engine whose health checks fail as well, until its answer counts as broken
_MOST_PREFIXES = 256
_MOST_REFUSAL = 1024 * 1024  # bytes of an engine's error; what comes behind them is dropped
_MOST_TURNS = 1024  # services and models whose turns are counted
_UNKNOWN = Asked(None)
_NAMED = frozenset({b"x-request-id"})
_REPLACED = frozenset({b"x-request-id", b"content-length"})
_COMMENT = b": keep-alive\n\n"
_SSE_HEAD = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n"
)
# What is between a client and us, not for the engine. Its answers must not be compressed, as their ends are looked at.
_OURS = BETWEEN_US | {b"host", b"expect", b"content-length", b"session", b"x-request-id", b"accept-encoding"}


@dataclass(frozen=True)
class Group:
    """Which replicas are meant: those of a service, by its id or submission id, perhaps only the one on `port`; those
    of a slot; else all of the model that the body names."""

    service: str | None = None
    port: int | None = None
    slot: str | None = None


Prefixes = dict[tuple[bytes, str], bytes]
"""What the head of a request becomes on its way to a replica (host, key), as far as it is the same for all such."""


class Offers(Protocol):
    """The models that are started when they are asked for."""

    def model_in(self, slot: str, asked: str | None) -> str | None:
        """Which of its models a request to a slot's URL means; None: the one that is loaded."""

    async def wake(self, slot: str | None, asked: str | None, *, patient: bool, actor: str) -> bool:
        """Return true when a model answers that did not; false for one that is not offered. Raises OrchestratorError.

        `patient`: the client can be kept waiting as long as it takes.
        """

    def told(self, slot: str | None, asked: str | None) -> str:
        """What such a request waits for, "" for nothing."""


Explain = Callable[[Group, str | None], Coroutine[Any, Any, OrchestratorError]]
"""Why no replica answers for this service or model: asked only then, because it looks into the database."""

Later = Callable[[Request, Asked, bytes], Coroutine[Any, Any, bytes]]
"""Queues a request that says "async": true; the last argument is its body without that word. Gives the body of the 202.

Raises OrchestratorError for what is not queued."""


@dataclass
class Inferences:
    """All that are under way, and what they need.

    `most_in_flight`: requests that one replica is sent at once; further ones are told to come back. `later` is None
    where no requests are queued.
    """

    replicas: Replicas
    pool: Pool
    clock: Callable[[], datetime]
    explain: Explain
    offers: Offers | None = None
    most_in_flight: int = 1024
    later: Later | None = None
    active: "set[Inference]" = field(default_factory=set)
    _turns: dict[str, int] = field(default_factory=dict)

    def begin(self, request: Request, reply: Reply, target: bytes, group: Group, prefixes: "Prefixes") -> "Inference":
        """`target` is what the engine is asked for. `prefixes` belongs to the request's head."""
        return Inference(self, request, reply, target, group, prefixes)

    def candidates(self, asked: Asked, wanted: Group, without: Sequence[Replica]) -> list[Replica]:
        """Those that answer now; resting ones only when all rest."""
        if wanted.service is not None:
            group = self.replicas.named(wanted.service, wanted.port)
        elif wanted.slot is None:
            group = self.replicas.serving(asked.model)
        else:
            offered = None if self.offers is None else self.offers.model_in(wanted.slot, asked.model)
            group = self.replicas.in_slot(wanted.slot, offered)
        ready = [r for r in group if r.ready and not r.draining]
        if without:
            ready = [r for r in ready if r not in without]
        rested = [r for r in ready if r.resting_until is None]
        if len(rested) < len(ready):
            now = self.clock()
            rested = [r for r in ready if r.resting_until is None or r.resting_until <= now] or ready
        return rested

    def choose(self, candidates: Sequence[Replica], asked: Asked, wanted: Group) -> Replica:
        """Raises NotReady when all have as much to do as they may."""
        free = [r for r in candidates if r.in_flight < self.most_in_flight]
        if not free:
            raise NotReady(f"each replica has {self.most_in_flight} requests under way; try again", retry_after=1)
        if len(free) == 1:
            return free[0]
        return free[POLICIES[free[0].routing].choose(free, asked, self._turn(wanted.service or asked.model or ""))]

    def _turn(self, name: str) -> int:
        """One more each time for whatever is asked for by this name. With one count for all, clients of two services
        who ask by turns would each meet the same replica for ever."""
        turn = self._turns.get(name, 0)
        if not turn and len(self._turns) >= _MOST_TURNS:
            self._turns.clear()
        self._turns[name] = turn + 1
        return turn

    def tick(self) -> None:
        """Called once a second."""
        for inference in list(self.active):
            inference.tick()


class Inference:
    """The Exchange of one request, and the Taker of its engines' answers."""

    _size = 0
    _body = b""
    _tried: Sequence[Replica] = ()
    _replica: Replica | None = None
    latest: Replica | None = None  # the one that was asked last, also when it is not any more
    broke = ""  # why the answer broke off
    _connection: Connection | None = None
    _task: asyncio.Task[None] | None = None  # connecting, or explaining
    _reused = False  # the connection had been idle
    _refusal: tuple[Response, list[bytes]] | None = None  # an error that is being received
    _refusal_size = 0
    _spare: tuple[Response, list[bytes]] | None = None  # an error that is the answer if no replica has another
    _begun = False  # something has been sent to the client, perhaps only comments
    _passed = False  # something of an engine's answer has
    _head: bytes | None = None  # of the answer, until its first bytes are here
    _response: Response | None = None
    _wrap = False  # the engine's body gets chunks of ours
    _chunked = False  # the engine's body has chunks of its own
    _events = False  # the answer is a stream of events
    _tail: Tail | None = None  # of that stream
    _held = b""  # what may be the last chunk: passed on when it is clear how the stream has ended
    _silent = 0  # ticks
    _waits = False  # for its model to be loaded
    patient = False  # whoever asks waits as long as it takes, also for an answer in one piece
    _over = False

    def __init__(
        self, all_of_them: Inferences, request: Request, reply: Reply, target: bytes, group: Group, prefixes: Prefixes
    ) -> None:
        self._all = all_of_them
        self._request = request
        self._reply = reply
        self._target = target
        self._wanted = group
        self._prefixes = prefixes
        self._id = request.id
        self._asked = _UNKNOWN
        self._received: list[bytes] = []  # of the body, until all of it is here

    @property
    def replica(self) -> Replica | None:
        """The one that is asked at the moment, or answers."""
        return self._replica

    @property
    def model(self) -> str | None:
        """The name in the request."""
        return self._asked.model

    # The exchange

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MOST_BODY:
            if not self._over:
                self._refuse(413, f"the body is longer than {MOST_BODY} bytes")
        elif self._size == self._request.length and not self._received:
            self._body = data
        else:
            self._received.append(data)

    def end(self) -> None:
        if self._over:
            return
        if self._received:
            self._body = b"".join(self._received)
            self._received.clear()
        try:
            if self._request.head.method == b"POST":
                first = self._request.head.first
                self._asked = look(first.get(b"content-type", b""), self._body, first.get(b"session", b""))
        except BadRequest as exc:
            if self._wanted.service is None:
                self._refuse(400, str(exc))
                return
        if self._asked.later is not None and self._put_off(self._asked.later):
            return
        self._all.active.add(self)
        self._next()

    def _put_off(self, later: bool) -> bool:
        """Take out "async"; true when the request is not answered now."""
        try:
            self._body = without_async(self._body)
        except BadRequest as exc:
            self._refuse(400, str(exc))
            return True
        if not later or self._all.later is None:
            return False
        if self._asked.stream:
            self._refuse(400, 'a request with "async": true is answered later as a whole; leave out "stream": true')
        else:
            self._task = asyncio.get_running_loop().create_task(self._queue(self._all.later))
        return True

    async def _queue(self, later: Later) -> None:
        try:
            receipt = await later(self._request, self._asked, self._body)
        except OrchestratorError as exc:
            self._tell(exc)
            return
        self._task = None
        self._reply.write(answer(202, receipt, [(b"x-request-id", self._id)]))
        self._finish()

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
            self._task = asyncio.get_running_loop().create_task(self._await_model())
            return
        try:
            replica = self._all.choose(candidates, self._asked, self._wanted)
        except NotReady as exc:
            self._refuse(429, str(exc), retry_after=exc.retry_after)
            return
        self._replica = self.latest = replica
        replica.take(self._now(), self)
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
            self._failed(f"no connection ({exc or type(exc).__name__})")
            if isinstance(exc, ConnectionRefusedError):  # afterwards: `down` calls all that wait for it, us no more
                replica.down("the engine refused the connection")
            return
        self._task = None
        self._ask(connection, reused=False)

    def _ask(self, connection: Connection, *, reused: bool) -> None:
        replica = self._replica
        assert replica is not None
        self._connection, self._reused = connection, reused
        prefix = self._prefixes.get((replica.host, replica.key)) or self._new_prefix(replica)
        method = self._request.head.method
        if method == b"POST":
            head = b"%sx-request-id: %s\r\ncontent-length: %d\r\n\r\n" % (prefix, self._id, len(self._body))
        else:
            head = b"%sx-request-id: %s\r\n\r\n" % (prefix, self._id)
        connection.ask(self, head + self._body)

    def _new_prefix(self, replica: Replica) -> bytes:
        """The head as the engine gets it, up to what differs from request to request."""
        headers = end_to_end(self._request.headers, _OURS)
        headers.append((b"host", replica.host))
        if replica.key:
            headers.append((b"authorization", b"Bearer " + replica.key.encode()))
        method = self._request.method
        # Engines do not know HEAD; the server keeps the body of the answer back.
        prefix = request_head(b"GET" if method == b"HEAD" else method, self._target, headers)[:-2]
        if len(self._prefixes) >= _MOST_PREFIXES:
            self._prefixes.clear()
        self._prefixes[replica.host, replica.key] = prefix
        return prefix

    def _failed(self, why: str) -> None:
        """A replica gave no answer, or an error of its own: another one is asked."""
        replica = self._release()
        log.info("replica %s: %s", replica.id, why)
        replica.failed(self._all.clock())
        self._tried = [*self._tried, replica]
        self._connection = self._response = self._refusal = self._head = self._tail = None
        self._held = b""
        if self._all.candidates(self._asked, self._wanted, self._tried):
            self._next()
        elif self._spare is not None:
            self._pass_refusal(*self._spare)
        else:
            self._refuse(502, f"replica {replica.id}: {why}")

    def _release(self) -> Replica:
        replica, self._replica = self._replica, None
        assert replica is not None
        replica.release(self._now(), self)
        return replica

    def _now(self) -> datetime | None:
        """When a service is used. What is asked with GET, its health and its list of models, is no use of it."""
        return self._all.clock() if self._request.head.method == b"POST" else None

    async def _await_model(self) -> None:
        """Nobody answers for the model: wait until it is loaded, or say why that will not be."""
        try:
            woken = await self._wake()
        except OrchestratorError as exc:
            self._tell(exc)
            return
        if woken:
            self._task = None
            self._next()
        else:
            self._tell(await self._all.explain(self._wanted, self._asked.model))

    async def _wake(self) -> bool:
        offers, wanted, asked = self._all.offers, self._wanted, self._asked
        if offers is None or wanted.service is not None:
            return False
        actor = self._request.header(ACTOR) or b"user"
        self._waits = True
        try:
            patient = self.patient or asked.stream
            return await offers.wake(wanted.slot, asked.model, patient=patient, actor=actor.decode("latin-1"))
        finally:
            self._waits = False

    def _tell(self, error: OrchestratorError) -> None:
        self._task = None
        code = "model_not_found" if error.status == 404 else None
        self._refuse(error.status, str(error), retry_after=error.retry_after, code=code)

    def replica_lost(self) -> None:
        """The health checks have given the replica up: that bounds how long a request waits for one that hangs."""
        if self._passed or self._replica is None:
            return
        problem = self._replica.problem
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._connection is not None:
            self._connection.abort()
        self._failed(f"it stopped answering: {problem}")

    # Answering: the Taker

    def whole(self, response: Response, data: bytes, end: int) -> None:
        """An answer that is here from its first to its last byte, its head up to `end`."""
        if response.status != 200 or self._begun or not response.plain or response.named or response.events:
            self.answered(response, data[:end])
            if end < len(data):
                self.data(data[end:])
            self.done()
        elif end == len(data) and self._request.head.method == b"POST":
            self._connection = None
            self._failed("it answered with nothing")
        else:
            self._take_success()
            self._reply.write(b"%sx-request-id: %s\r\n%s" % (data[: end - 2], self._id, data[end - 2 :]))
            self._finish()

    def answered(self, response: Response, head: bytes) -> None:
        self._response = response
        if response.status >= 400:
            self._refusal, self._refusal_size = (response, []), 0
            return
        self._take_success()
        self._chunked = response.chunked
        self._events = response.events
        # A stream gets chunks, so that it can be seen to break off; other bodies only where nothing else ends them.
        self._wrap = not self._chunked and (self._events or self._begun or response.length is None)
        if self._events:
            self._tail = Tail(self._target.partition(b"?")[0], chunked=self._chunked)
        if not self._begun:
            self._head = self._new_head(response, head)

    def _take_success(self) -> None:
        assert self._replica is not None
        if self._replica.failures:
            self._replica.succeeded()

    def _new_head(self, response: Response, head: bytes) -> bytes:
        """The engine's, with the request's id and, in place of a length, the sign that chunks follow."""
        more = [(b"x-request-id", self._id)]
        if self._wrap:
            more.append((b"transfer-encoding", b"chunked"))
        return response_head(response, head, *more, without=_REPLACED if self._wrap else _NAMED)

    def data(self, data: bytes) -> None:
        if self._refusal is not None:
            data = data[: _MOST_REFUSAL - self._refusal_size]
            self._refusal_size += len(data)
            if data:
                self._refusal[1].append(data)
            return
        self._silent = 0
        if self._tail is not None:
            self._tail.take(data)
        if self._chunked and (self._events or not self._passed):
            data = self._hold_end(data)
            if not data:
                return
        self._pass(data)

    def _hold_end(self, data: bytes) -> bytes:
        """Keep back what looks like the last chunk."""
        if self._held:
            data, self._held = self._held + data, b""
        if data.endswith(LAST_CHUNK):
            data, self._held = data[: -len(LAST_CHUNK)], LAST_CHUNK
        return data

    def _pass(self, data: bytes) -> None:
        if self._wrap:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        if self._head is not None:
            data, self._head = self._head + data, None
        self._begun = self._passed = True
        self._reply.write(data)

    def done(self) -> None:
        self._connection = None
        if self._refusal is not None:
            self._refused()
        elif not self._passed and self._must_say_something():
            self._failed("it answered with nothing")
        elif self._tail is not None and not self._tail.whole:
            self._break("its stream ended without its last event")
        else:
            rest = (self._head or b"") + (LAST_CHUNK if self._wrap else self._held)
            if rest:
                self._reply.write(rest)
            self._finish()

    def _must_say_something(self) -> bool:
        return self._request.method == b"POST" and self._response is not None and self._response.status == 200

    def broken(self, why: str) -> None:
        if self._passed:
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
        at_border = self._events and self._at_border()
        if at_border and self._tail is not None and self._tail.said_so:
            self._reply.write(LAST_CHUNK)
            self._finish()
            return
        self.broke = why
        self._replica.failed(self._all.clock())
        log.warning("replica %s broke off within its answer: %s", self._replica.id, why)
        if at_border:
            text = f"the model's server broke off: {why}"
            between = self._tail is None or self._tail.between
            self._write_chunk((b"" if between else b"\n\n") + event(502, text, self._target))
            self._reply.write(LAST_CHUNK)
            self._finish()
        else:
            self._end()
            self._reply.cut(why)

    def _at_border(self) -> bool:
        """Whether a chunk of ours may follow what the client has."""
        return (
            self._wrap
            or self._response is None
            or bool(self._held)
            or (self._connection is not None and self._connection.between_chunks)
        )

    def _write_chunk(self, data: bytes) -> None:
        self._begun = True
        self._reply.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _refused(self) -> None:
        """The engine's error is complete. One of its own (5xx) is another replica's chance, but 501 all would say."""
        assert self._refusal is not None and self._replica is not None
        refusal, self._refusal = self._refusal, None
        if refusal[0].status >= 500 and refusal[0].status != 501:
            self._spare = refusal
            self._failed(f"it answered {refusal[0].status}")
        else:
            self._replica.succeeded()
            self._pass_refusal(*refusal)

    def _pass_refusal(self, response: Response, pieces: list[bytes]) -> None:
        body = b"".join(pieces)
        if response.chunked:
            content: list[bytes] = []
            Chunked().take(body, 0, content)
            body = b"".join(content)
        kept = (b"retry-after", b"retry-after-ms", b"x-should-retry", b"www-authenticate")
        headers = [(name, value) for name, value in response.headers if name in kept and response.status != 401]
        coding = response.header(b"content-encoding") or b""
        self._answer_error(response.status, translated(response.status, body, coding), headers)

    def _refuse(self, status: int, text: str, *, retry_after: int | None = None, code: str | None = None) -> None:
        param = "model" if code == "model_not_found" else None
        headers = [] if retry_after is None else [(b"retry-after", b"%d" % retry_after)]
        self._answer_error(status, envelope(status, text, code=code, param=param), headers)

    def _answer_error(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        if self._begun:  # by comments
            self._write_chunk(in_a_stream(body, self._target))
            self._reply.write(LAST_CHUNK)
        else:
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
        takes the connection for dead. But an engine that neither sends nor passes its health checks is given up."""
        self._silent += 1
        if self._passed and self._silent >= MOST_LOST_TICKS and self._replica is not None and not self._replica.ready:
            if self._connection is not None:
                self._connection.abort()
            self._break(f"it stopped answering: {self._replica.problem}")
        elif self._silent % KEEP_ALIVE_TICKS == 0 and self._asked.stream and self._refusal is None:
            self._comment()

    def _comment(self) -> None:
        if not self._begun:
            head = b"%s%sx-request-id: %s\r\n\r\n" % (status_line(200), _SSE_HEAD, self._id)
            self._reply.write(head)
            self._events = True
            self._adopt()
            self._write_chunk(self._words())
        elif self._events and self._at_border() and (self._tail is None or self._tail.between):
            self._write_chunk(self._words())

    def _words(self) -> bytes:
        """A comment: what the request waits for, where it does."""
        offers = self._all.offers
        if not self._waits or offers is None:
            return _COMMENT
        told = offers.told(self._wanted.slot, self._asked.model)
        return b": %s\n\n" % " ".join(told.split()).encode("ascii", "replace") if told else _COMMENT

    def _adopt(self) -> None:
        """The client has a head of ours, of a body in chunks: an engine's head that is here already is not needed."""
        self._head = None
        self._wrap = self._response is not None and not self._chunked

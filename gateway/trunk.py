"""The way from the gateway to the orchestrator: one connection with many streams.

It is opened by the first request that needs it, and again after it has ended. To an orchestrator that does not speak
`orchestrator.wire.mux` each request gets a connection of its own, with plain HTTP. While the link is down but comes
back by itself, requests that have not been sent wait for it, in bounded number, size and time.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.link import Crowded, Link, LinkState, Replacing, Unreached
from gateway.waking import Waking
from orchestrator.wire import Exchange, Reply
from orchestrator.wire.http1 import HEAD_END, Malformed, Request, parse_request, parse_response, request_head
from orchestrator.wire.mux import AskingSession, BrokenSession
from orchestrator.wire.upstream import Asked, Connection, Pool

log = logging.getLogger(__name__)

_PING_TICKS = 10  # seconds between two signs of life
_MOST_UNANSWERED = 2  # pings, until the connection counts as dead
_PLAIN_TICKS = 60  # seconds until an orchestrator is asked again whether it speaks mux
_MOST_HELD = 1024 * 1024  # bytes of a body that wait for a connection
_SETTLING_SECONDS = 0.25  # until a link that has just died says so
_AGAIN_SECONDS = 5.0  # at least, for a connection to be opened anew for what is sent again
_LOOK_SECONDS = 0.05  # between two looks whether all has been answered
_ADDRESS = ("orchestrator", 0)


@dataclass
class Room:
    """What waits for the way: how many requests, and how many bytes of their bodies; and how much of that may."""

    most_requests: int = 1000
    most_bytes: int = 64 * 1024 * 1024
    requests: int = 0
    bytes: int = 0

    def enter(self) -> None:
        """One more request. Raises Crowded."""
        if self.requests >= self.most_requests:
            raise self._crowded()
        self.requests += 1

    def put(self, size: int) -> None:
        """More of a body. Raises Crowded."""
        if self.bytes + size > self.most_bytes:
            raise self._crowded()
        self.bytes += size

    def _crowded(self) -> Crowded:
        return Crowded(
            f"{self.requests} requests with {self.bytes >> 20} MiB wait for the connection to the orchestrator "
            "already; try again later"
        )


class Trunk:
    """`link` is open, and says how to reach the orchestrator. `hold_seconds`: how long a request waits for it."""

    def __init__(
        self, link: Link, *, connect_seconds: float, hold_seconds: float = 0, waking: Waking | None = None
    ) -> None:
        self._link = link
        self._connect_seconds = connect_seconds
        self.hold_seconds = hold_seconds
        self.room = Room()
        self._waking = waking or Waking()
        self._session: AskingSession | None = None
        self._opening: asyncio.Task[None] | None = None
        self._plain = False
        self._pool = Pool(asyncio.get_running_loop(), self._connect_plain)
        self._ticks = 0
        self._resting: asyncio.Future[None] | None = None  # done when requests may go on

    @property
    def session(self) -> AskingSession | None:
        """The connection for all requests, while it is open and they may use it."""
        session = self._session
        return None if session is None or session.over or self._resting is not None else session

    @property
    def up(self) -> bool:
        if self._resting is not None:
            return False
        return self.session is not None or (self._plain and self._link.status.state is LinkState.UP)

    async def rest(self, quiet_seconds: float) -> int:
        """Let no further request through until `go_on`: the orchestrator is about to be replaced, and they wait as for
        a link. Returns when those under way have been answered, or after so many seconds; how many have not been."""
        if self._resting is None:
            self._resting = asyncio.get_running_loop().create_future()
        deadline = asyncio.get_running_loop().time() + quiet_seconds
        while self._under_way and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 (rare, and short)
            await asyncio.sleep(_LOOK_SECONDS)
        return self._under_way

    def go_on(self) -> None:
        """What waits is sent."""
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.set_result(None)

    @property
    def _under_way(self) -> int:
        return 0 if self._session is None else len(self._session.streams)

    def exchange(self, request: Request, head: bytes, reply: Reply, refuse: "Refuse") -> Exchange:
        """Send a request with this head, without the length of its body and its id. `refuse` answers when there is no
        way."""
        if self.up and request.method not in REPEATABLE:
            return self.begin(request, head, reply)
        return Passage(self, request, head, reply, refuse)

    def begin(self, request: Request, head: bytes, reply: Reply) -> Exchange:
        """The same, on what is open now."""
        if (session := self.session) is not None:
            return session.open(request, head, reply)
        return Asked(self._pool, _ADDRESS, request, head, reply)

    async def opened(self, hold: float = 0) -> None:
        """Return when `begin` can be called; wait for the link so many seconds. Raises Unreached."""
        if self.up:
            return
        self.room.enter()
        try:
            await self._await_way(asyncio.get_running_loop().time() + hold)
        finally:
            self.room.requests -= 1

    async def _await_way(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not self.up:
            if self._resting is not None:
                await self._rested(self._resting, deadline - loop.time())
                continue
            try:
                if self._opening is None:
                    self._opening = asyncio.create_task(self._open())
                await asyncio.shield(self._opening)
            except Unreached:
                if not await self._may_come(deadline - loop.time()):
                    raise

    async def _rested(self, resting: "asyncio.Future[None]", seconds: float) -> None:
        """Raises Unreached after so many seconds."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await asyncio.shield(resting)
        except TimeoutError as exc:
            raise Replacing("the orchestrator is being replaced by another version; try again in a moment") from exc

    async def _may_come(self, seconds: float) -> bool:
        """Wait until the link is another one, for at most so many seconds; whether it makes sense to try again."""
        status = self._link.status
        if status.state is LinkState.UP:
            seconds = min(seconds, _SETTLING_SECONDS)
        elif not status.promising:
            return False
        if seconds <= 0:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._link.changed()
        except TimeoutError:
            return False
        return True

    async def _open(self) -> None:
        session = AskingSession(asyncio.get_running_loop())
        try:
            async with asyncio.timeout(self._connect_seconds):
                await self._link.connect(lambda: session)
                await session.ready
        except BrokenSession as exc:
            if not exc.answered:
                raise Unreached(str(exc)) from exc
            log.warning("%s; each request gets a connection of its own", exc)
            self._plain, self._ticks = True, 0
        except TimeoutError as exc:
            session.abandon()
            self._link.check()
            raise Unreached(f"no answer within {self._connect_seconds:g} s") from exc
        else:
            self._session, self._ticks = session, 0
        finally:
            self._opening = None

    async def _connect_plain(self, factory: Callable[[], Connection], address: tuple[str, int]) -> None:
        await self._link.connect(factory)

    def tick(self) -> None:
        """Called once a second."""
        self._ticks += 1
        if slept := self._waking.slept():
            log.info("this machine has slept for %.0f s; is the connection still there?", slept)
            self._link.check()
        if self._plain and self._ticks >= _PLAIN_TICKS:
            self._plain = False
        session = self.session
        if session is None or self._ticks % _PING_TICKS:
            return
        if session.ping() >= _MOST_UNANSWERED:
            log.warning("the orchestrator has not answered %d pings; connecting again", _MOST_UNANSWERED)
            session.transport.abort()
            self._link.check()

    async def ask(
        self,
        method: bytes,
        target: bytes,
        hold: float = 0,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> tuple[int, bytes]:
        """Put a question of the gateway's own, `body` is JSON: the answer's status and body. Raises Unreached."""
        await self.opened(hold)
        answer = _Collected(asyncio.get_running_loop().create_future())
        # As in `exchange`, the length of the body is not in the head that is sent.
        of_body = [(b"content-type", b"application/json")] if body else []
        head = request_head(method, target, [(b"host", b"orchestrator"), *headers, *of_body])
        request = parse_request(head)
        request.length = len(body)
        exchange = self.begin(request, head, answer)
        if body:
            exchange.feed(body)
        exchange.end()
        try:
            return await answer.done
        except asyncio.CancelledError:
            exchange.abort()
            raise

    def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._session is not None:
            self._session.transport.abort()
        self._pool.close()


REPEATABLE = (b"GET", b"HEAD", b"OPTIONS")
"""Methods that do no harm when they are sent again after a connection has ended without an answer."""

Refuse = Callable[[Reply, Unreached], None]
"""Answers a request that has not been sent, with what went wrong."""


class Passage:
    """The Exchange of a request that waits for a way, or may be sent again."""

    def __init__(self, trunk: Trunk, request: Request, head: bytes, reply: Reply, refuse: Refuse) -> None:
        self._trunk, self._request, self._head = trunk, request, head
        self._reply, self._refuse = reply, refuse
        self._held: list[bytes] = []
        self._size = 0
        self._ended = self._refused = False
        self._inner: Exchange | None = None
        self._again = request.method in REPEATABLE
        self._deadline = asyncio.get_running_loop().time() + trunk.hold_seconds
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._begin(trunk.hold_seconds))

    async def _begin(self, hold: float) -> None:
        try:
            await self._trunk.opened(hold)
        except Unreached as exc:
            self._give_up(exc)
            return
        self._task = None
        if self._size > _MOST_HELD:
            self._reply.resume()  # before the rest: what is held may use up the credit, and that pauses again
        self._inner = inner = self._trunk.begin(self._request, self._head, _Return(self, self._reply))
        for data in self._forget():
            inner.feed(data)
        if self._ended:
            inner.end()

    def _give_up(self, why: Unreached) -> None:
        self._forget()
        self._task, self._refused = None, True
        self._refuse(self._reply, why)

    def _forget(self) -> list[bytes]:
        """What has been held of the body, which is not any more."""
        held, self._held = self._held, []
        self._trunk.room.bytes -= sum(map(len, held))
        return held

    def feed(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.feed(data)
            return
        if self._refused:
            return
        try:
            self._trunk.room.put(len(data))
        except Crowded as exc:
            if self._task is not None:
                self._task.cancel()
            self._give_up(exc)
            return
        self._held.append(data)
        self._size += len(data)
        if self._size > _MOST_HELD:
            self._reply.pause()

    def end(self) -> None:
        self._ended = True
        if self._inner is not None:
            self._inner.end()

    def abort(self) -> None:
        self._forget()
        if self._task is not None:
            self._task.cancel()
        if self._inner is not None:
            self._inner.abort()

    def pause(self) -> None:
        if self._inner is not None:
            self._inner.pause()

    def resume(self) -> None:
        if self._inner is not None:
            self._inner.resume()

    def sent_again(self) -> bool:
        """There was no answer, and no byte of one: whether another is on its way."""
        if not self._again:
            return False
        self._again, self._inner = False, None
        # A dead link is noticed late, and clients do not wait for ever: what it took counts.
        left = self._deadline - asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._begin(min(self._trunk.hold_seconds, max(left, _AGAIN_SECONDS))))
        return True


class _Return:
    """The Reply in front of the client's, of one try. To be paused means another thing here than for the Passage: the
    request's body waits, not the answer."""

    def __init__(self, passage: Passage, reply: Reply) -> None:
        self._passage, self._reply = passage, reply
        self._begun = False

    def write(self, data: bytes) -> None:
        self._begun = True
        self._reply.write(data)

    def finish(self) -> None:
        self._reply.finish()

    def cut(self, why: str, *, reached: bool = True) -> None:
        if self._begun or not self._passage.sent_again():
            self._reply.cut(why, reached=reached)

    def pause(self) -> None:
        self._reply.pause()

    def resume(self) -> None:
        self._reply.resume()


class _Collected:
    """A Reply that keeps an answer in memory."""

    def __init__(self, done: "asyncio.Future[tuple[int, bytes]]") -> None:
        self.done = done
        self._data = b""

    def write(self, data: bytes) -> None:
        self._data += data

    def finish(self) -> None:
        end = self._data.find(HEAD_END) + len(HEAD_END)
        pieces: list[bytes] = []
        try:
            response = parse_response(self._data[:end])
            response.extent().take(self._data, end, pieces)
        except Malformed as exc:
            self._fail(str(exc))
            return
        if not self.done.done():
            self.done.set_result((response.status, b"".join(pieces)))

    def cut(self, why: str, *, reached: bool = True) -> None:
        self._fail(why)

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(Unreached(why))

    def pause(self) -> None: ...

    def resume(self) -> None: ...

"""The loop that runs queued requests: each goes the way of a client's request, and its answer is kept.

queued ─▶ running ─▶ done | failed
   ▲         │ the model does not answer yet, the engine failed, the orchestrator ended
   └─────────┘
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial

from orchestrator.access import ACTOR, Caller, caller_of
from orchestrator.asked import Asked, idempotency_key
from orchestrator.batches import Batches
from orchestrator.envelope import envelope, words
from orchestrator.errors import BadRequest, OrchestratorError, TooLarge
from orchestrator.models import Batch, Task, TaskState
from orchestrator.task_store import MOST_ATTEMPTS, Outcome, TaskStore, new_task
from orchestrator.wire import Handle
from orchestrator.wire.http1 import HEAD_END, Request, parse_request, parse_response, request_head

log = logging.getLogger(__name__)

LATER = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})
"""Paths whose requests can be queued."""
MOST_BODY = 32 * 1024 * 1024  # bytes of a request that is queued: it lies in the database
MOST_RESULT = 32 * 1024 * 1024  # bytes of an answer, for the same reason
MOST_RUNNING = 32  # tasks of all models at once, each of which may hold such an answer in memory
TURN_SECONDS = 1.0  # between two looks at the queue when nothing wakes the loop
EXPIRY_TURNS = 30  # looks between two looks at what has expired
_LONGEST_REST = 30  # seconds: so late it is noticed that a model answers again

Away = Callable[[str], Awaitable[OrchestratorError | None]]
"""Why a model (by name, "" where a request names none) cannot be asked now; None when it can."""


@dataclass(frozen=True)
class Answer:
    """What came of asking. `retry_after`: seconds, None where nothing was said."""

    status: int
    body: bytes
    retry_after: int | None = None


class Verdict(Enum):
    """What becomes of a task by its answer."""

    DONE = auto()
    FAILED = auto()
    AGAIN = auto()  # an engine failed: asked again a little later
    REST = auto()  # no engine was asked: all tasks of the model wait


def verdict(status: int, attempts: int, *, away: bool = False) -> Verdict:
    """Pure. `attempts` with this one; `away`: nothing serves the model now, as our own 404 says too."""
    if 200 <= status < 300:
        return Verdict.DONE
    if status in (429, 503) or away:
        return Verdict.REST
    if status >= 500 and status not in (501, 504):
        return Verdict.AGAIN if attempts < MOST_ATTEMPTS else Verdict.FAILED
    return Verdict.FAILED


def pause_of(answer: Answer, attempts: int) -> timedelta:
    """Until the next attempt. Pure."""
    seconds = 2**attempts if answer.retry_after is None else answer.retry_after
    return timedelta(seconds=min(max(seconds, 1), _LONGEST_REST))


@dataclass(frozen=True)
class Rest:
    """Why no task of a model is run, and until when. `away`: nothing served it, so that it is over as soon as something
    does."""

    until: datetime
    why: str
    away: bool

    def lasts(self, now: datetime, answers: bool) -> bool:
        return self.until > now and not (self.away and answers)


class Collected:
    """A Reply that keeps the answer, up to `most` bytes of it. `over` is set when no more is wanted."""

    def __init__(self, most: int) -> None:
        self.over = asyncio.Event()
        self.ended = False  # by the exchange: nothing may be told to it any more
        self._most, self._size = most, 0
        self._pieces: list[bytes] = []
        self._cut = ""

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._most:
            self._pieces.clear()
            self._cut = f"the answer is larger than {self._most >> 20} MiB"
            self.over.set()
        else:
            self._pieces.append(data)

    def finish(self) -> None:
        self.ended = True
        self.over.set()

    def cut(self, why: str, *, reached: bool = True) -> None:
        self._cut = self._cut or why
        self.finish()

    def pause(self) -> None:
        """All of the request has been given."""

    def resume(self) -> None:
        """The same."""

    def answer(self) -> Answer:
        if self._cut:
            # 501: the same request would have the same answer.
            return Answer(501 if self._size > self._most else 502, envelope(502, self._cut))
        data = b"".join(self._pieces)
        end = data.find(HEAD_END) + len(HEAD_END)
        response = parse_response(data[:end])
        content: list[bytes] = []
        response.extent().take(data, end, content)
        later = response.header(b"retry-after") or b""
        return Answer(response.status, b"".join(content), int(later) if later.isdigit() else None)


@dataclass
class Tasks:
    """The queue as the rest of the orchestrator sees it, and its loop. `ask` is where clients' requests go too."""

    store: TaskStore
    batches: Batches
    ask: Handle
    away: Away
    answers: Callable[[str], bool]  # whether a model is served now, by the same name
    clock: Callable[[], datetime]
    concurrency: int  # tasks of one model at once
    waiting: timedelta  # the longest that a task waits
    answering: float  # seconds for one answer
    keep: timedelta  # results are kept for so long
    running: dict[str, tuple[Task, asyncio.Task[None]]] = field(default_factory=dict)
    ended: Counter[TaskState] = field(default_factory=Counter)  # by an answer, since this began
    _rests: dict[str, Rest] = field(default_factory=dict)  # by model
    _soon: asyncio.Event = field(default_factory=asyncio.Event)
    _turns: int = 0

    # Commands

    async def queue(self, request: Request, asked: Asked, body: bytes) -> bytes:
        """Record a request that says "async": true; the body of its answer. See `orchestrator.inference.Later`."""
        if request.path not in LATER:
            raise BadRequest(f'"async": true is for {", ".join(sorted(LATER))}; leave it out at {request.path[:200]}')
        if len(body) > MOST_BODY:
            raise TooLarge(f"a request that is queued has at most {MOST_BODY >> 20} MiB; ask without async")
        away = await self.away(asked.model or "")
        if away is not None and away.status == 404:
            raise away
        now = self.clock()
        given = request.header(b"idempotency-key")
        task = await self.store.add(
            new_task(
                actor=caller_of(request.headers).actor,
                target=request.path,
                model=asked.model or "",
                body=body,
                at=now,
                expires_at=now + self.waiting,
                key=idempotency_key(None if given is None else given.decode("latin-1")),
            )
        )
        self.wake()
        return receipt(task)

    async def cancel(self, task_id: str, caller: Caller) -> tuple[Task, TaskState]:
        """End a task; with its state before. The engine of one that runs is left at once."""
        task, before = await self.store.cancel(task_id, caller, at=self.clock(), keep=self.keep)
        self.stop(task_id)
        return task, before

    async def cancel_batch(self, batch_id: str, caller: Caller) -> Batch:
        batch = await self.batches.cancel(batch_id, caller)
        self.wake()
        return batch

    def wake(self) -> None:
        """There is something to do."""
        self._soon.set()

    def rests(self, model: str) -> str | None:
        """Why no task of a model is run now, None where nothing is in their way."""
        return self._rests[model].why if model in self._rests else None

    # The loop

    async def run(self) -> None:
        """Until it is cancelled. What runs then is given up, and waits again without loss of an attempt."""
        try:
            while True:
                try:
                    await self.look()
                except Exception:
                    # The top of the loop: a turn that failed must not end the queue.
                    log.exception("a turn of the queue failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(TURN_SECONDS):
                        await self._soon.wait()
                self._soon.clear()
        finally:
            await self.give_up()

    async def look(self) -> None:
        """One turn: the first time what a crash has left, then batches, what has expired, and what can be run."""
        if not self._turns and (found := await self.store.recover(self.clock(), self.keep)):
            log.warning("%d queued requests were being answered when the last orchestrator ended", found)
        self._turns += 1
        for task_id in await self.batches.look():
            self.stop(task_id)
        if self._turns % EXPIRY_TURNS == 1:
            while await self.store.expire(self.clock(), self.keep):
                pass
        while len(self.running) < MOST_RUNNING:
            task = await self.store.take(self.clock(), self._busy())
            if task is None:
                return
            work = asyncio.create_task(self._run(task))
            self.running[task.id] = task, work
            work.add_done_callback(partial(self._left, task.id))

    def _busy(self) -> set[str]:
        """The models of which no more is run now."""
        now, running = self.clock(), [task.model for task, _ in self.running.values()]
        full = {model for model in running if running.count(model) >= self.concurrency}
        return full | {model for model, rest in self._rests.items() if rest.lasts(now, self.answers(model))}

    def _left(self, task_id: str, work: asyncio.Task[None]) -> None:
        if not work.cancelled() and (problem := work.exception()) is not None:
            log.error("%s could not be run", task_id, exc_info=problem)
        self.running.pop(task_id, None)
        self.wake()

    def stop(self, task_id: str) -> None:
        """Leave the engine of a task that has been ended in the database."""
        if task_id in self.running:
            self.running[task_id][1].cancel()

    async def give_up(self) -> None:
        """Leave all engines. What they were asked waits again, and no attempt is lost."""
        given_up = list(self.running.values())
        for _, work in given_up:
            work.cancel()
        await asyncio.gather(*(work for _, work in given_up), return_exceptions=True)
        for task, _ in given_up:
            why = "the orchestrator ended while an engine was asked"
            await self.store.put_back(task, not_before=self.clock(), error=why, asked=False)

    # One task

    async def _run(self, task: Task) -> None:
        # Looked at again: who cancelled it just before it was in `running` could not stop it.
        if not await self.store.runs(task):
            return
        answer = await self._answer(task)
        away = await self.away(task.model) if answer.status == 404 else None
        while True:
            try:
                await self._conclude(task, answer, away=away is not None)
                return
            except OrchestratorError as exc:  # the database cannot be written: the answer is not thrown away
                log.error("the answer of %s cannot be recorded: %s", task.id, exc)
                await asyncio.sleep(5)

    async def _answer(self, task: Task) -> Answer:
        """Ask as a client would. Whoever is no longer waited for is left."""
        reply = Collected(MOST_RESULT)
        exchange = self.ask(request_of(task), reply)
        try:
            if task.body:
                exchange.feed(task.body)
            exchange.end()
            async with asyncio.timeout(self.answering):
                await reply.over.wait()
            return reply.answer()
        except TimeoutError:
            text = (
                f"the engine did not answer within {self.answering:.0f} s; ORCHESTRATOR_INFERENCE_TIMEOUT allows more"
            )
            return Answer(504, envelope(504, text))
        finally:
            if not reply.ended:
                exchange.abort()

    async def _conclude(self, task: Task, answer: Answer, *, away: bool) -> None:
        now = self.clock()
        conclusion = verdict(answer.status, task.attempts, away=away)
        why = None if conclusion is Verdict.DONE else said(answer)
        if conclusion in (Verdict.REST, Verdict.AGAIN):
            rests = conclusion is Verdict.REST
            until = now + pause_of(answer, 1 if rests else task.attempts)
            if rests:
                self._rests[task.model] = Rest(until, why or "", away=not self.answers(task.model))
            await self.store.put_back(task, not_before=now if rests else until, error=why or "", asked=not rests)
            return
        self._rests.pop(task.model, None)
        state = TaskState.DONE if conclusion is Verdict.DONE else TaskState.FAILED
        outcome = Outcome(state, answer.status, answer.body, why)
        if await self.store.end(task, outcome, at=now, expires_at=now + self.keep):
            self.ended[state] += 1


def receipt(task: Task) -> bytes:
    """What a client is told of its task."""
    names = {"job_id": task.id, "id": task.id, "status": task.state.value, "created_at": task.created_at.isoformat()}
    return json.dumps(names | {"status_url": f"/jobs/{task.id}", "result_url": f"/jobs/{task.id}/result"}).encode()


def request_of(task: Task) -> Request:
    """The request of a task as a client would send it."""
    size = len(task.body or b"")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % size),
        (b"x-request-id", task.id.encode()),
        (ACTOR, task.actor.encode()),
    ]
    request = parse_request(request_head(b"POST", task.target.encode(), headers))
    request.id = task.id.encode()
    return request


def said(answer: Answer) -> str:
    """An error's words."""
    try:
        text = words(json.loads(answer.body))
    except ValueError:
        text = answer.body.decode(errors="replace")
    return text[:2000] or f"status {answer.status}"

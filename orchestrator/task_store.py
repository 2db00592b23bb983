"""Tasks in the database: the queue, and what became of each. The same rules as in `orchestrator.store`.

A task is taken by one transaction and ended by another, each of which looks at its state again. So a result is recorded
once, and what has one is never run again.
"""

import hashlib
import uuid
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import QueryableAttribute, defer
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from orchestrator.access import Caller
from orchestrator.errors import Invalid, NotFound
from orchestrator.models import Batch, BatchState, Event, Task, TaskState
from orchestrator.store import Tables, whole

MOST_ATTEMPTS = 3  # that gave no result, until a task has failed
_OPEN = (TaskState.QUEUED, TaskState.RUNNING)
_AT_ONCE = 500  # rows of one transaction

_WITHOUT_CONTENT = [defer(cast(QueryableAttribute[Any], column)) for column in (Task.body, Task.result)]
"""For lists: each may be megabytes."""


class Waiting(NamedTuple):
    """The tasks of one model in one state; `oldest`: when the first of them was made."""

    model: str
    state: TaskState
    number: int
    oldest: datetime


class Backlog(NamedTuple):
    """What waits: how many tasks of each model; since when the first of all; and the lines of open batches by state."""

    waiting: dict[str, int]
    since: datetime | None
    lines: dict[TaskState, int]


class Outcome(NamedTuple):
    """How a task has ended. `status` and `result` are those of an engine's answer."""

    state: TaskState
    status: int | None
    result: bytes | None
    error: str | None


def new_task(
    *, actor: str, target: str, model: str, body: bytes, at: datetime, expires_at: datetime, key: str | None = None
) -> Task:
    """A task that has not been recorded yet."""
    return Task(
        id=f"job_{uuid.uuid4().hex}",
        created_at=at,
        actor=actor,
        target=target,
        model=model,
        body=body,
        digest=hashlib.sha256(target.encode() + b"\n" + body).hexdigest(),
        not_before=at,
        expires_at=expires_at,
        idempotency_key=key,
    )


class TaskStore(Tables):
    """The queue of tasks."""

    @whole
    async def add(self, task: Task) -> Task:
        """Record a task. With an Idempotency-Key that its actor has used before, the former task is returned.

        Raises Invalid when that one was another request.
        """
        async with self._writing() as session:
            if task.idempotency_key is not None:
                same = Task.actor == task.actor, Task.idempotency_key == task.idempotency_key
                former = (await session.exec(select(Task).where(*same).options(*_WITHOUT_CONTENT))).first()
                if former is not None:
                    return _repeated(former, task)
            session.add(task)
            detail = {"target": task.target, "model": task.model}
            session.add(_event(task.created_at, task.actor, "task.created", task.id, detail))
            await session.commit()
            return task

    @whole
    async def find(self, task_id: str, caller: Caller, *, content: bool = False) -> Task:
        """With `content` also what it asks and what was answered. Raises NotFound."""
        query = select(Task).where(Task.id == task_id, *_visible(caller))
        async with self._session() as session:
            task = (await session.exec(query if content else query.options(*_WITHOUT_CONTENT))).first()
        if task is None:
            raise NotFound(f"Job {task_id[:100]!r} not found. GET /jobs lists what there is.")
        return task

    @whole
    async def tasks(
        self, caller: Caller, *, state: TaskState | None = None, limit: int, offset: int = 0
    ) -> Sequence[Task]:
        """The newest first, without their content."""
        query = select(Task).where(*_visible(caller), *_in_state(state)).options(*_WITHOUT_CONTENT)
        async with self._session() as session:
            return (await session.exec(query.order_by(col(Task.number).desc()).offset(offset).limit(limit))).all()

    @whole
    async def count(self, caller: Caller, *, state: TaskState | None = None) -> int:
        query = select(func.count()).select_from(Task).where(*_visible(caller), *_in_state(state))
        async with self._session() as session:
            return (await session.exec(query)).one()

    @whole
    async def queued(self, limit: int) -> Sequence[Task]:
        """The first of those that wait, without their content."""
        query = select(Task).where(Task.state == TaskState.QUEUED).options(*_WITHOUT_CONTENT)
        async with self._session() as session:
            return (await session.exec(query.order_by(col(Task.number)).limit(limit))).all()

    @whole
    async def position(self, task: Task) -> int:
        """Of a task that is queued, counted from 1 among all that are."""
        before = select(func.count()).where(Task.state == TaskState.QUEUED, col(Task.number) < task.number)
        async with self._session() as session:
            return (await session.exec(before)).one() + 1

    @whole
    async def tally(self) -> list[Waiting]:
        """How many there are, by model and state."""
        query = select(Task.model, Task.state, func.count(), func.min(Task.created_at))
        async with self._session() as session:
            rows = (await session.exec(query.group_by(Task.model, col(Task.state)))).all()
        return [Waiting(model, TaskState(state), number, oldest) for model, state, number, oldest in rows]

    @whole
    async def backlog(self) -> Backlog:
        """Read from indices alone, of what has not ended: results that are kept are not looked at."""
        number = func.min(Task.number)
        waiting = select(Task.model, func.count(), number).where(Task.state == TaskState.QUEUED)
        unfinished = select(Batch.id).where(col(Batch.state).in_([state for state in BatchState if not state.ended]))
        lines = select(Task.state, func.count()).where(col(Task.batch).in_(unfinished)).group_by(col(Task.state))
        async with self._session() as session:
            rows = (await session.exec(waiting.group_by(Task.model))).all()
            first = min((oldest for *_, oldest in rows if oldest is not None), default=None)
            since = (await session.exec(select(Task.created_at).where(Task.number == first))).first()
            by_state = {TaskState(state): count for state, count in await session.exec(lines)}
        return Backlog({model: count for model, count, _ in rows}, since, by_state)

    @whole
    async def take(self, now: datetime, busy: Collection[str]) -> Task | None:
        """The first task that waits, from now on running: of a model that is not `busy`, and with its content."""
        async with self._writing() as session:
            numbers: list[int] = []
            model = await _next_model(session, None)
            while model is not None:
                if model not in busy:
                    numbers += await _first(session, model, now)
                model = await _next_model(session, model)
            if not numbers:
                return None
            task = await session.get_one(Task, min(numbers))
            task.state, task.started_at, task.attempts = TaskState.RUNNING, now, task.attempts + 1
            await session.commit()
            return task

    @whole
    async def runs(self, task: Task) -> bool:
        """Whether a task that `take` gave is still to be run: it may have been cancelled meanwhile."""
        same = Task.number == task.number, Task.state == TaskState.RUNNING, Task.attempts == task.attempts
        async with self._session() as session:
            return (await session.exec(select(Task.number).where(*same))).first() is not None

    @whole
    async def end(self, task: Task, outcome: Outcome, *, at: datetime, expires_at: datetime) -> bool:
        """Record how a task that `take` gave has ended. False when it is not running any more: the first end counts."""
        async with self._writing() as session:
            row = await session.get(Task, task.number, options=_WITHOUT_CONTENT)
            if row is None or row.state is not TaskState.RUNNING or row.attempts != task.attempts:
                return False
            row.state, row.status, row.result, row.error = outcome
            row.ended_at, row.expires_at = at, expires_at
            await session.commit()
            return True

    @whole
    async def put_back(self, task: Task, *, not_before: datetime, error: str, asked: bool) -> None:
        """A task that `take` gave waits again. `asked`: an engine was, so that it counts as an attempt."""
        async with self._writing() as session:
            row = await session.get(Task, task.number, options=_WITHOUT_CONTENT)
            if row is None or row.state is not TaskState.RUNNING or row.attempts != task.attempts:
                return
            row.state, row.not_before, row.error, row.started_at = TaskState.QUEUED, not_before, error, None
            row.attempts -= 0 if asked else 1
            await session.commit()

    @whole
    async def recover(self, now: datetime, keep: timedelta) -> int:
        """What ran when the last orchestrator ended waits again; how many. What was cut off each time has failed."""
        async with self._writing() as session:
            rows = await session.exec(select(Task).where(Task.state == TaskState.RUNNING).options(*_WITHOUT_CONTENT))
            tasks = rows.all()
            for task in tasks:
                if task.attempts < MOST_ATTEMPTS:
                    task.state, task.started_at = TaskState.QUEUED, None
                    continue
                task.state, task.ended_at, task.expires_at = TaskState.FAILED, now, now + keep
                task.error = f"the orchestrator ended {task.attempts} times while an engine was asked"
            await session.commit()
            return len(tasks)

    @whole
    async def cancel(self, task_id: str, caller: Caller, *, at: datetime, keep: timedelta) -> tuple[Task, TaskState]:
        """End a task that has not ended; with the state that it was in before. Raises NotFound."""
        query = select(Task).where(Task.id == task_id, *_visible(caller)).options(*_WITHOUT_CONTENT)
        async with self._writing() as session:
            task = (await session.exec(query)).first()
            if task is None:
                raise NotFound(f"Job {task_id[:100]!r} not found. GET /jobs lists what there is.")
            before = task.state
            if not before.ended:
                task.state, task.ended_at, task.cancel_requested_at, task.expires_at = _cancelled(at, keep)
                session.add(_event(at, caller.actor, "task.cancelled", task.id, {"was": before.value}))
                await session.commit()
            return task, before

    @whole
    async def expire(self, now: datetime, keep: timedelta) -> int:
        """One turn of forgetting, of some hundreds of tasks at most; how many.

        Those that have waited too long have expired, those whose result was kept long enough too, and lose their
        content. What has been expired as long is deleted. The results of a batch are kept until they are in its files.
        """
        ended = select(Batch.id).where(col(Batch.state).in_([state for state in BatchState if state.ended]))
        free = or_(col(Task.batch).is_(None), Task.state == TaskState.QUEUED, col(Task.batch).in_(ended))
        query = select(Task).where(Task.state != TaskState.RUNNING, col(Task.expires_at) <= now, free)
        async with self._writing() as session:
            rows = (await session.exec(query.options(*_WITHOUT_CONTENT).limit(_AT_ONCE))).all()
            for task in rows:
                if task.state is TaskState.EXPIRED:
                    await session.delete(task)
                    continue
                if task.state is TaskState.QUEUED:
                    task.ended_at = now
                    waited = f"it waited for {_hours(now - task.created_at)} and no engine answered it"
                    task.error = f"{waited}: {task.error}" if task.error else waited
                task.state, task.body, task.result, task.expires_at = TaskState.EXPIRED, None, None, now + keep
            await session.commit()
            return len(rows)

    # Batches

    @whole
    async def add_of_batch(self, tasks: Sequence[Task]) -> None:
        """Record some tasks of a batch, all or none, unless it is no longer being validated."""
        async with self._writing() as session:
            batch = await session.get_one(Batch, tasks[0].batch)
            if batch.state is BatchState.VALIDATING:
                session.add_all(tasks)
                await session.commit()

    @whole
    async def tally_of_batch(self, batch: str) -> dict[TaskState, int]:
        query = select(Task.state, func.count()).where(Task.batch == batch).group_by(col(Task.state))
        async with self._session() as session:
            return {TaskState(state): number for state, number in await session.exec(query)}

    @whole
    async def tasks_of_batch(self, batch: str, after: int, limit: int) -> Sequence[Task]:
        """Those behind a number, with their content."""
        query = select(Task).where(Task.batch == batch, col(Task.number) > after).order_by(col(Task.number))
        async with self._session() as session:
            return (await session.exec(query.limit(limit))).all()

    @whole
    async def cancel_batch(self, batch: str, *, at: datetime, keep: timedelta) -> list[str]:
        """End the tasks of a batch that have not ended; the ids of those that were running."""
        query = select(Task).where(Task.batch == batch, col(Task.state).in_(_OPEN)).options(*_WITHOUT_CONTENT)
        async with self._writing() as session:
            tasks = (await session.exec(query)).all()
            running = [task.id for task in tasks if task.state is TaskState.RUNNING]
            for task in tasks:
                task.state, task.ended_at, task.cancel_requested_at, task.expires_at = _cancelled(at, keep)
            await session.commit()
            return running


async def _next_model(session: AsyncSession, model: str | None) -> str | None:
    """The next model with tasks that wait, by name. One look into the index, however many tasks there are."""
    behind = () if model is None else (col(Task.model) > model,)
    return (await session.exec(select(func.min(Task.model)).where(Task.state == TaskState.QUEUED, *behind))).one()


async def _first(session: AsyncSession, model: str, now: datetime) -> list[int]:
    """The number of a model's first task that may be run now."""
    mine = Task.state == TaskState.QUEUED, Task.model == model, col(Task.not_before) <= now
    first = (await session.exec(select(Task.number).where(*mine).order_by(col(Task.number)).limit(1))).first()
    return [] if first is None else [first]


def _cancelled(at: datetime, keep: timedelta) -> tuple[TaskState, datetime, datetime, datetime]:
    return TaskState.CANCELLED, at, at, at + keep


def _repeated(former: Task, task: Task) -> Task:
    if former.digest != task.digest:
        raise Invalid(
            f"Idempotency-Key {task.idempotency_key!r} belongs to another request, which became {former.id}; send each "
            "request with a key of its own"
        )
    return former


def _visible(caller: Caller) -> list[ColumnElement[bool]]:
    return [] if caller.sees_all else [col(Task.actor) == caller.actor]


def _in_state(state: TaskState | None) -> list[ColumnElement[bool]]:
    return [] if state is None else [col(Task.state) == state]


def _hours(lasted: timedelta) -> str:
    seconds = lasted.total_seconds()
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} s"


def _event(at: datetime, actor: str, kind: str, subject: str, detail: dict[str, Any]) -> Event:
    return Event(at=at, actor=actor, kind=kind, subject=subject, detail=detail)

"""OpenAI's batches: a file of requests becomes tasks, and what became of them two files.

validating ─▶ in_progress ─▶ finalizing ─▶ completed | expired
    │ failed        └──▶ cancelling ──┘──▶ cancelled
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, BinaryIO

import msgspec

from orchestrator.access import Caller
from orchestrator.asked import look, without_async
from orchestrator.batch_store import BatchStore
from orchestrator.errors import BadRequest, Invalid, NotFound, OrchestratorError
from orchestrator.files import Draft, Files, new_file_id
from orchestrator.models import Batch, BatchState, StoredFile, Task, TaskState
from orchestrator.task_store import TaskStore, new_task

log = logging.getLogger(__name__)

ACTOR = "batches"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOWS = {"24h": timedelta(hours=24)}
"""What OpenAI allows."""
MOST_LINES = 50_000  # of a batch: OpenAI's bound
_MOST_ERRORS = 100  # that are told of one file
_MOST_LINE = 32 * 1024 * 1024  # bytes
_AT_ONCE = 200  # lines that are recorded, or written, in one go
_OPEN = (BatchState.VALIDATING, BatchState.IN_PROGRESS)


class _Line(msgspec.Struct):
    """A line of an input file."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_decode = msgspec.json.Decoder(_Line).decode


class BadLine(Exception):
    """A line that cannot become a task. `code` and `param` are for programs."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


@dataclass(frozen=True)
class Line:
    """One request of a batch."""

    custom_id: str
    model: str
    body: bytes


def parse_line(raw: bytes, endpoint: str) -> Line:
    """Raises BadLine. Pure."""
    if len(raw) > _MOST_LINE:
        raise BadLine("line_too_long", f"The line has more than {_MOST_LINE >> 20} MiB.")
    try:
        line = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadLine("invalid_json_line", f"The line is not a request as batches have them: {exc}.") from exc
    if not 1 <= len(line.custom_id) <= 512:
        raise BadLine("invalid_custom_id", "custom_id must have 1 to 512 characters.", "custom_id")
    if line.method != "POST":
        raise BadLine("invalid_method", f"The method is {line.method[:20]!r}; it must be 'POST'.", "method")
    if line.url != endpoint:
        text = f"The url is {line.url[:100]!r}; it must be the batch's endpoint {endpoint!r}."
        raise BadLine("mismatched_endpoint", text, "url")
    body = bytes(line.body)
    try:
        asked = look(b"application/json", body)
        body = body if asked.later is None else without_async(body)
    except BadRequest as exc:
        raise BadLine("invalid_request", f"The body: {exc}.", "body") from exc
    if asked.stream:
        raise BadLine("invalid_request", "Answers of a batch are not streamed; leave out 'stream'.", "body.stream")
    return Line(line.custom_id, asked.model or "", body)


@dataclass
class Checked:
    """What the lines of a file are, found by `check_lines`. Each error is one of OpenAI's `errors.data`."""

    total: int = 0
    models: set[str] = field(default_factory=set)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def wrong(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append({"code": code, "message": message, "line": line, "param": param})


def check_lines(lines: Iterator[bytes], endpoint: str) -> Checked:
    """Look at a whole file. Pure but for reading it."""
    checked, seen = Checked(), set[str]()
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        checked.total += 1
        if checked.total > MOST_LINES:
            checked.wrong("too_many_requests", f"The file has more than {MOST_LINES} requests; make several batches.")
            break
        try:
            line = parse_line(raw, endpoint)
        except BadLine as exc:
            checked.wrong(exc.code, str(exc), number, exc.param)
            continue
        if line.custom_id in seen:
            checked.wrong(
                "duplicate_custom_id", f"The custom_id {line.custom_id!r} is there twice.", number, "custom_id"
            )
        seen.add(line.custom_id)
        checked.models.add(line.model)
    if not checked.total:
        checked.wrong("empty_file", "The file has no requests.")
    return checked


def outcome_line(task: Task) -> dict[str, Any]:
    """A line of the output file or, for what has no answer, of the error file. Pure."""
    named = {"id": f"batch_req_{task.id.removeprefix('job_')}", "custom_id": task.custom_id}
    if task.state in (TaskState.CANCELLED, TaskState.EXPIRED) or task.status is None:
        message = task.error or f"This request was {task.state.value} before it was answered."
        code = f"batch_{task.state.value}" if task.state is not TaskState.FAILED else "failed"
        return named | {"response": None, "error": {"code": code, "message": message}}
    response = {"status_code": task.status, "request_id": task.id, "body": _json(task.result or b"")}
    return named | {"response": response, "error": None}


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


@dataclass
class Batches:
    """Batches and their files. `look` is one turn of the loop in `orchestrator.tasks`; it alone brings batches on."""

    store: BatchStore
    tasks: TaskStore
    files: Files
    away: Callable[[str], Awaitable[OrchestratorError | None]]
    clock: Callable[[], datetime]
    keep: timedelta
    _tidied: bool = False

    async def create(
        self, caller: Caller, *, input_file: str, endpoint: str, window: str, about: dict[str, str]
    ) -> Batch:
        """Raises NotFound for a file that is not there, Invalid for one that is not meant for this."""
        file = await self.store.file(input_file, caller)
        if file.purpose != "batch":
            raise Invalid(f"the file {file.id} was uploaded with purpose {file.purpose!r}; upload it with 'batch'")
        now = self.clock()
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            created_at=now,
            actor=caller.actor,
            endpoint=endpoint,
            completion_window=window,
            input_file=file.id,
            about=about,
            expires_at=now + WINDOWS[window],
        )
        await self.store.add(batch)
        return batch

    async def cancel(self, batch_id: str, caller: Caller) -> Batch:
        """Ask for the end of a batch; its tasks are ended by the loop. Raises NotFound."""
        batch = await self.store.find(batch_id, caller)
        now = self.clock()
        changes = {"state": BatchState.CANCELLING, "cancelling_at": now}
        return await self.store.change(batch.id, _OPEN, changes, at=now, actor=caller.actor)

    async def delete_file(self, file_id: str, caller: Caller) -> None:
        file = await self.store.file(file_id, caller)
        await self.store.delete_file(file.id, at=self.clock(), actor=caller.actor)
        await asyncio.to_thread(self.files.delete, file.id)

    async def look(self) -> list[str]:
        """One turn for each batch that has not ended; the ids of the tasks that are to be left."""
        if not self._tidied:
            await asyncio.to_thread(self.files.tidy, await self.store.ids_of_files())
            self._tidied = True
        left: list[str] = []
        for batch in await self.store.open_batches():
            try:
                left += await self._bring_on(batch)
            except OrchestratorError as exc:
                log.warning("batch %s: %s", batch.id, exc)
            except Exception:
                # One batch that cannot be brought on must not keep the others from it.
                log.exception("batch %s could not be brought on", batch.id)
        return left

    async def _bring_on(self, batch: Batch) -> list[str]:
        left: list[str] = []
        if batch.state is BatchState.VALIDATING:
            await self._validate(batch)
            return left
        if batch.state is BatchState.CANCELLING:
            left = await self.tasks.cancel_batch(batch.id, at=self.clock(), keep=self.keep)
        tally = await self.tasks.tally_of_batch(batch.id)
        if not any(number for state, number in tally.items() if not state.ended):
            await self._finalize(batch, tally)
        return left

    # A file becomes tasks

    async def _validate(self, batch: Batch) -> None:
        try:
            checked = await asyncio.to_thread(self._checked, batch)
        except NotFound as exc:
            checked = Checked()
            checked.wrong("missing_file", str(exc))
        for model in sorted(checked.models) if not checked.errors else ():
            away = await self.away(model)
            if away is not None and away.status == 404:
                checked.wrong("model_not_found", str(away), param="body.model")
        now = self.clock()
        if checked.errors:
            changes: dict[str, Any] = {"state": BatchState.FAILED, "ended_at": now, "errors": checked.errors}
        else:
            await self._record(batch)
            changes = {"state": BatchState.IN_PROGRESS, "in_progress_at": now, "total": checked.total}
        await self.store.change(batch.id, (BatchState.VALIDATING,), changes, at=now, actor=ACTOR)

    def _checked(self, batch: Batch) -> Checked:
        with self.files.opened(batch.input_file) as file:
            return check_lines(_lines(file), batch.endpoint)

    async def _record(self, batch: Batch) -> None:
        """All tasks of a batch. After a crash those that are there already are passed over: they are the first ones."""
        there = sum((await self.tasks.tally_of_batch(batch.id)).values())
        with self.files.opened(batch.input_file) as file:
            lines = islice((raw for raw in _lines(file) if raw.strip()), there, None)
            while tasks := await asyncio.to_thread(self._some, batch, lines):
                await self.tasks.add_of_batch(tasks)

    def _some(self, batch: Batch, lines: Iterator[bytes]) -> list[Task]:
        made, now = [], self.clock()
        for raw in islice(lines, _AT_ONCE):
            line = parse_line(raw, batch.endpoint)
            task = new_task(
                actor=batch.actor, target=batch.endpoint, model=line.model, body=line.body, at=now,
                expires_at=batch.expires_at,
            )  # fmt: skip
            task.batch, task.custom_id = batch.id, line.custom_id
            made.append(task)
        return made

    # What became of them

    async def _finalize(self, batch: Batch, tally: dict[TaskState, int]) -> None:
        """Write the files. A crash on the way has it done again, into the same files."""
        now = self.clock()
        done = tally.get(TaskState.DONE, 0)
        others = sum(tally.values()) - done
        if batch.state is not BatchState.FINALIZING:
            changes: dict[str, Any] = {"state": BatchState.FINALIZING, "finalizing_at": now}
            changes |= {"total": sum(tally.values()), "completed": done, "failed": tally.get(TaskState.FAILED, 0)}
            changes |= {"output_file": new_file_id() if done else None, "error_file": new_file_id() if others else None}
            before = (BatchState.IN_PROGRESS, BatchState.CANCELLING)
            batch = await self.store.change(batch.id, before, changes, at=now, actor=ACTOR)
        files = await self._write(batch)
        state = BatchState.EXPIRED if tally.get(TaskState.EXPIRED) else BatchState.COMPLETED
        state = BatchState.CANCELLED if batch.cancelling_at is not None else state
        changes = {"state": state, "ended_at": self.clock()}
        await self.store.change(batch.id, (BatchState.FINALIZING,), changes, at=now, actor=ACTOR, files=files)

    async def _write(self, batch: Batch) -> list[StoredFile]:
        names = {"output": batch.output_file, "error": batch.error_file}
        with ExitStack() as stack:
            opened = {kind: stack.enter_context(self.files.writing(name)) for kind, name in names.items() if name}
            after = 0
            while some := await self.tasks.tasks_of_batch(batch.id, after, _AT_ONCE):
                await asyncio.to_thread(_write_lines, some, opened)
                after = some[-1].number or 0
            for draft in opened.values():
                await asyncio.to_thread(draft.finish)
        now = self.clock()
        return [
            StoredFile(
                id=name, created_at=now, actor=batch.actor, filename=f"{batch.id}_{kind}.jsonl",
                purpose="batch_output", size=self.files.path(name).stat().st_size,
            )
            for kind, name in names.items()
            if name
        ]  # fmt: skip


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file. Of one that is too long only so much as to see that it is."""
    while line := file.readline(_MOST_LINE + 1):
        yield line


def _write_lines(tasks: Sequence[Task], opened: dict[str, Draft]) -> None:
    for task in tasks:
        kind = "output" if task.state is TaskState.DONE else "error"
        if kind in opened:
            opened[kind].write(json.dumps(outcome_line(task)).encode() + b"\n")

"""Batches: lines in, tasks out, files of what became of them; and the form by which a file comes."""

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.access import Caller
from orchestrator.batches import MOST_LINES, BadLine, Line, check_lines, outcome_line, parse_line
from orchestrator.errors import BadRequest, Invalid, NotFound, TooLarge
from orchestrator.files import Files, new_file_id
from orchestrator.models import Batch, BatchState, StoredFile, TaskState
from orchestrator.upload import Upload
from tests.databases.place import Place
from tests.orchestrating import START
from tests.queueing import CHAT, EVERYBODY, Queue, queueing, task

_BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def line(number: int = 0, body: Any = None, **more: Any) -> bytes:
    fields = {"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": _BODY if body is None else body}
    return json.dumps(fields | more).encode() + b"\n"


def test_a_line_becomes_a_request() -> None:
    assert parse_line(line(7), CHAT) == Line("r7", "m", json.dumps(_BODY).encode())
    assert parse_line(line(1, {"model": "m", "async": True}), CHAT) == Line("r1", "m", b'{"model":"m"}')
    assert parse_line(line(1, {"input": "x"}), CHAT).model == ""


@pytest.mark.parametrize(
    ("raw", "code", "words"),
    [
        (b"{", "invalid_json_line", "is not a request"),
        (b"[]", "invalid_json_line", "is not a request"),
        (b"\xff", "invalid_json_line", "is not a request"),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1/x"}', "invalid_json_line", "body"),
        (line(custom_id=7), "invalid_json_line", "custom_id"),
        (line(custom_id=""), "invalid_custom_id", "1 to 512"),
        (line(custom_id="x" * 513), "invalid_custom_id", "1 to 512"),
        (line(method="GET"), "invalid_method", "'GET'; it must be 'POST'"),
        (line(url="/v1/embeddings"), "mismatched_endpoint", "'/v1/embeddings'; it must be the batch's endpoint"),
        (line(body=[]), "invalid_request", "The body"),
        (line(body={"model": 7}), "invalid_request", "The body"),
        (line(body={"model": "m", "stream": True}), "invalid_request", "not streamed"),
        (b" " * (32 * 1024 * 1024 + 1), "line_too_long", "32 MiB"),
    ],
)
def test_a_line_that_is_none_is_refused(raw: bytes, code: str, words: str) -> None:
    with pytest.raises(BadLine) as refused:
        parse_line(raw, CHAT)
    assert refused.value.code == code
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("lines", "total", "errors"),
    [
        ([line(1), b"\n", line(2)], 2, []),
        ([], 0, [("empty_file", None)]),
        ([b" \n"], 0, [("empty_file", None)]),
        ([line(1), line(2), line(1)], 3, [("duplicate_custom_id", 3)]),
        ([b"{}\n", line(1), b"x\n"], 3, [("invalid_json_line", 1), ("invalid_json_line", 3)]),
    ],
)
def test_a_file_is_looked_at_as_a_whole(lines: list[bytes], total: int, errors: list[Any]) -> None:
    checked = check_lines(iter(lines), CHAT)
    assert checked.total == total
    assert [(error["code"], error["line"]) for error in checked.errors] == errors
    assert checked.models <= {"m"}


def test_what_is_told_of_a_file_has_a_bound() -> None:
    assert len(check_lines((b"x\n" for _ in range(1000)), CHAT).errors) == 100
    many = check_lines((line(n) for n in range(MOST_LINES + 5)), CHAT)
    assert [error["code"] for error in many.errors] == ["too_many_requests"]


@pytest.mark.parametrize(
    ("state", "fields", "response", "code"),
    [
        (TaskState.DONE, {"status": 200, "result": b'{"a": 1}'}, {"a": 1}, None),
        (TaskState.FAILED, {"status": 400, "result": b'{"error": {}}'}, {"error": {}}, None),
        (TaskState.FAILED, {"status": 502, "result": b"no JSON \xff"}, "no JSON \ufffd", None),
        (TaskState.FAILED, {"error": "cut off"}, None, "failed"),
        (TaskState.CANCELLED, {}, None, "batch_cancelled"),
        (TaskState.EXPIRED, {"error": "it waited"}, None, "batch_expired"),
    ],
)
def test_what_became_of_a_line(state: TaskState, fields: dict[str, Any], response: Any, code: str | None) -> None:
    one = task()
    one.state, one.custom_id = state, "r1"
    for name, value in fields.items():
        setattr(one, name, value)
    told = outcome_line(one)
    assert (told["custom_id"], told["id"]) == ("r1", one.id.replace("job_", "batch_req_"))
    assert (told["response"] and told["response"]["body"]) == response
    assert (told["error"] and told["error"]["code"]) == code


# The form

_TYPE = "multipart/form-data; boundary=x"


def form(*parts: tuple[str, str], end: str = "--x--\r\n") -> bytes:
    return "".join(f"--x\r\n{head}\r\n\r\n{content}\r\n" for head, content in parts).encode() + end.encode()


FILE = 'Content-Disposition: form-data; name="file"; filename="a.jsonl"'
PURPOSE = 'Content-Disposition: form-data; name="purpose"'


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("order", [1, -1])
def test_a_form_is_read_in_pieces_of_any_size(size: int, order: int) -> None:
    data = form(*[(FILE + "\r\nContent-Type: text/plain", "a\r\n--y\r\nb"), (PURPOSE, "batch")][::order])
    content = bytearray()
    upload = Upload(_TYPE, content.extend, 1000)
    for at in range(0, len(data), size):
        upload.feed(data[at : at + size])
    upload.end()
    assert (upload.filename, upload.fields, bytes(content)) == ("a.jsonl", {"purpose": "batch"}, b"a\r\n--y\r\nb")
    assert upload.size == len(content)


@pytest.mark.parametrize(
    ("kind", "data", "error", "words"),
    [
        ("application/json", b"{}", BadRequest, "as curl -F does, not as 'application/json'"),
        ("multipart/form-data", b"", BadRequest, "multipart/form-data"),
        (_TYPE, b"nonsense", BadRequest, "cannot be read"),
        (_TYPE, form((FILE, "x"), end=""), BadRequest, "before its last boundary"),
        (_TYPE, form((PURPOSE, "batch")), BadRequest, "has no file"),
        (_TYPE, form((FILE, "x"), (FILE, "y")), BadRequest, "two files"),
        (_TYPE, form((FILE, "x" * 1001)), TooLarge, "larger than"),
        (_TYPE, form((PURPOSE, "x" * 2000)), BadRequest, "more than 1000 bytes"),
        (_TYPE, form(("X-Long: " + "x" * 5000, "")), BadRequest, "cannot be read"),
        (_TYPE, form(*((f'{PURPOSE[:-8]}n{n}"', "") for n in range(30))), BadRequest, "more than 20 fields"),
    ],
)
def test_a_form_that_is_none_is_refused(kind: str, data: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        upload = Upload(kind, bytearray().extend, 1000)
        upload.feed(data)
        upload.end()


# Files


def test_a_file_is_private_and_there_when_it_is_whole(tmp_path: Path) -> None:
    files, one, other = Files(tmp_path / "files"), new_file_id(), new_file_id()
    with files.writing(one) as draft:
        draft.write(b"abc")
        assert not files.path(one).exists()
        draft.finish()
    with pytest.raises(ZeroDivisionError), files.writing(other) as draft:
        draft.write(b"abc")
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "files").iterdir()] == [one]
    with files.opened(one) as file:
        assert file.read() == b"abc"
    assert stat.S_IMODE(files.path(one).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "files").stat().st_mode) == 0o700
    with pytest.raises(NotFound):
        files.opened(other)
    (tmp_path / "files" / f"{other}.part").touch()
    files.tidy({one})
    assert [path.name for path in (tmp_path / "files").iterdir()] == [one]


# Batches


def work(place: Path | Place, steps: Callable[[Queue], Awaitable[None]], *models: str) -> None:
    async def opened() -> None:
        async with asyncio.timeout(60), queueing(place, *models) as queue:
            await steps(queue)

    asyncio.run(opened())


async def upload(queue: Queue, *lines: bytes, actor: str = "me", purpose: str = "batch") -> str:
    """The id of a file that is there."""
    batches, file_id = queue.tasks.batches, new_file_id()
    with batches.files.writing(file_id) as draft:
        draft.write(b"".join(lines))
        draft.finish()
    file = StoredFile(id=file_id, created_at=START, actor=actor, filename="f", purpose=purpose, size=1)
    await batches.store.add_file(file)
    return file_id


async def start(queue: Queue, *lines: bytes, actor: str = "me") -> Batch:
    file_id = await upload(queue, *lines, actor=actor)
    caller = Caller(actor, sees_all=False)
    return await queue.tasks.batches.create(caller, input_file=file_id, endpoint=CHAT, window="24h", about={})


async def ended(queue: Queue, batch: Batch) -> Batch:
    for _ in range(50):
        await queue.turn()
        batch = await queue.tasks.batches.store.find(batch.id, EVERYBODY)
        if batch.state.ended:
            return batch
    raise AssertionError(batch.state)


def content(queue: Queue, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(one) for one in queue.tasks.batches.files.path(file_id).read_text().splitlines()]


def test_a_batch_is_answered_line_by_line(place: Place) -> None:
    async def steps(queue: Queue) -> None:
        prompts = ["hi 0", "status 418", "hi 2"]
        bodies = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in prompts]
        batch = await ended(queue, await start(queue, *(line(n, body) for n, body in enumerate(bodies))))
        assert (batch.state, batch.total, batch.completed, batch.failed) == (BatchState.COMPLETED, 3, 2, 1)
        output = content(queue, batch.output_file)
        assert [one["custom_id"] for one in output] == ["r0", "r2"]
        assert [one["response"]["body"]["choices"][0]["message"]["content"][:5] for one in output] == ["hi 0 ", "hi 2 "]
        (error,) = content(queue, batch.error_file)
        assert (error["custom_id"], error["response"]["status_code"]) == ("r1", 418)
        kept = await queue.tasks.batches.store.files(EVERYBODY, purpose="batch_output", after=None, limit=10)
        assert {file.id for file in kept} == {batch.output_file, batch.error_file}

    work(place, steps, "m")


@pytest.mark.parametrize(
    ("lines", "code"),
    [([b"{}"], "invalid_json_line"), ([line(body={"model": "unknown"})], "model_not_found"), ([], "empty_file")],
)
def test_a_batch_that_cannot_be_run_says_why_and_runs_nothing(lines: list[bytes], code: str, tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        batch = await ended(queue, await start(queue, *lines))
        assert (batch.state, [error["code"] for error in batch.errors]) == (BatchState.FAILED, [code])
        assert await queue.store.count(EVERYBODY) == 0

    work(tmp_path, steps, "m")


def test_a_batch_whose_file_has_gone_has_failed(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        batch = await start(queue, line())
        await queue.tasks.batches.delete_file(batch.input_file, EVERYBODY)
        assert [error["code"] for error in (await ended(queue, batch)).errors] == ["missing_file"]

    work(tmp_path, steps, "m")


def test_whose_file_it_is_and_what_for(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        make, you = queue.tasks.batches.create, Caller("you", sees_all=False)
        theirs, other = await upload(queue, line()), await upload(queue, line(), actor="you", purpose="x")
        with pytest.raises(NotFound):
            await make(you, input_file=theirs, endpoint=CHAT, window="24h", about={})
        with pytest.raises(Invalid, match="purpose 'x'"):
            await make(you, input_file=other, endpoint=CHAT, window="24h", about={})
        with pytest.raises(NotFound):
            await queue.tasks.batches.store.find((await start(queue, line())).id, you)

    work(tmp_path, steps, "m")


def test_a_batch_is_recorded_to_its_end_after_a_crash(place: Place) -> None:
    """Killed when some of its lines were tasks, and again when its files were being written."""

    async def begun(queue: Queue) -> None:
        batch = await start(queue, *(line(n, {"model": "m", "messages": [{"content": f"hi {n}"}]}) for n in range(450)))
        lines = iter([line(n, {"model": "m", "messages": [{"content": f"hi {n}"}]}) for n in range(200)])
        await queue.store.add_of_batch(await asyncio.to_thread(queue.tasks.batches._some, batch, lines))

    async def recorded(queue: Queue) -> None:
        queue.tasks.concurrency = 0
        await queue.tasks.batches.look()
        tasks = await queue.store.tasks(EVERYBODY, limit=1000)
        assert sorted(str(one.custom_id) for one in tasks) == sorted(f"r{n}" for n in range(450))
        (batch,) = await queue.tasks.batches.store.open_batches()
        assert (batch.state, batch.total) == (BatchState.IN_PROGRESS, 450)
        await queue.store.cancel_batch(batch.id, at=START, keep=queue.tasks.keep)
        changes = {"state": BatchState.FINALIZING, "output_file": None, "error_file": new_file_id()}
        before = (BatchState.IN_PROGRESS,)
        await queue.tasks.batches.store.change(batch.id, before, changes, at=START, actor="x")

    async def written(queue: Queue) -> None:
        (batch,) = await queue.tasks.batches.store.open_batches()
        batch = await ended(queue, batch)
        told = content(queue, batch.error_file)
        assert [one["custom_id"] for one in told] == [f"r{n}" for n in range(450)]
        assert {one["error"]["code"] for one in told} == {"batch_cancelled"}

    for steps in (begun, recorded, written):
        work(place, steps, "m")


def test_a_batch_is_cancelled_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        queue.tasks.concurrency = 2
        prompts = ["hi", "sleep 30", "sleep 30", "hi"]
        bodies = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in prompts]
        batch = await start(queue, *(line(n, body) for n, body in enumerate(bodies)))
        loop = asyncio.create_task(queue.tasks.run())
        await queue.until(lambda: queue.engines["m"].running == 2 and queue.engines["m"].succeeded == 1)
        batch = await queue.tasks.cancel_batch(batch.id, EVERYBODY)
        assert batch.state is BatchState.CANCELLING
        await queue.until(lambda: queue.engines["m"].running == 0)
        loop.cancel()
        await asyncio.wait({loop})
        batch = await ended(queue, batch)
        assert (batch.state, batch.total, batch.completed) == (BatchState.CANCELLED, 4, 1)
        assert [one["custom_id"] for one in content(queue, batch.output_file)] == ["r0"]
        told = content(queue, batch.error_file)
        assert [(one["custom_id"], one["error"]["code"]) for one in told] == [
            (name, "batch_cancelled") for name in ("r1", "r2", "r3")
        ]
        assert (await queue.tasks.cancel_batch(batch.id, EVERYBODY)).state is BatchState.CANCELLED

    work(tmp_path, steps, "m")


def test_a_batch_expires_with_what_was_answered(place: Place) -> None:
    async def steps(queue: Queue) -> None:
        queue.asleep.add("late")
        batch = await start(queue, line(0), line(1, {"model": "late", "messages": []}))
        for _ in range(3):
            await queue.turn()
        queue.clock.advance(24 * 3600)
        while await queue.store.expire(queue.clock(), queue.tasks.keep):
            pass
        batch = await ended(queue, batch)
        assert (batch.state, batch.completed, batch.failed) == (BatchState.EXPIRED, 1, 0)
        assert [one["error"]["code"] for one in content(queue, batch.error_file)] == ["batch_expired"]
        assert len(content(queue, batch.output_file)) == 1

    work(place, steps, "m")


def test_results_are_kept_until_they_are_in_the_files_of_their_batch(tmp_path: Path) -> None:
    async def steps(queue: Queue) -> None:
        queue.asleep.add("late")
        await start(queue, line(0), line(1, {"model": "late", "messages": []}))
        for _ in range(3):
            await queue.turn()
        queue.clock.advance(1000 * 3600)
        assert await queue.store.expire(queue.clock(), queue.tasks.keep) == 1
        assert len(await queue.store.tasks(EVERYBODY, state=TaskState.DONE, limit=10)) == 1

    work(tmp_path, steps, "m")

"""OpenAI's `/v1/files` and `/v1/batches`."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import StreamingResponse

from orchestrator.deps import App, Orchestrator, Whose
from orchestrator.errors import BadRequest, StateFull, TooLarge
from orchestrator.files import new_file_id
from orchestrator.models import Batch, BatchState, StoredFile, TaskState
from orchestrator.routes.openai import ERRORS
from orchestrator.routes.strict import StrictRoute
from orchestrator.upload import Upload

router = APIRouter(tags=["batches"], responses=ERRORS, route_class=StrictRoute)
uploads = APIRouter(tags=["batches"], responses=ERRORS)
"""Bodies that are not read into memory."""

_PIECE = 1024 * 1024  # bytes that are written to the disk in one go
_FORM_OVERHEAD = 64 * 1024  # bytes of a form beside its file
_JSONL = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"type": "string", "enum": ["batch"]},
                },
            },
            "example": {"file": "the bytes of requests.jsonl", "purpose": "batch"},
        }
    },
}

FileId = Annotated[str, Path(description="The id of a file.", examples=["file-0123456789abcdef0123456789abcdef"])]
BatchId = Annotated[str, Path(description="The id of a batch.", examples=["batch_0123456789abcdef0123456789abcdef"])]
After = Annotated[str | None, Query(description="Only those behind the one of this id.")]
Text = Annotated[str, StringConstraints(max_length=512)]


class FileShape(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileShape]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool


class BatchRequest(BaseModel):
    """A file of requests, one JSON object a line: custom_id, method, url, body."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input_file_id": "file-0123456789abcdef0123456789abcdef", "endpoint": "/v1/chat/completions",
                 "completion_window": "24h"}
            ]
        }
    )  # fmt: skip

    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Annotated[str, StringConstraints(max_length=64)], Text], Field(max_length=16)] | None = (
        None
    )


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class BatchShape(BaseModel):
    """Times are seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: BatchState
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchShape]
    first_id: str | None
    last_id: str | None
    has_more: bool


@uploads.post(
    "/v1/files", summary="Upload a file of requests", response_model=FileShape, openapi_extra={"requestBody": _FORM}
)
async def upload_file(app: App, whose: Whose, request: Request) -> FileShape:
    """As a form with the fields `file` and `purpose`, which is `batch`. It is written to the disk as it comes."""
    most = app.settings.file_megabytes << 20
    if int(request.headers.get("content-length", 0)) > most + _FORM_OVERHEAD:
        raise TooLarge(f"the file is larger than {most >> 20} MiB (ORCHESTRATOR_FILE_MEGABYTES); send it in parts")
    kept, limit = await app.batches.store.bytes_of_files(), int(app.settings.files_gigabytes * (1 << 30))
    if kept >= limit:
        raise StateFull(f"files: {kept} of {limit} bytes, ORCHESTRATOR_FILES_GIGABYTES; DELETE /v1/files/{{id}}")
    file = await _receive(app, request, whose.actor, most)
    await app.batches.store.add_file(file)
    return _file(file)


async def _receive(app: Orchestrator, request: Request, actor: str, most: int) -> StoredFile:
    file_id, waiting = new_file_id(), bytearray()
    form = Upload(request.headers.get("content-type", ""), waiting.extend, most)
    with app.batches.files.writing(file_id) as draft:
        async for data in request.stream():
            form.feed(data)
            if len(waiting) >= _PIECE:
                await asyncio.to_thread(draft.write, bytes(waiting))
                waiting.clear()
        form.end()
        if (purpose := form.fields.get("purpose")) != "batch":
            raise BadRequest(f"purpose is {purpose!r}; files are kept for 'batch' alone")
        draft.write(bytes(waiting))
        await asyncio.to_thread(draft.finish)
    return StoredFile(
        id=file_id,
        created_at=app.batches.clock(),
        actor=actor,
        filename=form.filename or "file",
        purpose=purpose,
        size=form.size,
    )


@router.get("/v1/files", summary="List the files, the newest first")
async def list_files(
    app: App,
    whose: Whose,
    purpose: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: After = None,
    order: Literal["desc"] = "desc",
) -> FileList:
    found = await app.batches.store.files(whose, purpose=purpose, after=after, limit=limit + 1)
    data = [_file(file) for file in found[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=first, last_id=last, has_more=len(found) > limit)


@router.get("/v1/files/{file_id}", summary="Show a file")
async def show_file(app: App, whose: Whose, file_id: FileId) -> FileShape:
    return _file(await app.batches.store.file(file_id, whose))


@router.get(
    "/v1/files/{file_id}/content",
    summary="Download a file",
    response_class=StreamingResponse,
    responses={200: _JSONL},
)
async def show_content(app: App, whose: Whose, file_id: FileId) -> StreamingResponse:
    file = await app.batches.store.file(file_id, whose)
    opened = app.batches.files.opened(file.id)
    pieces: AsyncIterator[bytes] = app.batches.files.pieces(opened)
    headers = {"Content-Length": str(file.size)}
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", summary="Delete a file")
async def delete_file(app: App, whose: Whose, file_id: FileId) -> FileDeleted:
    """What a batch has read from it already is not touched."""
    await app.batches.delete_file(file_id, whose)
    return FileDeleted(id=file_id, deleted=True)


@router.post("/v1/batches", summary="Start a batch")
async def start_batch(app: App, whose: Whose, wanted: BatchRequest) -> BatchShape:
    """Each line of the file becomes a queued request. `GET /v1/batches/{id}` tells how it goes on."""
    batch = await app.batches.create(
        whose,
        input_file=wanted.input_file_id,
        endpoint=wanted.endpoint,
        window=wanted.completion_window,
        about=wanted.metadata or {},
    )
    app.tasks.wake()
    return await _shape(app, batch)


@router.get("/v1/batches", summary="List the batches, the newest first")
async def list_batches(
    app: App, whose: Whose, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: After = None
) -> BatchList:
    found = await app.batches.store.batches(whose, after=after, limit=limit + 1)
    data = [await _shape(app, batch) for batch in found[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BatchList(data=data, first_id=first, last_id=last, has_more=len(found) > limit)


@router.get("/v1/batches/{batch_id}", summary="Show a batch")
async def show_batch(app: App, whose: Whose, batch_id: BatchId) -> BatchShape:
    return await _shape(app, await app.batches.store.find(batch_id, whose))


@router.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch")
async def cancel_batch(app: App, whose: Whose, batch_id: BatchId) -> BatchShape:
    """What was answered before is in its output file. One that has ended, or is being written, stays as it is."""
    return await _shape(app, await app.tasks.cancel_batch(batch_id, whose))


def _file(file: StoredFile) -> FileShape:
    return FileShape(
        id=file.id,
        bytes=file.size,
        created_at=int(file.created_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
    )


async def _shape(app: Orchestrator, batch: Batch) -> BatchShape:
    """While it is under way its requests are counted, then what was counted is kept."""
    counts = RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed)
    if batch.state in (BatchState.IN_PROGRESS, BatchState.CANCELLING):
        tally = await app.tasks.store.tally_of_batch(batch.id)
        counts.completed, counts.failed = tally.get(TaskState.DONE, 0), tally.get(TaskState.FAILED, 0)
    complete = batch.state.ended and batch.state is not BatchState.FAILED
    return BatchShape(
        id=batch.id,
        endpoint=batch.endpoint,
        errors={"object": "list", "data": batch.errors} if batch.errors else None,
        input_file_id=batch.input_file,
        completion_window=batch.completion_window,
        status=batch.state,
        output_file_id=batch.output_file if complete else None,
        error_file_id=batch.error_file if complete else None,
        created_at=int(batch.created_at.timestamp()),
        in_progress_at=_seconds(batch.in_progress_at),
        expires_at=_seconds(batch.expires_at),
        finalizing_at=_seconds(batch.finalizing_at),
        completed_at=_ended(batch, BatchState.COMPLETED),
        failed_at=_ended(batch, BatchState.FAILED),
        expired_at=_ended(batch, BatchState.EXPIRED),
        cancelling_at=_seconds(batch.cancelling_at),
        cancelled_at=_ended(batch, BatchState.CANCELLED),
        request_counts=counts,
        metadata=batch.about or None,
    )


def _ended(batch: Batch, how: BatchState) -> int | None:
    return _seconds(batch.ended_at) if batch.state is how else None


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())

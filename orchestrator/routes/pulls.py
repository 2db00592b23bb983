"""Models and images that are fetched before jobs need them."""

from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from orchestrator.deps import Actor, App, Orchestrator
from orchestrator.errors import TooLarge
from orchestrator.model_cache import CachedFile
from orchestrator.pulls import Pull, PullState
from orchestrator.routes.strict import MOST_BYTES, StrictRoute, check_query

router = APIRouter(tags=["models"], route_class=StrictRoute)
uploads = APIRouter(tags=["models"])
"""Bodies that are no JSON."""

COMMIT = "^[0-9a-f]{40}$"
_BYTES = {  # none for an empty file
    "required": False,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}, "example": "bytes"}},
}

ModelId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Revision = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
PullId = Annotated[str, Path(description="The id of a pull.", examples=["pull_0123456789abcdef0123456789abcdef"])]


class ModelWanted(BaseModel):
    """`include`: only files that one of these patterns matches, such as `*.json`; without it all but weights in formats
    that no engine would read. `revision`: a branch, a tag or a commit."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"model": "Qwen/Qwen2.5-0.5B-Instruct"}]})

    model: ModelId
    revision: Revision = "main"
    include: Annotated[list[Pattern], Field(max_length=100)] = []


class ImageWanted(BaseModel):
    """`size_gb`: about how large it is; the look at the free space takes 10 where it is not said."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"image": "docker://vllm/vllm-openai:v0.11.2"}]}
    )

    image: Annotated[str, StringConstraints(min_length=1, max_length=320)]
    size_gb: Annotated[float | None, Field(gt=0, le=10_000, strict=True)] = None


class PullShape(BaseModel):
    """A download. `name` is the model or the image. `bytes_total` is null for an image until it is there;
    `bytes_per_second` and `eta_seconds` are null unless it runs; `text` is what apptainer says."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "pull_0123456789abcdef0123456789abcdef",
                    "kind": "model",
                    "name": "Qwen/Qwen2.5-0.5B-Instruct",
                    "revision": "main",
                    "commit": "7ae557604adf67be50417f59c2c2f167def9a775",
                    "status": "running",
                    "path": "/scratch/ada/cache/huggingface/hub/models--Qwen--Qwen2.5-0.5B-Instruct",
                    "files": 9,
                    "bytes_done": 412_000_000,
                    "bytes_total": 999_604_331,
                    "percent": 41.2,
                    "bytes_per_second": 82_000_000.0,
                    "eta_seconds": 7.2,
                    "text": "",
                    "error": None,
                    "created_at": "2026-11-21T12:00:00Z",
                    "started_at": "2026-11-21T12:00:01Z",
                    "ended_at": None,
                }
            ]
        }
    )

    id: str
    kind: Literal["model", "image"]
    name: str
    revision: str | None
    commit: str | None
    status: PullState
    path: str
    files: int
    bytes_done: int
    bytes_total: int | None
    percent: float | None
    bytes_per_second: float | None
    eta_seconds: float | None
    text: str
    error: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, app: Orchestrator, pull: Pull) -> Self:
        progress, runs = app.pulls.progress(pull), pull.state is PullState.RUNNING
        return cls(
            id=pull.id,
            kind=pull.kind,
            name=pull.name,
            revision=pull.revision or None,
            commit=pull.commit or None,
            status=pull.state,
            path=str(pull.target),
            files=len(pull.files),
            bytes_done=progress.done,
            bytes_total=pull.total,
            percent=round(100 * progress.done / pull.total, 1) if pull.total else None,
            bytes_per_second=progress.speed if runs else None,
            eta_seconds=progress.eta(pull.total) if runs else None,
            text=progress.text if runs else "",
            error=pull.error or None,
            created_at=pull.created_at,
            started_at=pull.started_at,
            ended_at=pull.ended_at,
        )


class FileShape(BaseModel):
    """A file of a model. `blob`: the SHA-256 of its content, or for small files what git calls it."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    size: Annotated[int, Field(ge=0, lt=1 << 50, strict=True)]
    blob: Annotated[str, StringConstraints(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")]


class PushWanted(BaseModel):
    """All files of a model that is to be in the jobs' cache."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "me/my-model",
                    "commit": "7ae557604adf67be50417f59c2c2f167def9a775",
                    "files": [{"path": "config.json", "size": 2, "blob": "9e26dfeeb6e641a33dae4961196235bdb965b21b"}],
                }
            ]
        },
    )

    model: ModelId
    revision: Revision = "main"
    commit: Annotated[str, StringConstraints(pattern=COMMIT)]
    files: Annotated[list[FileShape], Field(min_length=1, max_length=5000)]


class Missing(FileShape):
    """`have`: bytes that have come."""

    have: int


class PushShape(BaseModel):
    """`missing` is to be sent; when nothing is, `snapshot` is the folder of the model."""

    missing: list[Missing]
    snapshot: str | None


class Received(BaseModel):
    """`have`: bytes of the file that have come, `complete` whether these are all, and what they should be."""

    have: int
    complete: bool


@router.post("/models/pulls", status_code=202, summary="Download a model before jobs need it")
async def pull_model(app: App, actor: Actor, wanted: ModelWanted) -> PullShape:
    """Into the cache that the jobs use, on the orchestrator's machine. `GET /models/pulls/{id}` tells how it goes on.

    One that is under way for the same model is the answer to a second request. 404 for a model that is not there or
    gated, 503 where the hub cannot be asked, 507 where it would not fit.
    """
    return PullShape.of(app, await app.pulls.model(wanted.model, wanted.revision, wanted.include, actor=actor))


@router.get("/models/pulls", summary="List the downloads of models, the newest first")
async def list_model_pulls(app: App) -> list[PullShape]:
    return [PullShape.of(app, pull) for pull in app.pulls.every() if pull.kind == "model"]


@router.get("/models/pulls/{pull_id}", summary="Show a download of a model")
async def show_model_pull(app: App, pull_id: PullId) -> PullShape:
    return PullShape.of(app, app.pulls.find(pull_id, "model"))


@router.delete("/models/pulls/{pull_id}", summary="Cancel a download of a model")
async def cancel_model_pull(app: App, actor: Actor, pull_id: PullId) -> PullShape:
    """What has come of unfinished files is removed. One that has ended stays as it is."""
    return PullShape.of(app, await app.pulls.cancel(pull_id, "model", actor=actor))


@router.post("/images/pulls", status_code=202, summary="Make a file of a container image before jobs need it")
async def pull_image(app: App, actor: Actor, wanted: ImageWanted) -> PullShape:
    """By apptainer, into `[site] image_dir`; services whose image it is use it from then on."""
    return PullShape.of(app, await app.pulls.image(wanted.image, wanted.size_gb, actor=actor))


@router.get("/images/pulls", summary="List the downloads of images, the newest first")
async def list_image_pulls(app: App) -> list[PullShape]:
    return [PullShape.of(app, pull) for pull in app.pulls.every() if pull.kind == "image"]


@router.get("/images/pulls/{pull_id}", summary="Show a download of an image")
async def show_image_pull(app: App, pull_id: PullId) -> PullShape:
    return PullShape.of(app, app.pulls.find(pull_id, "image"))


@router.delete("/images/pulls/{pull_id}", summary="Cancel a download of an image")
async def cancel_image_pull(app: App, actor: Actor, pull_id: PullId) -> PullShape:
    """What has come of it is removed. One that has ended stays as it is."""
    return PullShape.of(app, await app.pulls.cancel(pull_id, "image", actor=actor))


@router.post("/models/pushes", summary="Begin or finish to send a model")
async def push_model(app: App, actor: Actor, wanted: PushWanted) -> PushShape:
    """Says which files are to be sent with `PUT /models/pushes/content`. Sent again when all have come, it makes the
    model's snapshot in the jobs' cache. A push that broke off is begun again in the same way."""
    files = [CachedFile(file.path, file.size, file.blob) for file in wanted.files]
    begun = await app.pushes.begin(wanted.model, wanted.revision, wanted.commit, files, actor=actor)
    missing = [Missing(**file._asdict(), have=have) for file, have in begun.missing]
    return PushShape(missing=missing, snapshot=None if begun.snapshot is None else str(begun.snapshot))


@uploads.put(
    "/models/pushes/content",
    summary="Send a part of a file of a model",
    response_model=Received,
    openapi_extra={"requestBody": _BYTES},
)
async def push_content(
    app: App,
    request: Request,
    model: Annotated[str, Query(min_length=1, max_length=200, examples=["me/my-model"])],
    path: Annotated[str, Query(min_length=1, max_length=500, examples=["config.json"])],
    size: Annotated[int, Query(ge=0, lt=1 << 50, description="Of the whole file.", examples=[2])],
    blob: Annotated[
        str,
        Query(
            pattern="^([0-9a-f]{40}|[0-9a-f]{64})$",
            description="As in `POST /models/pushes`.",
            examples=["9e26dfeeb6e641a33dae4961196235bdb965b21b"],
        ),
    ],
    offset: Annotated[int, Query(ge=0, lt=1 << 50, description="Where the part begins.", examples=[0])] = 0,
) -> Received:
    """The next bytes of a file, at most 32 MiB; 409 where others are due. With the last ones the file is checked."""
    check_query(request.query_params, ["blob", "model", "offset", "path", "size"])
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MOST_BYTES:
            raise TooLarge(f"the part is larger than {MOST_BYTES >> 20} MiB; send a smaller one")
    have = await app.pushes.write(model, CachedFile(path, size, blob), offset, bytes(data))
    return Received(have=have, complete=have == size)

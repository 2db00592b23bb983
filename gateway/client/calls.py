"""Every operation of the API as a function that makes its request. Ids and names are percent-encoded here."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from gateway.client.call import Call, Flow
from gateway.client.streams import Chunks, Text, Words
from gateway.shapes import (
    JSON,
    Accepted,
    Cancelled,
    Collections,
    Costs,
    FoundModels,
    Group,
    GroupCancelled,
    GroupHealth,
    Logs,
    ModelList,
    PreflightReport,
    PromptAnswer,
    Pull,
    Push,
    Received,
    Recipe,
    Rendered,
    SearchResults,
    Service,
    ServiceCosts,
    ServiceDetail,
    ServiceRow,
    Slot,
    Status,
    Task,
    TaskCancelled,
    TaskListed,
    VectorDbServices,
)

Message = Mapping[str, Any]
"""`role` and `content`, as OpenAI has them."""


def start(recipe: str, config: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None) -> Call[Service]:
    """Start a service. The key, made here unless it is given, lets the request be sent again without a second job."""
    key = idempotency_key or secrets.token_hex(16)
    body = {"recipe_name": recipe, "config": dict(config or {})}
    return Call("POST", "/api/v1/services", body=body, headers={"Idempotency-Key": key}, repeatable=True)


def retry(
    service_id: str, changes: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
) -> Call[Service]:
    """Start one that failed again, with the changes of its diagnosis and these. The key is as in `start`."""
    key, body = idempotency_key or secrets.token_hex(16), {"changes": dict(changes or {})}
    path = f"/api/v1/services/{_name(service_id)}/retry"
    return Call("POST", path, body=body, headers={"Idempotency-Key": key}, repeatable=True)


def services(
    *, status: str | None = None, recipe: str | None = None, limit: int | None = None, offset: int | None = None
) -> Call[list[ServiceRow]]:
    """One page, the newest first."""
    return _get("/api/v1/services", status=status, recipe=recipe, limit=limit, offset=offset)


def service(service_id: str) -> Call[ServiceDetail]:
    return _get(f"/api/v1/services/{_name(service_id)}")


def status(service_id: str) -> Call[Status]:
    return _get(f"/api/v1/services/{_name(service_id)}/status")


def cancel(service_id: str) -> Call[Cancelled]:
    return _post(f"/api/v1/services/{_name(service_id)}/status", {"status": "cancelled"}, repeatable=True)


def logs(service_id: str, *, tail: int | None = None) -> Call[Logs]:
    """`tail`: only the last lines of each output."""
    return _get(f"/api/v1/services/{_name(service_id)}/logs", tail=tail)


def follow(service_id: str, *, tail: int | None = None) -> Flow[str]:
    """The output as it grows, until the service ends."""
    path = f"/api/v1/services/{_name(service_id)}/logs"
    return Flow(Call("GET", path, _given(follow=1, tail=tail), seconds=None), Text)


def groups(*, limit: int | None = None, offset: int | None = None) -> Call[list[Group]]:
    return _get("/api/v1/service-groups", limit=limit, offset=offset)


def group(group_id: str) -> Call[Group]:
    return _get(f"/api/v1/service-groups/{_name(group_id)}")


def group_status(group_id: str) -> Call[GroupHealth]:
    return _get(f"/api/v1/service-groups/{_name(group_id)}/status")


def cancel_group(group_id: str) -> Call[GroupCancelled]:
    return _post(f"/api/v1/service-groups/{_name(group_id)}/status", {"status": "cancelled"}, repeatable=True)


def recipes() -> Call[list[Recipe]]:
    return _get("/api/v1/recipes")


def recipe(name: str) -> Call[Recipe]:
    """By its name or its full name."""
    return _get("/api/v1/recipes", name=name)


def prompt(service_id: str, prompt: str, **options: Any) -> Call[PromptAnswer]:
    """`options`: max_tokens, temperature, model, and any other sampling field."""
    return _post(f"/api/v1/vllm/{_name(service_id)}/prompt", options | {"prompt": prompt}, seconds=None)


def chat(model: str, messages: Sequence[Message], **options: Any) -> Flow[str]:
    """The answer's words as they come."""
    return Flow(_chat(model, messages, options), Words)


def chat_chunks(model: str, messages: Sequence[Message], **options: Any) -> Flow[JSON]:
    """OpenAI's chunks as they come."""
    return Flow(_chat(model, messages, options), Chunks)


def _chat(model: str, messages: Sequence[Message], options: JSON) -> Call[Any]:
    body = options | {"model": model, "messages": [dict(message) for message in messages], "stream": True}
    return _post("/v1/chat/completions", body, seconds=None)


def chat_later(
    model: str, messages: Sequence[Message], *, idempotency_key: str | None = None, **options: Any
) -> Call[Accepted]:
    """Queue a chat; `job` and `job_result` tell of it."""
    key = idempotency_key or secrets.token_hex(16)
    body = options | {"model": model, "messages": [dict(message) for message in messages], "async": True}
    return Call("POST", "/v1/chat/completions", body=body, headers={"Idempotency-Key": key}, repeatable=True)


def models() -> Call[ModelList]:
    """Those that answer, and those that are started when they are asked for."""
    return _get("/v1/models")


def search_models(
    query: str | None = None,
    *,
    architecture: str | None = None,
    limit: int | None = None,
    sort_by: str | None = None,
) -> Call[FoundModels]:
    """Of the Hugging Face Hub."""
    return _get("/api/v1/vllm/search-models", query=query, architecture=architecture, limit=limit, sort_by=sort_by)


def pull_model(model: str, *, revision: str | None = None, include: Sequence[str] = ()) -> Call[Pull]:
    """Download a model before jobs need it; `model_pull` tells how it goes on. `include`: patterns of files."""
    body: JSON = {"model": model, "include": list(include)} | ({} if revision is None else {"revision": revision})
    return _post("/api/v1/models/pulls", body, repeatable=True)


def model_pulls() -> Call[list[Pull]]:
    return _get("/api/v1/models/pulls")


def model_pull(pull_id: str) -> Call[Pull]:
    return _get(f"/api/v1/models/pulls/{_name(pull_id)}")


def cancel_model_pull(pull_id: str) -> Call[Pull]:
    return Call("DELETE", f"/api/v1/models/pulls/{_name(pull_id)}", repeatable=True)


def pull_image(image: str, *, size_gb: float | None = None) -> Call[Pull]:
    """Make a file of a container image before jobs need it."""
    body: JSON = {"image": image} | ({} if size_gb is None else {"size_gb": size_gb})
    return _post("/api/v1/images/pulls", body, repeatable=True)


def image_pulls() -> Call[list[Pull]]:
    return _get("/api/v1/images/pulls")


def image_pull(pull_id: str) -> Call[Pull]:
    return _get(f"/api/v1/images/pulls/{_name(pull_id)}")


def cancel_image_pull(pull_id: str) -> Call[Pull]:
    return Call("DELETE", f"/api/v1/images/pulls/{_name(pull_id)}", repeatable=True)


def push_model(model: str, commit: str, files: Sequence[Mapping[str, Any]], *, revision: str = "main") -> Call[Push]:
    """Begin to send a model, or finish it: each file has `path`, `size` and `blob`."""
    body = {"model": model, "revision": revision, "commit": commit, "files": [dict(file) for file in files]}
    return _post("/api/v1/models/pushes", body, repeatable=True)


def push_content(model: str, file: Mapping[str, Any], offset: int, data: bytes) -> Call[Received]:
    """Send the next bytes of a file, at most 32 MiB. Not repeatable: what has come is due no more."""
    params = {"model": model, "path": file["path"], "size": file["size"], "blob": file["blob"], "offset": offset}
    headers = {"Content-Type": "application/octet-stream"}
    return Call("PUT", "/api/v1/models/pushes/content", params, content=data, headers=headers)


def preflight(
    model: str | None = None,
    *,
    recipe: str | None = None,
    config: Mapping[str, Any] | None = None,
    gpu_memory_gb: float | None = None,
) -> Call[PreflightReport]:
    body: JSON = {"config": dict(config or {})}
    wanted = {"recipe_name": recipe, "model": model, "gpu_memory_gb": gpu_memory_gb}
    body |= {name: value for name, value in wanted.items() if value is not None}
    return _post("/api/v1/preflight", body, repeatable=True)


def render(recipe: str, config: Mapping[str, Any] | None = None) -> Call[Rendered]:
    """The script that `start` would submit. Nothing is submitted."""
    return _post("/api/v1/render", {"recipe_name": recipe, "config": dict(config or {})}, repeatable=True)


def costs(*, since: str | None = None, until: str | None = None, group_by: str | None = None) -> Call[Costs]:
    """`group_by`: service, user, key, model or recipe."""
    return _get("/api/v1/costs", since=since, until=until, group_by=group_by)


def service_costs(service_id: str) -> Call[ServiceCosts]:
    return _get(f"/api/v1/services/{_name(service_id)}/costs")


def slots() -> Call[list[Slot]]:
    return _get("/slots")


def slot(name: str) -> Call[Slot]:
    return _get(f"/slots/{_name(name)}")


def switch_slot(name: str, model: str | None) -> Call[Slot]:
    """Load another model; None: nothing."""
    return _post(f"/slots/{_name(name)}/switch", {"model": model})


def jobs(*, status: str | None = None, limit: int | None = None, offset: int | None = None) -> Call[list[TaskListed]]:
    """The requests that are answered later, the newest first."""
    return _get("/jobs", status=status, limit=limit, offset=offset)


def job(job_id: str) -> Call[Task]:
    return _get(f"/jobs/{_name(job_id)}")


def job_result(job_id: str) -> Call[Any]:
    """The engine's own answer; until there is one, the same as `job`."""
    return _get(f"/jobs/{_name(job_id)}/result")


def cancel_job(job_id: str) -> Call[TaskCancelled]:
    return _post(f"/jobs/{_name(job_id)}/cancel", None, repeatable=True)


def vector_dbs() -> Call[VectorDbServices]:
    return _get("/api/v1/vector-db/services")


def collections(service_id: str) -> Call[Collections]:
    return _get(f"/api/v1/vector-db/{_name(service_id)}/collections")


def create_collection(service_id: str, collection: str, vector_size: int, *, distance: str = "Cosine") -> Call[JSON]:
    return Call("PUT", _collection(service_id, collection), body={"vector_size": vector_size, "distance": distance})


def delete_collection(service_id: str, collection: str) -> Call[JSON]:
    return Call("DELETE", _collection(service_id, collection))


def upsert(service_id: str, collection: str, points: Sequence[Mapping[str, Any]]) -> Call[JSON]:
    """Each point has `id`, `vector` and, if it likes, `payload`."""
    path = f"{_collection(service_id, collection)}/points"
    return Call("PUT", path, body={"points": [dict(point) for point in points]}, repeatable=True)


def search(service_id: str, collection: str, vector: Sequence[float], *, limit: int = 10) -> Call[SearchResults]:
    path = f"{_collection(service_id, collection)}/points/search"
    return _post(path, {"query_vector": list(vector), "limit": limit}, repeatable=True)


def health() -> Call[JSON]:
    return _get("/health")


def _collection(service_id: str, collection: str) -> str:
    return f"/api/v1/vector-db/{_name(service_id)}/collections/{_name(collection)}"


def _get(path: str, **params: str | int | None) -> Call[Any]:
    return Call("GET", path, _given(**params), repeatable=True)


def _post(path: str, body: Any, *, seconds: float | None = 90, repeatable: bool = False) -> Call[Any]:
    return Call("POST", path, body=body, seconds=seconds, repeatable=repeatable)


def _given(**params: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in params.items() if value is not None}


def _name(value: str) -> str:
    return quote(value, safe=":@")

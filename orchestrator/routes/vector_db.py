"""Vector databases: the simple routes, and Qdrant's whole REST API as it is under `…/qdrant`."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import APIRouter, Body, Path
from pydantic import AfterValidator
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orchestrator import vectors
from orchestrator.access import BETWEEN_US
from orchestrator.deps import App, Orchestrator, Wanted, check_ready, find
from orchestrator.errors import BadRequest, EngineError, NotFound
from orchestrator.relay import Interrupted, RelayError, relay
from orchestrator.replicas import Replica
from orchestrator.routes.services import ServiceId
from orchestrator.routes.shapes import (
    Collection,
    CollectionCreated,
    CollectionDeleted,
    Collections,
    Failure,
    PointsUpserted,
    QdrantAnswer,
    SearchResults,
    VectorDbService,
    VectorDbServices,
    endpoint_of,
    public_id,
)
from orchestrator.routes.strict import StrictRoute

log = logging.getLogger(__name__)

router = APIRouter(tags=["vector-db"], route_class=StrictRoute)
native = APIRouter(tags=["vector-db"])

CollectionName = Annotated[
    str,
    Path(description="The name of a collection.", examples=["my_documents"]),
    AfterValidator(vectors.check_name),
]
CollectionBody = Annotated[dict[str, Any], Body(examples=[{"vector_size": 384, "distance": "Cosine"}])]
PointsBody = Annotated[
    dict[str, Any],
    Body(
        examples=[
            {
                "points": [
                    {"id": 1, "vector": [0.1, 0.2, 0.3, 0.4], "payload": {"text": "First document"}},
                    {"id": 2, "vector": [0.4, 0.5, 0.6, 0.7], "payload": {"text": "Second document"}},
                ]
            }
        ]
    ),
]
SearchBody = Annotated[dict[str, Any], Body(examples=[{"query_vector": [0.1, 0.2, 0.3, 0.4], "limit": 5}])]
# Of the routes that also take a body of Qdrant's own API.
_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {
        "model": Failure | QdrantAnswer,
        "description": "The request is wrong; a refusal of Qdrant's own is as it is.",
    }
    for status in (400, 404, 409, 422)
}
# What Qdrant answers besides is its web pages and the switches of its own process.
_RELAYED = (
    "collections", "aliases", "snapshots", "cluster", "telemetry", "metrics", "locks", "issues", "healthz", "livez",
    "readyz",
)  # fmt: skip
# Of these, what only looks at how it does; the root is its name and version.
_LOOKS = ("", "telemetry", "metrics", "healthz", "livez", "readyz")
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@router.get("/vector-db/services", summary="List the vector databases")
async def list_vector_db_services(app: App) -> VectorDbServices:
    """All services of the category vector-db that have not ended."""
    rows = [
        (s, j)
        for s, j in await app.store.open_services()
        if s.recipe_name.startswith(vectors.CATEGORY) and not app.status(s, j).ended
    ]
    return VectorDbServices(
        vector_db_services=[
            VectorDbService(
                id=public_id(service),
                name=service.name,
                recipe_name=service.recipe_name,
                endpoint=endpoint_of(app, service),
                status=app.status(service, job),
            )
            for service, job in rows
        ]
    )


@router.get("/vector-db/{service_id}/collections", summary="List the collections")
async def list_collections(app: App, service_id: ServiceId) -> Collections:
    wanted, replica = await ready(app, service_id)
    with replica.lease(app.watcher.clock):
        names = await vectors.list_collections(replica)
    return Collections(success=True, collections=names, service_id=wanted.id, endpoint=replica.url)


@router.get("/vector-db/{service_id}/collections/{collection}", summary="Show a collection")
async def show_collection(app: App, service_id: ServiceId, collection: CollectionName) -> Collection:
    """`collection_info` is Qdrant's own description."""
    wanted, replica = await ready(app, service_id)
    with replica.lease(app.watcher.clock):
        info = await vectors.show_collection(replica, collection)
    return Collection(collection_info=info, **common(wanted, replica, collection))


@router.put(
    "/vector-db/{service_id}/collections/{collection}",
    summary="Create a collection",
    response_model=CollectionCreated | QdrantAnswer,
    responses=_REFUSED,
)
async def create_collection(
    app: App, service_id: ServiceId, collection: CollectionName, request: Request, body: CollectionBody
) -> CollectionCreated | Response:
    """`{"vector_size": 384, "distance": "Cosine"}`. A body of Qdrant's own API (`vectors`) is passed on as it is."""
    wanted, replica = await ready(app, service_id)
    asked = vectors.collection_asked(body)
    if asked is None:
        return Relayed(app, replica, f"/collections/{quote(collection, safe='')}", await request.body())
    with replica.lease(app.watcher.clock):
        await vectors.create_collection(replica, collection, asked)
    return CollectionCreated(
        message=f"Collection '{collection}' created successfully",
        vector_size=asked.vector_size,
        distance=asked.distance,
        **common(wanted, replica, collection),
    )


@router.delete("/vector-db/{service_id}/collections/{collection}", summary="Delete a collection with all its points")
async def delete_collection(app: App, service_id: ServiceId, collection: CollectionName) -> CollectionDeleted:
    wanted, replica = await ready(app, service_id)
    with replica.lease(app.watcher.clock):
        await vectors.delete_collection(replica, collection)
    told = f"Collection '{collection}' deleted successfully"
    return CollectionDeleted(message=told, **common(wanted, replica, collection))


@router.put(
    "/vector-db/{service_id}/collections/{collection}/points",
    summary="Insert or replace points",
    response_model=PointsUpserted | QdrantAnswer,
    responses=_REFUSED,
)
async def upsert_points(
    app: App, service_id: ServiceId, collection: CollectionName, request: Request, body: PointsBody
) -> PointsUpserted | Response:
    """`{"points": [{"id": 1, "vector": [0.1, …], "payload": {…}}]}`. Qdrant's own `batch` is passed on as it is."""
    wanted, replica = await ready(app, service_id)
    await vectors.load_client()
    points = await asyncio.to_thread(vectors.points_asked, body)
    if points is None:
        return Relayed(app, replica, f"/collections/{quote(collection, safe='')}/points", await request.body())
    with replica.lease(app.watcher.clock):
        await vectors.upsert(replica, collection, points)
    told = f"Upserted {len(points)} points into collection '{collection}'"
    return PointsUpserted(message=told, num_points=len(points), **common(wanted, replica, collection))


@router.post(
    "/vector-db/{service_id}/collections/{collection}/points/search",
    summary="Find the nearest points",
    response_model=SearchResults | QdrantAnswer,
    responses=_REFUSED,
)
async def search_points(
    app: App, service_id: ServiceId, collection: CollectionName, request: Request, body: SearchBody
) -> SearchResults | Response:
    """`{"query_vector": [0.1, …], "limit": 10}`. A body of Qdrant's own API (`vector`) is passed on as it is."""
    wanted, replica = await ready(app, service_id)
    asked = vectors.search_asked(body)
    if asked is None:
        return Relayed(app, replica, f"/collections/{quote(collection, safe='')}/points/search", await request.body())
    with replica.lease(app.watcher.clock):
        found = await vectors.search(replica, collection, asked)
    return SearchResults(results=found, result=found, num_results=len(found), **common(wanted, replica, collection))


@router.post(
    "/vector-db/{service_id}/collections/{collection}/search",
    summary="Find the nearest points",
    response_model=SearchResults | QdrantAnswer,
    responses=_REFUSED,
)
async def search_points_short(
    app: App, service_id: ServiceId, collection: CollectionName, request: Request, body: SearchBody
) -> SearchResults | Response:
    """The same as `POST …/points/search`."""
    return await search_points(app, service_id, collection, request, body)


@router.get(
    "/vector-db/{service_id}/metrics",
    summary="Show a vector database's own metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text", "content": {"text/plain": {}}}},
)
async def show_metrics(app: App, service_id: ServiceId) -> Response:
    """Qdrant's Prometheus text."""
    _, replica = await ready(app, service_id)
    return Relayed(app, replica, "/metrics")


@native.api_route("/vector-db/{service_id}/qdrant", methods=METHODS, include_in_schema=False)
@native.api_route("/vector-db/{service_id}/qdrant/{path:path}", methods=METHODS, include_in_schema=False)
async def relay_to_qdrant(app: App, service_id: ServiceId, request: Request) -> Response:
    """Qdrant's REST API, untouched."""
    _, replica = await ready(app, service_id)
    target = native_target(request.scope)
    if not is_relayed(target):
        there_is = ", ".join(f"/{name}" for name in _RELAYED)
        raise NotFound(f"Of Qdrant's own API there is {there_is}, not {target[:200]}")
    return Relayed(app, replica, target)


def native_target(scope: Mapping[str, Any]) -> str:
    """What stands behind `…/vector-db/{id}/qdrant` in the raw path, with the query."""
    raw = str(scope["raw_path"].decode("latin-1"))
    below = raw.partition("/vector-db/")[2].split("/", 2)[2:]
    query = scope["query_string"].decode("latin-1")
    return f"/{''.join(below)}{'?' if query else ''}{query}"


def is_relayed(target: str) -> bool:
    """Whether a path is one of Qdrant's API, for data and for looking at it. Pure."""
    segments = [unquote(segment) for segment in target.partition("?")[0].split("/")[1:]]
    known = segments == [""] or segments[0] in _RELAYED
    return known and not any(segment in (".", "..") for segment in segments)


def is_use(target: str) -> bool:
    """Whether a path of Qdrant's own is asked for the data, not to look at how it does. Pure."""
    return unquote(target.partition("?")[0].split("/")[1]) not in _LOOKS


async def ready(app: Orchestrator, service_id: str) -> tuple[Wanted, Replica]:
    """A vector database that answers. Raises NotFound, BadRequest for another kind of service, NotReady, Conflict."""
    wanted = await find(app, service_id)
    if not wanted.service.recipe_name.startswith(vectors.CATEGORY):
        raise BadRequest(
            f"Service {wanted.id} is {wanted.service.recipe_name}, not a vector database; GET /vector-db/services "
            "lists those that are"
        )
    return wanted, check_ready(app, wanted)


def common(wanted: Wanted, replica: Replica, collection: str) -> dict[str, Any]:
    """The fields of every answer about one collection."""
    return {"success": True, "service_id": wanted.id, "endpoint": replica.url, "collection_name": collection}


class Relayed(Response):
    """Qdrant's own answer to the client's request, both as they are. `content`: the body where it is received already.

    The engine's key takes the place of the client's credentials.
    """

    def __init__(self, app: Orchestrator, replica: Replica, target: str, content: bytes | None = None) -> None:
        super().__init__()
        self._app, self._replica, self._target, self._received = app, replica, target, content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in BETWEEN_US]
        headers += [(name.encode(), value.encode()) for name, value in vectors.key_headers(self._replica).items()]
        try:
            with self._replica.lease(self._app.watcher.clock, used=is_use(self._target)):
                await relay(
                    self._app.engines, scope, receive, send,
                    url=self._replica.url, target=self._target.encode("latin-1"), headers=headers,
                    content=self._received,
                )  # fmt: skip
        except RelayError as exc:
            raise EngineError(f"replica {self._replica.id} gave no answer: {exc}") from exc
        except Interrupted as exc:
            # Returning with the answer unfinished makes the server cut the connection: the client must notice.
            log.warning("replica %s broke off within its answer: %s", self._replica.id, exc)

"""Collections and points: the simple questions of the HTTP API, put to a Qdrant through its own client.

Two dialects meet on the simple paths: ours (`vector_size`, `query_vector`), and Qdrant's own (`vectors`, `vector`),
which is passed on untouched. `collection_asked`, `points_asked` and `search_asked` tell them apart: None is Qdrant's.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import BadRequest, EngineError, NotFound
from orchestrator.replicas import Replica

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient
    from qdrant_client.models import PointStruct

CATEGORY = "vector-db/"  # recipes of this category start a Qdrant
DISTANCES = ("Cosine", "Euclid", "Dot", "Manhattan")
SECONDS = 300  # that one operation of Qdrant may take; its client's default of 5 is too short for many points


@dataclass(frozen=True)
class CollectionAsked:
    """A new collection. `vector_size`: numbers in each vector."""

    vector_size: int
    distance: str


@dataclass(frozen=True)
class SearchAsked:
    query_vector: list[float]
    limit: int


def collection_asked(body: Mapping[str, Any]) -> CollectionAsked | None:
    """What our dialect asks for; None for Qdrant's own. Raises BadRequest for a mixture and for a wrong value."""
    if not _is_ours(body, "vector_size", ("distance",), "vectors"):
        return None
    size, distance = body["vector_size"], body.get("distance", "Cosine")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise BadRequest(f"vector_size is {json.dumps(size)[:100]}; write a whole number from 1 on, e.g. 384")
    known = {name.lower(): name for name in DISTANCES}
    if str(distance).lower() not in known:
        raise BadRequest(f"distance is {json.dumps(distance)[:100]}; allowed: {', '.join(DISTANCES)}")
    return CollectionAsked(size, known[str(distance).lower()])


def search_asked(body: Mapping[str, Any]) -> SearchAsked | None:
    """What our dialect asks for; None for Qdrant's own. Raises BadRequest for a mixture and for a wrong value."""
    if not _is_ours(body, "query_vector", ("limit",), "vector"):
        return None
    vector, limit = body["query_vector"], body.get("limit", 10)
    if not isinstance(vector, list) or not all(_is_number(x) for x in vector):
        raise BadRequest("query_vector must be a list of numbers that a float can hold, e.g. [0.1, 0.2, 0.3]")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise BadRequest(f"limit is {json.dumps(limit)[:100]}; write a whole number from 1 on")
    return SearchAsked(vector, limit)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_finite(value: Any) -> bool:
    """False where a number such as 1e999 is in it, which JSON can say but no float can hold."""
    if isinstance(value, dict):
        return all(_is_finite(part) for part in value.values())
    if isinstance(value, list):
        return all(_is_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)


def check_name(name: str) -> str:
    """A collection's name as it came in a path. Raises BadRequest for one that would make another path of it."""
    if name in (".", ".."):
        raise BadRequest(f"the collection's name is {name!r}, which is a path; choose a name with a letter or digit")
    return name


def _is_ours(body: Mapping[str, Any], ours: str, more: tuple[str, ...], theirs: str) -> bool:
    others = [name for name in body if name not in (ours, *more)]
    if ours in body and others:
        raise BadRequest(
            f"the body mixes {ours!r} with {others[0][:100]!r} of Qdrant's own API. Send only {ours!r} and "
            f"{more[0]!r}, or only Qdrant's own {theirs!r} and its other fields."
        )
    if ours not in body and not others:
        raise BadRequest(f"{ours} is required (or {theirs!r}, as in Qdrant's own API)")
    return ours in body


def points_asked(body: Mapping[str, Any]) -> list[PointStruct] | None:
    """The points of a body `{"points": [{"id", "vector", "payload"?}]}`; None for Qdrant's `batch`. Raises BadRequest.

    Takes its time for many points: call it in a thread.
    """
    from qdrant_client.models import PointStruct

    if "batch" in body:
        return None
    points = body.get("points")
    if not isinstance(points, list) or not points:
        raise BadRequest('points is required: {"points": [{"id": 1, "vector": [0.1, 0.2], "payload": {"text": "…"}}]}')
    try:
        checked = TypeAdapter(list[PointStruct]).validate_python(points)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise BadRequest(f"points.{'.'.join(map(str, first['loc']))}: {first['msg']}") from exc
    for index, point in enumerate(checked):
        if not _is_finite(point.payload):  # it would be stored as null
            raise BadRequest(f"points.{index}.payload has a number that is too large for a float")
    return checked


async def load_client() -> None:
    """Import Qdrant's client where it is not yet: 2 s and 90 MB, so only when it is needed, and in a thread."""
    await asyncio.to_thread(importlib.import_module, "qdrant_client")


@asynccontextmanager
async def connected(replica: Replica) -> AsyncIterator[AsyncQdrantClient]:
    """Qdrant's client for one replica. Raises EngineError in Qdrant's own words, with its status where it refused."""
    await load_client()
    from qdrant_client import AsyncQdrantClient
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    # A service is asked over plain HTTP: reading the certificates would be most of the work. No proxy is asked either.
    client = AsyncQdrantClient(
        url=replica.url, headers=key_headers(replica), timeout=SECONDS, check_compatibility=False,
        verify=False, trust_env=False,
    )  # fmt: skip
    try:
        yield client
    except UnexpectedResponse as exc:
        raise EngineError(refusal_words(exc.content), upstream_status=exc.status_code) from exc
    except ResponseHandlingException as exc:
        raise EngineError(f"replica {replica.id} gave no answer of Qdrant's: {exc.source!r}"[:1000]) from exc
    finally:
        await client.close()


def key_headers(replica: Replica) -> dict[str, str]:
    return {"api-key": replica.key} if replica.key else {}


def refusal_words(content: bytes) -> str:
    """The text in Qdrant's `{"status": {"error": text}}`, or all of it where it is something else."""
    try:
        return str(json.loads(content)["status"]["error"])[:2000]
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")[:2000] or "Qdrant refused without a reason"


async def list_collections(replica: Replica) -> list[str]:
    async with connected(replica) as client:
        return [collection.name for collection in (await client.get_collections()).collections]


async def show_collection(replica: Replica, name: str) -> dict[str, Any]:
    async with connected(replica) as client:
        return (await client.get_collection(name)).model_dump(mode="json")


async def create_collection(replica: Replica, name: str, asked: CollectionAsked) -> None:
    async with connected(replica) as client:
        from qdrant_client.models import Distance, VectorParams

        vectors = VectorParams(size=asked.vector_size, distance=Distance(asked.distance))
        await client.create_collection(name, vectors_config=vectors)


async def delete_collection(replica: Replica, name: str) -> None:
    """Raises NotFound where there is none: to Qdrant that is no error."""
    async with connected(replica) as client:
        if not await client.delete_collection(name):
            raise NotFound(f"Collection {name!r} doesn't exist; GET /vector-db/…/collections lists what there is")


async def upsert(replica: Replica, name: str, points: list[PointStruct]) -> None:
    """Insert or replace points; done when this returns."""
    async with connected(replica) as client:
        await client.upsert(name, points, wait=True)


async def search(replica: Replica, name: str, asked: SearchAsked) -> list[dict[str, Any]]:
    """The nearest points, the best first: id, score, payload."""
    async with connected(replica) as client:
        found = await client.query_points(name, query=asked.query_vector, limit=asked.limit, with_payload=True)
    return [{"id": point.id, "score": point.score, "payload": point.payload} for point in found.points]

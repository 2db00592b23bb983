"""Qdrant's REST API over the local mode of qdrant-client: a small vector database where no Qdrant can run.

    python serve.py --host 127.0.0.1 --port 6333 --storage DIR

A standalone program: starlette, uvicorn and qdrant-client, run by whatever interpreter the site names. It also starts
the way a real Qdrant does, from QDRANT__SERVICE__HOST, QDRANT__SERVICE__HTTP_PORT and QDRANT__STORAGE__STORAGE_PATH,
so a site without a Qdrant can name it as [site.engines.qdrant] command. The API key is read from
QDRANT__SERVICE__API_KEY, since other users can read a command line; `/`, /healthz, /livez and /readyz need none.

Local mode is the vendor's own re-implementation in Python: exact search without an index, good for some 20,000 points.
It has no snapshots, shards or cluster (501), and `GET /` says that it is embedded. It is not thread-safe, so one thread
makes all calls to it. Exit code 2: something is missing, 1: the storage cannot be used; stderr says what.
"""

import argparse
import asyncio
import functools
import hmac
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

try:
    import uvicorn
    from pydantic import BaseModel, TypeAdapter, ValidationError
    from pydantic_core import from_json, to_json
    from qdrant_client import QdrantClient
    from qdrant_client import models as m
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    sys.stderr.write(
        f"serve.py: {sys.executable} cannot import {error.name}; install it there: "
        "pip install qdrant-client starlette uvicorn\n"
    )
    sys.exit(2)

MOST_BYTES = 32 * 1024 * 1024  # of a request's body: Qdrant's own default
OPEN_PATHS = ("/", "/healthz", "/livez", "/readyz")  # those that Qdrant answers without a key
# What local mode raises for a request that makes no sense. KeyError: an unknown point or vector.
FAULTS = (ValueError, KeyError, TypeError, AssertionError, IndexError, AttributeError, ImportError)
LACKING = re.compile(r"/(snapshots|shards|cluster|optimizations|quotas|issues)(/|$)")


class Refused(Exception):
    """A request that is refused with one of Qdrant's statuses, in Qdrant's words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Call:
    """One request: the collection and the second name of its path ("" for none), and its checked body."""

    collection: str
    name: str
    body: Any


@dataclass(frozen=True)
class Operation:
    """A method and path of Qdrant's REST API. `body`: the type of the body; `run`: what gives the `result`."""

    method: str
    path: str
    run: Callable[[QdrantClient, Call], Any]
    body: Any = None
    needs_collection: bool = True


class NamedVector(BaseModel, extra="forbid"):
    name: str
    vector: m.SparseVector | list[float]


class ClassicSearch(BaseModel, extra="forbid"):
    """The body of `points/search`, which qdrant-client has no model for any more."""

    vector: NamedVector | list[float]
    limit: int
    offset: int | None = None
    filter: m.Filter | None = None
    params: m.SearchParams | None = None
    with_payload: m.WithPayloadInterface | None = None
    with_vector: m.WithVector | None = None
    score_threshold: float | None = None


# --- collections


def list_collections(client: QdrantClient, call: Call) -> Any:
    return client.get_collections()


def show_collection(client: QdrantClient, call: Call) -> Any:
    return client.get_collection(call.collection)


def collection_exists(client: QdrantClient, call: Call) -> Any:
    return {"exists": client.collection_exists(call.collection)}


def create_collection(client: QdrantClient, call: Call) -> Any:
    if client.collection_exists(call.collection):
        raise Refused(409, f"Wrong input: Collection `{call.collection}` already exists!")
    return client.create_collection(
        call.collection,
        vectors_config=call.body.vectors,
        sparse_vectors_config=call.body.sparse_vectors,
        metadata=call.body.metadata,
    )


def update_collection(client: QdrantClient, call: Call) -> Any:
    client.update_collection(
        call.collection,
        vectors_config=call.body.vectors,
        sparse_vectors_config=call.body.sparse_vectors,
        metadata=call.body.metadata,
    )
    return True


def delete_collection(client: QdrantClient, call: Call) -> Any:
    return client.delete_collection(call.collection)


def create_vector_name(client: QdrantClient, call: Call) -> Any:
    return client.create_vector_name(call.collection, call.name, call.body)


def delete_vector_name(client: QdrantClient, call: Call) -> Any:
    return client.delete_vector_name(call.collection, call.name)


def list_aliases(client: QdrantClient, call: Call) -> Any:
    return client.get_collection_aliases(call.collection) if call.collection else client.get_aliases()


def change_aliases(client: QdrantClient, call: Call) -> Any:
    return client.update_collection_aliases(call.body.actions)


def create_index(client: QdrantClient, call: Call) -> Any:
    return client.create_payload_index(call.collection, call.body.field_name, call.body.field_schema)


def delete_index(client: QdrantClient, call: Call) -> Any:
    return client.delete_payload_index(call.collection, call.name)


# --- points


def upsert(client: QdrantClient, call: Call) -> Any:
    points = call.body.points if isinstance(call.body, m.PointsList) else call.body.batch
    more = {"update_filter": call.body.update_filter, "update_mode": call.body.update_mode}
    return client.upsert(call.collection, points, **more)


def retrieve(client: QdrantClient, call: Call) -> Any:
    wanted = {"with_payload": default(call.body.with_payload, True), "with_vectors": default(call.body.with_vector)}
    return client.retrieve(call.collection, call.body.ids, **wanted)


def show_point(client: QdrantClient, call: Call) -> Any:
    point_id = int(call.name) if call.name.isdecimal() else call.name
    found = client.retrieve(call.collection, [point_id], with_payload=True, with_vectors=True)
    if not found:
        raise Refused(404, f"Not found: Point with id {call.name} does not exists!")
    return found[0]


def delete_points(client: QdrantClient, call: Call) -> Any:
    return client.delete(call.collection, call.body)


def set_payload(client: QdrantClient, call: Call) -> Any:
    return client.set_payload(call.collection, call.body.payload, selected(call.body), key=call.body.key)


def overwrite_payload(client: QdrantClient, call: Call) -> Any:
    return client.overwrite_payload(call.collection, call.body.payload, selected(call.body))


def delete_payload(client: QdrantClient, call: Call) -> Any:
    return client.delete_payload(call.collection, call.body.keys, selected(call.body))


def clear_payload(client: QdrantClient, call: Call) -> Any:
    return client.clear_payload(call.collection, call.body)


def update_vectors(client: QdrantClient, call: Call) -> Any:
    return client.update_vectors(call.collection, call.body.points, update_filter=call.body.update_filter)


def delete_vectors(client: QdrantClient, call: Call) -> Any:
    return client.delete_vectors(call.collection, call.body.vector, selected(call.body))


def update_batch(client: QdrantClient, call: Call) -> Any:
    return client.batch_update_points(call.collection, call.body.operations)


def scroll(client: QdrantClient, call: Call) -> Any:
    points, next_page = client.scroll(
        call.collection,
        scroll_filter=call.body.filter,
        limit=default(call.body.limit, 10),
        order_by=call.body.order_by,
        offset=call.body.offset,
        with_payload=default(call.body.with_payload, True),
        with_vectors=default(call.body.with_vector),
    )
    return {"points": points, "next_page_offset": next_page}


def count(client: QdrantClient, call: Call) -> Any:
    return client.count(call.collection, call.body.filter)


def facet(client: QdrantClient, call: Call) -> Any:
    limit = default(call.body.limit, 10)
    return client.facet(call.collection, call.body.key, facet_filter=call.body.filter, limit=limit)


# --- search


def query_points(client: QdrantClient, call: Call) -> Any:
    return query(client, call.collection, call.body)


def query_batch(client: QdrantClient, call: Call) -> Any:
    return [query(client, call.collection, request) for request in call.body.searches]


def query(client: QdrantClient, collection: str, request: m.QueryRequest) -> m.QueryResponse:
    check_lengths(client, collection, request)
    return client.query_points(
        collection,
        query=request.query,
        using=request.using,
        prefetch=request.prefetch,
        query_filter=request.filter,
        search_params=request.params,
        limit=default(request.limit, 10),
        offset=request.offset,
        with_payload=default(request.with_payload),
        with_vectors=default(request.with_vector),
        score_threshold=request.score_threshold,
        lookup_from=request.lookup_from,
    )


def query_groups(client: QdrantClient, call: Call) -> Any:
    check_lengths(client, call.collection, call.body)
    return client.query_points_groups(
        call.collection,
        group_by=call.body.group_by,
        query=call.body.query,
        using=call.body.using,
        prefetch=call.body.prefetch,
        query_filter=call.body.filter,
        search_params=call.body.params,
        limit=default(call.body.limit, 10),
        group_size=default(call.body.group_size, 3),
        with_payload=default(call.body.with_payload, True),
        with_vectors=default(call.body.with_vector),
        score_threshold=call.body.score_threshold,
        with_lookup=call.body.with_lookup,
        lookup_from=call.body.lookup_from,
    )


def classic_search(client: QdrantClient, call: Call) -> Any:
    named = isinstance(call.body.vector, NamedVector)
    vector, using = (call.body.vector.vector, call.body.vector.name) if named else (call.body.vector, None)
    check_length(client, call.collection, vector, using)
    found = client.query_points(
        call.collection,
        query=vector,
        using=using,
        query_filter=call.body.filter,
        search_params=call.body.params,
        limit=call.body.limit,
        offset=call.body.offset,
        with_payload=default(call.body.with_payload),
        with_vectors=default(call.body.with_vector),
        score_threshold=call.body.score_threshold,
    )
    return found.points


def check_lengths(client: QdrantClient, collection: str, request: Any) -> None:
    """The vectors of a query and of its prefetches, however deep."""
    check_length(client, collection, request.query, request.using)
    within = request.prefetch or []
    for prefetch in within if isinstance(within, list) else [within]:
        check_lengths(client, collection, prefetch)


def check_length(client: QdrantClient, collection: str, query: Any, using: str | None) -> None:
    """Local mode leaves this to numpy, which has words of its own, or takes a single number for all of a vector's."""
    nearest = query.nearest if isinstance(query, m.NearestQuery) else query
    vectors = client.get_collection(collection).config.params.vectors or {}
    expected = (vectors if isinstance(vectors, dict) else {"": vectors}).get(using or "")
    if expected is None or not isinstance(nearest, list):
        return
    for one in nearest if nearest and isinstance(nearest[0], list) else [nearest]:
        if len(one) != expected.size:
            told = f"expected dim: {expected.size}, got {len(one)}"
            raise Refused(400, f"Wrong input: Vector dimension error: {told}")


def matrix_pairs(client: QdrantClient, call: Call) -> Any:
    return client.search_matrix_pairs(call.collection, **matrix(call.body))


def matrix_offsets(client: QdrantClient, call: Call) -> Any:
    return client.search_matrix_offsets(call.collection, **matrix(call.body))


def matrix(body: m.SearchMatrixRequest) -> dict[str, Any]:
    limits = {"limit": default(body.limit, 3), "sample": default(body.sample, 10)}
    return {"query_filter": body.filter, "using": body.using, **limits}


def default(value: Any, otherwise: Any = False) -> Any:
    return otherwise if value is None else value


def selected(body: Any) -> Any:
    """The points that a change is about: a list of ids, or a filter."""
    chosen = body.points if body.points is not None else body.filter
    if chosen is None:
        raise Refused(400, "Wrong input: either `points` or `filter` must be given")
    return chosen


COLLECTION = "/collections/{collection}"
POINTS = f"{COLLECTION}/points"
OPERATIONS = (
    Operation("GET", "/collections", list_collections, needs_collection=False),
    Operation("POST", "/collections/aliases", change_aliases, m.ChangeAliasesOperation, needs_collection=False),
    Operation("GET", "/aliases", list_aliases, needs_collection=False),
    Operation("GET", COLLECTION, show_collection),
    Operation("PUT", COLLECTION, create_collection, m.CreateCollection, needs_collection=False),
    Operation("PATCH", COLLECTION, update_collection, m.UpdateCollection),
    Operation("DELETE", COLLECTION, delete_collection, needs_collection=False),
    Operation("GET", f"{COLLECTION}/exists", collection_exists, needs_collection=False),
    Operation("GET", f"{COLLECTION}/aliases", list_aliases),
    Operation("PUT", f"{COLLECTION}/vectors/{{name}}", create_vector_name, m.VectorNameConfig),
    Operation("DELETE", f"{COLLECTION}/vectors/{{name}}", delete_vector_name),
    Operation("PUT", f"{COLLECTION}/index", create_index, m.CreateFieldIndex),
    Operation("DELETE", f"{COLLECTION}/index/{{name}}", delete_index),
    Operation("POST", f"{COLLECTION}/facet", facet, m.FacetRequest),
    Operation("PUT", POINTS, upsert, m.PointInsertOperations),
    Operation("POST", POINTS, retrieve, m.PointRequest),
    Operation("POST", f"{POINTS}/delete", delete_points, m.PointsSelector),
    Operation("POST", f"{POINTS}/payload", set_payload, m.SetPayload),
    Operation("PUT", f"{POINTS}/payload", overwrite_payload, m.SetPayload),
    Operation("POST", f"{POINTS}/payload/delete", delete_payload, m.DeletePayload),
    Operation("POST", f"{POINTS}/payload/clear", clear_payload, m.PointsSelector),
    Operation("PUT", f"{POINTS}/vectors", update_vectors, m.UpdateVectors),
    Operation("POST", f"{POINTS}/vectors/delete", delete_vectors, m.DeleteVectors),
    Operation("POST", f"{POINTS}/batch", update_batch, m.UpdateOperations),
    Operation("POST", f"{POINTS}/scroll", scroll, m.ScrollRequest),
    Operation("POST", f"{POINTS}/count", count, m.CountRequest),
    Operation("POST", f"{POINTS}/query", query_points, m.QueryRequest),
    Operation("POST", f"{POINTS}/query/batch", query_batch, m.QueryRequestBatch),
    Operation("POST", f"{POINTS}/query/groups", query_groups, m.QueryGroupsRequest),
    Operation("POST", f"{POINTS}/search", classic_search, ClassicSearch),
    Operation("POST", f"{POINTS}/search/matrix/pairs", matrix_pairs, m.SearchMatrixRequest),
    Operation("POST", f"{POINTS}/search/matrix/offsets", matrix_offsets, m.SearchMatrixRequest),
    Operation("GET", f"{POINTS}/{{name}}", show_point),
)


# --- HTTP


class Database:
    """The storage, and the one thread that touches it: reads the request, does the work, writes the answer."""

    def __init__(self, client: QdrantClient, thread: ThreadPoolExecutor) -> None:
        self.client = client
        self._thread = thread

    async def do(self, work: Callable[[QdrantClient], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self.client)


def served(database: Database, operation: Operation) -> Callable[[Request], Any]:
    """The endpoint of one operation."""
    adapter = None if operation.body is None else TypeAdapter(operation.body)

    async def endpoint(request: Request) -> Response:
        started = time.perf_counter()
        raw = await body_of(request)
        names = request.path_params
        collection, name = names.get("collection", ""), names.get("name", "")

        def work(client: QdrantClient) -> bytes:
            body = None if adapter is None else checked(adapter, raw)
            if operation.needs_collection and collection and not client.collection_exists(collection):
                raise Refused(404, f"Not found: Collection `{collection}` doesn't exist!")
            result = operation.run(client, Call(collection, name, body))
            # inf and nan are not JSON; a score may be either.
            took = time.perf_counter() - started
            return to_json({"result": result, "status": "ok", "time": took}, inf_nan_mode="null", fallback=plain)

        return Response(await database.do(work), media_type="application/json")

    return endpoint


def plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's."""
    return value.tolist()


def checked(adapter: TypeAdapter[Any], raw: bytes) -> Any:
    """The body in Qdrant's own model. Raises Refused with the places that are wrong."""
    try:
        return adapter.validate_python(from_json(raw or b"{}", allow_inf_nan=False))
    except ValidationError as exc:
        places = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in exc.errors()[:5]]
        raise Refused(400, f"Format error in JSON body: {'; '.join(places)}") from exc
    except (ValueError, RecursionError) as exc:
        raise Refused(400, f"Format error in JSON body: {exc}") from exc


async def body_of(request: Request) -> bytes:
    """All of the body. Raises Refused for one that is too large, without having kept it."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise Refused(413, f"Payload error: JSON payload is larger than allowed (limit: {MOST_BYTES} bytes)")
        parts.append(part)
    return b"".join(parts)


def application(database: Database, key: str) -> Starlette:
    """The server. It closes the storage when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await database.do(lambda client: client.close() or b"")

    routes = [Route(o.path, served(database, o), methods=[o.method]) for o in OPERATIONS]
    routes += [Route(path, functools.partial(text, words), methods=["GET"]) for path, words in HEALTH.items()]
    routes.append(Route("/", root, methods=["GET"]))
    routes.append(Route("/metrics", functools.partial(metrics, database), methods=["GET"]))
    routes.append(Route("/telemetry", functools.partial(telemetry, database), methods=["GET"]))
    handlers = {Refused: refused, HTTPException: unmatched, Exception: broken}
    handlers |= dict.fromkeys(FAULTS, faulty)
    keyed = [Middleware(Keyed, key=key)] if key else []
    return Starlette(routes=routes, middleware=keyed, lifespan=lifespan, exception_handlers=handlers)


HEALTH = {
    "/healthz": "healthz check passed",
    "/livez": "healthz check passed",
    "/readyz": "all shards are ready",
}


async def text(words: str, request: Request) -> Response:
    return PlainTextResponse(words)


async def root(request: Request) -> Response:
    about = {"title": "qdrant - embedded by sluicegate", "version": version("qdrant-client"), "commit": ""}
    return JSONResponse({**about, "engine": "embedded"})


async def metrics(database: Database, request: Request) -> Response:
    """Prometheus text with Qdrant's own names."""
    return PlainTextResponse(await database.do(measured))


def measured(client: QdrantClient) -> bytes:
    names = sorted(c.name for c in client.get_collections().collections)
    points = {name: client.count(name).count for name in names}
    vectors = sum(vectors_in(client, name) for name in names)
    lines = [
        "# HELP app_info information about qdrant server",
        "# TYPE app_info gauge",
        f'app_info{{name="qdrant-embedded",version="{version("qdrant-client")}"}} 1',
        "# HELP collections_total number of collections",
        "# TYPE collections_total gauge",
        f"collections_total {len(names)}",
        "# HELP collections_vector_total total number of vectors in all collections",
        "# TYPE collections_vector_total gauge",
        f"collections_vector_total {vectors}",
        "# HELP collection_points approximate amount of points per collection",
        "# TYPE collection_points gauge",
        *(f'collection_points{{id="{label(name)}"}} {points[name]}' for name in names),
    ]
    return "\n".join([*lines, ""]).encode(errors="replace")


def vectors_in(client: QdrantClient, collection: str) -> int:
    """How many vectors a collection holds: a point may lack some of the named ones."""
    params = client.get_collection(collection).config.params
    named = [*params.vectors] if isinstance(params.vectors, dict) else []
    named += [*(params.sparse_vectors or {})]
    having = [m.Filter(must=[m.HasVectorCondition(has_vector=name)]) for name in named]
    unnamed = 0 if isinstance(params.vectors, dict) else client.count(collection).count
    return unnamed + sum(client.count(collection, one).count for one in having)


def label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


async def telemetry(database: Database, request: Request) -> Response:
    """What Qdrant tells about itself; nothing is sent anywhere."""

    def work(client: QdrantClient) -> bytes:
        about = {"name": "qdrant-embedded", "version": version("qdrant-client")}
        number = len(client.get_collections().collections)
        told = {"id": "embedded", "app": about, "collections": {"number_of_collections": number}}
        return to_json({"result": told, "status": "ok", "time": 0.0})

    return Response(await database.do(work), media_type="application/json")


def failure(status: int, message: str) -> Response:
    """An error in Qdrant's shape. Written so that any text of the client's can stand in it."""
    return JSONResponse({"status": {"error": message.encode(errors="replace").decode()}, "time": 0.0}, status)


async def refused(request: Request, exc: Exception) -> Response:
    return failure(exc.status if isinstance(exc, Refused) else 500, str(exc))


async def faulty(request: Request, exc: Exception) -> Response:
    """Local mode's own refusal, with the status that Qdrant has for it."""
    message = str(exc.args[0]) if isinstance(exc, KeyError) and exc.args else str(exc)
    if re.search(r"(Collection|Point) \S+ (is )?not found", message):
        return failure(404, f"Not found: {message}")
    if message.endswith("already exists"):
        return failure(409, f"Wrong input: {message}")
    return failure(400, message if message.startswith("Wrong input") else f"Wrong input: {message}")


async def unmatched(request: Request, exc: Exception) -> Response:
    status = exc.status_code if isinstance(exc, HTTPException) else 404
    if LACKING.search(request.url.path):
        return failure(501, f"{request.url.path} is not in the embedded engine; a real Qdrant has it")
    return failure(status, f"Not found: there is no {request.method} {request.url.path[:200]}")


async def broken(request: Request, exc: Exception) -> Response:
    return failure(500, f"Service internal error: {type(exc).__name__}; the log has it")


class Keyed:
    """Ask for the API key, in the header `api-key` or as a bearer token, as Qdrant does."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(dict(scope["headers"])):
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse("Must provide an API key or an Authorization bearer token", 401)(
                scope, receive, send
            )

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        bearer = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(headers.get(b"api-key", bearer), self._key)


# --- the program


class ServeError(Exception):
    """The server cannot start; the text is for the user, `code` is the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def arguments(words: list[str]) -> argparse.Namespace:
    given = os.environ
    parser = argparse.ArgumentParser(description="Serve Qdrant's REST API from an embedded database.")
    parser.add_argument("--host", default=given.get("QDRANT__SERVICE__HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=given.get("QDRANT__SERVICE__HTTP_PORT", "6333"))
    parser.add_argument("--storage", type=Path, default=given.get("QDRANT__STORAGE__STORAGE_PATH"), help="a folder")
    parser.add_argument("--config-path", help="ignored: a file for a real Qdrant")
    chosen = parser.parse_args(words)
    if chosen.storage is None:
        parser.error("name a folder with --storage or QDRANT__STORAGE__STORAGE_PATH")
    return chosen


def opened(storage: Path, thread: ThreadPoolExecutor) -> Database:
    """The database in a folder, which is made where it does not exist. Raises ServeError."""
    if (storage / "raft_state.json").exists():
        raise ServeError(
            f"{storage} holds the data of a real Qdrant, which the embedded engine cannot read; "
            "choose another QDRANT_VOLUME, or start a real Qdrant on this one"
        )
    make = functools.partial(QdrantClient, path=str(storage), force_disable_check_same_thread=True)
    try:
        return Database(thread.submit(make).result(), thread)
    except (RuntimeError, OSError, ValueError, EOFError) as exc:
        raise ServeError(f"cannot use the storage {storage}: {exc}", code=1) from exc


def main(words: list[str]) -> int:
    chosen = arguments(words)
    os.umask(0o077)
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            database = opened(chosen.storage, thread)
        except ServeError as exc:
            sys.stderr.write(f"serve.py: {exc}\n")
            return exc.code
        server = application(database, os.environ.get("QDRANT__SERVICE__API_KEY", ""))
        uvicorn.run(server, host=chosen.host, port=chosen.port, log_level="warning", timeout_graceful_shutdown=5)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

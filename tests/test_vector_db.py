"""Vector databases: the embedded engine as a job of the local scheduler, seen through gateway and orchestrator."""

import asyncio
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import pytest
from pydantic import BaseModel
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse

from gateway.app import create_app as create_gateway
from gateway.app import listener_of as gateway_listener_of
from gateway.settings import Settings as GatewaySettings
from orchestrator.app import create_app, listener_of
from orchestrator.errors import BadRequest
from orchestrator.schedulers.local import Local
from orchestrator.settings import Engine, Settings, Site
from orchestrator.vectors import collection_asked, points_asked, search_asked
from tests.gateway.serving import served, short_folder
from tests.orchestrating import FAKE_ENGINE, until
from tests.qdrant_cases import CHANGES, QUESTIONS, REFUSED, fill

REPOSITORY = Path(__file__).parents[1]
SERVE = REPOSITORY / "recipes/vector-db/qdrant-embedded/serve.py"
# Local mode says once in a process that it ignores an index.
pytestmark = [
    pytest.mark.system,
    pytest.mark.beside,
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
]


@dataclass
class Services:
    """A gateway with an orchestrator behind it, and the services started through them. `home` is the orchestrator's."""

    url: str
    home: Path
    http: httpx2.Client

    def start(self, recipe: str = "vector-db/qdrant", **config: Any) -> httpx2.Response:
        return self.http.post("/api/v1/services", json={"recipe_name": recipe, "config": config})

    def status(self, service_id: str) -> str:
        return str(self.http.get(f"/api/v1/services/{service_id}/status").json()["status"])

    def until(self, condition: Callable[[], bool]) -> None:
        asyncio.run(until(condition))

    def running(self, recipe: str = "vector-db/qdrant", **config: Any) -> str:
        answer = self.start(recipe, **config)
        assert answer.status_code == 200, answer.text
        service_id = str(answer.json()["id"])
        self.until(lambda: self.status(service_id) not in ("pending", "configuring"))
        logs = self.http.get(f"/api/v1/services/{service_id}/logs").json()["logs"]
        assert self.status(service_id) == "running", logs
        return service_id

    def stop(self, service_id: str) -> None:
        self.http.post(f"/api/v1/services/{service_id}/status", json={"status": "cancelled"})
        self.until(lambda: self.state(service_id) == "CANCELLED")

    def state(self, service_id: str) -> str:
        return str(self.http.get(f"/api/v1/services/{service_id}").json()["job"]["state"])

    def stop_all(self) -> None:
        for service in self.http.get("/api/v1/services").json():
            if service["status"] in ("pending", "configuring", "running"):
                self.stop(service["id"])

    def qdrant(self, service_id: str, **more: Any) -> QdrantClient:
        """Without its question for the version, asked in a thread that may outlive the service."""
        more = {"check_compatibility": False} | more
        return QdrantClient(url=f"{self.url}/api/v1/vector-db/{service_id}/qdrant", timeout=30, **more)


@asynccontextmanager
async def both_halves(home: Path, listener: socket.socket) -> AsyncIterator[None]:
    engines = {"qdrant": Engine(command=[sys.executable, str(SERVE)]), "vllm": Engine(command=FAKE_ENGINE)}
    settings = Settings(home=home, scheduler="local", site=Site(engines=engines), probe_seconds=0.05, poll_seconds=0.1)
    behind = socket.socket(socket.AF_UNIX)
    behind.bind(str(home / "o.sock"))
    gateway = GatewaySettings(local_socket=home / "o.sock")
    app = create_app(settings, Local(home))
    async with (
        served(app, behind, listener_of(app)),
        served(create_gateway(gateway), listener, gateway_listener_of(gateway)),
    ):
        yield


@contextmanager
def in_a_thread(home: Path) -> Iterator[str]:
    """Both halves in an event loop of their own; the gateway's URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    loop, up, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def run() -> None:
        async with both_halves(home, listener):
            up.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        assert up.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with short_folder() as home, in_a_thread(home) as url, httpx2.Client(base_url=url, timeout=60) as client:
        one = Services(url, home, client)
        try:
            one.until(lambda: client.get("/ready").status_code == 200)
            yield one
        finally:
            one.stop_all()


@pytest.fixture(scope="module")
def service_id(services: Services) -> str:
    return services.running(volume="shared")


@pytest.fixture
def qdrant(services: Services, service_id: str) -> Iterator[QdrantClient]:
    """qdrant-client, unmodified, on an empty database."""
    client = services.qdrant(service_id)
    for collection in client.get_collections().collections:
        client.delete_collection(collection.name)
    yield client
    client.close()


@pytest.fixture
def memory() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


def shown(answer: Any) -> Any:
    """An answer as plain values, numbers to six places."""
    if isinstance(answer, BaseModel):
        return shown(answer.model_dump(mode="json"))
    if isinstance(answer, dict):
        return {name: shown(value) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [shown(value) for value in answer]
    return round(answer, 6) if isinstance(answer, float) else answer


@pytest.fixture(scope="module")
def filled(services: Services) -> Iterator[tuple[QdrantClient, QdrantClient]]:
    """A database over HTTP and one in memory with the same points, which nobody changes."""
    clients = services.qdrant(services.running(volume="filled")), QdrantClient(":memory:")
    for client in clients:
        fill(client)
    yield clients
    for client in clients:
        client.close()


@pytest.mark.parametrize("case", QUESTIONS)
def test_the_answer_over_http_is_that_of_the_clients_own_memory(
    filled: tuple[QdrantClient, QdrantClient], case: str
) -> None:
    over_http, in_memory = filled
    assert shown(QUESTIONS[case](over_http)) == shown(QUESTIONS[case](in_memory))


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_over_http_is_that_in_the_clients_own_memory(
    qdrant: QdrantClient, memory: QdrantClient, case: str
) -> None:
    fill(qdrant)
    fill(memory)
    assert shown(CHANGES[case](qdrant)) == shown(CHANGES[case](memory))


@pytest.mark.parametrize("case", REFUSED)
def test_what_memory_refuses_is_refused_with_qdrants_status(
    filled: tuple[QdrantClient, QdrantClient], case: str
) -> None:
    over_http, in_memory = filled
    status, ask = REFUSED[case]
    with pytest.raises(ValueError):
        ask(in_memory)
    with pytest.raises(UnexpectedResponse) as caught:
        ask(over_http)
    assert (caught.value.status_code, bool(caught.value.structured()["status"]["error"])) == (status, True)


def test_it_says_that_it_is_embedded_and_the_client_finds_its_version(services: Services, service_id: str) -> None:
    """The bare prefix, which qdrant-client asks in a thread at once; a warning about the version is an error here."""
    client = services.qdrant(service_id, check_compatibility=True)
    for thread in threading.enumerate():
        if "_check_compatibility" in thread.name:
            thread.join()
    assert client.info().title == "qdrant - embedded by sluicegate"
    client.close()


def test_the_bare_prefix_needs_no_redirect(services: Services, service_id: str) -> None:
    for path in ("", "/", "/?a=b"):
        answer = services.http.get(f"/api/v1/vector-db/{service_id}/qdrant{path}")
        assert (answer.status_code, answer.json()["engine"]) == (200, "embedded")
    assert services.http.head(f"/api/v1/vector-db/{service_id}/qdrant").status_code == 200


def test_fifty_parallel_upserts_all_arrive(qdrant: QdrantClient) -> None:
    qdrant.create_collection("many", vectors_config=m.VectorParams(size=4, distance=m.Distance.DOT))

    def upsert(i: int) -> None:
        points = [m.PointStruct(id=i * 10 + j, vector=[i, j, 0.5, 1.0], payload={"i": i}) for j in range(10)]
        qdrant.upsert("many", points, wait=True)

    with ThreadPoolExecutor(50) as threads:
        list(threads.map(upsert, range(50)))
    assert qdrant.count("many").count == 500


# --- the simple routes


class Simple:
    """The simple routes of one service."""

    def __init__(self, http: httpx2.Client, service_id: str, prefix: str = "/api/v1") -> None:
        self.http, self.base, self.id = http, f"{prefix}/vector-db/{service_id}", service_id

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        answer = self.http.request(method, f"{self.base}/{path}", json=body)
        return answer.status_code, answer.json()


@pytest.fixture
def simple(services: Services, service_id: str, qdrant: QdrantClient) -> Simple:
    return Simple(services.http, service_id)


POINTS = {
    "points": [
        {"id": 1, "vector": [0.1, 0.2, 0.3, 0.4], "payload": {"text": "First document"}},
        {"id": 2, "vector": [0.4, 0.5, 0.6, 0.7], "payload": {"text": "Second document"}},
    ]
}


def test_create_upsert_search_show_delete(simple: Simple) -> None:
    create = {"vector_size": 4, "distance": "Cosine"}
    status, created = simple.ask("PUT", "collections/my_documents", create)
    about = {
        "success": True,
        "service_id": simple.id,
        "endpoint": created["endpoint"],
        "collection_name": "my_documents",
    }
    told = "Collection 'my_documents' created successfully"
    assert (status, created) == (200, about | create | {"message": told})
    _, listed = simple.ask("GET", "collections")
    assert listed == {k: about[k] for k in ("success", "service_id", "endpoint")} | {"collections": ["my_documents"]}
    status, upserted = simple.ask("PUT", "collections/my_documents/points", POINTS)
    assert (status, upserted["success"], upserted["num_points"]) == (200, True, 2)
    query = {"query_vector": [0.1, 0.2, 0.3, 0.4], "limit": 5}
    status, found = simple.ask("POST", "collections/my_documents/points/search", query)
    assert (status, found["num_results"], found["result"]) == (200, 2, found["results"])
    assert found["results"][0] == {"id": 1, "score": pytest.approx(1), "payload": {"text": "First document"}}
    assert simple.ask("POST", "collections/my_documents/search", query)[1] == found
    _, one = simple.ask("GET", "collections/my_documents")
    assert (one["collection_info"]["points_count"], one["collection_name"]) == (2, "my_documents")
    status, deleted = simple.ask("DELETE", "collections/my_documents")
    assert (status, deleted["success"]) == (200, True)
    assert simple.ask("GET", "collections")[1]["collections"] == []


def test_a_small_vector_in_a_large_collection_is_qdrants_own_400(simple: Simple) -> None:
    assert simple.ask("PUT", "collections/large", {"vector_size": 384})[0] == 200
    status, body = simple.ask("PUT", "collections/large/points", POINTS)
    assert (status, body["success"], body["error"]) == (400, False, body["detail"])
    assert body["detail"].startswith("Wrong input: Vector dimension error: expected dim: 384, got 4")
    status, body = simple.ask("POST", "collections/large/points/search", {"query_vector": [0.1, 0.2, 0.3, 0.4]})
    assert (status, body["success"], body["error"]) == (400, False, body["detail"])
    assert body["detail"].startswith("Wrong input: Vector dimension error: expected dim: 384, got 4")


QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "search": ("search", {"vector": [1.0], "limit": 1}),
    "search-named": ("search", {"vector": {"name": "", "vector": [1.0]}, "limit": 1}),
    "query": ("query", {"query": [1.0]}),
    "nearest": ("query", {"query": {"nearest": [1.0]}}),
    "multivector": ("query", {"query": [[1.0, 2.0, 3.0, 4.0], [1.0]]}),
    "prefetch": ("query", {"query": [1.0] * 4, "prefetch": {"query": [1.0] * 4, "prefetch": [{"query": [1.0]}]}}),
    "groups": ("query/groups", {"query": [1.0], "group_by": "text"}),
    "batch": ("query/batch", {"searches": [{"query": [1.0] * 4}, {"query": [1.0]}]}),
}


@pytest.mark.parametrize("case", QUERIES)
def test_a_query_of_another_length_is_refused_in_qdrants_words(simple: Simple, case: str) -> None:
    """By the embedded engine itself: numpy would compare one number with each of a vector's, and answer."""
    path, body = QUERIES[case]
    assert simple.ask("PUT", "collections/euclid", {"vector_size": 4, "distance": "Euclid"})[0] == 200
    assert simple.ask("PUT", "collections/euclid/points", POINTS)[0] == 200
    status, told = simple.ask("POST", f"qdrant/collections/euclid/points/{path}", body)
    refused = {"error": "Wrong input: Vector dimension error: expected dim: 4, got 1"}
    assert (status, told["status"]) == (400, refused)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "collections/none", None, 404, "Collection `none` doesn't exist!"),
        ("DELETE", "collections/none", None, 404, "'none' doesn't exist"),
        ("PUT", "collections/none/points", POINTS, 404, "doesn't exist!"),
        ("POST", "collections/none/search", {"query_vector": [1]}, 404, "doesn't exist!"),
        ("PUT", "collections/here", {"vector_size": 4}, 409, "already exists"),
        ("PUT", "collections/new", {}, 400, "vector_size is required"),
        ("PUT", "collections/new", {"vector_size": "4"}, 400, 'vector_size is "4"'),
        ("PUT", "collections/new", {"vector_size": 0}, 400, "vector_size is 0"),
        ("PUT", "collections/new", {"vector_size": 10**9}, 400, "Vector size 1000000000 is invalid"),
        ("PUT", "collections/new", {"vector_size": 4, "distance": "far"}, 400, "allowed: Cosine, Euclid"),
        ("PUT", "collections/new", {"vector_size": 4, "vectors": {}}, 400, "mixes 'vector_size' with 'vectors'"),
        ("PUT", "collections/here/points", {"points": []}, 400, "points is required"),
        ("PUT", "collections/here/points", {"points": [{"id": 1}]}, 400, "points.0.vector: Field required"),
        ("POST", "collections/here/search", {"limit": 3}, 400, "query_vector is required"),
        ("POST", "collections/here/search", {"query_vector": [1], "vector": [1]}, 400, "mixes 'query_vector' with"),
        ("POST", "collections/here/search", {"query_vector": "x"}, 400, "must be a list of numbers"),
        ("POST", "collections/here/search", {"query_vector": [1] * 4, "limit": 0}, 400, "limit value 0 is invalid"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    simple: Simple, method: str, path: str, body: Any, status: int, says: str
) -> None:
    simple.ask("PUT", "collections/here", {"vector_size": 4})
    got, answer = simple.ask(method, path, body)
    assert (got, answer["success"]) == (status, False), answer
    assert says in answer["error"]
    assert answer["detail"] == answer["error"]


def test_qdrants_own_dialect_is_passed_on_untouched(simple: Simple) -> None:
    created = simple.ask("PUT", "collections/own", {"vectors": {"size": 4, "distance": "Dot"}})
    assert (created[0], created[1]["result"], created[1]["status"]) == (200, True, "ok")
    columns = {"batch": {"ids": [1, 2], "vectors": [[1, 0, 0, 0], [0, 1, 0, 0]], "payloads": [{"a": 1}, {}]}}
    assert simple.ask("PUT", "collections/own/points", columns)[1]["result"]["status"] == "completed"
    body = {"vector": [1, 0, 0, 0], "limit": 1, "with_payload": True}
    for path in ("points/search", "search"):
        found = simple.ask("POST", f"collections/own/{path}", body)[1]["result"]
        assert [(point["id"], point["score"], point["payload"]) for point in found] == [(1, 1.0, {"a": 1})]
    refused = simple.ask("PUT", "collections/own", {"vectors": {"size": 4, "distance": "Dot"}})
    assert (refused[0], "already exists" in refused[1]["status"]["error"]) == (409, True)


@pytest.mark.parametrize("prefix", ["/api/v1", "/api", "/api/services", "/api/v1/services"])
def test_all_spellings_of_the_path_answer(services: Services, service_id: str, prefix: str) -> None:
    """Asked of the orchestrator itself, as from within the cluster."""
    transport = httpx2.HTTPTransport(uds=str(services.home / "o.sock"))
    with httpx2.Client(transport=transport, base_url="http://localhost", timeout=30) as inside:
        assert Simple(inside, service_id, prefix).ask("GET", "collections")[0] == 200
        assert service_id in {s["id"] for s in inside.get(f"{prefix}/vector-db/services").json()["vector_db_services"]}
        assert inside.get(f"{prefix}/vector-db/{service_id}/qdrant").json()["engine"] == "embedded"


def test_the_list_shows_only_vector_databases(services: Services, service_id: str) -> None:
    vllm = services.running("vllm-single-node", resources={"gpu": None, "cpu": 1, "memory": "1G"})
    listed = {s["id"]: s for s in services.http.get("/api/v1/vector-db/services").json()["vector_db_services"]}
    services.stop(vllm)
    assert vllm not in listed
    one = listed[service_id]
    assert (one["recipe_name"], one["status"]) == ("vector-db/qdrant", "running")
    assert one["name"] == f"vector-db/qdrant-{service_id}"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", one["endpoint"])


def test_metrics_are_qdrants(simple: Simple, services: Services) -> None:
    simple.ask("PUT", "collections/counted", {"vector_size": 4})
    simple.ask("PUT", "collections/counted/points", POINTS)
    answer = services.http.get(f"{simple.base}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'app_info{name="qdrant-embedded",version="' in answer.text
    assert {"collections_total 1", "collections_vector_total 2"} <= set(answer.text.splitlines())
    assert 'collection_points{id="counted"} 2' in answer.text


# --- names, keys, other services


EVIL = ["..", ".", "a/b", "a%2Fb", "a\\b", "a\0b", "a\nb", "a?b", "a#b", "a b", "ä漢", "%2e%2e", "'; DROP", "x" * 256]


def exactly(client: httpx2.Client, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    """A request whose path is sent as it stands."""
    extensions = {"target": path.encode()}
    answer = client.request(method, "/", json=body, extensions=extensions)
    return answer.status_code, answer.json()


def files(services: Services) -> set[Path]:
    """What is there, but for the journal, which comes and goes with what the orchestrator writes down."""
    found = {*services.home.glob("*"), *services.home.glob("volumes/*/*")}
    return {path for path in found if not path.name.startswith("orchestrator.db")}


@pytest.mark.parametrize("behind", [False, True], ids=["gateway", "orchestrator"])
@pytest.mark.parametrize("name", EVIL)
def test_an_evil_name_is_a_name_or_is_refused(simple: Simple, services: Services, name: str, behind: bool) -> None:
    """It never makes another path of it, and never a file outside of the volume."""
    before = files(services)
    transport = httpx2.HTTPTransport(uds=str(services.home / "o.sock")) if behind else None
    with httpx2.Client(transport=transport, base_url="http://localhost" if behind else services.url) as client:
        for written in {quote(name, safe=""), quote(name, safe="/")}:
            path = f"{simple.base}/collections/{written}"
            status, body = exactly(client, "PUT", path, {"vector_size": 4})
            there = simple.ask("GET", "collections")[1]["collections"]
            if status == 200:
                assert there == [name] == [body["collection_name"]]
                assert exactly(client, "PUT", f"{path}/points", POINTS)[0] == 200
                assert exactly(client, "POST", f"{path}/search", {"query_vector": [1, 0, 0, 0]})[1]["num_results"] == 2
                assert exactly(client, "POST", f"{path}/search", {"vector": [1, 0, 0, 0], "limit": 1})[0] == 200
                assert exactly(client, "DELETE", path)[0] == 200
            else:
                assert (400 <= status < 500, there) == (True, []), body
    assert files(services) == before


def raw(url: str, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """A request whose path is sent as it stands."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


@pytest.mark.parametrize("path", ["../collections", "%2e%2e/collections", "..%2fcollections", "collections/%00"])
def test_the_gateway_refuses_paths_that_two_could_read_differently(
    services: Services, service_id: str, path: str
) -> None:
    status, body = raw(services.url, "GET", f"/api/v1/vector-db/{service_id}/qdrant/{path}")
    assert (status, "detail" in json.loads(body)) == (400, True)


def test_the_engine_wants_the_key_which_clients_never_see(services: Services, service_id: str) -> None:
    engine = services.http.get(f"/api/v1/services/{service_id}").json()["endpoint"]
    assert raw(engine, "GET", "/collections")[0] == 401
    assert raw(engine, "GET", "/collections", {"api-key": "wrong"})[0] == 401
    assert raw(engine, "GET", "/metrics")[0] == 401
    for path in ("/", "/readyz", "/healthz", "/livez"):
        assert raw(engine, "GET", path)[0] == 200
    job = services.http.get(f"/api/v1/services/{service_id}").json()["job"]["name"]
    secrets = services.home / "runs" / job.removeprefix("sluice-") / "secrets.env"
    key = secrets.read_text().partition("VLLM_API_KEY=")[2].split()[0]
    assert raw(engine, "GET", "/collections", {"authorization": f"Bearer {key}"})[0] == 200
    assert key not in (secrets.parent / "job.sh").read_text()
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert key.encode() not in command_line.read_bytes()
        except OSError:  # it has ended meanwhile
            continue


def test_a_clients_own_key_does_not_reach_the_engine(services: Services, service_id: str) -> None:
    """qdrant-client(api_key=…) sends it; the engine's own takes its place."""
    for headers in ({"api-key": "mine"}, {"authorization": "Bearer mine"}, {"x-api-key": "mine"}):
        path = f"/api/v1/vector-db/{service_id}/qdrant/collections"
        assert services.http.get(path, headers=headers).status_code == 200


def test_another_kind_of_service_is_no_vector_database(services: Services) -> None:
    vllm = services.running("vllm-single-node", resources={"gpu": None, "cpu": 1, "memory": "1G"})
    for path in ("collections", "metrics", "qdrant", "qdrant/v1/models"):
        answer = services.http.get(f"/api/v1/vector-db/{vllm}/{path}")
        assert (answer.status_code, answer.json()["success"]) == (400, False)
        assert "not a vector database" in answer.json()["error"]
    unknown = services.http.get("/api/v1/vector-db/nobody/qdrant/collections")
    assert (unknown.status_code, "not found" in unknown.json()["error"]) == (404, True)
    services.stop(vllm)


# --- volumes


def test_a_volume_outlives_the_service_and_belongs_to_one_at_a_time(services: Services) -> None:
    first = services.running(volume="kept")
    client = services.qdrant(first)
    fill(client)
    client.close()
    folder = services.home / "volumes" / "qdrant" / "kept"
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, folder.parent, folder.parent.parent)] == ["0o700"] * 3
    second = services.start(volume="kept")
    assert second.status_code == 409
    assert f"volume 'kept' of qdrant is used by service {first}" in second.json()["detail"]
    other = services.running(volume="another")
    services.stop(first)
    ended = services.http.get(f"/api/v1/vector-db/{first}/collections")
    assert (ended.status_code, "has ended" in ended.json()["error"]) == (409, True)
    again = services.running(volume="kept")
    client = services.qdrant(again)
    assert (client.count("plain").count, len(client.scroll("named", limit=50)[0])) == (30, 30)
    client.close()
    for service in (other, again):
        services.stop(service)


def test_of_two_that_want_a_volume_at_the_same_time_one_gets_it(services: Services) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: services.start(volume="raced"), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    services.stop(next(answer.json()["id"] for answer in answers if answer.status_code == 200))


@pytest.mark.parametrize("volume", ["", "..", "a/b", "A", "-x", "a b", "a\nb", "x" * 65])
def test_a_volume_has_a_safe_name(services: Services, volume: str) -> None:
    answer = services.start(volume=volume)
    assert (answer.status_code, "config.volume" in answer.json()["detail"]) == (422, True)


def test_the_recipe_of_the_embedded_engine_needs_no_setting(services: Services) -> None:
    service = services.running("vector-db/qdrant-embedded")
    assert services.http.get(f"/api/v1/vector-db/{service}/collections").json()["collections"] == []
    assert (services.home / "volumes" / "qdrant-embedded" / "default").is_dir()
    services.stop(service)


# --- the program serve.py


def serve(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SERVE), *words]
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_serve_says_what_is_missing(tmp_path: Path) -> None:
    without = subprocess.run([sys.executable, "-S", str(SERVE)], capture_output=True, text=True, check=False)
    assert (without.returncode, "pip install qdrant-client" in without.stderr) == (2, True)
    nothing = serve()
    assert (nothing.returncode, "--storage or QDRANT__STORAGE__STORAGE_PATH" in nothing.stderr) == (2, True)
    (tmp_path / "raft_state.json").write_text("{}")
    real = serve(QDRANT__STORAGE__STORAGE_PATH=str(tmp_path))
    assert (real.returncode, "holds the data of a real Qdrant" in real.stderr) == (2, True)


def test_serve_leaves_a_storage_alone_that_is_in_use_or_broken(
    services: Services, service_id: str, tmp_path: Path
) -> None:
    used = serve("--storage", str(services.home / "volumes/qdrant/shared/storage"), "--port", "1")
    assert (used.returncode, "is already accessed by another instance" in used.stderr) == (1, True)
    (tmp_path / "meta.json").write_text("not JSON")
    broken = serve("--storage", str(tmp_path), "--port", "1")
    assert (broken.returncode, f"cannot use the storage {tmp_path}" in broken.stderr) == (1, True)


@pytest.mark.parametrize(
    ("path", "status"),
    [("nothing", 404), ("collections/x/snapshots", 501), ("cluster", 501), ("telemetry", 200), ("snapshots", 501)],
)
def test_what_it_lacks_it_says(services: Services, service_id: str, path: str, status: int) -> None:
    answer = services.http.get(f"/api/v1/vector-db/{service_id}/qdrant/{path}")
    assert answer.status_code == status
    told = answer.json()
    assert "result" in told or (told["status"]["error"] if "status" in told else told["error"])


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"points": [{"id": 1, "vector": [NaN]}]}', '"\\ud800"'])
def test_a_broken_body_is_a_400_in_qdrants_shape(
    qdrant: QdrantClient, services: Services, service_id: str, content: str
) -> None:
    fill(qdrant)
    path = f"/api/v1/vector-db/{service_id}/qdrant/collections/plain/points"
    answer = services.http.put(path, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, bool(answer.json()["status"]["error"])) == (400, True)
    deep = services.http.put(path, content="[" * 100_000)
    assert deep.status_code == 400
    large = services.http.put(path, content=b" " * (33 * 1024 * 1024))
    assert large.status_code == 413


# --- pure parts


def test_dialects() -> None:
    assert collection_asked({"vectors": {"size": 4}}) is None
    assert collection_asked({"sparse_vectors": {"a": {}}}) is None
    assert search_asked({"vector": [1], "limit": 3}) is None
    assert points_asked({"batch": {}}) is None
    asked = collection_asked({"vector_size": 3, "distance": "dot"})
    assert asked is not None
    assert (asked.vector_size, asked.distance) == (3, "Dot")
    with pytest.raises(BadRequest, match="mixes 'query_vector' with 'filter'"):
        search_asked({"query_vector": [1], "filter": {}})


# --- examples


@pytest.mark.parametrize("name", ["qdrant_simple_example.py", "qdrant_simple_example_with_metrics.py"])
@pytest.mark.parametrize("recipe", ["vector-db/qdrant", "vector-db/qdrant-embedded"])
def test_the_examples_run_and_stop_what_they_started(services: Services, name: str, recipe: str) -> None:
    before = {s["id"] for s in services.http.get("/api/v1/vector-db/services").json()["vector_db_services"]}
    done = run_example(services, name, "--recipe", recipe, "--volume", "example", "--wait", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "boats" in done.stdout
    assert ("collections_vector_total" in done.stdout) == ("metrics" in name)
    after = {s["id"] for s in services.http.get("/api/v1/vector-db/services").json()["vector_db_services"]}
    assert after == before
    services.until(lambda: all(services.state(s["id"]) != "RUNNING" or s["id"] in before for s in started(services)))


def started(services: Services) -> list[dict[str, Any]]:
    return list(services.http.get("/api/v1/services").json())


def test_the_example_fails_when_the_recipe_does(services: Services) -> None:
    done = run_example(services, "qdrant_simple_example.py", "--recipe", "vector-db/none")
    assert (done.returncode, "vector-db/none" in done.stderr) == (1, True)


def run_example(services: Services, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "examples" / name), "--url", services.url, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/", check=False)


def test_health_answers_while_qdrants_client_is_loaded_and_a_large_upsert_runs(
    simple: Simple, services: Services
) -> None:
    simple.ask("PUT", "collections/big", {"vector_size": 64})
    points = [{"id": i, "vector": [float(i % 7)] * 64, "payload": {"i": i}} for i in range(300)]
    with ThreadPoolExecutor(1) as threads:
        upsert = threads.submit(simple.ask, "PUT", "collections/big/points", {"points": points})
        slowest = 0.0
        while not upsert.done():
            begun = time.monotonic()
            assert services.http.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - begun)
        assert upsert.result()[0] == 200
    assert slowest < 2, slowest

"""The gateway's own routes and its guard; on this machine's socket, without SSH."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from gateway.docs import own_document
from gateway.openapi import gateway_document
from gateway.settings import Settings
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, served_orchestrator, short_folder

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return Settings(local_socket=folder / "o.sock", models_file=folder / "models.json")


@pytest.fixture(scope="module")
def orchestrator() -> FakeOrchestrator:
    return FakeOrchestrator()


@pytest.fixture(scope="module")
async def client(settings: Settings, orchestrator: FakeOrchestrator, folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with served_orchestrator(orchestrator, folder / "o.sock"), gateway(settings) as client:
        yield client


async def test_own_routes(client: httpx2.AsyncClient) -> None:
    root = (await client.get("/")).json()
    assert (root["docs"], "o.sock" in root["orchestrator"]) == ("/docs", True)
    health = (await client.get("/health")).json()
    assert (health["status"], health["ready"], health["orchestrator"]["version"]) == ("healthy", True, "9.9")
    assert (await client.get("/ready")).json() == {"ready": True}
    for path in ("/", "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/api/v1/echo"):
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b""), path


async def test_the_docs_need_no_internet(client: httpx2.AsyncClient) -> None:
    page = await client.get("/docs")
    assert not re.search(r"""(src|href|url)\s*[=:]\s*["'](https?:)?//""", page.text)
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        assert (await client.get(link)).status_code == 200, link
    assert "/health" in (await client.get("/openapi.json")).json()["paths"]


async def test_an_unknown_path_is_told_what_there_is(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/wrong")
    assert (answer.status_code, "/docs" in answer.json()["detail"]) == (404, True)
    refused = await client.post("/health")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_evil_paths_reach_nobody(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    before = len(orchestrator.seen)
    for path in ("/api/v1/%2e%2e/x", "/api/v1/../x", "/api/v1/a%2Fb", "/api/v1/a%00"):
        answer = await client.get(path, extensions={"target": path.encode()})
        assert (answer.status_code, "detail" in answer.json()) == (400, True), path
    assert len(orchestrator.seen) == before


async def test_host_and_origin(client: httpx2.AsyncClient) -> None:
    for host, origin, status in (
        ("localhost:8001", None, 200),
        ("[::1]:8001", None, 200),
        ("evil.example:8001", None, 403),
        ("localhost.evil.example", None, 403),
        ("localhost:1@evil.example", None, 403),
        ("localhost:8001/evil.example", None, 403),
        ("localhost:", None, 200),
        ("localhost:8001", "http://localhost:8001", 200),
        ("localhost:8001", "http://evil.example", 403),
        ("localhost:8001", "http://localhost:3000", 403),
        ("localhost:8001", "null", 403),
    ):
        headers = {"Host": host} | ({"Origin": origin} if origin else {})
        answer = await client.get("/api/v1/echo", headers=headers)
        assert answer.status_code == status, headers


async def test_allowed_hosts(client: httpx2.AsyncClient, settings: Settings) -> None:
    async with gateway(settings.model_copy(update={"allowed_hosts": ["host.docker.internal"]})) as client:
        answer = await client.get("/api/v1/echo", headers={"Host": "host.docker.internal:8001"})
        assert answer.status_code == 200


async def test_the_key(client: httpx2.AsyncClient, settings: Settings) -> None:
    async with gateway(settings.model_copy(update={"api_key": SecretStr("s3cret")})) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        for headers in ({}, {"Authorization": "Bearer"}, {"X-API-Key": "wrong"}, {"Authorization": "Basic s3cret"}):
            assert (await client.get("/api/v1/echo", headers=headers)).status_code == 401
        refused = await client.get("/v1/models")
        assert refused.json()["error"]["code"] == "invalid_api_key"
        for headers in ({"Authorization": "Bearer s3cret"}, {"X-API-Key": "s3cret"}, {"api-key": "s3cret"}):
            told = await client.get("/api/v1/echo", headers={**headers, "X-Other": "kept"})
            assert ["x-other", "kept"] in told.json()["headers"]
            assert "s3cret" not in told.text


async def test_no_orchestrator_on_this_machine(folder: Path) -> None:
    async with gateway(Settings(local_socket=folder / "none.sock")) as client:
        answer = await client.get("/api/v1/services")
        assert (answer.status_code, "none.sock" in answer.json()["detail"]) == (503, True)


UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: sluicegate-mux/1\r\n\r\n"
UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("greeting", [UPGRADED, UNKNOWN])
async def test_only_what_does_no_harm_is_repeated(folder: Path, greeting: bytes) -> None:
    """An orchestrator that hangs up on every request: with one connection for all, and with one for each."""
    asked: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readuntil(b"\r\n")
        if first.startswith(b"GET /mux"):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(greeting)
            opening = await reader.readuntil(b" HTTP/") if greeting is UPGRADED else b""
            first = re.findall(rb"[A-Z]+ /.*", opening)[0] if opening else b""  # behind a frame's header
        if b" /api/x" in first:  # not the gateway's own question for models
            asked.extend(first.split()[:1])
        writer.close()
        await writer.wait_closed()

    path = folder / "rude.sock"
    async with (
        await asyncio.start_unix_server(hang_up, path),
        gateway(Settings(local_socket=path)) as client,
    ):
        for method in ("POST", "DELETE", "GET"):
            answer = await client.request(method, "/api/v1/x")
            assert (answer.status_code, "carried out" in answer.json()["detail"]) == (502, True)
    assert asked == [b"POST", b"DELETE", b"GET", b"GET"]


async def raw(client: httpx2.AsyncClient, request: bytes) -> bytes:
    """What a gateway answers to bytes that no HTTP library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_odd_requests(client: httpx2.AsyncClient) -> None:
    end = b"Host: localhost\r\nConnection: close\r\n\r\n"
    assert b" 400 " in (await raw(client, b"GET /api/v1/\xc3\xa9 HTTP/1.1\r\n" + end)).split(b"\r\n")[0]
    empty_token = await raw(client, b"GET /api/v1/echo HTTP/1.1\r\nAuthorization: Bearer \r\n" + end)
    assert empty_token.startswith(b"HTTP/1.1 200 ")


def test_the_document_speaks_the_gateway_s_paths() -> None:
    def operation(name: str) -> dict[str, object]:
        return {"operationId": name}

    theirs = {
        "openapi": "3.1.0",
        "info": {"title": "orchestrator"},
        "paths": {
            "/api/services/start": {"post": operation("start"), "parameters": []},
            "/api/v1/services": {"post": operation("create")},
            "/api/services/stop/{id}": {"post": operation("stop")},
            "/api/services/vllm/{id}/prompt": {"post": operation("prompt")},
            "/v1/models": {"get": operation("models")},
            "/health": {"get": operation("theirs")},
        },
        "components": {"schemas": {"A": {}}},
    }
    document = gateway_document(theirs, own_document())
    assert document["info"]["title"] == "Sluicegate gateway"
    assert document["components"] == {"schemas": {"A": {}}}
    assert document["paths"]["/api/v1/services"] == {"post": operation("create")}
    assert document["paths"]["/api/v1/services/{id}"] == {"delete": operation("stop")}
    assert set(document["paths"]) == {
        "/", "/health", "/metrics", "/ready", "/v1/models",
        "/orchestrator/endpoint", "/orchestrator/start", "/orchestrator/status", "/orchestrator/stop",
        "/api/v1/services", "/api/v1/services/{id}", "/api/v1/vllm/{id}/prompt",
    }  # fmt: skip
    assert "gateway" in document["paths"]["/health"]["get"]["tags"]

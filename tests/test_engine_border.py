"""What crosses the border to an engine: no credential of a client's, no path beyond the list, and no redirect back.

The engine is a socket that writes down what it is sent and answers as it is told.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx2
import pytest

from orchestrator.access import BETWEEN_US
from orchestrator.dispatch import INFERENCE, OF_A_SERVICE, way_of
from orchestrator.errors import EngineError, NotReady, OrchestratorError
from orchestrator.inference import Group, Inferences
from orchestrator.prompt import Question, ask
from orchestrator.relay import LIFTED, relay
from orchestrator.replicas import Replica, Replicas, probe
from orchestrator.routes.vector_db import is_relayed, is_use
from orchestrator.wire.http1 import parse_request
from orchestrator.wire.upstream import open_pool
from tests.test_inference import Kept

PLANTED = "planted"  # in every credential
HEADERS = (
    "Authorization: Bearer planted-1\r\nX-API-Key: planted-2\r\napi-key: planted-3\r\nCookie: a=planted-4\r\n"
    "Proxy-Authorization: Basic planted-5\r\nX-Sluice-Actor: planted-6\r\nIdempotency-Key: planted-7\r\n"
    "Keep-Alive: planted-8\r\nTE: planted-9\r\nProxy-Connection: planted-10\r\nUpgrade: planted-11\r\n"
    "Connection: keep-alive, X-Hop\r\nX-Hop: planted-12\r\nX-Other: kept\r\n"
)
BODY = b'{"model":"m"}'


class Engine:
    """`seen` has the heads of the requests, `url` its base."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.port = answer, 0
        self.seen: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head.lower())
            await reader.readexactly(int(length[1]) if length else 0)
            self.seen.append(head)
            writer.write(self.answer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    def replica(self) -> Replica:
        made = Replica(
            submission_id="s", service_id="1", created_at=datetime.now(UTC), job_id="1",
            index=0, node="localhost", port=self.port, gpus="", key="own-key",
            health="/health", models_path="/v1/models", ready=True,
        )  # fmt: skip
        made.serves(({"id": "m"},))
        return made


def answered(status: str, *lines: str, body: bytes = b"{}") -> bytes:
    head = "".join(f"{line}\r\n" for line in (*lines, "connection: close", f"content-length: {len(body)}"))
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


@asynccontextmanager
async def engine(answer: bytes = answered("200 OK")) -> AsyncIterator[Engine]:
    one = Engine(answer)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    async with server, asyncio.timeout(20):
        yield one


def client() -> httpx2.AsyncClient:
    """As `app.opened` makes them."""
    return httpx2.AsyncClient(limits=LIFTED, timeout=httpx2.Timeout(None, connect=15), trust_env=False)


async def _why(group: Group, model: str | None) -> OrchestratorError:
    return NotReady("none")


async def on_the_data_path(one: Engine) -> tuple[int, bytes]:
    replicas, reply = Replicas(), Kept()
    replicas.update("s", "s", [one.replica()])
    async with open_pool() as pool:
        inferences = Inferences(replicas, pool, lambda: datetime.now(UTC), _why)
        line = "POST /v1/completions HTTP/1.1\r\nHost: localhost:8001\r\ncontent-type: application/json\r\n"
        head = f"{line}{HEADERS}content-length: {len(BODY)}\r\n\r\n"
        exchange = inferences.begin(parse_request(head.encode()), reply, b"/v1/completions", Group(), {})
        exchange.feed(BODY)
        exchange.end()
        await reply.done.wait()
    return int(reply.data[9:12]), reply.data


async def by_the_simple_form(one: Engine) -> tuple[int, bytes]:
    replicas, question = Replicas(), Question(Group("s"), "hi", "m", stream=False, fields={})
    replicas.update("s", "s", [one.replica()])
    async with open_pool() as pool:
        try:
            await ask(Inferences(replicas, pool, lambda: datetime.now(UTC), _why), question)
        except EngineError as exc:
            return exc.status, str(exc).encode()
    return 200, b""


async def by_the_relay(one: Engine) -> tuple[int, bytes]:
    """As the vector databases are reached."""
    sent: list[dict[str, object]] = []
    headers = [(n.lower().encode(), v.encode()) for n, _, v in (x.partition(": ") for x in HEADERS.splitlines())]
    scope = {"type": "http", "method": "GET", "headers": headers}

    async def receive() -> dict[str, object]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody has answered that")

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    kept = [header for header in headers if header[0] not in BETWEEN_US]
    async with client() as http:
        await relay(http, scope, receive, send, url=one.replica().url, target=b"/collections", headers=kept)
    return int(str(sent[0]["status"])), str(sent[0]["headers"]).encode()


Way = Callable[[Engine], Awaitable[tuple[int, bytes]]]


@pytest.mark.parametrize("way", [on_the_data_path, by_the_relay])
def test_no_credential_and_nothing_of_the_hop_reaches_an_engine(way: Way) -> None:
    async def work() -> None:
        async with engine() as one:
            assert (await way(one))[0] == 200
        [head] = one.seen
        assert PLANTED not in head
        assert "x-other: kept" in head.lower()
        assert ("authorization: bearer own-key" in head.lower()) is (way is on_the_data_path)

    asyncio.run(work())


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("way", [on_the_data_path, by_the_simple_form, by_the_relay])
def test_an_engine_s_redirect_is_not_followed(way: Way, status: str) -> None:
    """It is passed on, or refused where an answer was to be read: it could lead anywhere, with the engine's key."""

    async def work() -> None:
        async with engine() as elsewhere:
            location = f"Location: http://127.0.0.1:{elsewhere.port}/stolen"
            async with engine(answered(status, location, body=b"moved")) as one:
                got, told = await way(one)
        assert len(one.seen) == 1
        assert elsewhere.seen == []
        if way is by_the_simple_form:
            assert got == 502
        else:
            assert got == int(status[:3])
            assert f"127.0.0.1:{elsewhere.port}/stolen".encode() in told

    asyncio.run(work())


def test_a_health_check_that_redirects_is_none() -> None:
    async def work() -> None:
        async with engine() as elsewhere:
            location = f"Location: http://127.0.0.1:{elsewhere.port}/health"
            async with engine(answered("307 Temporary", location)) as one, client() as http:
                replica = one.replica()
                await probe(http, replica)
        assert (replica.ready, elsewhere.seen) == (False, [])

    asyncio.run(work())


@pytest.mark.parametrize(
    "path",
    [
        "/admin", "/metrics", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/wake_up", "/shutdown",
        "/reset_prefix_cache", "/start_profile", "/server_info", "/v1/files", "/invocations", "/collective_rpc",
        "/props", "/slots", "/v1/chat/completions/", "/v1/chat/../admin", "/v1/chat%2fcompletions",
        "//v1/chat/completions", "/docs",
        "/openapi.json", "/v1/internal/model/load", "/v1/completions/x", "/flush_cache", "/update_weights", "/generate",
    ],
)  # fmt: skip
def test_what_is_not_on_the_list_reaches_no_engine(path: str) -> None:
    for target in (path, f"/api/v1/services/1{path}", f"/api/services/1:8001{path}", f"{path}?x=/v1/completions"):
        assert way_of(target.encode()).group is None, target


def test_what_is_on_the_list_does() -> None:
    assert {path for path in INFERENCE if way_of(path).group is None} == set()
    below = {path for path in INFERENCE | OF_A_SERVICE if way_of(b"/api/v1/services/1" + path).group is None}
    assert below == set()
    assert {path for path in OF_A_SERVICE if way_of(b"/api/v1/services/1" + path).allowed != (b"GET", b"HEAD")} == set()


@pytest.mark.parametrize(
    ("target", "relayed"),
    [
        ("/", True), ("/?x=1", True), ("/collections", True), ("/collections/b/points/search?wait=true", True),
        ("/aliases", True), ("/healthz", True), ("/telemetry", True), ("/snapshots", True),
        ("/dashboard", False), ("/logger", False), ("/debugger", False), ("/profiler/slow", False),
        ("/collections/../logger", False), ("/collections/%2e%2e/logger", False), ("/./logger", False),
        ("/%6cogger", False), ("//logger", False),
    ],
)  # fmt: skip
def test_of_qdrant_s_api_too_only_what_is_on_a_list_is_relayed(target: str, relayed: bool) -> None:
    assert is_relayed(target) is relayed


@pytest.mark.parametrize(
    ("target", "use"),
    [
        ("/collections", True), ("/collections/b/points/search?wait=true", True), ("/collections/metrics", True),
        ("/snapshots", True), ("/", False), ("/?x=1", False), ("/metrics", False), ("/%6detrics", False),
        ("/healthz", False), ("/readyz?a", False), ("/livez", False), ("/telemetry", False),
    ],
)  # fmt: skip
def test_looking_at_a_qdrant_is_no_use_of_it(target: str, use: bool) -> None:
    assert is_use(target) is use

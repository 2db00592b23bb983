"""The relay, gateway to orchestrator through a real sshd."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, muxed, served_orchestrator, settings_through, short_folder, until_ready
from tests.gateway.sshd import Sshd

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["mux", "plain", "mux through ssh"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def orchestrator(way: str) -> FakeOrchestrator:
    return FakeOrchestrator()


@pytest.fixture(scope="module")
async def client(way: str, sshd: Sshd, orchestrator: FakeOrchestrator) -> AsyncIterator[httpx2.AsyncClient]:
    """Over one connection for all requests, and as it is with an orchestrator that does not know that."""
    with short_folder() as folder:
        settings = settings_through(sshd, folder)
        if way == "mux through ssh":
            settings = settings.model_copy(update={"transport": "openssh"})
        http = "httptools" if way == "plain" else muxed()
        async with served_orchestrator(orchestrator, folder / "orchestrator.sock", http), gateway(settings) as client:
            await until_ready(client)
            yield client


async def test_json_path_query_and_headers(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/echo?a=%20b&c", json={"x": 1}, headers={"TE": "trailers", "X-Mine": "yes"})
    told = answer.json()
    assert (told["method"], told["target"], told["size"]) == ("POST", "/api/echo?a=%20b&c", 7)
    names = [name for name, _ in told["headers"]]
    assert ["x-mine", "yes"] in told["headers"]
    assert ["host", "orchestrator"] in told["headers"]
    assert len(names) == len(set(names))
    assert not {"te", "connection", "keep-alive", "expect"} & set(names)
    assert answer.headers["x-own"] == "1"
    assert "keep-alive" not in answer.headers


async def test_no_header_of_the_relay_s_own(client: httpx2.AsyncClient) -> None:
    request = httpx2.Request("GET", client.base_url.join("/api/v1/echo"))
    told = (await client.send(request)).json()
    assert [name for name, _ in told["headers"]] == ["host", "x-request-id"]


async def test_encoded_answers_are_not_touched(client: httpx2.AsyncClient) -> None:
    async with client.stream("GET", "/api/v1/gzip") as answer:
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) == len(raw)
    assert raw[:2] == b"\x1f\x8b"


async def test_events_arrive_one_by_one(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    async with client.stream("POST", "/v1/stream", content=b"{}") as answer:
        chunks = answer.aiter_raw()
        for number in range(3):
            orchestrator.proceed.put_nowait(None)  # only now is the next one made
            assert await asyncio.wait_for(anext(chunks), 2) == f"data: {number}\n\n".encode()
        assert [rest async for rest in chunks] == []


async def test_twenty_megabytes_up_and_down(client: httpx2.AsyncClient) -> None:
    block = bytes(range(256)) * 256

    async def body() -> AsyncIterator[bytes]:
        for _ in range(320):
            yield block

    told = (await client.put("/api/v1/echo", content=body())).json()
    assert (told["size"], told["sha256"]) == (320 * len(block), hashlib.sha256(block * 320).hexdigest())
    answer = await client.get("/api/v1/big")
    expected = b"".join(bytes([number % 256]) * 65536 for number in range(320))
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(expected).digest()


async def test_head_and_unknown(client: httpx2.AsyncClient) -> None:
    head = await client.head("/api/v1/echo")
    assert (head.status_code, head.content) == (200, b"")
    answer = await client.get("/api/v1/nothing")
    assert (answer.status_code, answer.json()) == (404, {"detail": "nothing at GET /api/nothing"})


async def test_paths_are_translated(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    await client.post("/api/v1/services", json={})
    await client.delete("/api/v1/services/42")
    assert orchestrator.seen[-2:] == [("POST", "/api/services/start"), ("POST", "/api/services/stop/42")]


@pytest.mark.parametrize("begin", ["", "?begin"])
async def test_a_client_who_leaves_is_noticed(
    client: httpx2.AsyncClient, orchestrator: FakeOrchestrator, begin: str
) -> None:
    async def ask() -> None:
        async with client.stream("POST", f"/v1/slow{begin}", json={"stream": True}) as answer:
            async for _ in answer.aiter_raw():
                pass

    asking = asyncio.create_task(ask())
    await orchestrator.arrived.get()
    asking.cancel()
    await asyncio.wait({asking})
    assert await asyncio.wait_for(orchestrator.left.get(), 1) == "slow"


async def test_an_answer_that_breaks_off_does_not_end_cleanly(client: httpx2.AsyncClient) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await client.get("/v1/broken")


async def test_many_streams_at_once(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=client.base_url, trust_env=False, limits=limits) as many:
        asking = [asyncio.create_task(many.post("/v1/stream", json={})) for _ in range(120)]
        for _ in range(3 * len(asking)):
            orchestrator.proceed.put_nowait(None)
        answers = await asyncio.wait_for(asyncio.gather(*asking), 10)
    assert {answer.text for answer in answers} == {"data: 0\n\ndata: 1\n\ndata: 2\n\n"}

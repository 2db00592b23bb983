"""Requests that wait for the link: answered when it is back, refused after a bound, forgotten with their client."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.link import Crowded, LinkState, LocalLink, Replacing, Unreached
from gateway.settings import Settings
from gateway.trunk import Passage, Trunk
from gateway.tunnel import Tunnel
from orchestrator.wire.http1 import parse_request
from orchestrator.wire.mux import UPGRADE
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, muxed, served_orchestrator, settings_through, until, until_ready
from tests.gateway.sshd import Sshd, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.system]


@pytest.fixture
def own_sshd(sshd: Sshd) -> Iterator[Sshd]:
    """One that the test may stop. `sshd` only says whether there can be one."""
    with tempfile.TemporaryDirectory(prefix="sg-sshd-") as name:
        server = Sshd(Path(name))
        yield server
        server.stop()


@pytest.fixture(params=["asyncssh", "openssh"])
def settings(request: pytest.FixtureRequest, own_sshd: Sshd, folder: Path) -> Settings:
    return settings_through(own_sshd, folder).model_copy(update={"transport": request.param})


@pytest.fixture
def nowhere(sshd: Sshd, folder: Path) -> Settings:
    """To a port where nobody listens."""
    settings = settings_through(sshd, folder)
    text = (folder / "ssh_config").read_text()
    (folder / "ssh_config").write_text(text.replace("Port ", f"Port {free_port()} #"))
    return settings


async def _state(client: httpx2.AsyncClient) -> str:
    return str((await client.get("/health")).json()["tunnel"]["state"])


async def _tried(client: httpx2.AsyncClient) -> None:
    async def tried() -> bool:
        return bool((await client.get("/health")).json()["tunnel"]["error"])

    await until(tried)


async def test_requests_wait_until_the_link_is_up(
    own_sshd: Sshd, settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock", muxed()), gateway(settings) as client:
        await _tried(client)
        body = b"x" * (3 << 20)  # more than is held: the client waits with the rest
        waiting = [
            asyncio.create_task(client.post("/api/v1/echo?post", content=body)),
            asyncio.create_task(client.get("/api/v1/echo?get")),
        ]
        started = time.perf_counter()
        assert await _state(client) in ("down", "connecting")
        assert (await client.get("/ready")).status_code == 503
        assert time.perf_counter() - started < 1, "the health checks do not wait"
        assert not any(task.done() for task in waiting)
        own_sshd.start()
        posted, got = await asyncio.gather(*waiting)
        assert (posted.status_code, posted.json()["size"]) == (200, len(body))
        assert got.status_code == 200
        assert orchestrator.seen.count(("POST", "/api/echo")) == 1


async def test_a_request_that_was_sent_is_not_sent_again(
    own_sshd: Sshd, settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    own_sshd.start()
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock", muxed()), gateway(settings) as client:
        await until_ready(client)
        sent = asyncio.create_task(client.post("/v1/slow", json={}))
        await orchestrator.arrived.get()
        own_sshd.stop()
        assert (await sent).status_code == 502
        waiting = asyncio.create_task(client.post("/api/v1/echo", json={}))
        own_sshd.start()
        assert (await waiting).status_code == 200
        assert orchestrator.seen.count(("POST", "/v1/slow")) == 1


async def test_after_the_bound_it_is_a_503_that_programs_understand(nowhere: Settings) -> None:
    async with gateway(nowhere.model_copy(update={"hold_seconds": 0.5})) as client:
        await _tried(client)
        started = time.perf_counter()
        native, openai, models = await asyncio.gather(
            client.post("/api/v1/services", json={}), client.post("/v1/completions", json={}), client.get("/v1/models")
        )
        assert 0.4 < time.perf_counter() - started < 3
        for answer in (native, openai, models):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
        assert native.json()["code"] == "tunnel_down"
        assert "ssh login" in native.json()["detail"]
        assert openai.json()["error"]["code"] == models.json()["error"]["code"] == "tunnel_down"


async def test_what_needs_a_person_is_refused_at_once(sshd: Sshd, folder: Path) -> None:
    settings = settings_through(sshd, folder)
    sshd.configure(folder, key="other")
    async with gateway(settings) as client:
        waiting = asyncio.create_task(client.get("/api/v1/echo"))  # perhaps before the login is refused
        await _tried(client)
        started = time.perf_counter()
        answers = [await client.post("/v1/completions", json={}), await waiting]
        assert time.perf_counter() - started < 1
        assert answers[0].json()["error"]["code"] == answers[1].json()["code"] == "auth_required"
        assert "ssh-add" in answers[0].json()["error"]["message"]


async def test_a_client_that_leaves_is_forgotten(
    own_sshd: Sshd, settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock", muxed()), gateway(settings) as client:
        await _tried(client)
        with pytest.raises(httpx2.ReadTimeout):
            await client.post("/api/v1/echo?left", json={}, timeout=0.3)
        own_sshd.start()
        await until_ready(client)
        assert (await client.post("/api/v1/echo?stayed", json={})).status_code == 200
        assert orchestrator.seen.count(("POST", "/api/echo")) == 1


class Answer:
    """A Reply that notes what it gets."""

    def __init__(self) -> None:
        self.paused = False

    def write(self, data: bytes) -> None:
        raise AssertionError("nothing is answered here")

    def finish(self) -> None:
        raise AssertionError("nothing is answered here")

    def cut(self, why: str, *, reached: bool = True) -> None:
        raise AssertionError("nothing is answered here")

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: o\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_what_waits_is_bounded(nowhere: Settings) -> None:
    refused: list[Unreached] = []
    async with Tunnel(nowhere) as link:
        trunk = Trunk(link, connect_seconds=1, hold_seconds=30)
        trunk.room.most_requests, trunk.room.most_bytes = 3, 3 << 20

        def begin() -> tuple[Passage, Answer]:
            reply = Answer()
            return Passage(trunk, parse_request(HEAD), HEAD, reply, lambda _, why: refused.append(why)), reply

        passages = [begin() for _ in range(3)]
        await until(lambda: _holds(trunk.room.requests == 3))
        begin()
        await until(lambda: _holds(len(refused) == 1))
        passages[0][0].feed(b"x" * (2 << 20))
        assert passages[0][1].paused
        passages[1][0].feed(b"x" * (1 << 20))
        passages[2][0].feed(b"x")
        assert len(refused) == 2
        assert all(isinstance(why, Crowded) for why in refused)
        assert trunk.room.bytes == 3 << 20
        for passage, _ in passages[:2]:
            passage.abort()
        await until(lambda: _holds(trunk.room.requests == 0))
        assert trunk.room.bytes == 0
        trunk.close()


async def test_a_large_body_waits_for_credit_also_when_it_came_before_the_connection(folder: Path) -> None:
    """The orchestrator takes the request and gives no credit: what the client sends would all lie in our memory."""
    opened, over, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(UPGRADE))
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await reader.readexactly(100)
        opened.set()
        await over.wait()
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        closed.set()

    path = folder / "orchestrator.sock"
    async with await asyncio.start_unix_server(serve, path), LocalLink(path) as link, asyncio.timeout(20):
        trunk, reply = Trunk(link, connect_seconds=5, hold_seconds=5), Answer()
        passage = Passage(trunk, parse_request(HEAD), HEAD, reply, lambda _, why: None)
        sent = 0

        def send() -> None:
            nonlocal sent
            while not reply.paused and sent < 64 << 20:
                passage.feed(b"x" * 65536)
                sent += 65536

        send()
        assert reply.paused and trunk.room.bytes == sent
        await opened.wait()
        assert trunk.room.bytes == 0
        send()
        assert reply.paused and sent <= 2 << 20
        passage.abort()
        trunk.close()
        over.set()
        await closed.wait()


async def test_an_orchestrator_is_replaced_between_requests(orchestrator: FakeOrchestrator, folder: Path) -> None:
    """What is under way is answered first, what comes then waits, and goes to the new one."""
    path, successor = folder / "orchestrator.sock", FakeOrchestrator()
    async with LocalLink(path) as link:
        trunk = Trunk(link, connect_seconds=5, hold_seconds=5)
        async with served_orchestrator(orchestrator, path, muxed()):
            under_way = asyncio.create_task(trunk.ask(b"GET", b"/v1/slow"))
            await orchestrator.arrived.get()
            assert await trunk.rest(0.1) == 1, "it is told what is left"
            waiting = [asyncio.create_task(trunk.ask(method, b"/api/echo", 5)) for method in (b"GET", b"POST")]
            with pytest.raises(Replacing, match="being replaced"):
                await trunk.ask(b"GET", b"/health")
            under_way.cancel()
            assert await trunk.rest(5) == 0
        assert not any(task.done() for task in waiting)
        async with served_orchestrator(successor, path, muxed()):
            trunk.go_on()
            assert [(await task)[0] for task in waiting] == [200, 200]
            trunk.close()
    echoes = [one.seen.count(("POST", "/api/echo")) for one in (orchestrator, successor)]
    assert echoes == [0, 1]


async def test_a_waiting_request_shortens_a_long_delay(own_sshd: Sshd, settings: Settings) -> None:
    slow = settings.model_copy(update={"backoff_min_seconds": 60.0, "backoff_max_seconds": 60.0})
    async with Tunnel(slow) as link:
        await _becomes(link, LinkState.DOWN)
        own_sshd.start()
        async with asyncio.timeout(9):  # 5 s, and the login
            await _becomes(link, LinkState.UP)


async def _becomes(link: Tunnel, state: LinkState) -> None:
    while link.status.state is not state:
        await link.changed()


async def _holds(condition: bool) -> bool:
    return condition

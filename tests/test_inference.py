"""Requests whose replica is gone, or says no at great length; whose turn it is; which are a use of their service."""

import asyncio
import contextlib
import itertools
import json
import socket
import tracemalloc
from collections import Counter
from datetime import UTC, datetime

import pytest

from orchestrator.asked import Asked
from orchestrator.errors import NotReady, OrchestratorError
from orchestrator.inference import Group, Inferences
from orchestrator.replicas import Replica, Replicas
from orchestrator.wire.http1 import parse_request
from orchestrator.wire.upstream import open_pool
from tests.orchestrating import START, Clock

_ANSWER = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
_BODY = b'{"model":"m"}'
_HEAD = b"POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n"


class Kept:
    """A Reply that keeps the answer."""

    def __init__(self) -> None:
        self.data = b""
        self.done = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.data += data

    def finish(self) -> None:
        self.done.set()

    def cut(self, why: str, *, reached: bool = True) -> None:
        self.done.set()

    def pause(self) -> None: ...

    def resume(self) -> None: ...


def replica(index: int, port: int, service: str = "s") -> Replica:
    made = Replica(
        submission_id=service, service_id="1", created_at=START, job_id="1", index=index, node="localhost", port=port,
        gpus="", key="", health="/health", models_path=None, ready=True,
    )  # fmt: skip
    made.serves(({"id": "m"},))
    return made


async def _engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(_BODY)
    writer.write(_ANSWER)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def _why(group: Group, model: str | None) -> OrchestratorError:
    return NotReady("none")


def test_a_refused_connection_sends_all_who_wait_to_the_other_replica_once() -> None:
    async def work() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # nobody listens on it
            server = await asyncio.start_server(_engine, "127.0.0.1", 0)
            dead, alive = replica(0, closed.getsockname()[1]), replica(1, server.sockets[0].getsockname()[1])
            replicas = Replicas()
            replicas.update("s", "s", [dead, alive])
            async with server, open_pool() as pool, asyncio.timeout(10):
                inferences = Inferences(replicas, pool, lambda: datetime.now(UTC), _why)
                replies = [Kept() for _ in range(6)]
                for reply in replies:
                    exchange = inferences.begin(parse_request(_HEAD), reply, b"/v1/completions", Group(), {})
                    exchange.feed(_BODY)
                    exchange.end()
                for reply in replies:
                    await reply.done.wait()
        assert [reply.data[9:12] for reply in replies] == [b"200"] * 6
        assert (dead.ready, alive.ready) == (False, True)
        assert (dead.in_flight, alive.in_flight, alive.failures) == (0, 0, 0)
        assert not inferences.active

    asyncio.run(work())


@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked", b"content-length: 33554432", b"connection: close"])
def test_of_an_endless_error_only_the_beginning_is_kept(framing: bytes) -> None:
    """32 MiB of it: the client gets what a person would read, and the rest lies in nobody's memory."""
    piece = b"no and " * 9362 + b"no"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(_BODY)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n%b\r\n\r\n" % framing)
        for _ in range(512):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if b"chunked" in framing else piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n" if b"chunked" in framing else b"")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def work() -> bytes:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        replicas, reply = Replicas(), Kept()
        replicas.update("s", "s", [replica(0, server.sockets[0].getsockname()[1])])
        async with server, open_pool() as pool, asyncio.timeout(60):
            inferences = Inferences(replicas, pool, lambda: START, _why)
            exchange = inferences.begin(parse_request(_HEAD), reply, b"/v1/completions", Group(), {})
            exchange.feed(_BODY)
            exchange.end()
            await reply.done.wait()
        return reply.data

    assert len(piece) == 65536
    tracemalloc.start()
    try:
        head, _, body = asyncio.run(work()).partition(b"\r\n\r\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert head.startswith(b"HTTP/1.1 400 ") and b"content-length: %d" % len(body) in head
    message = json.loads(body)["error"]["message"]
    assert message.startswith("no and no and") and len(message) <= 10_000
    assert peak < 8 << 20, peak


Ask = tuple[str | None, str | None]  # the model and the service that a request names


@pytest.mark.parametrize(
    "asked",
    [
        [("m", None), ("n", None)],
        [(None, "s"), (None, "t")],
        [("both", None), ("m", None)],
        [("m", None), (None, "s")],
        [("m", None), ("both", None), ("n", None)],
    ],
    ids=str,
)
def test_each_replica_has_its_turn_however_requests_for_others_come_between(asked: list[Ask]) -> None:
    async def work() -> dict[Ask, Counter[int]]:
        replicas = Replicas()
        for name, own, port in (("s", "m", 8001), ("t", "n", 8101)):
            found = [replica(index, port + index, name) for index in range(2)]
            for one in found:
                one.serves(({"id": own}, {"id": "both"}))
            replicas.update(name, name, found)
        async with open_pool() as pool:
            inferences = Inferences(replicas, pool, lambda: START, _why)
            chosen: dict[Ask, Counter[int]] = {ask: Counter() for ask in asked}
            for model, service in itertools.islice(itertools.cycle(asked), 40 * len(asked)):
                group, what = Group(service), Asked(model)
                port = inferences.choose(inferences.candidates(what, group, ()), what, group).port
                chosen[model, service][port] += 1
        return chosen

    for (model, _), ports in asyncio.run(work()).items():
        expected = 4 if model == "both" else 2
        assert set(ports.values()) == {40 // expected}, ports


def test_the_turns_of_thousands_of_services_are_not_kept() -> None:
    async def work() -> int:
        replicas = Replicas()
        async with open_pool() as pool:
            inferences = Inferences(replicas, pool, lambda: START, _why)
            for number in range(3000):
                pair = [replica(index, 8001 + index, f"s{number}") for index in range(2)]
                inferences.choose(pair, Asked("m"), Group(f"s{number}"))
        return len(inferences._turns)

    assert 0 < asyncio.run(work()) <= 1024


@pytest.mark.parametrize(("method", "used"), [("POST", True), ("GET", False), ("HEAD", False)])
def test_a_use_counts_from_its_beginning_and_its_end_and_what_only_looks_does_not(method: str, used: bool) -> None:
    async def work() -> None:
        clock, asked, go = Clock(), asyncio.Event(), asyncio.Event()

        async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await go.wait()
            writer.write(_ANSWER)
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(engine, "127.0.0.1", 0)
        one = replica(0, server.sockets[0].getsockname()[1])
        replicas = Replicas()
        replicas.update("s", "s", [one])
        head = _HEAD if method == "POST" else b"%s /v1/models HTTP/1.1\r\n\r\n" % method.encode()
        async with server, open_pool() as pool, asyncio.timeout(10):
            reply = Kept()
            inferences = Inferences(replicas, pool, clock, _why)
            exchange = inferences.begin(parse_request(head), reply, b"/v1/x", Group("s"), {})
            if method == "POST":
                exchange.feed(_BODY)
            exchange.end()
            await asked.wait()
            assert (one.in_flight, one.in_use, replicas.busy("s")) == (1, int(used), used)
            assert replicas.last_used("s") == (START if used else None)
            clock.advance(60)
            go.set()
            await reply.done.wait()
        assert (one.in_flight, one.in_use) == (0, 0)
        assert replicas.last_used("s") == (clock.now if used else None)

    asyncio.run(work())

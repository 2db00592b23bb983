"""Requests whose replica is gone."""

import asyncio
import contextlib
import socket
from datetime import UTC, datetime

from orchestrator.errors import NotReady, OrchestratorError
from orchestrator.inference import Group, Inferences
from orchestrator.replicas import Replica, Replicas
from orchestrator.wire.http1 import parse_request
from orchestrator.wire.upstream import open_pool
from tests.orchestrating import START

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


def replica(index: int, port: int) -> Replica:
    made = Replica(
        submission_id="s", service_id="1", created_at=START, job_id="1", index=index, node="localhost", port=port,
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

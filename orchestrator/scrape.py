"""An engine's own metrics, asked for within bounds of time and size."""

import asyncio
from dataclasses import dataclass

import httpx2
from prometheus_client.metrics_core import Metric

from orchestrator.errors import EngineError
from orchestrator.exposition import CONTENT_TYPE, parse
from orchestrator.replicas import Replica

SECONDS = 5.0
MOST_BYTES = 4 * 1024 * 1024
# Not compressed: the bound is on what is received.
_HEADERS = {"accept": "text/plain;version=0.0.4", "accept-encoding": "identity"}


@dataclass(frozen=True)
class Exposition:
    """An engine's answer as it is."""

    text: str
    content_type: str


@dataclass(frozen=True)
class Reading:
    """What one replica tells: its families, or `problem` and none."""

    replica: Replica
    families: list[Metric]
    problem: str = ""


async def scrape(client: httpx2.AsyncClient, replica: Replica) -> Exposition:
    """`GET /metrics` of one engine. Raises EngineError with what is wrong with its answer."""
    headers = _HEADERS | replica.headers
    try:
        async with (
            asyncio.timeout(SECONDS),
            client.stream("GET", f"{replica.url}/metrics", headers=headers) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise EngineError(f"replica {replica.id} answers /metrics with {response.status_code}")
            content = await _content(replica, response)
        return Exposition(content.decode(), response.headers.get("content-type", CONTENT_TYPE))
    except TimeoutError as exc:
        raise EngineError(f"replica {replica.id} gave no metrics within {SECONDS:g} s") from exc
    except httpx2.TransportError as exc:
        raise EngineError(f"replica {replica.id} gave no metrics: {exc or type(exc).__name__}") from exc
    except UnicodeDecodeError as exc:
        raise EngineError(f"replica {replica.id}: its metrics are not UTF-8: {exc.reason}") from exc


async def _content(replica: Replica, response: httpx2.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MOST_BYTES:
            raise EngineError(f"replica {replica.id} has more than {MOST_BYTES >> 20} MiB of metrics")
    return bytes(content)


async def read(client: httpx2.AsyncClient, replicas: tuple[Replica, ...]) -> list[Reading]:
    """All of them at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_read(client, replica)) for replica in replicas]
    return [task.result() for task in tasks]


async def _read(client: httpx2.AsyncClient, replica: Replica) -> Reading:
    """One that fails is part of what is told, like one that does not answer."""
    if not replica.ready:
        return Reading(replica, [], f"replica {replica.id}: {replica.problem}")
    try:
        exposition = await scrape(client, replica)
        # A megabyte takes 0.4 s of Python: other requests go on meanwhile.
        return Reading(replica, await asyncio.to_thread(parse, exposition.text))
    except EngineError as exc:
        words = str(exc)
        return Reading(replica, [], words if replica.id in words else f"replica {replica.id}: {words}")

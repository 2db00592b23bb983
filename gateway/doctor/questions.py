"""What the orchestrator is asked, through the running gateway or over a connection of our own."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import quote

import httpx2

from gateway.doctor.seen import Answers, Door
from gateway.link import Unreached
from gateway.trunk import Trunk

_SECONDS = 20.0  # for one answer; an sbatch that is only rehearsed may take ten
_MOST_DETAILS = 10
_TELLING = ("failed", "timeout", "node_fail", "out_of_memory", "lost", "configuring")


class NoAnswer(Exception):
    """The text says why."""


class Asked(Protocol):
    """One that answers the API's paths."""

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the JSON of an answer. Raises NoAnswer."""


@dataclass(frozen=True)
class Gateway:
    http: httpx2.AsyncClient

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        content = {} if body is None else {"json": body}
        try:
            answer = await self.http.request(method, path, timeout=_SECONDS, **content)
            return answer.status_code, answer.json()
        except httpx2.TransportError as exc:
            raise NoAnswer(str(exc) or type(exc).__name__) from exc
        except ValueError as exc:
            raise NoAnswer(f"{path} was not answered with JSON") from exc


@dataclass(frozen=True)
class OwnLogin:
    trunk: Trunk

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(_SECONDS):
                status, text = await self.trunk.ask(method.encode(), path.encode(), body=content)
            return status, json.loads(text)
        except TimeoutError as exc:
            raise NoAnswer(f"no answer within {_SECONDS:g} s") from exc
        except Unreached as exc:
            raise NoAnswer(str(exc)) from exc
        except ValueError as exc:
            raise NoAnswer(f"{path} was not answered with JSON") from exc


async def door(http: httpx2.AsyncClient) -> Door:
    """What is at the gateway's address."""
    try:
        answer = await http.get("/health", timeout=_SECONDS)
    except httpx2.ConnectError as exc:
        return Door("nothing", str(exc))
    except httpx2.TimeoutException:
        return Door("silent", f"no answer within {_SECONDS:g} s")
    except httpx2.TransportError as exc:
        return Door("other", f"it does not speak HTTP ({exc or type(exc).__name__})")
    health = _object(answer)
    if answer.status_code != httpx2.codes.OK or "tunnel" not in health or "orchestrator" not in health:
        return Door("other", f"it answers /health with {answer.status_code}, and not as a gateway does")
    return await _access(http, health)


async def _access(http: httpx2.AsyncClient, health: Mapping[str, Any]) -> Door:
    """By what the gateway answers itself: anything else waits for a link that is down."""
    try:
        answer = await http.get("/metrics", timeout=_SECONDS)
    except httpx2.TransportError as exc:
        return Door("gateway", health=health, access_words=str(exc) or type(exc).__name__)
    words = str(_object(answer).get("detail", ""))
    return Door("gateway", health=health, access=answer.status_code, access_words=words)


def _object(answer: httpx2.Response) -> dict[str, Any]:
    """{} for what is no JSON object."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def answers(
    asked: Asked, by: Literal["gateway", "own login"], health: Mapping[str, Any], *, with_gpu: bool = True
) -> Answers:
    """All that is asked, each question by itself: one that fails says why, and the others go on.

    `with_gpu`: whether a job for a GPU is rehearsed.
    """
    try:
        services, services_error = await _services(asked), ""
    except NoAnswer as exc:
        services, services_error = None, str(exc)
    rehearsal: Sequence[Mapping[str, Any]] | None = None
    rehearsal_error = ""
    if health.get("scheduler") != "local":
        try:
            rehearsal = await _rehearsed(asked, with_gpu)
        except NoAnswer as exc:
            rehearsal_error = str(exc)
    return Answers(
        health=health,
        by=by,
        services=services,
        services_error=services_error,
        rehearsal=rehearsal,
        rehearsal_error=rehearsal_error,
    )


async def _services(asked: Asked) -> list[Mapping[str, Any]]:
    """The newest of them; those that failed or load, in detail."""
    listed = await _good(asked, "GET", "/api/v1/services?limit=200")
    found: list[Mapping[str, Any]] = []
    details = 0
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict):
            continue
        if one.get("status") in _TELLING and details < _MOST_DETAILS:
            details += 1
            one = await _good(asked, "GET", f"/api/v1/services/{quote(str(one.get('id')), safe=':')}")
        found.append(one)
    return found


async def _rehearsed(asked: Asked, with_gpu: bool) -> list[Mapping[str, Any]]:
    """A job for a minute. Its model is a folder that is not there: only what Slurm says of the job counts."""
    config = {"model": "/sluicegate/doctor", "gpu": 1 if with_gpu else None, "cpu": 1, "memory": "1G", "time_limit": 1}
    body = {"recipe_name": "inference/vllm-single-node", "config": config}
    report = await _good(asked, "POST", "/api/v1/preflight", body)
    verdicts = report.get("verdicts") if isinstance(report, dict) else None
    return [one for one in verdicts if isinstance(one, dict)] if isinstance(verdicts, list) else []


async def _good(asked: Asked, method: str, path: str, body: Any = None) -> Any:
    status, answer = await asked.ask(method, path, body)
    if status >= 400:
        detail = answer.get("detail") if isinstance(answer, dict) else answer
        raise NoAnswer(f"{path.partition('?')[0]} was answered {status}: {detail}")
    return answer

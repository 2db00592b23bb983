"""`/orchestrator/…`: what stands where the orchestrator is, started and stopped, also while it does not answer."""

import asyncio
import sys
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.connect.host import Failed, Host, state_of
from gateway.connect.standing import Standing
from gateway.link import Unreached
from gateway.problem import Problem
from gateway.settings import Settings

STATUS, ENDPOINT = "/orchestrator/status", "/orchestrator/endpoint"
START, STOP = "/orchestrator/start", "/orchestrator/stop"
_START_SECONDS = 90.0
_STATES = {"yes": "running", "queued": "queued", "elsewhere": "elsewhere"}


def routes() -> list[BaseRoute]:
    return [
        Route(STATUS, _status, methods=["GET"]),
        Route(ENDPOINT, _endpoint, methods=["GET"]),
        Route(START, _start, methods=["POST"]),
        Route(STOP, _stop, methods=["POST"]),
    ]


class Refused(Exception):
    """It cannot be done as things stand; the text says what to do."""


def host_of(request: Request) -> Host:
    settings: Settings = request.state.settings
    where = settings.remote_socket if settings.cluster is not None else str(settings.local_socket)
    return Host(request.state.link, state_of(where))


def shape(there: Standing, request: Request) -> dict[str, Any]:
    """What an answer says."""
    link = request.state.link.status
    can_start = there.installed or request.state.settings.cluster is None  # this machine's own is always there
    return {
        "state": _STATES.get(there.running, "stopped" if can_start else "absent"),
        "installed": there.installed or None,
        "version": there.version or None,
        "running": there.runs or None,
        "started_by": _started_by(there),
        "since": there.since.isoformat() if there.since else None,
        "pid": there.pid,
        "host": there.where or there.host or None,
        "folder": there.state or None,
        "socket": there.socket or None,
        "job": there.job or None,
        "waits_for": there.waits or None,
        "tunnel": {"state": link.state, "via": link.via, "to": link.where, "error": link.error},
    }


def _started_by(there: Standing) -> str | None:
    if there.job:
        return "job"
    return (there.how or "hand") if there.running == "yes" else None


async def _status(request: Request) -> Response:
    return await _answered(request, lambda host: _told(request, host))


async def _told(request: Request, host: Host) -> dict[str, Any]:
    return shape(await host.standing(), request)


async def _endpoint(request: Request) -> Response:
    """Needs nothing but what the gateway knows."""
    settings: Settings = request.state.settings
    link = request.state.link.status
    return JSONResponse(
        {
            "endpoint": link.where,
            "cluster": settings.cluster,
            "via": link.via,
            "state": link.state,
            "api": "/api/v1",
            "openai_base_url": "/v1",
        }
    )


async def _start(request: Request) -> Response:
    return await _answered(request, lambda host: _started(request, host))


async def _started(request: Request, host: Host) -> dict[str, Any]:
    """As it was started last, or as this machine's own; one that runs is left alone."""
    there = await host.standing()
    if there.running == "yes":
        return {"message": f"The orchestrator runs already, as process {there.pid}."} | shape(there, request)
    if there.installed:
        words: tuple[str, ...] = ("start", "again")
    elif request.state.settings.cluster is None:
        words = ("start", "beside", sys.executable)
    else:
        cluster = request.state.settings.cluster
        raise Refused(f"nothing is installed in {there.state} on {cluster}; run `sluice connect {cluster}` once")
    told = await host.manage(*words, seconds=_START_SECONDS)
    message = "The orchestrator was started."
    if told.last("waits"):
        message = f"The orchestrator is Slurm job {told.last('job')}, which waits: {told.last('waits')}."
    return {"message": message} | await _told(request, host)


async def _stop(request: Request) -> Response:
    return await _answered(request, lambda host: _stopped(request, host))


async def _stopped(request: Request, host: Host) -> dict[str, Any]:
    """Jobs go on."""
    was = (await host.standing()).running
    await host.manage("stop", seconds=_START_SECONDS)
    message = "The orchestrator was stopped; jobs go on." if was in ("yes", "queued") else "No orchestrator runs."
    return {"message": message} | await _told(request, host)


async def _answered(request: Request, work: Any) -> Response:
    """One at a time: two starts at once would be one too many."""
    lock: asyncio.Lock = request.state.managing
    path, link = request.scope["path"], request.state.link.status
    try:
        async with lock:
            return JSONResponse(await work(host_of(request)))
    except Refused as exc:
        return Problem(path, HTTPStatus.CONFLICT, str(exc))
    except Failed as exc:
        return Problem(path, HTTPStatus.BAD_GATEWAY, str(exc))
    except Unreached as exc:
        text = link.advice if link.error else str(exc)
        return Problem(path, HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry-After": str(link.retry_after)}, link.code)

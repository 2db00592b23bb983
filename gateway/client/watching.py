"""To watch a service until it answers or has ended: what to do next, without doing it.

The generator gives a Call (send its answer in, or throw its ApiError), a Pause (send None in when it is over), or a
Look, which is for the caller to see.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from gateway.client.call import Call
from gateway.client.calls import service
from gateway.client.errors import ApiError, Ended, TookTooLong
from gateway.shapes import ServiceDetail

UNDER_WAY = ("pending", "configuring", "suspended")


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Look:
    service: ServiceDetail


Steps = Generator[Call[ServiceDetail] | Pause | Look, Any, None]


def watching(service_id: str, *, every: float, timeout: float | None, clock: Callable[[], float]) -> Steps:
    """Looks until the service answers or has ended. Raises TookTooLong after `timeout` seconds.

    A 503, as while the link to the cluster is down, is no end: it is asked again when Retry-After says so.
    """
    began, last = clock(), None
    while True:
        try:
            last = yield service(service_id)
        except ApiError as exc:
            if exc.status != 503 or _over(began, timeout, clock):
                raise
            yield Pause(exc.retry_after or every)
            continue
        yield Look(last)
        if last["status"] not in UNDER_WAY:
            return
        if _over(began, timeout, clock):
            raise TookTooLong(last, clock() - began)
        yield Pause(every)


def answering(last: ServiceDetail) -> ServiceDetail:
    """The last look, of a service that answers. Raises Ended for one that does not."""
    if last["status"] != "running":
        raise Ended(last)
    return last


def _over(began: float, timeout: float | None, clock: Callable[[], float]) -> bool:
    return timeout is not None and clock() - began >= timeout

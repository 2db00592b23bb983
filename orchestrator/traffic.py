"""HTTP requests, counted: one plain ASGI class, and the Prometheus series that it feeds."""

import itertools
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.wire.http1 import Request

OTHER = "other"
CLIENT_LEFT = 499  # as nginx has it: the client went away before an answer began
_NAMES = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_METHODS: dict[bytes | str, str] = {name: name for name in _NAMES} | {name.encode(): name for name in _NAMES}
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Seconds to the last byte: from a status to a long answer of a model."""


class Totals(NamedTuple):
    """All that was counted of one value. `failed`: with a status of 400 or more. `times`: how many took no longer than
    each of BUCKETS, and longer than the one before; in the end how many took longer."""

    requests: int
    failed: int
    times: tuple[int, ...]


class Traffic(Collector):
    """The series of one process. `label` is the name of what requests are told apart by, beside method and status.

    Counted by ourselves and shown when Prometheus asks: prometheus_client's own counters take a lock for each number.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str, label: str) -> None:
        self._prefix, self._labels = prefix, ("method", label)
        self._requests: dict[tuple[str, str, int], int] = {}
        self._times: dict[tuple[str, str], _Times] = {}
        self.in_flight = Gauge(f"{prefix}_requests_in_flight", "Requests that are being answered.", registry=registry)
        registry.register(self)

    def observe(self, method: bytes | str, value: str, status: int, seconds: float) -> None:
        """Count one request. `value` is that of `label`, one of a few; strange methods are one."""
        name = _METHODS.get(method, OTHER)
        key = name, value, status
        self._requests[key] = self._requests.get(key, 0) + 1
        times = self._times.get((name, value))
        if times is None:
            times = self._times[name, value] = _Times()
        times.buckets[bisect_left(BUCKETS, seconds)] += 1
        times.seconds += seconds

    def observe_request(self, request: Request, status: int, seconds: float) -> None:
        """Count a request that a `wire.server.Server` has answered, unless it left that to `Counted`."""
        if request.kind:
            self.observe(request.head.method, request.kind, status, seconds)

    def totals(self, value: str) -> Totals:
        counted = [(status, number) for (_, of, status), number in self._requests.items() if of == value]
        times = [times.buckets for (_, of), times in self._times.items() if of == value]
        return Totals(
            requests=sum(number for _, number in counted),
            failed=sum(number for status, number in counted if status >= 400),
            times=tuple(map(sum, zip(*times, strict=True))) if times else (0,) * (len(BUCKETS) + 1),
        )

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        counted = CounterMetricFamily(
            f"{self._prefix}_requests", "Requests that have been answered.", labels=(*self._labels, "status")
        )
        for (method, value, status), number in self._requests.items():
            counted.add_metric((method, value, str(status)), number)
        timed = HistogramMetricFamily(
            f"{self._prefix}_request_seconds",
            "From a request's arrival to the last byte of its answer.",
            labels=self._labels,
        )
        for (method, value), times in self._times.items():
            bounds = [*(str(float(bound)) for bound in BUCKETS), "+Inf"]
            below = list(zip(bounds, itertools.accumulate(times.buckets), strict=True))
            timed.add_metric((method, value), below, times.seconds)
        yield counted
        yield timed


class _Times:
    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0


class Counted:
    """`traffic` finds the series in a scope, `value` a request's label in the scope that has been answered."""

    def __init__(self, app: ASGIApp, traffic: Callable[[Scope], Traffic], value: Callable[[Scope], str]) -> None:
        self._app, self._traffic, self._value = app, traffic, value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None
        unanswered = 500  # what an exception becomes

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        traffic, began = self._traffic(scope), time.perf_counter()
        traffic.in_flight.inc()
        try:
            await self._app(scope, receive, send_noted)
            unanswered = CLIENT_LEFT
        finally:
            traffic.in_flight.dec()
            traffic.observe(scope["method"], self._value(scope), status or unanswered, time.perf_counter() - began)

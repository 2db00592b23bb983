"""HTTP requests, counted: one plain ASGI class, and the Prometheus series that it feeds."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.wire.http1 import Request

OTHER = "other"
CLIENT_LEFT = 499  # as nginx has it: the client went away before an answer began
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Seconds to the last byte: from a status to a long answer of a model.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Traffic:
    """The series of one process. `label` is the name of what requests are told apart by, beside method and status."""

    def __init__(self, registry: CollectorRegistry, prefix: str, label: str) -> None:
        names = ("method", label)
        self._counter = Counter(
            f"{prefix}_requests", "Requests that have been answered.", (*names, "status"), registry=registry
        )
        self._histogram = Histogram(
            f"{prefix}_request_seconds",
            "From a request's arrival to the last byte of its answer.",
            names,
            buckets=_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge(f"{prefix}_requests_in_flight", "Requests that are being answered.", registry=registry)
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, method: str, value: str, status: int, seconds: float) -> None:
        """Count one request. `value` is that of `label`, one of a few; strange methods are one."""
        key = (method if method in _METHODS else OTHER, value, status)
        if key not in self._known:
            self._known[key] = self._counter.labels(*key[:2], str(status)), self._histogram.labels(*key[:2])
        counter, histogram = self._known[key]
        counter.inc()
        histogram.observe(seconds)

    def observe_request(self, request: Request, status: int, seconds: float) -> None:
        """Count a request that a `wire.server.Server` has answered, unless it left that to `Counted`."""
        if request.kind:
            self.observe(request.method.decode("latin-1"), request.kind, status, seconds)


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

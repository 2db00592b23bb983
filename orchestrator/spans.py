"""Requests as spans of OpenTelemetry: one around each request that a handler is given, in both processes.

The span's context takes the place of the client's in the request, so that who is asked next goes on with it. Only the
first bytes of an answer and its end are looked at; what is between passes by.
"""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from orchestrator import __version__
from orchestrator.asked import look
from orchestrator.dispatch import way_of
from orchestrator.errors import BadRequest
from orchestrator.inference import Inference
from orchestrator.wire import Around, Exchange, Handle, Reply
from orchestrator.wire.http1 import HEAD_END, Request
from orchestrator.wire.server import CLIENT_LEFT

_LAST_SECONDS = 3.0  # for what has not been sent at the end
_LONGEST = 200  # characters of a value that a client has chosen
_QUIET = re.compile(r"/health|/ready|/metrics|/api/.*/(metrics|health|targets)")
_WHO = re.compile(rb"\r\nx-sluice-(service|replica): ([!-~]{1,100})", re.IGNORECASE)


@asynccontextmanager
async def exported(name: str) -> AsyncIterator[Around]:
    """Spans are sent to where OTEL_EXPORTER_OTLP_ENDPOINT says: OTEL_* variables are the SDK's own."""
    ours = Resource.create({"service.name": name, "service.version": __version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("sluicegate", __version__)
    try:
        yield lambda handle: Tracing(tracer, handle)
    finally:
        await _ended(provider)


async def _ended(provider: TracerProvider) -> None:
    """A collector that does not answer must not keep the process: what it does not take within some seconds is lost."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        provider.shutdown()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(over.set)

    threading.Thread(target=end, daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_SECONDS):
            await over.wait()


class Tracing:
    """The handler around another one."""

    def __init__(self, tracer: Tracer, handle: Handle) -> None:
        self._tracer, self._handle = tracer, handle

    def __call__(self, request: Request, reply: Reply) -> Exchange:
        if _QUIET.fullmatch(request.path):
            return self._handle(request, reply)
        span = self._begin(request)
        if not span.is_recording():  # not sampled: whoever is asked next is told that, too
            return self._handle(request, reply)
        answer = Answer(span, reply)
        try:
            exchange = self._handle(request, answer)
        except Exception as exc:
            span.record_exception(exc)
            answer.over(500, "it could not be handled")
            raise
        answer.exchange = exchange
        return Asking(exchange, request, answer)

    def _begin(self, request: Request) -> Span:
        """A span within the client's trace, whose context from now on stands in the request."""
        method, kind = request.method.decode(), way_of(request.target).kind
        given = propagate.extract(_carried(request))
        span = self._tracer.start_span(
            f"{method} {kind}" if kind else method,
            context=given,
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "url.path": request.path[:_LONGEST],
                "sluice.request_id": request.id.decode("latin-1")[:_LONGEST],
            },
        )
        told: dict[str, str] = {}
        propagate.inject(told, set_span_in_context(span, given))
        ours = [(name.encode(), value.encode("latin-1")) for name, value in told.items()]
        names = {name for name, _ in ours}
        request.head = request.head.with_headers([h for h in request.headers if h[0] not in names] + ours)
        return span


def _carried(request: Request) -> dict[str, str]:
    """The headers of a trace. One that came in several lines is one, as HTTP has it."""
    found: dict[str, list[str]] = {}
    for name, value in request.headers:
        found.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    fields = propagate.get_global_textmap().fields
    return {name: ",".join(found[name]) for name in fields & found.keys()}


class Answer:
    """The Reply of a request that has a span."""

    exchange: Exchange | None = None
    model: str | None = None

    def __init__(self, span: Span, reply: Reply) -> None:
        self._span, self._reply = span, reply
        self._began, self._answering = time.monotonic(), 0.0
        self._status = 0
        self._who: dict[str, str] = {}
        self._ended = False
        self.write: Callable[[bytes], None] = self._write_first
        self.pause, self.resume = reply.pause, reply.resume

    def _write_first(self, data: bytes) -> None:
        self.write = self._reply.write  # what follows passes by
        self._answering, self._status = time.monotonic(), int(data[9:12])
        self._span.add_event("first byte")
        self._reply.write(self._signed(data))

    def _signed(self, data: bytes) -> bytes:
        """The beginning of an answer, with who gives it; or who that is, where somebody has written it there before."""
        replica = self.exchange.latest if isinstance(self.exchange, Inference) else None
        if replica is None:
            found = _WHO.findall(data, 0, max(data.find(HEAD_END), 0))
            self._who = {name.decode().lower(): value.decode() for name, value in found}
            return data
        self._who = {"service": replica.service_id, "replica": replica.id}
        line, end, rest = data.partition(b"\r\n")
        signs = b"".join(b"x-sluice-%s: %s\r\n" % (name.encode(), value.encode()) for name, value in self._who.items())
        return line + end + signs + rest

    def finish(self) -> None:
        self.over()
        self._reply.finish()

    def cut(self, why: str, *, reached: bool = True) -> None:
        self.over(502 if reached else 503, why)
        self._reply.cut(why, reached=reached)

    def over(self, status: int = 0, why: str = "") -> None:
        """The request is. `status`: where the client has not been told one."""
        if self._ended:
            return
        self._ended = True
        now, status, model = time.monotonic(), self._status or status, self.model
        if isinstance(self.exchange, Inference):
            model, why = self.exchange.model, why or self.exchange.broke
        told = {
            "http.response.status_code": status,
            "gen_ai.request.model": model and model[:_LONGEST],
            "sluice.service_id": self._who.get("service"),
            "sluice.replica_id": self._who.get("replica"),
            "sluice.time_to_first_byte": self._answering - self._began if self._answering else None,
            "sluice.stream_duration": now - self._answering if self._answering else None,
        }
        self._span.set_attributes({name: value for name, value in told.items() if value is not None})
        if status >= 500 or why:
            self._span.set_status(Status(StatusCode.ERROR, why))
        self._span.end()


class Asking:
    """The Exchange of a request that has a span."""

    def __init__(self, exchange: Exchange, request: Request, answer: Answer) -> None:
        self._exchange, self._request, self._answer = exchange, request, answer
        self.end, self.pause, self.resume = exchange.end, exchange.pause, exchange.resume
        names_a_model = request.method == b"POST" and way_of(request.target).group is not None
        looks = names_a_model and not isinstance(exchange, Inference)  # which looks itself
        self.feed: Callable[[bytes], None] = self._feed_first if looks else exchange.feed

    def _feed_first(self, data: bytes) -> None:
        self.feed = self._exchange.feed
        if len(data) == self._request.length:
            with contextlib.suppress(BadRequest):  # the orchestrator says so
                self._answer.model = look(self._request.header(b"content-type") or b"", data).model
        self._exchange.feed(data)

    def abort(self) -> None:
        self._answer.over(CLIENT_LEFT)
        self._exchange.abort()

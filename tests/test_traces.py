"""Traces: the span of one request, however it ends; and one trace through both halves, sent to a real collector."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import StatusCode

from orchestrator.settings import traces_wanted
from orchestrator.spans import Tracing, exported
from orchestrator.wire import Exchange, Reply
from orchestrator.wire.http1 import Request, answer
from tests.gateway.serving import short_folder
from tests.orchestrating import RECIPE
from tests.test_prometheus import free_port, halves, start
from tests.test_prometheus import until as eventually
from tests.wire.parts import Handler, Noted, serving, silent, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
BODY = b'{"model": "m"}'


class Spans:
    """What a handler makes of requests, and the spans around them."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("tests")

    @property
    def ended(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())


def greet(noted: Noted) -> None:
    noted.reply.write(answer(200, b"{}", [(b"x-sluice-service", b"7"), (b"x-sluice-replica", b"7:8001")]))
    noted.reply.finish()


async def sent(spans: Spans, on_end: Callable[[Noted], None], data: bytes) -> tuple[bytes, Handler]:
    handler = Handler(on_end)
    async with serving(Tracing(spans.tracer, handler)) as there:
        return await there.send(data), handler


def post(target: str, body: bytes = BODY, **headers: str) -> bytes:
    lines = [
        f"{name.replace('_', '-')}: {value}" for name, value in {"Host": "h", "Connection": "close", **headers}.items()
    ]
    head = "\r\n".join([f"POST {target} HTTP/1.1", *lines, f"Content-Length: {len(body)}"])
    return head.encode() + b"\r\n\r\n" + body


def test_a_span_goes_on_with_the_clients_trace_and_the_next_one_with_it() -> None:
    spans = Spans()
    data = post("/v1/completions", traceparent=TRACEPARENT, tracestate="a=b", X_Request_Id="mine")
    got, handler = asyncio.run(sent(spans, greet, data))
    (span,) = spans.ended
    assert got.startswith(b"HTTP/1.1 200 ") and bytes(handler.noted[0].body) == BODY
    assert span.context is not None and span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert (span.name, span.status.status_code) == ("POST /v1/completions", StatusCode.UNSET)
    seen = handler.noted[0].request
    assert seen.header(b"traceparent") == f"00-{TRACE}-{span.context.span_id:016x}-01".encode()
    assert [value for name, value in seen.headers if name == b"tracestate"] == [b"a=b"]
    assert [name for name, _ in seen.headers].count(b"traceparent") == 1
    told = dict(span.attributes or {})
    assert 0 <= told.pop("sluice.time_to_first_byte") < 20 and 0 <= told.pop("sluice.stream_duration") < 20  # type: ignore[operator]
    assert told == {
        "http.request.method": "POST", "url.path": "/v1/completions", "http.response.status_code": 200,
        "sluice.request_id": "mine", "gen_ai.request.model": "m", "sluice.service_id": "7",
        "sluice.replica_id": "7:8001",
    }  # fmt: skip


def test_without_a_trace_of_the_clients_one_begins() -> None:
    spans = Spans()
    _, handler = asyncio.run(sent(spans, greet, post("/v1/completions", b"no JSON", traceparent="nonsense")))
    (span,) = spans.ended
    assert span.parent is None and span.context is not None
    assert (handler.noted[0].request.header(b"traceparent") or b"").startswith(
        f"00-{span.context.trace_id:032x}-".encode()
    )
    assert "gen_ai.request.model" not in (span.attributes or {})


def test_heads_that_are_kept_for_the_next_request_stay_as_they_are() -> None:
    spans, handler = Spans(), Handler(greet)

    async def work() -> list[bytes | None]:
        async with serving(Tracing(spans.tracer, handler)) as there:
            for _ in range(2):
                await there.send(post("/v1/completions"))
            return [head.first.get(b"traceparent") for head in there.server.heads._measured.values()]

    assert asyncio.run(work()) == [None]
    parents = {noted.request.header(b"traceparent") for noted in handler.noted}
    assert len(parents) == len(spans.ended) == 2 and None not in parents


def cut(noted: Noted) -> None:
    noted.reply.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
    noted.reply.cut("the engine has gone")


def refuse(noted: Noted) -> None:
    noted.reply.cut("no engine took it", reached=False)


@pytest.mark.parametrize(
    ("on_end", "status", "words"), [(cut, 200, "the engine has gone"), (refuse, 503, "no engine took it")]
)
def test_what_breaks_off_is_an_error_and_says_why(on_end: Callable[[Noted], None], status: int, words: str) -> None:
    spans = Spans()
    asyncio.run(sent(spans, on_end, post("/v1/completions")))
    (span,) = spans.ended
    assert (span.attributes or {})["http.response.status_code"] == status
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, words)


def test_a_client_that_leaves_ends_its_span_once() -> None:
    spans, handler = Spans(), Handler(silent)

    async def work() -> None:
        async with serving(Tracing(spans.tracer, handler)) as there:
            _, writer = await there.connect()
            writer.write(post("/v1/completions"))
            await until(lambda: bool(handler.noted) and "end" in handler.noted[0].calls)
            writer.close()
            await until(lambda: "abort" in handler.noted[0].calls)

    asyncio.run(work())
    (span,) = spans.ended
    assert (span.attributes or {})["http.response.status_code"] == 499
    assert "sluice.time_to_first_byte" not in (span.attributes or {})


def test_what_cannot_be_handled_has_a_span_too() -> None:
    spans = Spans()

    def fail(request: Request, reply: Reply) -> Exchange:
        raise RuntimeError("nobody foresaw it")

    async def work() -> bytes:
        async with serving(Tracing(spans.tracer, fail)) as there:
            return await there.send(post("/v1/completions"))

    assert asyncio.run(work()).startswith(b"HTTP/1.1 500 ")
    (span,) = spans.ended
    assert (span.attributes or {})["http.response.status_code"] == 500
    assert [event.name for event in span.events] == ["exception"]


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/api/v1/services/targets", "/api/v1/services/7/metrics"]
)
def test_what_is_asked_all_the_time_has_no_span(path: str) -> None:
    spans = Spans()
    _, handler = asyncio.run(sent(spans, greet, post(path)))
    assert spans.ended == [] and handler.noted[0].request.header(b"traceparent") is None


def test_what_is_not_sampled_tells_the_next_one_so() -> None:
    spans = Spans(ALWAYS_OFF)
    _, handler = asyncio.run(sent(spans, greet, post("/v1/completions", traceparent=TRACEPARENT)))
    assert spans.ended == []
    assert (handler.noted[0].request.header(b"traceparent") or b"").endswith(b"-00")


# Whether there are any


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "console, otlp"}, True),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
    ],
)
def test_the_environment_says_whether_there_are_traces(
    variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert traces_wanted() is wanted


WITHOUT = """
import asyncio, logging, os, sys
import gateway.app, orchestrator.app
from orchestrator.tracing import open_tracing, untraced

async def traced():
    async with open_tracing("tests") as found:
        return found

assert asyncio.run(traced()) is untraced
foreign = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
assert not foreign and "orchestrator.spans" not in sys.modules, foreign
logging.basicConfig(stream=sys.stdout, format="%(message)s")
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
sys.modules["opentelemetry"] = None  # as where it is not installed
assert asyncio.run(traced()) is untraced
"""


@pytest.mark.system
@pytest.mark.beside
def test_off_nothing_is_imported_and_without_the_extra_it_says_how_to_get_it() -> None:
    words = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "pip install 'sluicegate[otel]'" in done.stdout


@pytest.mark.system
@pytest.mark.beside
def test_a_collector_that_does_not_answer_keeps_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> float:
        async with exported("tests") as traced, serving(traced(Handler(greet))) as there:
            await there.send(post("/v1/completions"))
            began = time.monotonic()
        return time.monotonic() - began

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "*")
        assert asyncio.run(work()) < 8


# Both halves


@contextmanager
def collector(folder: Path) -> Iterator[tuple[int, Callable[[], list[dict[str, Any]]]]]:
    """A port, and the spans that have come there."""
    port, log = free_port(), folder / "spans.jsonl"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.otlp_collector", str(port)],
            stdout=output, stderr=output, cwd=Path(__file__).parents[1],
        )  # fmt: skip
    try:
        eventually(lambda: listens(port), 20, log.read_text)
        yield port, lambda: [json.loads(line) for line in log.read_text().splitlines()]
    finally:
        process.terminate()
        process.wait(20)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def running(gateway: Any) -> str:
    service = start(gateway, RECIPE, {"gpu": None})
    status = f"/api/v1/services/{service}/status"
    eventually(lambda: gateway.get(status).json()["status"] == "running", 30, lambda: gateway.get(status).text)
    return service


ASKED = {"model": "Qwen/Qwen2.5-0.5B-Instruct", "prompt": "one two three delay 0.05", "stream": True, "max_tokens": 4}
HEADERS = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "X-Request-Id": "traced-1"}


@pytest.mark.system
@pytest.mark.beside
def test_one_trace_from_the_client_through_both_halves_to_the_engine(tmp_path: Path) -> None:
    with short_folder() as home, collector(tmp_path) as (port, spans):
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_BSP_SCHEDULE_DELAY": "100", "NO_PROXY": "*",
        }  # fmt: skip

        def of_it(identity: str) -> list[dict[str, Any]]:
            return [span for span in spans() if span["attributes"].get("sluice.request_id") == identity]

        with halves(home, free_port(), **variables) as gateway:
            service = running(gateway)
            answer = gateway.post("/v1/completions", json=ASKED, headers=HEADERS)
            assert answer.text.endswith("data: [DONE]\n\n")
            prompt = f"/api/v1/vllm/{service}/prompt"
            simply = gateway.post(prompt, json={"prompt": "hi"}, headers=HEADERS | {"X-Request-Id": "traced-2"})
            assert simply.status_code == 200, simply.text
            eventually(lambda: len(of_it("traced-1") + of_it("traced-2")) == 4, 20, spans)
            log = gateway.get(f"/api/v1/services/{service}/logs").json()["logs"]
        ours = {span["service"]: span for span in of_it("traced-1")}
        (last,) = (span for span in of_it("traced-2") if span["service"] == "sluicegate-orchestrator")
    outer, inner = ours["sluicegate-gateway"], ours["sluicegate-orchestrator"]
    assert (outer["trace"], inner["trace"]) == (TRACE, TRACE)
    assert (outer["parent"], inner["parent"]) == (PARENT, outer["span"])
    assert f"POST /v1/completions traced-1 00-{TRACE}-{inner['span']}-01 vendor=1" in log
    for span in (outer, inner):
        told = span["attributes"]
        assert (span["name"], span["kind"], span["state"]) == ("POST /v1/completions", "SPAN_KIND_SERVER", "vendor=1")
        assert (span["error"], span["events"], told["http.response.status_code"]) == (None, ["first byte"], 200)
        assert told["gen_ai.request.model"] == ASKED["model"]
        assert told["sluice.service_id"] == service and told["sluice.replica_id"].startswith(f"{service}:")
        assert 0 < told["sluice.time_to_first_byte"] < 10 and 0.1 < told["sluice.stream_duration"] < 10
    assert f"POST /v1/chat/completions traced-2 00-{TRACE}-{last['span']}-01 vendor=1" in log
    assert not {span["attributes"]["url.path"] for span in spans()} & {"/ready", "/health"}


@pytest.mark.system
@pytest.mark.beside
def test_without_tracing_the_clients_trace_reaches_the_engine_as_it_came() -> None:
    with short_folder() as home, halves(home, free_port()) as gateway:
        service = running(gateway)
        answer = gateway.post("/v1/completions", json=ASKED, headers=HEADERS)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert not any(name.startswith("x-sluice-re") for name in answer.headers)
        log = gateway.get(f"/api/v1/services/{service}/logs").json()["logs"]
    assert f"POST /v1/completions traced-1 {TRACEPARENT} vendor=1" in log

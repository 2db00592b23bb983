"""Metrics: the text of engines, of services and groups, our own, and the targets; a real app and real engines."""

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from starlette.types import Receive, Scope, Send

from orchestrator.errors import EngineError
from orchestrator.exposition import labelled, merged, parse, render
from orchestrator.metrics import number_of
from orchestrator.models import ServiceStatus
from orchestrator.replicas import Replica
from orchestrator.schedulers.local import Local
from orchestrator.scrape import MOST_BYTES, SECONDS
from orchestrator.scrape import read as read_all
from orchestrator.traffic import Counted, Traffic
from tests.orchestrating import RECIPE, START
from tests.test_app import CPU, Client, serving

GROUP = "inference/vllm-replicas"
RUNNING = "vllm:num_requests_running"


class Engines:
    """A running orchestrator, and a folder where tests write what its engines say of themselves."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, folder

    def start(self, recipe: str = RECIPE, *, load_seconds: int = 0, **resources: Any) -> str:
        environment = {"FAKE_METRICS": str(self.folder), "FAKE_LOAD_SECONDS": str(load_seconds)}
        config = {"resources": CPU["resources"] | resources, "environment": environment}
        status, body = self.client.post("/api/v1/services", {"recipe_name": recipe, "config": config})
        assert status == 200, body
        return str(body["id"])

    def say(self, service_id: str, text: str, replica: int = 0) -> None:
        (self.folder / str(self.ports(service_id)[replica])).write_text(text)

    def ports(self, service_id: str) -> list[int]:
        _, job = self.client.call(self.client.app.state.orchestrator.store.find, service_id)
        return [r.port for r in self.client.app.state.orchestrator.replicas.of(job.submission_id)]

    def text(self, path: str, **headers: str) -> str:
        response = self.client.http.get(path, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return response.text

    def samples(self, path: str) -> list[Sample]:
        return read(self.text(path))


def read(text: str) -> list[Sample]:
    """All samples. Each family stands there once."""
    families = list(text_string_to_metric_families(text))
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names)), "one TYPE line for each name"
    return [sample for family in families for sample in family.samples]


def values(samples: list[Sample], name: str, *labels: str) -> dict[Any, float]:
    return {tuple(s.labels.get(label) for label in labels): s.value for s in samples if s.name == name}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("metrics")
    with serving(folder / "home", Local(folder / "home"), poll_seconds=0.05) as client:
        yield Engines(client, folder)


@pytest.fixture(scope="module")
def single(engines: Engines) -> str:
    service_id = engines.start()
    engines.client.until(lambda: engines.client.status(service_id) == "running")
    return service_id


@pytest.fixture(scope="module")
def group(engines: Engines) -> str:
    service_id = engines.start(GROUP, gpu=2)
    health = f"/api/service-groups/{service_id}/status"
    engines.client.until(lambda: engines.client.get(health)["healthy_replicas"] == 2)
    return service_id


def test_a_service_gives_its_engines_metrics_with_its_id_in_every_sample(engines: Engines, single: str) -> None:
    samples = engines.samples(f"/api/v1/services/{single}/metrics")
    assert {s.labels["service_id"] for s in samples} == {single}
    assert values(samples, "service_status_info", "service_id") == {(single,): 2}
    assert values(samples, RUNNING, "engine", "replica_id") == {("0", None): 0}
    assert list(values(samples, "sluice_scrape_ok").values()) == [1]


def test_the_engines_own_text_is_given_as_it_is(engines: Engines, single: str) -> None:
    engines.say(single, odd := '# HELP a "b"\n# TYPE a gauge\na{x="y"}   1e3\n')
    try:
        for path in (f"/api/v1/vllm/{single}/metrics", f"/api/services/vllm/{single}/metrics"):
            assert engines.text(path) == odd
    finally:
        (engines.folder / str(engines.ports(single)[0])).unlink()


def test_a_group_has_each_family_once_with_its_replicas_told_apart(engines: Engines, group: str) -> None:
    ids = [(f"{group}:{port}",) for port in engines.ports(group)]
    for path in (f"/api/v1/services/{group}/metrics", f"/api/v1/services/sg-{group}/metrics"):
        samples = engines.samples(path)
        assert values(samples, RUNNING, "replica_id") == dict.fromkeys(ids, 0)
        assert values(samples, "service_status_info", "service_id") == {(group,): 2}
    assert values(engines.samples(f"/api/v1/vllm/{group}/metrics"), RUNNING, "replica_id") == dict.fromkeys(ids, 0)


def test_a_replica_has_its_own(engines: Engines, group: str) -> None:
    replica = f"{group}:{engines.ports(group)[1]}"
    samples = engines.samples(f"/api/v1/services/{replica}/metrics")
    assert {(s.labels["service_id"], s.labels["replica_id"]) for s in samples} == {(group, replica)}
    assert values(engines.samples(f"/api/v1/vllm/{replica}/metrics"), RUNNING, "replica_id") == {(None,): 0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<html>502 Bad Gateway</html>\n", "not Prometheus text"),
        ('a{b="c} 1\n', "not Prometheus text"),
        ('# TYPE a counter\na_total 1 # {trace_id="x"} 0.67\n', "the time"),
        ("x" * (MOST_BYTES + 1), "4 MiB"),
    ],
)
def test_an_engine_that_talks_nonsense_is_left_out_and_named(engines: Engines, group: str, text: str, why: str) -> None:
    first, second = (f"{group}:{port}" for port in engines.ports(group))
    engines.say(group, text, replica=0)
    try:
        shown = engines.text(f"/api/v1/services/{group}/metrics")
        raw = engines.text(f"/api/v1/vllm/{group}/metrics")
    finally:
        (engines.folder / str(engines.ports(group)[0])).unlink()
    assert values(read(shown), "sluice_scrape_ok", "replica_id") == {(first,): 0, (second,): 1}
    assert list(values(read(shown), RUNNING, "replica_id")) == [(second,)]
    assert list(values(read(raw), RUNNING, "replica_id")) == [(second,)]
    last = shown.splitlines()[-1]
    assert last.startswith("# left out: ") and first in last and why in last


def test_when_no_engine_gives_metrics_it_is_503(engines: Engines, single: str) -> None:
    engines.say(single, "x" * (MOST_BYTES + 1))
    try:
        response = engines.client.http.get(f"/api/v1/vllm/{single}/metrics")
    finally:
        (engines.folder / str(engines.ports(single)[0])).unlink()
    assert (response.status_code, "Retry-After" in response.headers) == (503, True)
    assert "4 MiB" in response.json()["detail"]


def test_a_megabyte_is_passed_on_while_others_are_answered(engines: Engines, single: str) -> None:
    lines = (f'a_bucket{{le="{n}.5",model_name="some/model-with-a-long-name-{n}"}} {n}' for n in range(18_000))
    engines.say(single, "# TYPE a histogram\n" + "\n".join(lines) + "\n")
    try:
        samples = engines.samples(f"/api/v1/services/{single}/metrics")
    finally:
        (engines.folder / str(engines.ports(single)[0])).unlink()
    assert sum(s.name == "a_bucket" for s in samples) == 18_000


def test_one_that_does_not_run_gives_only_its_status(engines: Engines) -> None:
    service_id = engines.start(load_seconds=60)
    (before,) = engines.samples(f"/api/v1/services/{service_id}/metrics")
    assert (before.name, before.value) in (("service_status_info", 0), ("service_status_info", 1))
    response = engines.client.http.get(f"/api/v1/vllm/{service_id}/metrics")
    assert (response.status_code, "Retry-After" in response.headers) == (503, True)
    engines.client.http.post(f"/api/services/{service_id}/status", json={"status": "cancelled"})
    after = engines.samples(f"/api/v1/services/{service_id}/metrics")
    assert [(s.name, s.labels, s.value) for s in after] == [("service_status_info", {"service_id": service_id}, 5)]
    assert engines.client.http.get(f"/api/v1/vllm/{service_id}/metrics").status_code == 409
    assert engines.client.http.get("/api/v1/services/404/metrics").status_code == 404
    assert service_id not in str(engines.client.get("/api/v1/services/targets"))


def test_targets_are_the_services_that_run(engines: Engines, single: str, group: str) -> None:
    found = engines.client.http.get("/api/v1/services/targets", headers={"Host": "localhost:8001"}).json()
    by_id = {target["labels"]["service_id"]: target for target in found}
    assert set(by_id) == {single, group}
    assert by_id[single] == {
        "targets": ["localhost:8001"],
        "labels": {
            "__metrics_path__": f"/api/v1/services/{single}/metrics",
            "service_id": single,
            "recipe_name": "inference/vllm-single-node",
            "model": "Qwen/Qwen2.5-0.5B-Instruct",
        },
    }
    assert by_id[group]["labels"]["group_id"] == group
    for host, target in (("laptop:9", "laptop:9"), ("[::1]:8001", "[::1]:8001"), ("a b", "localhost:8001")):
        found = engines.client.http.get("/api/services/targets", headers={"X-Forwarded-Host": host}).json()
        assert {t for one in found for t in one["targets"]} == {target}
    path = by_id[single]["labels"]["__metrics_path__"]
    assert values(engines.samples(path), "service_status_info")[()] == 2


def test_the_orchestrators_own(engines: Engines, single: str, group: str) -> None:
    client = engines.client
    before = values(engines.samples("/metrics"), "sluice_requests_total", "method", "route", "status")
    for _ in range(3):
        client.status(single)
    for path in ("/nothing/1", "/nothing/2", "/api/v1/services/404"):
        assert client.http.get(path).status_code == 404
    client.http.request("BREW", "/coffee")
    samples = engines.samples("/api/v1/orchestrator/metrics")
    after = values(samples, "sluice_requests_total", "method", "route", "status")
    grown = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert grown.pop(("GET", "/metrics", "200")) == 1
    assert grown == {
        ("GET", "/services/{service_id}/status", "200"): 3,
        ("GET", "other", "404"): 2,
        ("GET", "/services/{service_id}", "404"): 1,
        ("other", "other", "404"): 1,
    }
    assert values(samples, "sluice_requests_in_flight")[()] == 1, "this one"
    assert (
        values(samples, "sluice_request_seconds_count", "method", "route")["GET", "/services/{service_id}/status"] >= 3
    )
    assert values(samples, "sluice_services", "status")[("running",)] == 2
    assert values(samples, "sluice_jobs", "state")[("RUNNING",)] == 2
    assert values(samples, "sluice_replicas")[()] == values(samples, "sluice_replicas_ready")[()] == 3
    assert values(samples, "sluice_service_requests_in_flight", "service_id") == {(single,): 0, (group,): 0}
    assert 0 <= values(samples, "sluice_watcher_lag_seconds")[()] < 30
    assert 0 < values(samples, "sluice_watcher_turn_seconds")[()] < 10
    assert values(samples, "sluice_scheduler_stale")[()] == 0
    assert 0 <= values(samples, "sluice_scheduler_answer_age_seconds")[()] < 30
    replicas = {
        (single, f"{single}:{engines.ports(single)[0]}"),
        *((group, f"{group}:{p}") for p in engines.ports(group)),
    }
    for name, value in (("sluice_replica_ready", 1), ("sluice_replica_requests_in_flight", 0)):
        assert values(samples, name, "service_id", "replica_id") == dict.fromkeys(replicas, value)
    assert values(samples, "sluice_service_gpus", "service_id") == {(group,): 2}
    assert values(samples, "sluice_gpu_seconds_total", "model")[("Qwen/Qwen2.5-0.5B-Instruct",)] > 0
    assert values(samples, "sluice_service_failures_total", "rule")[("gpu-memory",)] == 0
    assert values(samples, "process_resident_memory_bytes")[()] > 1e6
    assert not [s.name for s in samples if s.name.endswith("_created")]


def test_every_status_has_its_number() -> None:
    numbers = {status: number_of(status) for status in ServiceStatus}
    assert (numbers[ServiceStatus.PENDING], numbers[ServiceStatus.CONFIGURING], numbers[ServiceStatus.RUNNING]) == (
        0,
        1,
        2,
    )
    assert (numbers[ServiceStatus.TIMEOUT], numbers[ServiceStatus.LOST]) == (4, 6)


def again(text: str, **labels: str) -> list[Metric]:
    """What a client reads of a text that we have read, labelled and written."""
    return list(text_string_to_metric_families(render(merged(labelled(parse(text), labels))).decode()))


def test_odd_numbers_times_and_quotes_survive() -> None:
    text = (
        '# HELP a of "quotes", \\\\ and\\n lines\n# TYPE a gauge\na{x="q\\"\\\\\\n"} NaN\na{x="+"} +Inf\n'
        'a{x="-"} -Inf\n'
        '# a comment\n# TYPE h histogram\nh_bucket{le="+Inf"} 3 1700000000123\nh_sum 1.5\nh_count 3\nuntyped 4\n'
    )
    a, h, untyped = again(text, service_id="7")
    assert a.documentation == 'of "quotes", \\ and\n lines'
    assert [(s.labels["x"], str(s.value)) for s in a.samples] == [('q"\\\n', "nan"), ("+", "inf"), ("-", "-inf")]
    assert (h.samples[0].timestamp, h.samples[0].labels) == (1700000000.123, {"le": "+Inf", "service_id": "7"})
    assert (untyped.type, untyped.samples[0].labels) == ("unknown", {"service_id": "7"})


def test_openmetrics_is_read_without_its_exemplars() -> None:
    text = (
        '# TYPE a counter\na_total{b="c"} 1 # {trace_id="x"} 0.67 1700000000\n# TYPE s info\ns_info{v="1"} 1\n# EOF\n'
    )
    assert [(s.name, s.labels, s.value) for family in again(text, n="1") for s in family.samples] == [
        ("a_total", {"b": "c", "n": "1"}, 1.0),
        ("s_info", {"v": "1", "n": "1"}, 1.0),
    ]


def test_a_label_of_the_engines_own_is_not_lost() -> None:
    (family,) = again('a{service_id="theirs"} 1\n', service_id="ours")
    assert family.samples[0].labels == {"service_id": "ours", "exported_service_id": "theirs"}


@pytest.mark.parametrize("text", ["a", "{", "# TYPE a", "a 1e5x", f"a {'9' * 400}", "a 1 NaN", "# EOF\n# EOF\n", "é 1"])
def test_what_is_no_metrics_is_said_to_be_none(text: str) -> None:
    with pytest.raises(EngineError, match="not Prometheus text"):
        parse(text)


def test_a_megabyte_is_read_in_a_moment() -> None:
    text = "".join(f'a{{n="{n}",model="some/model"}} {n}.5\n' for n in range(30_000))
    began = time.process_time()
    render(merged(labelled(parse(text), {"service_id": "1"})))
    assert len(text) > 1_000_000
    assert time.process_time() - began < 10


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fails", "answers", "status"), [(False, True, "200"), (False, False, "499"), (True, False, "500")]
)
async def test_requests_without_an_answer_are_counted_too(fails: bool, answers: bool, status: str) -> None:
    registry = CollectorRegistry()
    traffic = Traffic(registry, "x", "kind")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if answers:
            await send({"type": "http.response.start", "status": 200})
        if fails:
            raise ZeroDivisionError

    async def nothing(*_: Any) -> Any: ...

    counting = Counted(app, traffic=lambda _: traffic, value=lambda _: "a")
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        await counting({"type": "http", "method": "GET"}, nothing, nothing)
    labels = {"method": "GET", "kind": "a", "status": status}
    assert registry.get_sample_value("x_requests_total", labels) == 1
    assert registry.get_sample_value("x_requests_in_flight") == 0


def replica(port: int) -> Replica:
    """One that counts as answering, with a key."""
    return Replica(
        submission_id="s", service_id="1", created_at=START, job_id="1", index=0, node="localhost", port=port,
        gpus="", key="k", health="/health", models_path=None, ready=True,
    )  # fmt: skip


@pytest.mark.anyio
async def test_engines_are_asked_with_their_key_and_one_that_hangs_or_is_gone_holds_nobody_up() -> None:
    async def tell_the_key(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        (key,) = re.findall(r"authorization: (.*)\r", head, re.IGNORECASE)
        body = f'a{{key="{key}"}} 1\n'
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with (
        await asyncio.start_server(tell_the_key, "127.0.0.1", 0) as good,
        await asyncio.start_server(hang, "127.0.0.1", 0) as hung,
        httpx2.AsyncClient(timeout=None, trust_env=False) as client,
    ):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            gone = closed.getsockname()[1]
        ports = [good.sockets[0].getsockname()[1], hung.sockets[0].getsockname()[1], gone]
        began = time.perf_counter()
        told, hanging, refused = await read_all(client, tuple(replica(port) for port in ports))
        assert time.perf_counter() - began < SECONDS + 3
    assert told.families[0].samples[0].labels == {"key": "Bearer k"}
    assert (hanging.families, "within 5 s" in hanging.problem) == ([], True)
    assert (refused.families, f"1:{gone}" in refused.problem) == ([], True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

"""The HTTP API of the orchestrator: real app, real scheduler `local`, an engine that looks like vLLM."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from orchestrator.app import create_app
from orchestrator.schedulers import Scheduler
from orchestrator.schedulers.local import Local
from orchestrator.settings import Settings
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import RECIPE, fake_engine_site, until

pytestmark = [pytest.mark.system, pytest.mark.beside]

JSON = dict[str, Any]
CPU: JSON = {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}}
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
NULL_FOR_ONE = (
    "type", "replicas", "num_replicas", "num_nodes", "replicas_per_node", "total_replicas", "node_jobs", "group_id",
    "replica_index",
)  # fmt: skip
SHAPE = {"id", "name", "recipe_name", "status", "config", "created_at", "stale_since", *NULL_FOR_ONE}
ROW = SHAPE | {"endpoint", "reason", "nodes", "model", "started_at", "ends_at", "estimated_start"}
DETAIL = ROW | {"job", "next_job", "handovers", "queue_position", "progress"}
DETAIL |= {"diagnosis", "idle_timeout", "last_activity", "idle_shutdown_at"}


class Client:
    """One running orchestrator, as its users see it."""

    def __init__(self, app: FastAPI, http: TestClient) -> None:
        self.app = app
        self.http = http

    def start(self, config: JSON | None = None, key: str | None = None) -> JSON:
        headers = {} if key is None else {"Idempotency-Key": key}
        body = {"recipe_name": RECIPE, "config": CPU | (config or {})}
        response = self.http.post("/api/v1/services", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def get(self, path: str, **query: Any) -> Any:
        response = self.http.get(path, params=query or None)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: Any) -> tuple[int, JSON]:
        response = self.http.post(path, json=body)
        return response.status_code, response.json()

    def prompt(self, service_id: str, prompt: str, **more: Any) -> tuple[int, JSON]:
        return self.post(f"/api/v1/vllm/{service_id}/prompt", {"prompt": prompt, **more})

    def status(self, service_id: str) -> str:
        return str(self.get(f"/api/services/{service_id}/status")["status"])

    def until(self, condition: Callable[[], bool]) -> None:
        asyncio.run(until(condition))

    def running(self, config: JSON | None = None) -> str:
        service_id = str(self.start(config)["id"])
        self.until(lambda: self.status(service_id) == "running")
        return service_id

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run a coroutine function in the application's own event loop."""
        assert self.http.portal is not None
        return self.http.portal.call(work, *arguments)


@contextmanager
def serving(home: Path, scheduler: Scheduler, **more: Any) -> Iterator[Client]:
    settings = Settings(home=home, scheduler="local", site=fake_engine_site(), probe_seconds=0.05, **more)
    home.mkdir(mode=0o700, exist_ok=True)
    app = create_app(settings, scheduler)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as http:
        client = Client(app, http)
        try:
            yield client
        finally:
            for service in client.get("/api/services"):
                http.post(f"/api/services/{service['id']}/status", json={"status": "cancelled"})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("local") / "home"
    with serving(home, Local(home), poll_seconds=0.05) as client:
        yield client


@pytest.fixture(scope="module")
def ready(client: Client) -> str:
    """The id of a service that answers. Tests leave it as it is."""
    return client.running()


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


@pytest.fixture
def queued(slurm: FakeSlurm) -> Iterator[Client]:
    """An orchestrator on a Slurm where jobs only wait. It looks when it is told to."""
    with serving(slurm.home / "o", slurm.scheduler(), poll_seconds=3600) as client:
        yield client


def look(client: Client) -> None:
    client.call(client.app.state.orchestrator.watcher.look)


# Services


@pytest.mark.parametrize("path", ["/api/v1/services", "/api/services", "/api/services/start", "/api/v1/services/start"])
def test_a_started_service_has_every_key_of_the_contract(queued: Client, path: str) -> None:
    config = {"environment": {"VLLM_MODEL": "gpt2"}, "resources": {"cpu": "8", "memory": "64G", "gpu": "4"}}
    status, made = queued.post(path, {"recipe_name": "inference/vllm", "config": config})
    assert status == 200
    created = datetime.fromisoformat(made.pop("created_at"))
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)
    assert made == {
        "id": "100", "name": f"{RECIPE}-100", "recipe_name": RECIPE, "status": "pending", "config": config,
        **dict.fromkeys(NULL_FOR_ONE), "stale_since": None,
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["/api", "/api/v1"])
def test_a_service_is_listed_shown_and_has_a_status(client: Client, ready: str, prefix: str) -> None:
    (listed,) = (s for s in client.get(f"{prefix}/services") if s["id"] == ready)
    shown = client.get(f"{prefix}/services/{ready}")
    assert listed.keys() == ROW
    assert shown.keys() == DETAIL
    assert {name: shown[name] for name in ROW} == listed
    assert client.get(f"{prefix}/services/{ready}/status") == {"status": "running"}
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", shown["endpoint"])
    assert (shown["model"], shown["reason"], shown["nodes"]) == (MODEL, "", ["localhost"])
    job = shown["job"]
    assert (job["id"], job["state"], job["scheduler"], job["exit_code"]) == (ready, "RUNNING", "local", None)
    assert job["started_at"] <= job["ready_at"]


def test_a_service_says_what_it_waits_for(queued: Client, slurm: FakeSlurm) -> None:
    queued.start()
    slurm.change("100", reason="AssocGrpGRES", starttime="1795274073")
    look(queued)
    shown = queued.get("/api/v1/services/100")
    assert (shown["status"], shown["reason"], shown["endpoint"]) == ("pending", "AssocGrpGRES", None)
    assert (shown["estimated_start"], shown["started_at"]) == ("2026-11-21T15:14:33Z", None)
    slurm.change(
        "100", state="RUNNING", reason="None", nodelist="node[1-2]", starttime="1795274373", endtime="1795274973"
    )
    look(queued)
    shown = queued.get("/api/v1/services/100")
    assert (shown["status"], shown["nodes"]) == ("configuring", ["node1", "node2"])
    assert (shown["started_at"], shown["ends_at"]) == ("2026-11-21T15:19:33Z", "2026-11-21T15:29:33Z")
    assert shown["estimated_start"] is None
    slurm.change("100", state="FAILED", reason="NonZeroExitCode", exit_code="1792")
    look(queued)
    shown = queued.get("/api/v1/services/100")
    assert (shown["status"], shown["reason"]) == ("failed", "NonZeroExitCode (exit code 7)")


def test_a_slurm_that_is_down_is_shown_and_reading_goes_on(queued: Client, slurm: FakeSlurm) -> None:
    queued.start()
    look(queued)
    assert queued.http.get("/ready").status_code == 200
    slurm.behave("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    look(queued)
    health = queued.get("/health")
    assert (health["status"], health["watcher"]["late"]) == ("degraded", False)
    assert "Unable to contact" in health["watcher"]["trouble"]
    assert queued.get("/api/services/100")["stale_since"] == health["watcher"]["stale_since"]
    unready = queued.http.get("/ready")
    assert (unready.status_code, unready.headers["Retry-After"]) == (503, "5")


def test_the_list_is_filtered_and_paged(queued: Client, slurm: FakeSlurm) -> None:
    for _ in range(5):
        queued.start()
    queued.post("/api/services", {"recipe_name": "llamacpp-cpu"})
    slurm.change("101", state="FAILED")
    slurm.change("103", state="FAILED")
    look(queued)

    def ids(**query: Any) -> tuple[list[str], str]:
        response = queued.http.get("/api/v1/services", params=query)
        return [service["id"] for service in response.json()], response.headers["X-Total-Count"]

    assert ids() == (["105", "104", "103", "102", "101", "100"], "6")
    assert ids(limit=2) == (["105", "104"], "6")
    assert ids(limit=2, offset=5) == (["100"], "6")
    assert ids(offset=6) == ([], "6")
    assert ids(status="failed") == (["103", "101"], "2")
    assert ids(status="failed", limit=1, offset=1) == (["101"], "2")
    assert ids(status="running") == ([], "0")
    assert ids(recipe="llamacpp-cpu") == (["105"], "1")
    assert ids(recipe="inference/vllm", status="pending") == (["104", "102", "100"], "3")


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("limit=0", 422, "limit"),
        ("limit=many", 422, "limit"),
        ("offset=-1", 422, "offset"),
        (f"offset={'9' * 5000}", 422, "offset"),
        ("status=dead", 422, "'pending'"),
        ("recipe=nope", 404, RECIPE),
    ],
)
def test_a_wrong_filter_is_named(client: Client, query: str, status: int, word: str) -> None:
    response = client.http.get(f"/api/services?{query}")
    assert response.status_code == status
    assert word in response.text


@pytest.mark.parametrize(
    "name", ["inference/nope", "../../etc/passwd", "..%2f", "vllm\0", "x" * 200, "C:\\", "\u2174llm"]
)
def test_an_unknown_recipe_is_a_404_that_lists_the_recipes(client: Client, name: str) -> None:
    status, error = client.post("/api/v1/services", {"recipe_name": name})
    assert (status, list(error)) == (404, ["detail"])
    assert RECIPE in error["detail"]
    assert "inference/llamacpp-cpu" in error["detail"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"resources": {"gpu": -1}}, ["config.resources.gpu", "-1", "0 to 64"]),
        ({"resources": {"time_limit": 10**12}}, ["time_limit", "1000000000000", "1 to 10080 minutes"]),
        ({"memory": "64 elephants"}, ["config.memory", "64 elephants", "64G"]),
        ({"gpu_memory_utilization": 1.5}, ["config.gpu_memory_utilization", "1.5", "0.01 to 1"]),
        ({"modle": "gpt2"}, ["modle", "'model'"]),
        ({"environment": {"LD_PRELOAD": "x"}}, ["LD_PRELOAD", "not allowed"]),
        ({"environment": {"A": "1\n#SBATCH --account=x"}}, ["config.environment.A", "line break"]),
    ],
)
def test_a_wrong_value_is_a_422_that_names_it_and_its_bounds(client: Client, config: JSON, words: list[str]) -> None:
    status, error = client.post("/api/v1/services", {"recipe_name": RECIPE, "config": config})
    assert status == 422
    assert [word for word in words if word not in error["detail"]] == []


def test_slurms_refusal_is_a_502_in_its_own_words(queued: Client, slurm: FakeSlurm) -> None:
    slurm.behave("sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1")
    status, error = queued.post("/api/v1/services", {"recipe_name": RECIPE})
    assert (status, error) == (502, {"detail": "sbatch: Batch job submission failed: Invalid qos specification"})
    (refused,) = queued.get("/api/services")
    assert refused["status"] == "failed"
    assert queued.get(f"/api/services/{refused['id']}")["reason"] == error["detail"]


@pytest.mark.parametrize("path", ["", "/status", "/logs"])
@pytest.mark.parametrize(
    "service_id", ["424242", "abc", "-1", "1;2", str(2**63), "%00", "%FF", "é", "x" * 3000, "' OR 1"]
)
def test_an_unknown_service_is_a_404(client: Client, service_id: str, path: str) -> None:
    response = client.http.get(f"/api/v1/services/{service_id}{path}")
    assert response.status_code == 404
    assert "not found" in response.json()["detail"]


@pytest.mark.parametrize(
    "body", [None, {}, {"status": None}, {"status": "running"}, {"status": ["cancelled"]}, {"x": 1}]
)
def test_only_cancelled_can_be_asked_for(client: Client, ready: str, body: Any) -> None:
    for service_id in (ready, "424242"):
        response = client.http.post(f"/api/v1/services/{service_id}/status", json=body)
        assert response.status_code == 400
        assert "cancelled" in response.json()["detail"]
    assert client.status(ready) == "running"


def test_a_cancel_keeps_the_record_and_may_be_repeated(queued: Client, slurm: FakeSlurm) -> None:
    queued.start()
    for _ in range(2):
        answer = queued.post("/api/v1/services/100/status", {"status": "cancelled"})
        assert answer == (
            200,
            {"message": "Service 100 status updated to cancelled", "service_id": "100", "status": "cancelled"},
        )
        look(queued)
    assert len(slurm.calls("scancel")) == 1
    assert queued.get("/api/services/100")["job"]["state"] == "CANCELLED"
    assert queued.post("/api/v1/services/424242/status", {"status": "cancelled"})[0] == 404


def test_cancelling_what_ended_otherwise_says_so(queued: Client, slurm: FakeSlurm) -> None:
    queued.start()
    slurm.change("100", state="COMPLETED")
    look(queued)
    answer = queued.post("/api/v1/services/100/status", {"status": "cancelled"})
    assert answer == (200, {"message": "Service 100 had already ended", "service_id": "100", "status": "completed"})


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/api/v1/services/100"), ("DELETE", "/api/services/100"), ("POST", "/api/services/stop/100")],
)
def test_the_deprecated_spellings_of_stop_say_that_they_are(
    queued: Client, slurm: FakeSlurm, method: str, path: str
) -> None:
    queued.start()
    response = queued.http.request(method, path)
    assert (response.status_code, response.json()) == (200, {"message": "Service 100 stopped successfully"})
    assert response.headers["Deprecation"] == "true"
    assert slurm.jobs()["100"]["state"] == "CANCELLED"
    assert queued.status("100") == "cancelled"
    assert queued.http.request(method, path.replace("100", "424242")).status_code == 404


def test_the_same_idempotency_key_is_the_same_service(queued: Client, slurm: FakeSlurm) -> None:
    first = queued.start(key="k")
    assert queued.start(key="k") == first
    body = {"recipe_name": RECIPE, "config": {"model": "gpt2"}}
    other = queued.http.post("/api/v1/services", json=body, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422
    assert "another request" in other.json()["detail"]
    assert queued.start(key="l")["id"] == "101"
    for key in ("", "a b", "x" * 201, "\x7f"):
        assert queued.http.post("/api/services", json=body, headers={"Idempotency-Key": key}).status_code == 422
    assert len(slurm.jobs()) == 2


def test_ten_requests_at_once_with_one_key_are_one_job(queued: Client, slurm: FakeSlurm) -> None:
    def ask(_: int) -> tuple[int, Any]:
        response = queued.http.post("/api/services", json={"recipe_name": RECIPE}, headers={"Idempotency-Key": "k"})
        return response.status_code, response.json().get("id")

    with ThreadPoolExecutor(10) as pool:
        answers = set(pool.map(ask, range(10)))
    assert (200, "100") in answers
    assert answers <= {(200, "100"), (409, None)}
    assert list(slurm.jobs()) == ["100"]


# Logs


def test_logs_are_both_outputs_and_their_ends(client: Client, ready: str) -> None:
    logs = client.get(f"/api/v1/services/{ready}/logs")
    assert logs.keys() == {"logs", "stdout", "stderr", "note"}
    assert f"{MODEL} listens on 127.0.0.1" in logs["stdout"]
    assert "sluicegate: job" in logs["stderr"]
    assert logs["logs"] == logs["stdout"] + logs["stderr"]
    assert client.get(f"/api/services/{ready}/logs", tail=1)["stdout"] == logs["stdout"].splitlines(keepends=True)[-1]
    assert client.get(f"/api/services/{ready}/logs", tail=0)["logs"] == ""
    for bad in ("-1", "x", "1e9", "10000001", "9" * 5000):
        assert client.http.get(f"/api/services/{ready}/logs", params={"tail": bad}).status_code == 422


def test_a_job_that_has_written_nothing_says_why(queued: Client, slurm: FakeSlurm) -> None:
    queued.start()
    assert queued.get("/api/services/100/logs") == {
        "logs": "", "stdout": "", "stderr": "", "note": "the job has written nothing yet; its state is PENDING",
    }  # fmt: skip
    visitor = Visitor("GET", "/api/services/100/logs?follow=1")
    visit = visitor.visit(queued)
    queued.until(lambda: visitor.got == b"the job has written nothing yet; its state is PENDING\n")
    slurm.change("100", state="FAILED")
    look(queued)
    visit.result(20)
    assert visitor.got.count(b"\n") == 1
    response = queued.http.get("/api/services/100/logs?follow=1")
    assert (response.status_code, response.text) == (200, "the job has written nothing yet; its state is FAILED\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_the_logs_of_an_ended_service_are_followed_to_their_end(client: Client) -> None:
    service_id = client.running()
    client.post(f"/api/v1/services/{service_id}/status", {"status": "cancelled"})
    client.until(lambda: client.get(f"/api/services/{service_id}")["job"]["state"] == "CANCELLED")
    logs = client.get(f"/api/v1/services/{service_id}/logs")
    followed = client.http.get(f"/api/v1/services/{service_id}/logs?follow=true").text
    assert followed == logs["stderr"] + logs["stdout"]
    assert "ended with exit code 143 after SIGTERM" in followed
    ends = client.http.get(f"/api/v1/services/{service_id}/logs", params={"follow": True, "tail": 1}).text
    assert ends == "".join(logs[output].splitlines(keepends=True)[-1] for output in ("stderr", "stdout"))


class Visitor:
    """A client that can leave: one request, made straight to the application in its own loop."""

    def __init__(self, method: str, path: str, body: Any = None) -> None:
        path, _, query = path.partition("?")
        self.scope: JSON = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "server": ("localhost", 80),
            "client": ("localhost", 1), "state": {},
        }  # fmt: skip
        self.body = b"" if body is None else json.dumps(body).encode()
        self.got = b""
        self.status: int | None = None
        self.leave = threading.Event()
        self._asked = False

    async def receive(self) -> JSON:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await until(self.leave.is_set, seconds=100)
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.got += message.get("body", b"")

    def visit(self, client: Client) -> Any:
        """Go, and return what tells when the application has done with the request."""
        assert client.http.portal is not None
        return client.http.portal.start_task_soon(client.app, self.scope, self.receive, self.send)


def test_a_running_services_logs_are_streamed_until_the_client_leaves(client: Client, ready: str) -> None:
    visitor = Visitor("GET", f"/api/services/{ready}/logs?follow=1")
    visit = visitor.visit(client)
    client.until(lambda: b"sluicegate: job" in visitor.got)
    before = len(visitor.got)
    client.prompt(ready, "write something into the log")
    client.until(lambda: len(visitor.got) > before)
    assert not visit.done()
    visitor.leave.set()
    visit.result(20)


# Prompts


@pytest.mark.parametrize("path", ["/api/v1/vllm", "/api/services/vllm", "/api/vllm", "/api/v1/services/vllm"])
def test_a_prompt_is_answered_under_every_spelling(client: Client, ready: str, path: str) -> None:
    status, answer = client.post(f"{path}/{ready}/prompt", {"prompt": "say hello to me"})
    assert status == 200
    endpoint = client.get(f"/api/services/{ready}")["endpoint"]
    text = answer.pop("text")
    assert text.startswith("say hello to me |")
    assert answer == {
        "success": True, "response": text, "service_id": ready, "endpoint": endpoint, "endpoint_used": "chat",
        "usage": {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}, "routed_to": None, "group_id": None,
        "total_replicas": None,
    }  # fmt: skip
    assert client.get(f"{path}/{ready}/models") == {
        "success": True, "models": [MODEL], "service_id": ready, "endpoint": endpoint,
    }  # fmt: skip
    listed = [service for service in client.get(f"{path}/services")["vllm_services"] if service["id"] == ready]
    name = f"{RECIPE}-{ready}"
    assert listed == [
        {"id": ready, "name": name, "recipe_name": RECIPE, "endpoint": endpoint, "status": "running"}
    ]  # fmt: skip


def test_sampling_fields_are_passed_on(client: Client, ready: str) -> None:
    assert client.prompt(ready, "one two three", max_tokens=2, top_p=0.5, stop=["x"], seed=None)[1]["text"] == "one two"
    assert client.prompt(ready, "one two three", max_completion_tokens=1)[1]["text"] == "one"


def test_the_engine_is_told_the_requests_id(client: Client, ready: str) -> None:
    headers = {"X-Request-Id": "mine-7"}
    for stream in (False, True):
        body = {"prompt": "hello", "stream": stream}
        assert client.http.post(f"/api/v1/vllm/{ready}/prompt", json=body, headers=headers).status_code == 200
    said = client.get(f"/api/services/{ready}/logs")["stderr"].splitlines()
    assert said.count("POST /v1/chat/completions mine-7") == 2


def test_a_model_without_a_chat_template_is_asked_for_a_completion(client: Client) -> None:
    service_id = client.running({"model": "org/tiny-base"})
    status, answer = client.prompt(service_id, "one two", max_tokens=2)
    assert (status, answer["text"], answer["endpoint_used"]) == (200, "one two", "completions")
    streamed = client.http.post(f"/api/v1/vllm/{service_id}/prompt", json={"prompt": "one two", "stream": True})
    assert streamed.status_code == 200
    assert next(chunk["object"] for chunk in events(streamed.text)) == "text_completion"
    assert "".join(chunk["choices"][0]["text"] for chunk in events(streamed.text)).startswith("one two |")


def events(text: str) -> list[JSON]:
    """The chunks of a stream that has ended as it should."""
    *chunks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def test_a_stream_is_the_engines_own(client: Client, ready: str) -> None:
    body = {"prompt": "one two", "stream": True, "stream_options": {"include_usage": True}}
    response = client.http.post(f"/api/v1/vllm/{ready}/prompt", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]).startswith("one two |")
    assert chunks[-1]["usage"]["prompt_tokens"] == 2


def test_a_stream_that_breaks_off_ends_with_an_error(client: Client) -> None:
    service_id = client.running()
    body = {"prompt": "please die now", "stream": True}
    response = client.http.post(f"/api/v1/vllm/{service_id}/prompt", json=body)
    *chunks, last, rest = response.text.split("\n\n")
    assert (response.status_code, rest) == (200, "")
    assert json.loads(chunks[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
    error = json.loads(last.removeprefix("data: "))["error"]
    assert "broke off" in error["message"] and error["type"] == "server_error"
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_has_enough_to_do_is_a_429_with_retry_after(client: Client, ready: str, stream: bool) -> None:
    inferences = client.app.state.orchestrator.inferences
    visitor = Visitor("POST", f"/api/v1/vllm/{ready}/prompt", {"prompt": "sleep 1000", "stream": True})
    visit = visitor.visit(client)
    client.until(lambda: visitor.status == 200)
    inferences.most_in_flight = 1
    body = {"prompt": "hello", "stream": stream}
    refused = client.http.post(f"/api/v1/vllm/{ready}/prompt", json=body)
    visitor.leave.set()
    visit.result(20)
    inferences.most_in_flight = 1024
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert (refused.json()["success"], "under way" in refused.json()["error"]) == (False, True)
    assert client.prompt(ready, "hello")[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"prompt": "x", "model": "nope"}, 404, "The model `nope` does not exist."),
        ({"prompt": "word " * 3000}, 400, "maximum context length is 2048"),
        ({"prompt": "status 500"}, 502, "told to answer 500"),
        ({"prompt": "status 429"}, 429, "told to answer 429"),
    ],
)
def test_the_engines_refusal_is_relayed(
    client: Client, ready: str, asked: JSON, status: int, words: str, stream: bool
) -> None:
    got, error = client.post(f"/api/v1/vllm/{ready}/prompt", asked | {"stream": stream})
    assert (got, error["success"], error["error"]) == (status, False, error["detail"])
    assert words in error["detail"]
    assert client.status(ready) == "running"


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": ""}, {"prompt": 5}, {"prompt": "x", "max_tokens": 0}, {"prompt": "x", "temperature": -1}, []],
)
def test_a_prompt_that_is_none_is_a_422(client: Client, ready: str, body: Any) -> None:
    status, error = client.post(f"/api/v1/vllm/{ready}/prompt", body)
    assert (status, error["success"]) == (422, False)
    assert error["detail"][0]["loc"][0] == "body"


def test_a_service_that_loads_is_a_503_with_retry_after(client: Client) -> None:
    service_id = client.start({"environment": {"FAKE_LOAD_SECONDS": "1000"}})["id"]
    client.until(lambda: client.status(service_id) == "configuring")
    body = {"prompt": "x"}
    for method, path in (("POST", "prompt"), ("GET", "models")):
        response = client.http.request(method, f"/api/v1/vllm/{service_id}/{path}", json=body)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert (response.json()["success"], "not ready yet" in response.json()["error"]) == (False, True)
    client.post(f"/api/v1/services/{service_id}/status", {"status": "cancelled"})
    status, error = client.prompt(service_id, "x")
    assert (status, error["success"]) == (409, False)
    assert "has ended (cancelled)" in error["error"]
    listed = client.get("/api/v1/vllm/services")["vllm_services"]
    assert service_id not in [service["id"] for service in listed]


def test_an_unknown_service_is_a_404_for_prompts_too(client: Client) -> None:
    status, error = client.prompt("424242", "x")
    assert (status, error["success"], error["error"]) == (404, False, error["detail"])
    assert client.http.get("/api/v1/vllm/424242/models").status_code == 404


def test_an_engine_that_dies_is_a_502_and_then_a_failed_service(client: Client) -> None:
    service_id = client.running()
    status, error = client.prompt(service_id, "please die now")
    assert (status, error["success"]) == (502, False)
    client.until(lambda: client.status(service_id) == "failed")
    shown = client.get(f"/api/services/{service_id}")
    assert (shown["job"]["exit_code"], shown["reason"]) == (9, "NonZeroExitCode (exit code 9)")
    assert client.prompt(service_id, "still there?")[0] == 409


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_who_leaves_ends_the_engines_work(client: Client, ready: str, stream: bool) -> None:
    """Before the first byte of the answer."""

    def log() -> str:
        return str(client.get(f"/api/services/{ready}/logs")["stderr"])

    before = log()
    visitor = Visitor("POST", f"/api/v1/vllm/{ready}/prompt", {"prompt": "sleep 1000", "stream": stream})
    visit = visitor.visit(client)
    client.until(lambda: "POST /v1/chat/completions" in log().removeprefix(before))
    (replica,) = client.app.state.orchestrator.replicas.of(
        client.call(client.app.state.orchestrator.store.find, ready)[0].submission_id
    )
    assert replica.in_flight == 1
    visitor.leave.set()
    client.until(lambda: "cancelled" in log().removeprefix(before))
    visit.result(20)
    assert replica.in_flight == 0


# Recipes, health, docs, errors


@pytest.mark.parametrize("prefix", ["/api", "/api/v1"])
def test_recipes_are_listed_and_found_by_every_name(client: Client, prefix: str) -> None:
    recipes = {recipe["path"]: recipe for recipe in client.get(f"{prefix}/recipes")}
    shown = recipes[RECIPE]
    for path in ("vllm-single-node", RECIPE, "inference/vllm", f"?name={RECIPE}", "?path=vllm-single-node"):
        assert client.get(f"{prefix}/recipes{'' if path[0] == '?' else '/'}{path}") == shown
    assert {"name", "category", "version", "description", "ports", "resources", "path", "image"} <= shown.keys()
    assert shown["resources"] == {"nodes": 1, "cpu": 8, "memory": "64G", "gpu": 4, "time_limit": 15}
    assert {"description", "type", "default", "required", "location"} <= shown["parameters"]["VLLM_MODEL"].keys()
    for name in ("nope", "inference/nope", "..%2fetc", "%00"):
        response = client.http.get(f"{prefix}/recipes/{name}")
        assert response.status_code == 404
        assert RECIPE in response.json()["detail"]


def test_the_root_names_the_service_and_health_is_well(client: Client, ready: str) -> None:
    assert client.get("/").keys() == {"service", "version", "status", "docs"}
    health = client.get("/health")
    assert (health["status"], health["scheduler"]) == ("healthy", "local")
    assert client.get("/ready").keys() == health.keys()


def test_a_watcher_that_is_late_shows(slurm: FakeSlurm) -> None:
    with serving(slurm.home / "o", slurm.scheduler(), poll_seconds=3600) as client:
        client.until(lambda: client.http.get("/ready").status_code == 200)
        watcher = client.app.state.orchestrator.watcher
        for seconds, late in ((3 * 3600 - 60, False), (3 * 3600 + 2, True)):
            watcher.clock = lambda seconds=seconds: datetime.now(UTC) + timedelta(seconds=seconds)
            health = client.get("/health")
            assert (health["status"] == "degraded", health["watcher"]["late"]) == (late, late)
            assert client.http.get("/ready").status_code == (503 if late else 200)


def test_a_squeue_that_hangs_is_seen_before_it_is_given_up(slurm: FakeSlurm) -> None:
    """`stale_since` of every service is when Slurm was last heard; an ended one stays as it is."""
    with serving(slurm.home / "o", slurm.scheduler(), poll_seconds=0.1) as client:
        client.start()
        asked = {"recipe_name": "vllm-replicas", "config": {"gpu": 2}}
        group = client.post("/api/services", asked)[1]["id"]
        ended = client.start()["id"]
        client.http.post(f"/api/services/{ended}/status", json={"status": "cancelled"})
        client.until(lambda: client.get(f"/api/services/{ended}")["job"]["state"] == "CANCELLED")
        client.until(lambda: client.http.get("/ready").status_code == 200)
        slurm.behave("squeue", 'echo $$ >>"$STATE/hangs"; read -r _ < <(sleep 1000)')
        client.until((slurm.state / "hangs").exists)
        watcher = client.app.state.orchestrator.watcher
        assert client.get("/health")["status"] == "healthy", "a question may take a while"
        watcher.clock = lambda: datetime.now(UTC) + timedelta(seconds=11)
        health = client.get("/health")
        assert (health["status"], health["watcher"]["late"]) == ("degraded", True)
        assert client.http.get("/ready").status_code == 503
        heard = health["watcher"]["last_look"]
        shown = {service["id"]: service["stale_since"] for service in client.get("/api/services")}
        assert shown == {"100": heard, group: heard, ended: None}
        assert client.get("/api/services/100")["stale_since"] == heard
        assert client.get(f"/api/service-groups/{group}")["stale_since"] == heard
        watcher.clock = lambda: datetime.now(UTC)
        slurm.behave("squeue")
        for pid in (slurm.state / "hangs").read_text().split():
            os.killpg(int(pid), signal.SIGKILL)
        client.until(lambda: client.http.get("/ready").status_code == 200)
        client.until(lambda: {service["stale_since"] for service in client.get("/api/services")} == {None})


@pytest.mark.parametrize(
    "body",
    [
        {"recipe_name": "vllm", "HF_TOKEN": "planted-1234"},
        {"recipe_name": "vllm", "config": "HF_TOKEN=planted-1234"},
        {"recipe_name": "vllm", "config": {"environment": "HF_TOKEN=planted-1234"}},
        {"recipe_name": "vllm", "config": {"environment": {"HF_TOKEN=planted-1234": "x"}}},
        {"recipe_name": "vllm", "config": {"environment": {"HF_TOKEN": "planted-1234\n"}}},
        {"recipe_name": "vllm", "config": {"environment": {"HF_TOKEN": ["planted-1234"]}}},
        {"recipe_name": {"HF_TOKEN": "planted-1234"}},
    ],
)
def test_an_error_repeats_no_secret(client: Client, body: Any) -> None:
    status, told = client.post("/api/services", body)
    assert status == 422
    assert "planted" not in json.dumps(told)


def test_every_get_answers_head_with_the_same_headers_and_no_body(client: Client, ready: str) -> None:
    documented = [path for path, methods in client.app.openapi()["paths"].items() if "get" in methods]
    # What other services or settings answer.
    elsewhere = re.compile(
        "/(search-models|model-info|model-options)|/service-groups/|/vector-db/{|/slots/{|/jobs/{"
        "|/v1/(files|batches)/{|/infra/|/pulls/{"
    )
    documented = [path for path in documented if not elsewhere.search(path)]
    paths = ["/docs", "/openapi.json", *documented]
    for path in paths:
        concrete = path.format(service_id=ready, name="vllm-single-node", category="inference", model_id=MODEL)
        for spelling in {concrete, concrete.replace("/api/services/vllm", "/api/v1/vllm").replace("/api/", "/api/v1/")}:
            if "v1/v1" in spelling:
                continue
            got, head = client.http.get(spelling), client.http.head(spelling)
            assert (head.status_code, head.content, spelling) == (200, b"", spelling)
            assert got.status_code == 200
            assert head.headers["content-type"] == got.headers["content-type"]
    assert client.http.head("/api/services/424242").status_code == 404
    assert len(documented) >= 12


def test_the_docs_need_no_internet(client: Client) -> None:
    page = client.http.get("/docs").text
    linked = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page)
    assert [link for link in linked if "://" in link or link.startswith("//")] == []
    assert any(link.endswith(".js") for link in linked)
    for link in linked:
        assert client.http.get(link).status_code == 200, link


@pytest.mark.parametrize(
    "path", ["/nope", "/api/nope", "/api/v1/services/1/2/3", "/../etc/passwd", "/%2F..%2Fx", "/%00"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PROPFIND"])
def test_an_unknown_path_is_a_404_in_json(client: Client, method: str, path: str) -> None:
    response = client.http.request(method, path)
    assert response.status_code == 404
    assert list(response.json()) == ["detail"]
    assert response.headers["content-type"] == "application/json"


def test_a_method_that_is_not_allowed_is_a_405_in_json(client: Client) -> None:
    response = client.http.put("/api/services")
    told = "/api/services answers GET, HEAD, POST, not PUT; see /docs"
    assert (response.status_code, response.json()) == (405, {"detail": told})
    assert response.headers["Allow"] == "GET, HEAD, POST"


def test_errors_under_v1_have_openais_shape(client: Client) -> None:
    response = client.http.get("/v1/nope")
    error = response.json()["error"]
    assert (response.status_code, list(response.json())) == (404, ["error"])
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, None)
    assert "/v1/nope" in error["message"]


@pytest.mark.parametrize("host", ["[", "evil.example", "a/b", "", "x" * 5000])
def test_no_host_header_breaks_an_error(client: Client, host: str) -> None:
    response = client.http.get("/api/services/424242", headers={"Host": host})
    assert (response.status_code, list(response.json())) == (404, ["detail"])


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


SURROGATE = '"\\ud800"'
BIG = '"' + "x" * 5_000_000 + '"'
VALUES = {
    "NaN": "NaN", "infinity": "-Infinity", "a huge number": "1e999", "a long number": "9" * 4000,
    "surrogate": SURROGATE,    "too long a number": "9" * 5000, "null": "null", "true": "true", "5 MB": BIG,
    **{f"{depth} deep": nested(depth) for depth in (100, 300, 600, 900, 980, 5000, 200_000)},
}  # fmt: skip
BODIES = {
    "recipe": '{"recipe_name": %s}',
    "config": '{"recipe_name": "vllm-single-node", "config": %s}',
    "environment": '{"recipe_name": "vllm-single-node", "config": {"environment": %s, "nodes": 5}}',
    "a variable": '{"recipe_name": "vllm-single-node", "config": {"environment": {"A": %s, "B": "\\n"}}}',
    "memory": '{"recipe_name": "vllm-single-node", "config": {"memory": %s, "nodes": 5}}',
    "gpu": '{"recipe_name": "vllm-single-node", "config": {"gpu": %s, "nodes": 5}}',
    "words": '{"recipe_name": "vllm-single-node", "config": {"vllm_args": [%s], "nodes": 5}}',
    "prompt": '{"prompt": %s}',
    "temperature": '{"prompt": "hi", "temperature": %s}',
    "a sampling field": '{"prompt": "hi", "top_p": %s}',
    "a streamed sampling field": '{"prompt": "hi", "stream": true, "top_p": %s}',
    "status": '{"status": %s}',
    "everything": "%s",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("place", BODIES)
def test_no_body_is_a_500(client: Client, ready: str, place: str, value: str) -> None:
    body = BODIES[place] % value
    path = "/api/v1/services"
    if "prompt" in body[:10]:
        path = f"/api/v1/vllm/{ready}/prompt"
    elif place == "status":
        path = f"/api/v1/services/{ready}/status"
    response = client.http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code < 500
    if response.status_code != 200:
        assert response.json()["detail"]
        assert len(response.content) < 50_000
    else:
        assert "prompt" in path, "no service was started by any of these"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"), (b"{", "application/json"), (b"\xff\xfe{}", "application/json"),
        (b'\xef\xbb\xbf{"recipe_name": "x"}', "application/json"), (b'{"recipe_name": "x"}', "text/plain"),
        (b'{"recipe_name": "x"}', "multipart/form-data; boundary=x"),
        (b"recipe_name=x", "application/x-www-form-urlencoded"),
        (b'{"recipe_name": "x", "more": 1}', "application/json"), (b"[]", "application/json"),
        (b"null", "application/json"),
        (b'{"recipe_name": "x", "config": []}', "application/json"), (b'{"recipe_name": " "}', "application/json"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_a_4xx_that_says_why(client: Client, content: bytes, kind: str) -> None:
    response = client.http.post("/api/v1/services", content=content, headers={"content-type": kind})
    assert 400 <= response.status_code < 500
    assert response.json()["detail"]


def test_what_nobody_expected_is_a_500_in_json(queued: Client, slurm: FakeSlurm) -> None:
    queued.start()
    with sqlite3.connect(slurm.home / "o" / "orchestrator.db") as database:
        database.execute("ALTER TABLE job RENAME TO away")
        database.commit()
        response = queued.http.get("/api/services/100")
        database.execute("ALTER TABLE away RENAME TO job")
    database.close()
    assert (response.status_code, list(response.json())) == (500, ["detail"])
    assert "job" not in response.text

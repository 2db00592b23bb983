"""Requests with "async": true, by HTTP: every route and field, who may see what, what a kill leaves of the queue."""

import json
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx2
import pytest

from orchestrator.keys import Key, Scope, changing, hash_of, now
from tests.clients import environments
from tests.clients.place import wait
from tests.gateway.sshd import free_port
from tests.orchestrating import RECIPE
from tests.test_process import CPU, Home, a_home, until
from tests.test_quirks import absent

pytestmark = [pytest.mark.system, pytest.mark.beside, pytest.mark.timeout(180)]

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
KEYS = {"ann": Scope.USE, "bob": Scope.USE, "chief": Scope.MANAGE, "root": Scope.ADMIN}
CHAT = "/v1/chat/completions"
RECEIPT = {"job_id", "id", "status", "created_at", "status_url", "result_url"}
FIELDS = {
    "job_id", "status", "model", "created_at", "started_at", "ended_at", "position", "reason", "error", "attempts",
}  # fmt: skip


def chat(prompt: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "async": True} | more


class Orchestrator:
    """One that runs a model, as its clients see it: those of its own user, and over TCP those with a key.

    The secret of each key is its name.
    """

    def __init__(self, home: Home) -> None:
        self.home, self.port = home, free_port()
        home.variables |= {"ORCHESTRATOR_HOST": "127.0.0.1", "ORCHESTRATOR_PORT": str(self.port)}
        home.path.mkdir(mode=0o700)
        with changing(home.path / "keys.json") as keys:
            keys[:] = [Key(name, scope, hash_of(name.encode()), now()) for name, scope in KEYS.items()]
        transport = httpx2.HTTPTransport(uds=str(home.socket))
        self.http = httpx2.Client(transport=transport, base_url="http://orchestrator", timeout=30)
        self.service = ""

    def start(self) -> None:
        """The orchestrator, and its model unless it runs already."""
        self.home.serve()
        if not self.service:
            made = self.home.ask("POST", "/api/services", json={"recipe_name": RECIPE, "config": CPU})
            self.service = made["id"]
        until(lambda: self.home.status(self.service) == "running")

    def queue(self, prompt: str = "hi", headers: dict[str, str] | None = None, **more: Any) -> str:
        answer = self.http.post(CHAT, json=chat(prompt, **more), headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    def by(self, name: str, method: str, path: str, **more: Any) -> httpx2.Response:
        """A request with a key."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with httpx2.Client(trust_env=False, timeout=20, headers={"X-API-Key": name}) as client:
            return client.request(method, url, **more)

    def job(self, job_id: str) -> Any:
        return self.http.get(f"/jobs/{job_id}").json()

    def becomes(self, job_id: str, status: str) -> None:
        until(lambda: self.job(job_id)["status"] == status)

    def engine(self, name: str) -> float:
        """One of the engine's own counters."""
        text = self.http.get(f"/api/v1/vllm/{self.service}/metrics").text
        (line,) = (line for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))
        return float(line.split()[-1])


def an_orchestrator() -> Iterator[Orchestrator]:
    for home in a_home():
        one = Orchestrator(home)
        with one.http:
            one.start()
            yield one


there = pytest.fixture(an_orchestrator, name="there", scope="module")
fresh = pytest.fixture(an_orchestrator, name="fresh")


def test_a_request_is_queued_answered_and_kept(there: Orchestrator) -> None:
    answer = there.http.post(CHAT, json=chat("hello"))
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/json")
    told = answer.json()
    assert told.keys() == RECEIPT
    assert (told["id"], told["status"]) == (told["job_id"], "queued")
    assert (told["status_url"], told["result_url"]) == (f"/jobs/{told['id']}", f"/jobs/{told['id']}/result")
    there.becomes(told["id"], "done")
    job = there.http.get(told["status_url"]).json()
    assert job.keys() == FIELDS
    assert (job["model"], job["attempts"], job["error"], job["position"]) == (MODEL, 1, None, None)
    assert told["created_at"][:19] == job["created_at"][:19] <= job["started_at"] <= job["ended_at"]
    result = there.http.get(told["result_url"])
    assert result.status_code == 200
    assert result.json()["choices"][0]["message"]["content"].startswith("hello | ")
    for prefix in ("/api", "/api/v1"):
        assert there.http.get(prefix + told["result_url"]).json() == result.json()


def test_a_result_that_is_not_there_yet(there: Orchestrator) -> None:
    running = [there.queue("sleep 30") for _ in range(4)]
    queued = [there.queue("hi") for _ in range(2)]
    for job_id in running:
        there.becomes(job_id, "running")
    early = [there.http.get(f"/jobs/{job_id}/result") for job_id in (running[0], queued[1])]
    assert [(a.status_code, a.json()["status"]) for a in early] == [(202, "running"), (202, "queued")]
    assert all(int(a.headers["retry-after"]) >= 1 for a in early)
    assert [there.job(job_id)["position"] for job_id in queued] == [1, 2]
    queue = there.http.get("/queue").json()
    assert (queue["counts"]["queued"], queue["counts"]["running"]) == (2, 4)
    assert [(item["job_id"], item["position"]) for item in queue["items"]] == list(zip(queued, (1, 2), strict=True))
    assert queue["oldest_wait_seconds"] > 0
    (of_model,) = queue["models"]
    assert (of_model["model"], of_model["queued"], of_model["running"]) == (MODEL, 2, 4)

    cancelled = there.http.post(f"/jobs/{queued[1]}/cancel").json()
    assert (cancelled["status"], cancelled["cancelled"]) == ("cancelled", True)
    for job_id in running:
        assert there.http.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    until(lambda: there.engine("num_requests_running") == 0)
    there.becomes(queued[0], "done")
    again = there.http.post(f"/jobs/{queued[0]}/cancel").json()
    assert (again["status"], again["cancelled"]) == ("done", False)
    assert "already ended" in again["message"]
    refused = there.http.get(f"/jobs/{queued[1]}/result")
    assert (refused.status_code, "was cancelled" in refused.json()["detail"]) == (409, True)


def test_everything_at_one_look(there: Orchestrator) -> None:
    status = there.http.get("/status").json()
    assert status.keys() == {
        "status", "version", "scheduler", "started_at", "uptime_seconds", "services", "models", "in_flight", "queue",
        "watcher",
    }  # fmt: skip
    assert (status["services"], status["models"], status["scheduler"]) == ({"running": 1}, [MODEL], "local")
    assert status["uptime_seconds"] > 0
    assert there.http.get("/api/v1/status").json().keys() == status.keys()


def test_an_engine_s_error_is_the_result(there: Orchestrator) -> None:
    job_id = there.queue("status 418")
    there.becomes(job_id, "failed")
    result = there.http.get(f"/jobs/{job_id}/result")
    assert (result.status_code, result.json()["error"]["message"]) == (418, "told to answer 418")
    assert there.job(job_id)["error"] == "told to answer 418"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (CHAT, chat(stream=True), 400, 'leave out "stream": true'),
        (CHAT, chat(model="org/unknown"), 404, "'org/unknown' does not exist"),
        (CHAT, chat() | {"async": "yes"}, 400, "async"),
        ("/v1/rerank", chat(), 400, "is for /v1/chat/completions"),
        ("/api/v1/services/SERVICE/v1/chat/completions", chat(), 400, "is for /v1/chat/completions"),
    ],
)
def test_what_is_not_queued(there: Orchestrator, path: str, body: Any, status: int, words: str) -> None:
    answer = there.http.post(path.replace("SERVICE", there.service), json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_async_false_is_answered_at_once_and_does_not_reach_the_engine(there: Orchestrator) -> None:
    answer = there.http.post(CHAT, json=chat() | {"async": False})
    assert (answer.status_code, answer.json()["object"]) == (200, "chat.completion")


def test_the_same_key_is_the_same_job(there: Orchestrator) -> None:
    key = {"Idempotency-Key": "once"}
    assert there.queue(headers=key) == there.queue(headers=key)
    other = there.http.post(CHAT, json=chat("other"), headers=key)
    assert (other.status_code, "another request" in other.json()["error"]["message"]) == (422, True)
    wrong = there.http.post(CHAT, json=chat(), headers={"Idempotency-Key": "a b"})
    assert wrong.status_code == 422


def test_a_key_of_scope_use_sees_its_own(there: Orchestrator) -> None:
    job_id = str(there.by("ann", "POST", CHAT, json=chat("sleep 30")).json()["job_id"])
    there.becomes(job_id, "running")
    for path, status in ((f"/jobs/{job_id}", 200), (f"/jobs/{job_id}/result", 202)):
        codes = [there.by(name, "GET", path).status_code for name in KEYS]
        assert codes == [status, 404, status, status]
    assert there.by("bob", "POST", f"/jobs/{job_id}/cancel").status_code == 404
    liar = there.by("bob", "GET", f"/jobs/{job_id}", headers={"X-Sluice-Actor": "ann", "X-Sluice-Scope": "admin"})
    assert liar.status_code == 404
    assert [job["job_id"] for job in there.by("ann", "GET", "/jobs").json()] == [job_id]
    assert there.by("bob", "GET", "/api/v1/jobs").json() == []
    there.queue()
    listed = there.by("chief", "GET", "/jobs", params={"limit": 1})
    assert (len(listed.json()), int(listed.headers["x-total-count"]) > 1) == (1, True)
    for path in ("/queue", "/status"):
        assert [there.by(name, "GET", path).status_code for name in KEYS] == [403, 403, 403, 200]
    assert there.by("ann", "POST", f"/jobs/{job_id}/cancel").json()["cancelled"] is True
    job_id = there.queue()
    there.becomes(job_id, "done")
    assert job_id in [job["job_id"] for job in there.http.get("/jobs", params={"status": "done"}).json()]
    assert there.http.get("/jobs", params={"status": "queued"}).json() == []


def test_files_as_openai_s_clients_send_them(there: Orchestrator) -> None:
    def send(data: bytes, purpose: str = "batch") -> httpx2.Response:
        return there.http.post("/v1/files", files={"file": ("r.jsonl", data)}, data={"purpose": purpose})

    big = b"x" * (3 * 1024 * 1024)
    made = send(big).json()
    assert (made["object"], made["bytes"], made["filename"], made["purpose"]) == ("file", len(big), "r.jsonl", "batch")
    assert there.http.get(f"/v1/files/{made['id']}").json() == made
    assert there.http.get(f"/v1/files/{made['id']}/content").content == big
    assert made in there.http.get("/v1/files", params={"purpose": "batch"}).json()["data"]
    assert there.by("bob", "GET", f"/v1/files/{made['id']}/content").status_code == 404
    assert there.by("chief", "GET", f"/v1/files/{made['id']}").json() == made
    assert there.http.delete(f"/v1/files/{made['id']}").json() == {"id": made["id"], "object": "file", "deleted": True}
    gone = there.http.get(f"/v1/files/{made['id']}")
    assert (gone.status_code, "error" in gone.json()) == (404, True)
    assert send(b"{}", "assistants").status_code == 400
    assert list((there.home.path / "files").iterdir()) == []


def test_a_file_that_is_too_large_is_refused_before_it_is_read(there: Orchestrator) -> None:
    lines = ["POST /v1/files HTTP/1.1", "host: o", "content-type: multipart/form-data; boundary=x"]
    lines += [f"content-length: {300 << 20}", "", ""]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(there.home.socket))
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("client", ["openai2", "openai3"])
def test_a_batch_by_the_openai_package(there: Orchestrator, client: str) -> None:
    if reason := environments.missing(client):
        absent(reason)
    asked = {"name": "b", "do": "batch", "model": MODEL, "key": "ann", "prompts": ["hi", "status 418", "ho"]}
    seen = environments.run(client, f"http://127.0.0.1:{there.port}/v1", [asked])["b"]
    assert seen.get("status") == "completed", seen
    assert seen["counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert [line["custom_id"] for line in seen["output"]] == ["r0", "r2"]
    assert [line["response"]["status_code"] for line in seen["errors"]] == [418]
    assert (seen["listed"], seen["deleted"]) == (True, True)


def test_two_kills_lose_nothing_and_run_nothing_twice(fresh: Orchestrator) -> None:
    """200 requests; what had a result before a kill is not asked again, and each has one in the end."""
    count, prompts = 200, [f"sleep 0.05 n{number}" for number in range(200)]
    jobs = [fresh.queue(prompt) for prompt in prompts]
    cut, before = 0, dict[str, bytes]()
    for number in (1, 2):
        wanted = number * count // 3
        wait(lambda wanted=wanted: fresh.http.get("/queue").json()["counts"]["done"] >= wanted, 100)  # type: ignore[misc]
        fresh.home.end(signal.SIGKILL)
        states, results = rows(fresh.home)
        assert before.items() <= results.items()
        before, cut = results, cut + states.count("RUNNING")
        fresh.start()
    wait(lambda: fresh.http.get("/queue").json()["counts"]["done"] == count, 100)
    states, results = rows(fresh.home)
    assert (len(states), set(states), len(results)) == (count, {"DONE"}, count)
    assert before.items() <= results.items()
    answers = [fresh.http.get(f"/jobs/{job}/result").json() for job in jobs]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["choices"][0]["message"]["content"].startswith(f"{prompt} | ")
    assert len({answer["id"] for answer in answers}) == count
    attempts = sum(fresh.job(job)["attempts"] for job in jobs)
    assert attempts == count + cut, "only what a kill cut off was asked again"
    assert count <= fresh.engine("request_success_total") <= count + cut


def rows(home: Home) -> tuple[list[str], dict[str, bytes]]:
    """The states of all tasks, and the results by id, as they are on the disk."""
    with closing(sqlite3.connect(home.path / "orchestrator.db")) as database:
        found = database.execute("SELECT id, state, result FROM task").fetchall()
    return [state for _, state, _ in found], {job: result for job, _, result in found if result is not None}


def test_what_was_kept_long_enough_is_gone(fresh: Orchestrator) -> None:
    job_id = fresh.queue()
    fresh.becomes(job_id, "done")
    fresh.home.end(signal.SIGTERM)
    with closing(sqlite3.connect(fresh.home.path / "orchestrator.db")) as database:
        database.execute("UPDATE task SET expires_at = '2026-01-01 00:00:00.000000'")
        database.commit()
    fresh.start()
    fresh.becomes(job_id, "expired")
    gone = fresh.http.get(f"/jobs/{job_id}/result")
    assert (gone.status_code, "has expired" in json.loads(gone.text)["detail"]) == (410, True)

"""Services that outlive their jobs: walltimes, requeues, crashes and cancels on a real Slurm, under traffic."""

import json
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx2
import pytest

from tests.e2e.deployment import Api, Deployment, wait_for

pytestmark = pytest.mark.cluster

TINY = {"gpu": None, "cpu": 1, "memory": "256M", "time_limit": 1}
# One word each 0.8 s: a stream lasts 13 s, so that some are open at every moment.
LONG = "delay 0.8 a stream that is open while another job takes over"


def kept(load: float = 1, **resources: Any) -> dict[str, Any]:
    environment = {"FAKE_LOAD_SECONDS": str(load)}
    return {"keep_alive": True, "resources": TINY | resources, "environment": environment}


@dataclass
class Traffic:
    """Requests of each kind without a pause, and streams. What fails is written down."""

    api: Api
    service_id: str
    answered: int = 0
    streamed: int = 0
    failures: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def prompts(self) -> None:
        while not self.stopped.wait(0.05):
            self._ask(f"/api/v1/vllm/{self.service_id}/prompt", {"prompt": "hello"})

    def chats(self) -> None:
        body = {"messages": [{"role": "user", "content": "sleep 0.2 hello"}]}
        while not self.stopped.wait(0.05):
            self._ask(f"/api/v1/services/{self.service_id}/v1/chat/completions", body)

    def lists(self) -> None:
        while not self.stopped.wait(0.1):
            path = f"/api/v1/vllm/{self.service_id}/models"
            self._note(self.api.http.get(path).status_code == 200, path)

    def streams(self) -> None:
        body = {"messages": [{"role": "user", "content": LONG}], "stream": True}
        path = f"/api/v1/services/{self.service_id}/v1/chat/completions"
        while not self.stopped.wait(0.5):
            with self.api.http.stream("POST", path, json=body) as response:
                events = [line for line in response.iter_lines() if line.startswith("data: ")]
            words = "".join(_content(event) for event in events[:-1])
            whole = bool(events) and events[-1] == "data: [DONE]" and words.startswith(LONG)
            self._note(whole, f"a stream ended with {events[-2:]}")
            self.streamed += whole

    def _ask(self, path: str, body: dict[str, Any]) -> None:
        response = self.api.http.post(path, json=body)
        self._note(response.status_code == 200, f"{path}: {response.status_code} {response.text}")

    def _note(self, well: bool, failure: str) -> None:
        if well:
            self.answered += 1
        else:
            self.failures.append(failure)


def _content(event: str) -> str:
    choices = json.loads(event.removeprefix("data: "))["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""


@contextmanager
def traffic(api: Api, service_id: str) -> Iterator[Traffic]:
    """Until the end of the block and of the last stream."""
    one = Traffic(api, service_id)
    kinds = [one.prompts, one.chats, one.lists, *[one.streams] * 6]
    threads = [threading.Thread(target=_reporting, args=(one, kind)) for kind in kinds]
    for thread in threads:
        thread.start()
    try:
        yield one
    finally:
        one.stopped.set()
        for thread in threads:
            thread.join(60)


def _reporting(one: Traffic, work: Any) -> None:
    try:
        work()
    except httpx2.HTTPError as exc:
        one.failures.append(repr(exc))


def jobs(deployment: Deployment) -> list[dict[str, Any]]:
    """The jobs in the database, the oldest first."""
    database = sqlite3.connect(f"file:{deployment.home}/orchestrator.db?mode=ro", uri=True)
    database.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in database.execute("SELECT * FROM job ORDER BY recorded_at")]
    finally:
        database.close()


def events(deployment: Deployment, kind: str) -> list[dict[str, Any]]:
    database = sqlite3.connect(f"file:{deployment.home}/orchestrator.db?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT detail FROM event WHERE kind = ? ORDER BY id", (kind,))
        return [json.loads(detail) for (detail,) in rows]
    finally:
        database.close()


def alive(deployment: Deployment) -> list[str]:
    """The names of the jobs that Slurm has queued or running."""
    lines = deployment.cluster.squeue().splitlines()
    return [line.split("|")[1] for line in lines if "|RUNNING|" in line or "|PENDING|" in line]


@pytest.mark.timeout(240)
@pytest.mark.chaos
def test_no_request_fails_and_no_stream_breaks_across_two_walltimes(api: Api, deployment: Deployment) -> None:
    service_id = api.start("vllm-single-node", kept())["id"]
    api.until(service_id, "running")
    before = api.show(service_id)
    assert (before["handovers"], before["next_job"]) == (0, None)
    statuses: set[str] = set()

    def handed_over(times: int) -> bool:
        statuses.add(api.status(service_id))
        return int(api.show(service_id)["handovers"]) >= times

    with traffic(api, service_id) as load:
        wait_for(lambda: handed_over(1), "another job takes over", 60)
        first = f"sluice-{service_of(deployment)}"
        wait_for(lambda: handed_over(1) and first not in alive(deployment), "the first job is gone", 60)
        wait_for(lambda: handed_over(2), "and a third one takes over", 60)
        wait_for(lambda: handed_over(2) and len(alive(deployment)) == 1, "and is alone", 60)
    wait_for(lambda: [job["state"] for job in jobs(deployment)].count("RUNNING") == 1, "and is known to be")
    assert load.failures == []
    assert load.answered > 200
    assert load.streamed > 20
    assert statuses == {"running"}
    after = api.show(service_id)
    assert after["id"] == service_id
    assert after["job"]["id"] != service_id
    assert after["ends_at"] > before["ends_at"]
    assert api.prompt(after["job"]["id"], "a job's id finds its service")["service_id"] == service_id
    ended = [job for job in jobs(deployment) if job["state"] != "RUNNING"]
    assert [job["state"] for job in ended] == ["CANCELLED", "CANCELLED"], "drained and cancelled, not cut by the limit"
    assert [event["from"] for event in events(deployment, "service.handover")] == [j["submission_id"] for j in ended]


@pytest.mark.timeout(150)
def test_a_cancel_while_the_next_job_loads_ends_both(api: Api, deployment: Deployment) -> None:
    service_id = api.start("vllm-single-node", kept(load=12))["id"]
    api.until(service_id, "running")
    wait_for(lambda: api.show(service_id)["next_job"] is not None, "the next job is submitted", 60)
    wait_for(lambda: len(alive(deployment)) == 2, "there are two jobs")
    assert api.cancel(service_id)["status"] == "cancelled"
    wait_for(lambda: alive(deployment) == [], "both have ended")
    wait_for(lambda: {job["state"] for job in jobs(deployment)} == {"CANCELLED"}, "and are known to have")
    assert len(jobs(deployment)) == 2
    assert api.status(service_id) == "cancelled"


@pytest.mark.timeout(240)
def test_without_room_for_the_next_job_the_service_waits_under_its_id(api: Api, deployment: Deployment) -> None:
    service_id = api.start("vllm-single-node", kept(gpu=4))["id"]
    api.until(service_id, "running")
    other = api.start("vllm-single-node", {"resources": TINY | {"gpu": 4, "time_limit": 10}})["id"]
    api.until(other, "running")
    wait_for(lambda: (api.show(service_id)["next_job"] or {}).get("state") == "PENDING", "the next job waits", 60)
    assert api.status(service_id) == "running"
    seen: list[str] = []

    def runs_again() -> bool:
        shown = api.show(service_id)
        if not seen or seen[-1] != shown["status"]:
            seen.append(shown["status"])
        assert shown["status"] in ("running", "pending", "configuring"), shown
        assert shown["status"] == "running" or shown["reason"], shown
        return (shown["handovers"], shown["status"]) == (1, "running")

    wait_for(runs_again, "the next job serves", 120)
    assert len(seen) > 1, "its users were told that it did not run"
    assert api.prompt(service_id, "hello again")["success"] is True
    assert [job["state"] for job in jobs(deployment) if job["job_id"] == service_id] == ["TIMEOUT"]


@pytest.mark.timeout(240)
def test_kill_9_around_the_handover_leaves_one_replacement(api: Api, deployment: Deployment) -> None:
    chance = random.Random(11)
    service_id = api.start("vllm-single-node", kept(load=3))["id"]
    api.until(service_id, "running")
    wait_for(lambda: api.show(service_id)["job"]["ready_at"] is not None, "the first answer is recorded")
    shown = api.show(service_id)
    half = (_seconds(shown["started_at"]) + _seconds(shown["ends_at"])) / 2
    wait_for(lambda: time.time() > half - 5, "the next job is nearly due", 60)
    for _ in range(12):
        assert deployment.orchestrator is not None
        deployment.orchestrator.kill()
        deployment.orchestrator.wait(10)
        deployment.start_orchestrator()
        time.sleep(chance.uniform(0.2, 1.8))  # until the next kill
    wait_for(lambda: api.ready() and int(api.show(service_id)["handovers"]) > 0, "the next job has taken over", 60)
    queued = Counter(alive(deployment))
    recorded = jobs(deployment)
    assert set(queued.values()) == {1}, f"a job was doubled: {queued}"
    assert set(queued) <= {job["name"] for job in recorded}, "Slurm has a job that the database does not know"
    replaced = Counter(job["replaces"] for job in recorded if job["replaces"] is not None)
    assert set(replaced.values()) == {1}, f"a job was replaced twice: {recorded}"
    assert service_of(deployment) in replaced
    assert api.prompt(service_id, "still there")["success"] is True


def _seconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp()


def service_of(deployment: Deployment) -> str:
    """The submission id of the only service, which is that of its first job."""
    return str(jobs(deployment)[0]["submission_id"])


@pytest.mark.timeout(150)
def test_a_requeued_job_serves_again_under_its_id_at_another_place(api: Api, deployment: Deployment) -> None:
    tiny = {"resources": TINY | {"time_limit": 10}}
    service_id = api.start("vllm-single-node", tiny)["id"]
    api.until(service_id, "running")
    wait_for(lambda: api.show(service_id)["job"]["ready_at"], "its first answer is recorded")
    before = api.show(service_id)
    deployment.cluster.run("login", ["scontrol", "requeue", service_id], user=True, check=True)
    api.until(service_id, "pending")
    waiting = api.show(service_id)
    assert (waiting["endpoint"], waiting["started_at"]) == (None, None)
    assert api.http.post(f"/api/v1/vllm/{service_id}/prompt", json={"prompt": "hello"}).status_code == 503
    other = api.start("vllm-single-node", tiny)["id"]
    api.until(other, "running")
    assert api.show(other)["endpoint"] == before["endpoint"], "another engine is where this one was"
    # Slurm lets a requeued job wait for two minutes, unless it is told otherwise.
    now = ["scontrol", "update", f"JobId={service_id}", "StartTime=now"]
    deployment.cluster.run("login", now, user=True, check=True)
    api.until(service_id, "running")
    wait_for(lambda: api.show(service_id)["job"]["ready_at"], "its first answer is recorded")
    after = api.show(service_id)
    assert (after["id"], after["job"]["id"], after["job"]["restarts"]) == (service_id, service_id, 1)
    assert after["endpoint"] not in (None, before["endpoint"])
    assert after["job"]["ready_at"] > before["job"]["ready_at"]
    assert f"port={after['endpoint'].rpartition(':')[2]}" in api.prompt(service_id, "where are you")["text"]

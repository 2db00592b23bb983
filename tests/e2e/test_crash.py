"""kill -9 of the orchestrator at any moment: nothing is lost, nothing is doubled."""

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping

import httpx2
import pytest

from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for
from tests.e2e.test_lifecycle import submissions

pytestmark = pytest.mark.cluster

TINY = {"resources": {"gpu": None, "cpu": 1, "memory": "256M"}}
ROUNDS = 8


@pytest.mark.timeout(180)
def test_kill_9_during_submissions_loses_and_doubles_nothing(deployment: Deployment) -> None:
    """In each round a client posts while the orchestrator is killed, and repeats its request until it is answered."""
    deployment.grace_seconds = 2
    deployment.start_orchestrator()
    deployment.start_gateway()
    chance = random.Random(7)
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        answers = [
            _post_through_a_crash(deployment, api, f"round-{n}", chance.uniform(0.0, 0.12)) for n in range(ROUNDS)
        ]
        assert len(set(answers)) == ROUNDS, "each request has its own service"
        for service_id in answers:
            api.until(service_id, "running")
        queued = Counter(line.split("|")[1] for line in _squeue(deployment))
        recorded = {job_id: f"sluice-{submission}" for job_id, submission in submissions(deployment)}
    assert set(queued.values()) == {1}, f"a submission was doubled: {queued}"
    assert set(queued) == set(recorded.values()), "Slurm's jobs and the database differ"
    assert set(answers) == set(recorded), "the ids that the clients have are those of the database"


def _post_through_a_crash(deployment: Deployment, api: Api, key: str, seconds: float) -> str:
    body = {"recipe_name": "vllm-single-node", "config": TINY}
    assert deployment.orchestrator is not None
    killer = threading.Timer(seconds, deployment.orchestrator.kill)
    killer.start()
    answer = _try(api, body, key)
    killer.join()
    deployment.orchestrator.wait(10)
    deployment.start_orchestrator()
    deadline = time.monotonic() + 40
    while answer is None or answer.status_code != 200:
        assert time.monotonic() < deadline, answer and answer.text
        time.sleep(0.1)
        answer = _try(api, body, key)
    return str(answer.json()["id"])


def _try(api: Api, body: Mapping[str, object], key: str) -> httpx2.Response | None:
    try:
        return api.http.post("/api/v1/services", json=body, headers={"Idempotency-Key": key})
    except httpx2.TransportError:
        return None


def _squeue(deployment: Deployment) -> list[str]:
    return [line for line in deployment.cluster.squeue().splitlines() if "|RUNNING|" in line or "|PENDING|" in line]


def test_services_that_ran_before_the_crash_run_after_it(api: Api, deployment: Deployment) -> None:
    service_id = api.start("vllm-single-node", TINY)["id"]
    api.until(service_id, "running")
    wait_for(lambda: api.show(service_id)["job"]["ready_at"] is not None, "the first answer is recorded")
    before = api.show(service_id)
    assert deployment.orchestrator is not None
    deployment.orchestrator.kill()
    deployment.orchestrator.wait(10)
    gone = api.http.get("/api/v1/services")
    assert gone.status_code == 503
    assert "sluice orchestrator" in gone.json()["detail"]
    deployment.start_orchestrator()
    api.until(service_id, "running")
    after = api.show(service_id)
    assert after["endpoint"] == before["endpoint"]
    assert after["job"]["ready_at"] == before["job"]["ready_at"]
    assert api.prompt(service_id, "hello again")["success"] is True
    assert [service["id"] for service in api.get("/api/v1/services")] == [service_id]


def test_sigterm_ends_the_orchestrator_and_leaves_the_jobs(api: Api, deployment: Deployment) -> None:
    service_id = api.start("vllm-single-node", TINY)["id"]
    api.until(service_id, "running")
    deployment.stop_orchestrator()
    assert any(line.startswith(f"{service_id}|") for line in _squeue(deployment))
    deployment.start_orchestrator()
    api.until(service_id, "running")

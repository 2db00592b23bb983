"""kill -9 of the orchestrator at any moment: nothing is lost, nothing is doubled."""

import os
import random
import threading
import time
from collections import Counter
from typing import Any

import httpx2
import pytest

from tests.chaos.conftest import Figures
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for
from tests.e2e.test_lifecycle import submissions

pytestmark = pytest.mark.chaos

TINY = {"resources": {"gpu": None, "cpu": 1, "memory": "256M"}}
BODY: dict[str, Any] = {"recipe_name": "vllm-single-node", "config": TINY}
SUBMISSIONS, KILLS = 50, 20


@pytest.mark.timeout(300)
def test_kill_9_at_20_random_points_of_50_submissions(deployment: Deployment, figures: Figures) -> None:
    """A client posts, and repeats its request until it is answered; meanwhile the orchestrator is killed."""
    seed = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 1_000_000)
    print(f"CHAOS_SEED={seed}")
    chance = random.Random(seed)
    doomed = set(chance.sample(range(SUBMISSIONS), KILLS))
    deployment.grace_seconds = 2
    deployment.start_orchestrator()
    deployment.start_gateway()
    before, worst = accepted(deployment), 0.0
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        answers = []
        for n in range(SUBMISSIONS):
            if n in doomed:
                killer = _kill_after(deployment, chance.uniform(0.0, 0.15))
            began = time.monotonic()
            first = _try(api, f"submission-{n}")
            if n in doomed:
                killer.join()
                _restart(deployment)
            answers.append(_answered(api, f"submission-{n}", first))
            worst = max(worst, time.monotonic() - began)
        queued = Counter(line.split("|")[1] for line in deployment.cluster.squeue().splitlines())
        recorded = {job_id: f"sluice-{submission}" for job_id, submission in submissions(deployment)}
        taken = accepted(deployment) - before
        figures.add(
            f"orchestrator: kill -9 (seed {seed})",
            kills=KILLS,
            submissions=SUBMISSIONS,
            lost=SUBMISSIONS - len(queued),
            doubled=taken - SUBMISSIONS,
            longest_answer_s=worst,
        )
        assert len(set(answers)) == SUBMISSIONS, "each request has its own service"
        assert taken == SUBMISSIONS, "slurmctld has accepted another number of jobs than were asked for"
        assert set(queued.values()) == {1}, f"a submission was doubled: {queued}"
        assert set(queued) == set(recorded.values()), "Slurm's jobs and the database differ"
        assert set(answers) == set(recorded), "the ids that the clients have are those of the database"
        statuses = {service["id"]: service["status"] for service in api.get("/api/v1/services")}
        assert set(statuses) == set(answers)
        assert set(statuses.values()) <= {"pending", "configuring", "running"}, statuses
        api.until(answers[0], "running")


def accepted(deployment: Deployment) -> int:
    """How many batch jobs slurmctld has ever taken, by its own log: also those that have ended since."""
    return deployment.cluster.log("slurmctld").read_text().count("_slurm_rpc_submit_batch_job: JobId=")


def _kill_after(deployment: Deployment, seconds: float) -> threading.Timer:
    assert deployment.orchestrator is not None
    killer = threading.Timer(seconds, deployment.orchestrator.kill)
    killer.start()
    return killer


def _restart(deployment: Deployment) -> None:
    assert deployment.orchestrator is not None
    deployment.orchestrator.wait(10)
    deployment.start_orchestrator()


def _answered(api: Api, key: str, answer: httpx2.Response | None) -> str:
    deadline = time.monotonic() + 40
    while answer is None or answer.status_code != 200:
        assert time.monotonic() < deadline, answer and answer.text
        time.sleep(0.1)
        answer = _try(api, key)
    return str(answer.json()["id"])


def _try(api: Api, key: str) -> httpx2.Response | None:
    try:
        return api.http.post("/api/v1/services", json=BODY, headers={"Idempotency-Key": key})
    except httpx2.TransportError:
        return None

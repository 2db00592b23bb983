"""What becomes of services on a real Slurm: shared nodes, failures, limits, outages."""

import sqlite3
import time

import pytest

from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for

pytestmark = pytest.mark.cluster

SMALL = {"gpu": 2, "cpu": 1, "memory": "1G"}


def small(**environment: str) -> dict[str, object]:
    return {"resources": SMALL, "environment": environment}


def test_two_services_on_one_node_have_their_own_port_and_gpus(api: Api) -> None:
    """The second takes the next port, and CUDA_VISIBLE_DEVICES is Slurm's allocation in both."""
    ids = [api.start("vllm-single-node", small())["id"] for _ in range(2)]
    for service_id in ids:
        api.until(service_id, "running")
    shown = [api.show(service_id) for service_id in ids]
    assert shown[0]["nodes"] == shown[1]["nodes"]
    assert sorted(service["endpoint"].rpartition(":")[2] for service in shown) == ["8001", "8002"]
    texts = [api.prompt(service_id, "hello")["text"] for service_id in ids]
    assert sorted(gpus for gpus in ("0,1", "2,3") for text in texts if gpus in text) == ["0,1", "2,3"], texts


def test_statuses_come_in_order_and_running_means_that_the_model_answers(api: Api) -> None:
    service_id = api.start("vllm-single-node", small(FAKE_LOAD_SECONDS="3"))["id"]
    assert api.status(service_id) in ("pending", "configuring")
    wait_for(lambda: api.status(service_id) == "configuring", "the job runs and the model loads")
    early = api.http.post(f"/api/v1/vllm/{service_id}/prompt", json={"prompt": "too early"})
    assert early.status_code == 503
    assert int(early.headers["retry-after"]) > 0
    assert "not ready" in early.json()["error"]
    assert api.until(service_id, "running")[-1] == "running"
    assert api.prompt(service_id, "hello")["success"] is True


def test_a_queued_service_says_what_it_waits_for(api: Api) -> None:
    first = [api.start("vllm-single-node", {"resources": SMALL | {"gpu": 4}})["id"] for _ in range(2)]
    third = api.start("vllm-single-node", {"resources": SMALL | {"gpu": 4}})["id"]
    for service_id in first:
        api.until(service_id, "running")
    wait_for(lambda: api.show(third)["reason"] in ("Resources", "Priority"), "Slurm's reason is shown")
    assert api.status(third) == "pending"
    api.cancel(first[0])
    api.until(third, "running")


def test_an_engine_that_fails_ends_the_service_with_its_code_and_log(api: Api) -> None:
    service_id = api.start("vllm-single-node", small(FAKE_EXIT_CODE="7", FAKE_EXIT_AFTER="0.5"))["id"]
    wait_for(lambda: api.status(service_id) == "failed", "the service is failed")
    shown = api.show(service_id)
    assert shown["job"]["exit_code"] == 7
    assert "NonZeroExitCode" in shown["reason"]
    assert "exit code 7" in api.logs(service_id)
    ended = api.http.post(f"/api/v1/vllm/{service_id}/prompt", json={"prompt": "hello"})
    assert ended.status_code == 409


def test_a_job_cancelled_outside_is_cancelled(api: Api, deployment: Deployment) -> None:
    service_id = api.start("vllm-single-node", small())["id"]
    api.until(service_id, "running")
    deployment.cluster.run("login", ["scancel", service_id], user=True, check=True)
    wait_for(lambda: api.status(service_id) == "cancelled", "the service is cancelled")


def test_slurms_refusal_is_passed_on_in_its_own_words(api: Api) -> None:
    body = {"recipe_name": "vllm-single-node", "config": {"resources": {"gpu": 64}}}
    refused = api.http.post("/api/v1/services", json=body)
    assert refused.status_code == 502
    assert "Requested node configuration is not available" in refused.json()["detail"]


@pytest.mark.timeout(240)
def test_a_job_that_reaches_its_limit_has_timed_out(api: Api) -> None:
    service_id = api.start("vllm-single-node", {"resources": SMALL | {"time_limit": 1}})["id"]
    api.until(service_id, "running")
    ends_at = api.show(service_id)["ends_at"]
    assert ends_at is not None
    wait_for(lambda: api.status(service_id) == "timeout", "the service has timed out", 150)
    assert "SIGTERM" in api.logs(service_id)


def test_while_the_controller_is_down_nothing_changes(api: Api, deployment: Deployment) -> None:
    service_id = api.start("vllm-single-node", small())["id"]
    api.until(service_id, "running")
    deployment.cluster.stop_controller()
    try:
        wait_for(lambda: api.show(service_id)["stale_since"] is not None, "staleness is shown", 60)
        start = time.monotonic()
        assert api.status(service_id) == "running"
        assert time.monotonic() - start < 1, "a status must not wait for Slurm"
        assert api.prompt(service_id, "still there")["success"] is True
    finally:
        deployment.cluster.start_controller()
    wait_for(lambda: api.show(service_id)["stale_since"] is None, "the controller's answer is noticed", 60)
    assert api.status(service_id) == "running"


def test_a_home_with_a_space_works(deployment: Deployment) -> None:
    deployment.environment["ORCHESTRATOR_HOME"] = str(deployment.cluster.home / "my state")
    deployment.environment["ORCHESTRATOR_SOCKET"] = str(deployment.socket)
    deployment.cluster.run("login", ["mkdir", "-m", "700", str(deployment.home)], user=True, check=True)
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        service_id = api.start("vllm-single-node", small())["id"]
        api.until(service_id, "running")
        assert "starting vllm" in api.logs(service_id)


def submissions(deployment: Deployment) -> list[tuple[str, str]]:
    """The job id and submission id of every job in the database."""
    database = sqlite3.connect(f"file:{deployment.home}/orchestrator.db?mode=ro", uri=True)
    try:
        return list(database.execute("SELECT job_id, submission_id FROM job"))
    finally:
        database.close()

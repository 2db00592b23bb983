"""The orchestrator crashes, or ends: the services that ran go on. How it dies while it submits is in tests/chaos."""

import pytest

from tests.e2e.deployment import Api, Deployment, wait_for

pytestmark = pytest.mark.cluster

TINY = {"resources": {"gpu": None, "cpu": 1, "memory": "256M"}}


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

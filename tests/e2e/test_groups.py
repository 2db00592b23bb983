"""Replica groups on a real Slurm: one job, several engines, one service."""

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.deployment import Api, Deployment, laptop_api, run_example, wait_for
from tests.vllm.fixtures import VllmEnvironment

pytestmark = pytest.mark.cluster

FOUR = {"resources": {"gpu": 4, "cpu": 1, "memory": "2G"}}
# A replica that hangs is noticed by the health checks: asked every 5 s, twice silent for 5 s, with a second between.
STALL_SECONDS = 20


def healthy(api: Api, group: str) -> int:
    return int(api.get(f"/api/v1/service-groups/{group}/status")["healthy_replicas"])


def start(api: Api, config: dict[str, Any], replicas: int) -> str:
    group = str(api.start("inference/vllm-replicas", config)["id"])
    wait_for(lambda: healthy(api, group) == replicas, f"{replicas} replicas answer", 40)
    return group


def engine_at(cluster: Cluster, port: str) -> int:
    """The pid of the engine that listens on a port of the cluster's nodes."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            mine = process.stat().st_uid == cluster.home.stat().st_uid
        except OSError:
            continue
        if mine and "--port" in words and words[words.index("--port") + 1] == port:
            return int(process.name)
    raise AssertionError(f"no engine on port {port}")


def test_four_replicas_share_the_prompts_and_survive_a_kill(api: Api, deployment: Deployment) -> None:
    group = start(api, FOUR, 4)
    shown = api.get(f"/api/v1/service-groups/sg-{group}")
    replicas = shown["node_jobs"][0]["replicas"]
    assert [(r["port"], r["gpu_id"], r["status"]) for r in replicas] == [
        (8001 + n, str(n), "running") for n in range(4)
    ]
    assert shown["name"] == "inference/vllm-replicas-group"

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: api.prompt(group, f"number {n}"), range(400)))
    count = Counter(answer["routed_to"] for answer in answers)
    assert set(count) == {r["id"] for r in replicas}
    assert all(90 <= n <= 110 for n in count.values()), count

    victim = engine_at(deployment.cluster, "8003")
    with ThreadPoolExecutor(16) as pool:
        work = [pool.submit(api.prompt, group, f"sleep 0.05 number {n}") for n in range(400)]
        threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
        assert all(job.result()["success"] for job in work), "a request failed although others could answer"
    assert wait_for(lambda: healthy(api, group) == 4, "the killed replica is back", 30) < 30
    assert f"{group}:8003" in {api.prompt(group, f"again {n}")["routed_to"] for n in range(8)}
    assert engine_at(deployment.cluster, "8003") != victim


def test_a_replica_that_hangs_holds_nobody_up(api: Api, deployment: Deployment) -> None:
    group = start(api, FOUR, 4)
    victim = engine_at(deployment.cluster, "8002")
    os.kill(victim, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: api.prompt(group, f"number {n}"), range(40)))
        assert time.monotonic() - begin < STALL_SECONDS
        assert f"{group}:8002" not in {answer["routed_to"] for answer in answers}
        assert api.get(f"/api/v1/service-groups/{group}/status")["overall_status"] == "partial"
    finally:
        os.kill(victim, signal.SIGCONT)
    wait_for(lambda: healthy(api, group) == 4, "it is used again", 30)


def test_a_clients_error_is_relayed_once_and_harms_no_replica(api: Api) -> None:
    group = start(api, FOUR | {"max_model_len": 50}, 4)
    refused = api.http.post(f"/api/v1/vllm/{group}/prompt", json={"prompt": "word " * 100})
    assert refused.status_code == 400
    assert refused.json()["success"] is False
    assert "maximum context length" in refused.json()["error"]
    assert healthy(api, group) == 4


def test_prompts_run_side_by_side_and_health_answers_meanwhile(api: Api) -> None:
    group = start(api, FOUR, 4)
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(api.prompt, group, "sleep 2") for _ in range(8)]
        time.sleep(0.5)
        assert min(seconds_of_health(api) for _ in range(5)) < 0.05  # the best of several: the machine is shared
        assert not any(job.done() for job in work), "asked while they ran"
        for job in work:
            job.result()
    assert time.monotonic() - begin < 6


def seconds_of_health(api: Api) -> float:
    asked = time.monotonic()
    assert api.http.get("/health").status_code == 200
    return time.monotonic() - asked


def test_replica_ids_are_service_ids(api: Api) -> None:
    group = start(api, FOUR | {"gpu_per_replica": 2}, 2)
    one = f"{group}:8002"
    assert {api.prompt(one, f"number {n}")["routed_to"] for n in range(4)} == {one}
    shown = api.show(one)
    assert (shown["id"], shown["group_id"], shown["replica_index"]) == (one, group, 1)
    assert shown["endpoint"].endswith(":8002")
    assert api.status(one) == "running"
    assert api.http.post(f"/api/v1/services/{one}/status", json={"status": "cancelled"}).status_code == 409
    assert api.http.get(f"/api/v1/services/{group}:9999").status_code == 404
    changed = api.http.post(f"/api/v1/service-groups/{group}/status", json={"status": "cancelled"}).json()
    assert changed == {
        "success": True,
        "message": f"Service group {group} status updated to cancelled",
        "group_id": group,
        "replicas_updated": 2,
    }
    assert api.status(group) == "cancelled"


def test_replicas_on_two_nodes_are_one_job(api: Api) -> None:
    group = start(api, {"resources": FOUR["resources"] | {"nodes": 2}, "gpu_per_replica": 2}, 4)
    nodes = api.get(f"/api/v1/service-groups/{group}")["node_jobs"]
    assert [(n["job_id"], n["node"], [r["port"] for r in n["replicas"]]) for n in nodes] == [
        (group, "node1", [8001, 8002]),
        (group, "node2", [8003, 8004]),
    ]
    assert len({api.prompt(group, f"number {n}")["routed_to"] for n in range(8)}) == 4
    api.cancel(group)
    wait_for(lambda: not api.get("/api/v1/service-groups")[0]["healthy_replicas"], "none is used any more")


def test_when_all_replicas_are_given_up_the_job_fails_truthfully(api: Api) -> None:
    config = FOUR | {"gpu_per_replica": 2, "environment": {"FAKE_EXIT_CODE": "7", "FAKE_EXIT_AFTER": "0"}}
    group = str(api.start("inference/vllm-replicas", config)["id"])
    wait_for(lambda: api.status(group) == "failed", "the job has failed", 60)
    assert api.show(group)["job"]["exit_code"] == 7
    assert "is given up after 5 restarts" in api.logs(group)
    assert api.get(f"/api/v1/service-groups/{group}/status")["overall_status"] == "failed"


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_two_real_replicas_answer(deployment: Deployment, vllm_environment: VllmEnvironment, vllm_config: str) -> None:
    deployment.config = vllm_config
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        config = {
            "model": str(vllm_environment.model),
            "served_model_name": "smollm2",
            "max_model_len": 1024,
            "resources": {"gpu": 2, "cpu": 2, "memory": "16G", "time_limit": 10},
        }
        group = str(api.start("inference/vllm-replicas", config)["id"])
        wait_for(lambda: healthy(api, group) == 2, "both replicas answer", 240)
        answers = [api.prompt(group, "What is the capital of France?", temperature=0, max_tokens=20) for _ in range(4)]
        assert all("Paris" in answer["text"] for answer in answers)
        assert len({answer["routed_to"] for answer in answers}) == 2


def test_the_example_of_groups_runs_unchanged(api: Api) -> None:
    done = run_example("vllm_replicas_example.py", "--gpus", "4", "--gpus-per-replica", "2", "--prompts", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8001 answered 6\n" in done.stdout
    assert "8002 answered 6\n" in done.stdout
    assert done.stdout.endswith("stopped\n")

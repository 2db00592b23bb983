"""Replica groups on a real Slurm: one job, several engines, one service."""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.cluster import Cluster
from tests.e2e.deployment import Api, Deployment, laptop_api, run_example, wait_for
from tests.vllm.fixtures import VllmEnvironment

pytestmark = pytest.mark.cluster

FOUR = {"resources": {"gpu": 4, "cpu": 1, "memory": "2G"}}
# A replica that hangs is noticed by the health checks: asked every 5 s, twice silent for 5 s, with a second between.
STALL_SECONDS = 20
MANY = 400  # prompts at once
PROMPT, CHAT = "/api/v1/vllm/{}/prompt", "/api/v1/services/{}/v1/chat/completions"


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


def body(path: str, text: str) -> dict[str, Any]:
    return {"prompt": text} if path == PROMPT else {"messages": [{"role": "user", "content": text}]}


def all_at_once(api: Api, path: str, group: str) -> list[httpx2.Response]:
    """The answers to MANY prompts that are sent together, each on a connection of its own."""
    url, no_limits = f"{api.http.base_url}{path.format(group)}", httpx2.Limits(max_connections=None)

    async def work() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(limits=no_limits, timeout=60, trust_env=False) as http:
            prompts = (body(path, f"sleep 6 number {n}") for n in range(MANY))
            return await asyncio.gather(*(http.post(url, json=prompt) for prompt in prompts))

    return asyncio.run(work())


def under_way(api: Api, group: str) -> int:
    """How many prompts the engines of a group are at, by their own count."""
    answer = api.http.get(f"/api/v1/services/{group}/metrics")
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return int(sum(s.value for family in families for s in family.samples if s.name == "vllm:num_requests_running"))


def engine_that_said(answer: httpx2.Response) -> str:
    """The port of the engine; each names its own."""
    assert answer.status_code == 200, answer.text
    found = re.search(r"port=(\d+)", answer.text)
    assert found, answer.text
    return found[1]


@pytest.mark.parametrize("path", [PROMPT, CHAT], ids=["prompt", "chat"])
def test_four_replicas_share_the_prompts_and_survive_a_kill(api: Api, deployment: Deployment, path: str) -> None:
    group = start(api, FOUR, 4)
    shown = api.get(f"/api/v1/service-groups/sg-{group}")
    replicas = shown["node_jobs"][0]["replicas"]
    assert [(r["port"], r["gpu_id"], r["status"]) for r in replicas] == [
        (8001 + n, str(n), "running") for n in range(4)
    ]
    assert shown["name"] == "inference/vllm-replicas-group"

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(all_at_once, api, path, group)
        wait_for(lambda: under_way(api, group) == MANY, "the engines are at all of them together", 20)
        answers = asking.result()
    count = Counter(map(engine_that_said, answers))
    assert set(count) == {str(r["port"]) for r in replicas}
    assert all(90 <= n <= 110 for n in count.values()), count
    if path == PROMPT:
        assert all(a.json()["routed_to"] == f"{group}:{engine_that_said(a)}" for a in answers)

    victim = engine_at(deployment.cluster, "8003")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(all_at_once, api, path, group)
        wait_for(lambda: under_way(api, group) == MANY, "all are under way", 20)
        os.kill(victim, signal.SIGKILL)
        count = Counter(map(engine_that_said, asking.result()))
    assert count.total() == MANY and "8003" not in count, "others answer what the killed one was asked"
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


def asked_of_engines(api: Api, group: str) -> int:
    """How many prompts have reached the engines of a group, by the log that they share."""
    return str(api.get(f"/api/v1/services/{group}/logs")["stderr"]).count("POST /v1/")


@pytest.mark.parametrize("path", [PROMPT, CHAT], ids=["prompt", "chat"])
def test_a_clients_error_is_relayed_once_and_harms_no_replica(api: Api, path: str) -> None:
    group = start(api, FOUR | {"max_model_len": 50}, 4)
    refused = api.http.post(path.format(group), json=body(path, "word " * 100))
    assert refused.status_code == 400
    assert "maximum context length" in refused.text
    if path == PROMPT:
        assert refused.json()["success"] is False
    assert asked_of_engines(api, group) == 1
    assert api.http.post(path.format(group), json=body(path, "status 500")).status_code >= 500
    assert asked_of_engines(api, group) == 1 + 4, "an engine's own error is tried on all of them, and all is counted"
    assert healthy(api, group) == 4


def test_prompts_run_side_by_side_and_health_answers_meanwhile(api: Api) -> None:
    """Each engine answers one prompt at a time: eight on one would take 16 s."""
    group = start(api, FOUR | {"environment": {"FAKE_SLOTS": "1"}}, 4)
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(api.prompt, group, "sleep 2") for _ in range(8)]
        wait_for(lambda: under_way(api, group) == 4, "each engine is at one", 2)
        waits = [seconds_of_health(api) for _ in range(9)]
        assert not any(job.done() for job in work), "asked while they ran"
        answers = [job.result() for job in work]
    assert 3.5 < time.monotonic() - begin < 6
    assert set(Counter(answer["routed_to"] for answer in answers).values()) == {2}
    assert median(waits) < 0.05, waits


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

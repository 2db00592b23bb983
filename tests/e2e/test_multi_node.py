"""One engine over two nodes of a real Slurm, with programs that look like Ray and vLLM (tests/fake_ray.py)."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import REPOSITORY, Api, Deployment, laptop_api, wait_for

pytestmark = pytest.mark.cluster

RECIPE = "inference/vllm-multi-node"
TWO_NODES = {"nodes": 2, "gpu": 2, "cpu": 1, "memory": "1G"}


@pytest.fixture
def multi(deployment: Deployment) -> Iterator[Api]:
    """A deployment whose vLLM is a program with `ray` beside it, as in a virtual environment."""
    programs = deployment.cluster.root / "engine bin"
    programs.mkdir(exist_ok=True)
    (programs / "ray").write_bytes((REPOSITORY / "tests" / "fake_ray.py").read_bytes())
    (programs / "vllm").write_text(
        f'#!/bin/bash\nexec /usr/bin/python3 {deployment.cluster.root}/fake_engine.py "$@"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    old = f'command = ["/usr/bin/python3", "{deployment.cluster.root}/fake_engine.py"]'
    assert old in deployment.config
    deployment.config = deployment.config.replace(old, f'command = ["{programs}/vllm"]')
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        yield api


def running(api: Api, *words: str, **environment: str) -> str:
    config = {"resources": TWO_NODES, "environment": environment, "vllm_args": words}
    service_id = str(api.start(RECIPE, config)["id"])
    api.until(service_id, "running")
    return service_id


def rays(api: Api, service_id: str) -> dict[str, tuple[int, str]]:
    """The pid and the words of each node's Ray."""
    started = re.findall(r"fake ray on (\w+): pid (\d+) (.*)", api.logs(service_id))
    return {node: (int(pid), words) for node, pid, words in started}


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def folder_of_ray(deployment: Deployment, service_id: str) -> Path:
    return Path(f"/tmp/sluicegate-{deployment.cluster.home.stat().st_uid}/ray-{service_id}")


def test_the_engine_starts_when_all_nodes_have_joined_and_nothing_is_left(multi: Api, deployment: Deployment) -> None:
    service_id = running(multi, "--chat-template", 'it\'s $(id) `id`  "{{ x }}"')
    assert multi.show(service_id)["nodes"] == ["node1", "node2"]
    found, logs = rays(multi, service_id), multi.logs(service_id)
    hosts = deployment.cluster.hosts
    assert set(found) == {"node1", "node2"}
    head, worker = found["node1"][1].split(), found["node2"][1].split()
    port = next(word.partition("=")[2] for word in head if word.startswith("--port="))
    assert {"--head", "--include-dashboard=false", f"--node-ip-address={hosts['node1']}", "--num-gpus=2"} <= set(head)
    assert {f"--address={hosts['node1']}:{port}", f"--node-ip-address={hosts['node2']}"} <= set(worker)
    steps = ["1 joined", "all 2 nodes have joined Ray", "ignored: --pipeline-parallel-size 2"]
    places = [logs.find(step) for step in steps]
    assert -1 not in places and places == sorted(places), logs
    literally = '--distributed-executor-backend ray --chat-template it\'s $(id) `id`  "{{ x }}"\n'
    assert f"ignored: --pipeline-parallel-size 2 {literally}" in logs
    assert "CUDA_VISIBLE_DEVICES=0,1" in multi.prompt(service_id, "hello")["text"]
    assert folder_of_ray(deployment, service_id).is_dir()

    pids = [pid for pid, _ in found.values()]
    assert alive(pids) == pids
    multi.cancel(service_id)
    wait_for(lambda: multi.status(service_id) == "cancelled" and not alive(pids), "both nodes are free again")
    wait_for(lambda: not folder_of_ray(deployment, service_id).exists(), "Ray's folder is gone")


def test_two_services_share_the_nodes_with_ports_of_their_own(multi: Api) -> None:
    ids = [running(multi), running(multi)]
    heads = [rays(multi, service_id)["node1"][1] for service_id in ids]
    for name in ("port", "dashboard-agent-listen-port"):
        assert len({re.search(rf"--{name}=(\d+)", head)[1] for head in heads}) == 2, heads  # type: ignore[index]
    assert "--ray-client-server-port=" not in heads[0] and "--ray-client-server-port=" in heads[1]
    assert "CUDA_VISIBLE_DEVICES=2,3" in multi.prompt(ids[1], "hello")["text"]


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_node_whose_ray_dies_fails_the_service_with_its_reason(multi: Api, node: str) -> None:
    service_id = running(multi)
    found = rays(multi, service_id)
    os.kill(found[node][0], signal.SIGKILL)
    wait_for(lambda: multi.status(service_id) == "failed", "the service has failed")
    assert multi.show(service_id)["job"]["exit_code"] == 137
    logs = multi.logs(service_id)
    assert "Ray on this node ended with exit code 137" in logs
    if node == "node2":
        assert "another node of the engine ended with exit code 137; the engine cannot go on without it" in logs
    wait_for(lambda: not alive([pid for pid, _ in found.values()]), "both nodes are free again")


def test_an_engine_that_fails_ends_all_nodes_with_its_code(multi: Api) -> None:
    service_id = running(multi, FAKE_EXIT_CODE="7", FAKE_EXIT_AFTER="4")
    pids = [pid for pid, _ in rays(multi, service_id).values()]
    assert "asks for no token" not in multi.logs(service_id)
    wait_for(lambda: multi.status(service_id) == "failed", "the service has failed")
    assert multi.show(service_id)["job"]["exit_code"] == 7
    assert "the engine ended with exit code 7" in multi.logs(service_id)
    wait_for(lambda: not alive(pids), "both nodes are free again")


def test_a_ray_that_asks_for_no_token_is_told_in_the_log(multi: Api) -> None:
    service_id = running(multi, FAKE_RAY_VERSION="2.9.3")
    assert "Ray 2.9.3 asks for no token: whoever reaches its ports can run programs as you" in multi.logs(service_id)


def test_one_node_needs_no_ray(multi: Api) -> None:
    service_id = str(multi.start(RECIPE, {"resources": TWO_NODES | {"nodes": 1}})["id"])
    multi.until(service_id, "running")
    assert "CUDA_VISIBLE_DEVICES=0,1" in multi.prompt(service_id, "hello")["text"]
    assert rays(multi, service_id) == {}

"""The main job on real parts: laptop, SSH, orchestrator, Slurm, engine, answer."""

import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.deployment import Api, Deployment, laptop_api, run_example, wait_for
from tests.e2e.test_access import ask
from tests.vllm.fixtures import VllmEnvironment

pytestmark = pytest.mark.cluster


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_a_prompt_is_answered_by_a_real_model(
    deployment: Deployment, vllm_environment: VllmEnvironment, vllm_config: str
) -> None:
    """A client posts a recipe to port 8001 of the laptop, and vLLM on a compute node answers its question."""
    deployment.config = vllm_config
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        config = {
            "model": str(vllm_environment.model),
            "served_model_name": "smollm2",
            "max_model_len": 1024,
            "resources": {"gpu": None, "cpu": 2, "memory": "8G", "time_limit": 10},
        }
        service = api.start("inference/vllm-single-node", config)
        seen = api.until(service["id"], "running", 180)
        answer = api.prompt(service["id"], "What is the capital of France?", temperature=0, max_tokens=30)
        assert "Paris" in answer["text"]
        assert seen[-2:] == ["configuring", "running"]
        assert api.get(f"/api/v1/vllm/{service['id']}/models")["models"] == ["smollm2"]
        shown, cluster = api.show(service["id"]), deployment.cluster
        (node,) = shown["nodes"]
        for path in ("/v1/chat/completions", "/invocations", "/tokenize", "/metrics", "/openapi.json"):
            assert ask(cluster, node, cluster.other, shown["endpoint"] + path, "smollm2")[0] == 401, path
        api.cancel(service["id"])
        wait_for(lambda: f"|{deployment.cluster.user}" not in _unended(deployment.cluster), "squeue is empty")
        assert api.status(service["id"]) == "cancelled"


def _unended(cluster: Cluster) -> str:
    """squeue's lines of jobs that have not ended."""
    ended = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
    return "\n".join(line for line in cluster.squeue().splitlines() if line.split("|")[2] not in ended)


def test_the_embedded_engine_runs_as_a_slurm_job(api: Api) -> None:
    """By the orchestrator's own interpreter, as nobody named another."""
    service = api.start("inference/llamacpp-cpu", {"resources": {"cpu": 1}})
    api.until(service["id"], "running")
    answer = api.prompt(service["id"], "Which city is the capital of France?", temperature=0, max_tokens=30)
    assert "Paris" in answer["text"]
    assert api.show(service["id"])["nodes"] == ["node1"]


@pytest.mark.parametrize("recipe", ["inference/llamacpp-cpu", "inference/vllm-single-node"])
def test_the_example_runs_unchanged_on_the_cluster(api: Api, deployment: Deployment, recipe: str) -> None:
    """It starts the service, asks, and stops what it started."""
    done = run_example("vllm_simple_example.py", "--recipe", recipe, "--wait", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line == "running"]
    assert done.stdout.endswith("stopped\n")
    wait_for(lambda: not _unended(deployment.cluster), "squeue is empty")


def test_the_example_uses_what_runs_already(api: Api) -> None:
    service = api.start("vllm-single-node", {"resources": {"gpu": 1, "cpu": 1, "memory": "1G"}})
    api.until(service["id"], "running")
    done = run_example("vllm_simple_example.py", "--prompt", "say seventeen")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seventeen" in done.stdout.splitlines()[-1]
    assert api.status(service["id"]) == "running"


def test_the_example_fails_when_the_model_fails(api: Api) -> None:
    done = run_example("vllm_simple_example.py", "--recipe", "inference/llamacpp-cpu", "--model", "a b")
    assert done.returncode == 1
    assert "LLAMACPP_MODEL" in done.stderr or "config.model" in done.stderr


@pytest.mark.parametrize("recipe", ["inference/llamacpp-cpu", "inference/vllm-single-node"])
def test_the_example_with_metrics_shows_what_the_engine_counted(api: Api, recipe: str) -> None:
    service = api.start(recipe, {"resources": {"gpu": None, "cpu": 1, "memory": "2G"}})
    api.until(service["id"], "running")
    done = run_example("vllm_simple_example_with_metrics.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tokens_total" in done.stdout

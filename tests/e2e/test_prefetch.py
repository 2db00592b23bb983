"""Models before their jobs, on the cluster: pulled on login, and sent from a laptop where login has no internet."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster.cluster import namespace
from tests.e2e.deployment import REPOSITORY, Api, Deployment, laptop_api, wait_for
from tests.fake_hub import TINY, FakeHub, fake_hub, whole
from tests.vllm.fixtures import VllmEnvironment

pytestmark = pytest.mark.cluster

MODEL = "tiny/whole"
SMALL = {"model": MODEL, "resources": {"gpu": 1, "cpu": 1, "memory": "1G"}}
LARGE = bytes(range(256)) * 40_000  # 10 MB: two pieces


@contextmanager
def served(one: Deployment) -> Iterator[Api]:
    one.start_orchestrator()
    one.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        yield api


def sluice(home: Path, hub: FakeHub, *words: str) -> subprocess.CompletedProcess[str]:
    """A command on the laptop."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GATEWAY_", "XDG_"))}
    environment = kept | {"HOME": str(home), "HF_ENDPOINT": hub.url}
    program = [sys.executable, "-c", "from gateway.cli import main; main()"]
    done = subprocess.run(
        [*program, *words], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done
    return done


def offline(one: Deployment, api: Api) -> bool:
    """Whether a job of the model that answers was started so that it asks nothing of a hub."""
    service = api.start("inference/vllm-single-node", SMALL)["id"]
    api.until(service, "running")
    scripts = one.cluster.run("login", ["sh", "-c", f"cat {one.home}/runs/*/job.sh"], user=True).stdout
    api.cancel(service)
    return "export HF_HUB_OFFLINE=1\n" in scripts


def test_a_model_is_pulled_on_login_and_its_job_asks_no_hub(deployment: Deployment, tmp_path: Path) -> None:
    with ExitStack() as stack:
        with namespace(deployment.cluster, "login"):  # where the hub stays; the laptop cannot reach it
            hub = stack.enter_context(fake_hub())
        hub.models = [whole(MODEL, TINY | {"model.safetensors": LARGE})]
        deployment.environment["HF_ENDPOINT"] = hub.url
        with served(deployment) as api:
            done = sluice(tmp_path, hub, "models", "pull", MODEL)
            assert "done, 10.2 MB of 10.2 MB (100 %)" in done.stderr
            assert offline(deployment, api)


def test_a_model_is_sent_to_a_login_node_without_internet(deployment: Deployment, tmp_path: Path) -> None:
    deployment.environment["HF_HUB_OFFLINE"] = "1"
    with fake_hub() as hub, served(deployment) as api:
        hub.models = [whole(MODEL, TINY | {"model.safetensors": LARGE})]
        refused = api.http.post("/api/v1/models/pulls", json={"model": MODEL})
        assert (refused.status_code, "HF_HUB_OFFLINE" in refused.text) == (503, True)
        assert sluice(tmp_path, hub, "models", "push", MODEL).stdout == f"{MODEL}\n"
        snapshot = next(deployment.cluster.home.glob("cache/huggingface/hub/models--tiny--whole/snapshots/*"))
        owner = (snapshot / "model.safetensors").stat().st_uid
        assert (snapshot / "model.safetensors").read_bytes() == LARGE
        assert owner == deployment.cluster.home.stat().st_uid
        assert offline(deployment, api)


@pytest.mark.vllm
def test_a_real_engine_runs_what_was_sent_without_a_network(
    deployment: Deployment, vllm_config: str, vllm_environment: VllmEnvironment, tmp_path: Path
) -> None:
    """The real vLLM finds the real model by its name in the cache, and says how far it is."""
    deployment.config = vllm_config
    config = {
        "model": "test/smol", "max_model_len": 1024,
        "resources": {"gpu": None, "cpu": 1, "memory": "8G", "time_limit": 10},
    }  # fmt: skip
    with fake_hub() as hub, served(deployment) as api:
        sluice(tmp_path, hub, "models", "push", str(vllm_environment.model), "--name", "test/smol")
        service = api.start("inference/vllm-single-node", config)["id"]
        seen: list[str] = []
        wait_for(lambda: loaded(api, service, seen), "the engine answers", 180)
        order = ["starting", "loading", "warming up", "serving"]  # a small model is soon loaded: not all are seen
        assert len(seen) > 1 and seen == [phase for phase in order if phase in seen], seen
        assert api.show(service)["progress"] is None
        assert api.prompt(service, "Which city is the capital of France?")["text"]


def loaded(api: Api, service: str, seen: list[str]) -> bool:
    """Whether a service answers. `seen`: the phases of its engine on the way."""
    now = api.show(service)
    assert now["status"] in ("pending", "configuring", "running"), f"{now}\n{api.logs(service)}"
    if now["progress"] and now["progress"]["phase"] not in seen[-1:]:
        seen.append(now["progress"]["phase"])
    return bool(now["status"] == "running")

"""SGLang and Ollama as jobs of the local scheduler: from request to answer, with programs that look like them."""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.app import create_app
from orchestrator.schedulers.local import Local
from orchestrator.settings import Engine, Settings, Site
from tests.orchestrating import until

pytestmark = [pytest.mark.system, pytest.mark.beside]

HERE = Path(__file__).parent
CPU = {"gpu": None, "cpu": 1, "memory": "1G"}


@dataclass
class Services:
    """A running orchestrator. `root` has its state, and the store of models."""

    root: Path
    http: TestClient

    def start(self, recipe: str, **config: Any) -> str:
        body = {"recipe_name": recipe, "config": {"resources": CPU, **config}}
        answer = self.http.post("/api/v1/services", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def get(self, service_id: str, rest: str = "") -> Any:
        answer = self.http.get(f"/api/v1/services/{service_id}{rest}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def status(self, service_id: str) -> str:
        return str(self.get(service_id, "/status")["status"])

    def logs(self, service_id: str) -> str:
        return str(self.get(service_id, "/logs")["logs"])

    def until(self, condition: Callable[[], bool]) -> None:
        asyncio.run(until(condition))

    def ended(self, service_id: str, status: str) -> None:
        self.until(lambda: self.status(service_id) not in ("pending", "configuring", "running"))
        assert self.status(service_id) == status, self.logs(service_id)

    def running(self, recipe: str, **config: Any) -> str:
        service_id = self.start(recipe, **config)
        self.until(lambda: self.status(service_id) not in ("pending", "configuring"))
        assert self.status(service_id) == "running", self.logs(service_id)
        return service_id

    def stop(self, service_id: str) -> None:
        self.http.post(f"/api/v1/services/{service_id}/status", json={"status": "cancelled"})
        self.until(lambda: self.get(service_id)["job"]["state"] == "CANCELLED")

    def prompt(self, service_id: str, prompt: str, **more: Any) -> Any:
        return self.http.post(f"/api/v1/vllm/{service_id}/prompt", json={"prompt": prompt, **more}).json()

    def folder(self, service_id: str) -> Path:
        (found,) = (p.parent for p in self.root.glob("home/runs/*/claim") if p.read_text() == f"{service_id}\n")
        return found


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    engines = {
        "ollama": Engine(command=[sys.executable, str(HERE / "fake_ollama.py")]),
        "sglang": Engine(command=[sys.executable, str(HERE / "fake_sglang.py")]),
    }
    site = Site(engines=engines, cache_dir=str(tmp_path / "cache"))
    settings = Settings(home=home, scheduler="local", site=site, probe_seconds=0.05, poll_seconds=0.05)
    with TestClient(create_app(settings, Local(home)), base_url="http://localhost") as http:
        one = Services(tmp_path, http)
        yield one
        for service in http.get("/api/v1/services").json():
            if service["status"] in ("pending", "configuring", "running"):
                one.stop(service["id"])


def command_lines(folder: Path) -> list[str]:
    """What other users of the machine can read of the processes that run below a job's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


# --- SGLang


def test_sglang_answers_and_its_key_stands_in_no_command_line(services: Services) -> None:
    service_id = services.running("sglang-single-node", model="org/model", max_model_len=64)
    answer = services.prompt(service_id, "hello there")
    assert answer["success"] is True and answer["text"].startswith("hello there | org/model")
    folder = services.folder(service_id)
    key = re.fullmatch(r"api-key: '([0-9a-f]{64})'\n", (folder / "sglang.yaml").read_text())
    assert key is not None and (folder / "sglang.yaml").stat().st_mode & 0o777 == 0o600
    lines = command_lines(folder)
    assert any("fake_engine.py --model org/model" in line for line in lines), lines
    assert not any(key[1] in text for text in [*lines, services.logs(service_id), (folder / "job.sh").read_text()])
    endpoint = services.get(service_id)["endpoint"]
    assert services.http.get(f"/api/v1/vllm/{service_id}/metrics").status_code == 200, endpoint


def test_a_request_for_vllm_is_understood_by_sglang(services: Services) -> None:
    environment = {"VLLM_MODEL": "gpt2", "VLLM_MAX_MODEL_LEN": "50", "VLLM_GPU_MEMORY_UTILIZATION": "0.8"}
    service_id = services.running("sglang-single-node", environment=environment)
    assert services.http.get(f"/api/v1/vllm/{service_id}/models").json()["models"] == ["gpt2"]
    refused = services.prompt(service_id, "word " * 60)
    assert refused["success"] is False and "maximum context length is 50" in refused["error"]
    assert "'mem_fraction_static'" in services.logs(service_id)


# --- Ollama


def test_ollama_fetches_its_model_once_and_then_answers(services: Services) -> None:
    first = services.running("ollama", model="llama3.2")
    assert services.http.get(f"/api/v1/vllm/{first}/models").json()["models"] == ["llama3.2:latest"]
    assert services.prompt(first, "hello")["text"] == "llama3.2:latest heard: hello"
    assert "fetching llama3.2 into" in services.logs(first)
    services.stop(first)
    assert command_lines(services.folder(first)) == []

    again = services.running("ollama", model="llama3.2:latest", environment={"OLLAMA_NUM_PARALLEL": 2})
    assert "fetching" not in services.logs(again)
    (given,) = re.findall(r"serving with (.*)", services.logs(again))
    models = services.folder(again) / "models"
    assert (
        json.loads(given).items()
        >= {
            "OLLAMA_HOST": services.get(again)["endpoint"].removeprefix("http://").replace("localhost", "127.0.0.1"),
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_MODELS": str(models),
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_NUM_PARALLEL": "2",
        }.items()
    )
    assert (models / "blobs").resolve() == services.root / "cache/ollama/blobs"


def test_a_service_of_ollama_has_its_own_model_only(services: Services) -> None:
    """Two at the same time on one store; each has the next free port."""
    models = ["qwen2.5:0.5b", "hf.co/owner/name-GGUF:Q4_K_M"]
    ids = [services.running("ollama", model=model) for model in models]
    for service_id, model in zip(ids, models, strict=True):
        assert services.http.get(f"/api/v1/vllm/{service_id}/models").json()["models"] == [model]
        assert services.prompt(service_id, "hello")["text"] == f"{model} heard: hello"
    assert len({services.get(service_id)["endpoint"] for service_id in ids}) == 2
    manifests = services.root / "cache/ollama/manifests"
    assert {str(p.relative_to(manifests)) for p in manifests.rglob("*") if p.is_file()} == {
        "registry.ollama.ai/library/qwen2.5/0.5b",
        "hf.co/owner/name-GGUF/Q4_K_M",
    }


def test_a_model_that_ollama_cannot_fetch_ends_the_service_with_ollamas_words(services: Services) -> None:
    service_id = services.start("ollama", model="no-such-model")
    services.ended(service_id, "failed")
    assert services.get(service_id)["job"]["exit_code"] == 1
    assert "pull model manifest: file does not exist" in services.logs(service_id)
    assert "cannot fetch the model no-such-model" in services.logs(service_id)
    assert command_lines(services.folder(service_id)) == []


def test_ollamas_store_may_lie_where_the_user_says(services: Services) -> None:
    store = services.root / "it's $(my) store"
    service_id = services.running("ollama", environment={"OLLAMA_MODELS": str(store)})
    assert services.prompt(service_id, "hello")["text"] == "qwen2.5:0.5b heard: hello"
    assert (store / "manifests/registry.ollama.ai/library/qwen2.5/0.5b").is_file()


@pytest.mark.parametrize("model", ["../etc", "a/../b", "a:b:c", "a/b/c/d", "-x", "", "a:", "a b", "$(id)"])
def test_a_name_that_is_no_model_of_ollama_is_refused(services: Services, model: str) -> None:
    body = {"recipe_name": "ollama", "config": {"model": model}}
    answer = services.http.post("/api/v1/services", json=body)
    assert answer.status_code == 422 and "write it as in Ollama's library" in answer.text

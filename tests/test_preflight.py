"""POST /preflight: through the routes, with a small hub, folders of models, and the fake Slurm."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.access import needed
from orchestrator.app import create_app
from orchestrator.fit import GIB, OVERHEAD
from orchestrator.keys import Scope
from orchestrator.schedulers import Scheduler
from orchestrator.schedulers.local import Local
from orchestrator.settings import Engine, Settings, Site
from tests.checkpoints import (
    COMPRESSED_FP8,
    DEEPSEEK_V3,
    GPT2,
    GPTQ,
    JSON,
    LLAMA31_8B,
    MODELOPT_NVFP4,
    QWEN25_7B,
    folder,
)
from tests.fake_hub import FakeHub, fake_hub, model
from tests.fake_slurm import FakeSlurm

pytestmark = [pytest.mark.system, pytest.mark.beside]

QWEN, FP8, NVFP4, GATED = "Qwen/Qwen2.5-7B-Instruct", "some/Llama-FP8", "some/Llama-NVFP4", "some/gated"
GGUF, HALVES, ADAPTER, OWN_CODE = "some/model-GGUF", "some/float32", "some/adapter", "some/own-code"
QWEN_BYTES = 15_231_233_024


def _on_hub(model_id: str, config: JSON, size: int, **more: Any) -> JSON:
    siblings = [{"rfilename": "model.safetensors", "size": size, "blobId": "a"}]
    named = [{"rfilename": name, "size": 1, "blobId": name} for name in more.get("files", {})]
    files = {"config.json": config} | more.pop("files", {})
    siblings += [{"rfilename": "config.json", "size": 600, "blobId": "c"}, *named]
    return model(model_id, config["architectures"][0], 10, siblings=siblings, files=files, **more)


def _models() -> list[JSON]:
    f32 = {"parameters": {"F32": 100_000_000}, "total": 100_000_000}
    ggufs = [{"rfilename": f"q{bits}.gguf", "size": bits << 30, "blobId": f"{bits}"} for bits in (4, 8)]
    return [
        _on_hub(QWEN, QWEN25_7B, QWEN_BYTES),
        _on_hub(FP8, COMPRESSED_FP8, 9_000_000_000),
        _on_hub(NVFP4, LLAMA31_8B, 6_000_000_000, files={"hf_quant_config.json": MODELOPT_NVFP4}),
        _on_hub(GATED, LLAMA31_8B, 16_000_000_000, gated="manual"),
        _on_hub(HALVES, GPT2, 400_000_000, safetensors=f32),
        _on_hub(OWN_CODE, DEEPSEEK_V3 | {"architectures": ["NewForCausalLM"]}, 1000),
        model(ADAPTER, None, 5, siblings=[{"rfilename": "adapter_config.json", "size": 1, "blobId": "a"}]),
        model(GGUF, None, 5, siblings=ggufs),
    ]


@dataclass(frozen=True)
class Made:
    """An orchestrator in front of the fake Slurm, with a hub."""

    http: TestClient
    hub: FakeHub
    slurm: FakeSlurm
    home: Path

    def look(self, **body: Any) -> JSON:
        answer = self.http.post("/api/v1/preflight", json=body)
        assert answer.status_code == 200, answer.text
        found: JSON = answer.json()
        assert found["ok"] is all(verdict["level"] != "error" for verdict in found["verdicts"])
        return found


@contextmanager
def _serving(home: Path, scheduler: Scheduler, site: Site) -> Iterator[TestClient]:
    home.mkdir(mode=0o700, exist_ok=True)
    settings = Settings(home=home, scheduler="local", site=site, poll_seconds=3600)
    with TestClient(create_app(settings, scheduler), raise_server_exceptions=False) as http:
        yield http


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    home = tmp_path_factory.mktemp("preflight")
    slurm = FakeSlurm(home)
    site = Site(gpu_type="h100", cache_dir=str(home / "cache"), engines={"llamacpp": Engine(runtime="docker")})
    with pytest.MonkeyPatch.context() as patch, fake_hub() as hub:
        for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", hub.url)
        hub.models = _models()
        with _serving(home / "o", slurm.scheduler(), site) as http:
            yield Made(http, hub, slurm, home)


@pytest.fixture(autouse=True)
def _well(made: Made) -> None:
    made.hub.mood = "well"
    made.slurm.behave("sbatch")
    (made.slurm.state / "starts_at").write_text("1795295839")


def verdict(answer: JSON, check: str) -> JSON:
    """The only verdict on `check`."""
    (found,) = [verdict for verdict in answer["verdicts"] if verdict["check"] == check]
    assert set(found) == {"check", "level", "message", "next_step"}
    one: JSON = found
    return one


def test_a_model_alone(made: Made) -> None:
    before = set(Path(tempfile.gettempdir()).glob("sluicegate-*"))
    answer = made.look(model=QWEN)
    assert {found["check"]: found["level"] for found in answer["verdicts"]} == dict.fromkeys(
        ("model", "architecture", "quantization", "memory", "cache", "script", "scheduler"), "ok"
    )
    assert answer["memory"] == {
        "weights_bytes": QWEN_BYTES,
        "kv_cache_bytes_per_token": 57_344,
        "kv_cache_bytes": 57_344 * 32_768,
        "max_model_len": 32_768,
        "total_bytes": QWEN_BYTES + 57_344 * 32_768 + 4 * OVERHEAD,
        "gpus": 4,
        "gpu_memory_bytes": 80 * GIB,
        "fits": True,
    }
    assert answer["quantization"] == {
        "quant_method": None, "algorithm": None, "bits": None, "formats": [], "read_from": None,
    }  # fmt: skip
    assert (answer["ok"], answer["model"], answer["engine"], answer["script_ok"]) == (True, QWEN, "vllm", True)
    assert datetime.fromisoformat(answer["estimated_start"]) == datetime.fromtimestamp(1795295839, UTC)
    # Nothing was started, recorded or left behind.
    assert made.http.get("/api/v1/services").json() == []
    assert made.slurm.jobs() == {}
    assert [call.split()[1] for call in made.slurm.calls("sbatch")] == ["--test-only"]
    assert not (made.home / "o" / "runs").exists()
    assert set(Path(tempfile.gettempdir()).glob("sluicegate-*")) <= before


def test_the_answer_is_the_same_under_both_prefixes(made: Made) -> None:
    body = {"recipe_name": "vllm-single-node", "config": {"model": QWEN}}
    assert made.http.post("/api/preflight", json=body).json() == made.look(**body) == made.look(model=QWEN)


@pytest.mark.parametrize("path", ["/api/preflight", "/api/v1/preflight"])
def test_it_needs_the_scope_of_who_may_start_services(path: str) -> None:
    assert needed("POST", path) is Scope.MANAGE


@pytest.mark.parametrize(
    ("body", "check", "level", "words", "step"),
    [
        ({"model": "some/nothing"}, "model", "error", "not found", "token_file"),
        ({"model": GATED}, "model", "error", "is gated", "token_file"),
        ({"model": "../etc"}, "model", "unknown", "neither a name on the hub", "from / on"),
        ({"model": "/nowhere/model"}, "model", "unknown", "no model at /nowhere", "only the compute nodes"),
        ({"model": ADAPTER}, "architecture", "unknown", "names no architecture", ""),
        ({"model": OWN_CODE}, "architecture", "warning", "NewForCausalLM", "--trust-remote-code"),
        ({"model": FP8}, "quantization", "ok", "compressed-tensors", ""),
        (
            {"recipe_name": "sglang-single-node", "model": FP8},
            "quantization", "warning", "scheme not found", "ModelOpt",
        ),
        ({"recipe_name": "sglang-single-node", "model": NVFP4}, "quantization", "error", "this one has 9.0", "newer"),
        ({"recipe_name": "sglang-single-node", "model": FP8}, "architecture", "unknown", "SGLang's own list", ""),
        ({"model": GGUF}, "quantization", "warning", "'gguf'", ""),
        ({"model": GGUF}, "memory", "unknown", "size of the weights is not known", ""),
        ({"model": QWEN, "gpu_memory_gb": 4}, "memory", "error", "4 GB, as the request says", "larger GPUs"),
        (
            {"model": QWEN, "gpu_memory_gb": 4, "config": {"vllm_args": ["--quantization", "fp8"]}},
            "memory", "warning", "made smaller by --quantization fp8", "larger GPUs",
        ),
        ({"model": QWEN, "config": {"gpu": 3}}, "parallelism", "error", "28 attention heads", "one of 1, 2"),
        ({"model": QWEN, "config": {"tensor_parallel_size": 8}}, "parallelism", "error", "there are 4", ""),
        ({"model": QWEN, "config": {"tensor_parallel_size": 2}}, "parallelism", "warning", "2 would stay idle", ""),
        ({"model": QWEN, "config": {"gpu": None, "memory": "8G"}}, "memory", "error", "memory of the job", "more"),
        ({"recipe_name": "ollama"}, "model", "unknown", "Ollama's library", "ollama.com"),
        ({"recipe_name": "ollama", "model": f"hf.co/{GGUF}:Q4_K_M"}, "quantization", "ok", "Ollama", ""),
        ({"recipe_name": "ollama", "model": f"hf.co/{QWEN}"}, "quantization", "error", "no GGUF", "choose a GGUF"),
        ({"recipe_name": "llamacpp-cpu"}, "script", "error", "no image is known for llamacpp", ""),
    ],
)  # fmt: skip
def test_what_is_found(made: Made, body: JSON, check: str, level: str, words: str, step: str) -> None:
    found = verdict(made.look(**body), check)
    assert (found["level"], words in found["message"], step in found["next_step"]) == (level, True, True), found


@pytest.mark.parametrize(
    ("config", "gpus", "per_token", "length"),
    [
        ({"max_model_len": 1000}, 4, 57_344, 1000),
        ({"vllm_args": ["--max-model-len", "2000", "--kv-cache-dtype=fp8"]}, 4, 28_672, 2000),
        ({"vllm_args": "--tensor-parallel-size 2 --pipeline-parallel-size=2"}, 4, 57_344, 32_768),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0,1"}}, 2, 57_344, 32_768),
        ({"vllm_args": ["--max-model-len", "many"], "gpu": 1}, 1, 57_344, 32_768),
        ({"vllm_args": ["--tensor-parallel-size", "0.5", "--max-model-len", "-5"], "gpu": 1}, 1, 57_344, 32_768),
    ],
)
def test_the_options_count(made: Made, config: JSON, gpus: int, per_token: int, length: int) -> None:
    memory = made.look(model=QWEN, config=config)["memory"]
    assert (memory["gpus"], memory["kv_cache_bytes_per_token"], memory["max_model_len"]) == (gpus, per_token, length)


@pytest.mark.parametrize(
    ("recipe", "config", "gpus"),
    [
        ("vllm-replicas", {"gpu": 4, "gpu_per_replica": 2}, 2),
        ("vllm-multi-node", {"nodes": 2, "gpu": 4}, 8),
    ],
)
def test_the_gpus_of_an_engine(made: Made, recipe: str, config: JSON, gpus: int) -> None:
    answer = made.look(recipe_name=recipe, config=config | {"model": QWEN})
    assert (answer["memory"]["gpus"], answer["ok"]) == (gpus, True)


def test_weights_of_32_bits_are_loaded_as_16(made: Made) -> None:
    assert made.look(model=HALVES)["memory"]["weights_bytes"] == 200_000_000


def test_what_modelopt_has_quantised_is_read_from_its_own_file(made: Made) -> None:
    answer = made.look(model=NVFP4)
    assert answer["quantization"]["quant_method"] == "modelopt_fp4"
    assert (answer["quantization"]["algorithm"], answer["ok"]) == ("NVFP4", True)


def test_a_folder_of_this_machine(made: Made, tmp_path: Path) -> None:
    path = folder(tmp_path / "qwen", GPTQ, {"model.safetensors": {"a": ("I32", 5 << 30)}})
    answer = made.look(model=str(path), config={"gpu": 1})
    assert (answer["ok"], answer["quantization"]["quant_method"]) == (True, "gptq")
    assert answer["memory"]["weights_bytes"] == 5 << 30
    assert answer["estimated_start"] is not None
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": "more.safetensors"}}))
    assert verdict(made.look(model=str(path)), "weights")["level"] == "error"
    (path / "config.json").write_text("<html>")
    assert "no JSON" in verdict(made.look(model=str(path)), "model")["message"]


def test_without_a_network_what_is_known_is_said(made: Made) -> None:
    made.hub.mood = "breaks"
    answer = made.look(model="some/unasked", config={"gpu": 2})
    assert verdict(answer, "model")["level"] == "unknown"
    assert (answer["ok"], answer["quantization"], answer["script_ok"]) == (True, None, True)
    assert answer["memory"] == {
        "weights_bytes": None, "kv_cache_bytes_per_token": None, "kv_cache_bytes": None, "max_model_len": None,
        "total_bytes": None, "gpus": 2, "gpu_memory_bytes": 80 * GIB, "fits": None,
    }  # fmt: skip


def test_without_a_network_the_copy_of_the_jobs_is_looked_at(made: Made) -> None:
    made.hub.mood = "breaks"
    copy = made.home / "cache/huggingface/hub/models--some--kept/snapshots/1"
    folder(copy, QWEN25_7B, {"model.safetensors": {"a": ("BF16", 1 << 30)}})
    answer = made.look(model="some/kept")
    models = [(found["level"], found["message"]) for found in answer["verdicts"] if found["check"] == "model"]
    assert models[0][0] == "warning" and str(copy) in models[0][1]
    assert answer["memory"]["weights_bytes"] == 1 << 30


@pytest.mark.parametrize(
    ("slurm", "level", "words"),
    [
        ("echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1", "error", "Invalid account"),
        ("echo 'allocation failure: Requested node configuration is not available' >&2; exit 1", "error", "node"),
        ("echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1", "unknown", "did not say"),
        ("exit 0", "unknown", "did not say"),
    ],
)  # fmt: skip
def test_the_word_of_slurm(made: Made, slurm: str, level: str, words: str) -> None:
    made.slurm.behave("sbatch", slurm)
    answer = made.look(model=QWEN)
    found = verdict(answer, "scheduler")
    assert (found["level"], words in found["message"]) == (level, True), found
    assert (answer["estimated_start"], answer["script_ok"]) == (None, True)


def test_a_script_that_cannot_be_rendered(made: Made) -> None:
    answer = made.look(recipe_name="llamacpp-cpu")
    assert (answer["ok"], answer["script_ok"], answer["estimated_start"]) == (False, False, None)


def test_an_engine_without_a_model(made: Made) -> None:
    answer = made.look(recipe_name="vector-db/qdrant")
    assert (answer["ok"], answer["model"], answer["memory"], answer["quantization"]) == (True, None, None, None)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"recipe_name": "vlm"}, 404, "inference/vllm-single-node"),
        ({"config": {"gpu": 4000}}, 422, "allowed"),
        ({"config": {"modell": "x"}}, 422, "Did you mean 'model'"),
        ({"model": QWEN, "config": {"model": "another/one"}}, 422, "only one of them"),
        ({"model": QWEN, "config": {"model": 7}}, 422, "only one of them"),
        ({"recipe_name": "vector-db/qdrant", "model": QWEN}, 422, "unknown key 'model'"),
        ({"gpu_memory_gb": 0}, 422, "greater than 0"),
        ({"name": QWEN}, 422, "Extra inputs"),
    ],
)
def test_what_is_wrong_is_refused_as_at_the_start(made: Made, body: JSON, status: int, words: str) -> None:
    answer = made.http.post("/api/v1/preflight", json=body)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


def test_on_one_machine_it_would_start_at_once(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    with _serving(tmp_path / "o", Local(tmp_path / "o"), Site(gpu_memory_gb=24)) as http:
        answer = http.post("/api/v1/preflight", json={"recipe_name": "llamacpp-cpu", "config": {"weights": str(path)}})
        known = http.post("/api/v1/preflight", json={"model": QWEN, "config": {"gpu": 1}}).json()
        wrong = http.post("/api/v1/preflight", json={"model": "/nowhere/model"}).json()
    small = answer.json()
    assert (wrong["ok"], verdict(wrong, "model")["next_step"]) == (False, "correct the path")
    assert (small["ok"], small["quantization"]["quant_method"]) == (True, "gguf"), small
    assert abs(datetime.fromisoformat(small["estimated_start"]).timestamp() - datetime.now(UTC).timestamp()) < 60
    assert (known["memory"]["gpu_memory_bytes"], known["memory"]["fits"]) == (24 * GIB, True)
    assert "[site] gpu_memory_gb" in verdict(known, "memory")["message"]

"""A failed service says why, and is started again with what it takes: a real app, an engine that lacks memory."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.app import create_app
from orchestrator.recipes import Recipe, RecipeBook, builtin_recipes
from orchestrator.retry import amended
from orchestrator.schedulers import Scheduler
from orchestrator.schedulers.local import Local
from orchestrator.settings import Engine, Settings, Site
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import RECIPE, until

JSON = dict[str, Any]
CROWDED = [sys.executable, str(Path(__file__).with_name("crowded_engine.py"))]
CPU: JSON = {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}}
BOOK = RecipeBook([builtin_recipes()])

# amended


@pytest.mark.parametrize(
    ("config", "changes", "result"),
    [
        ({}, {"gpu_memory_utilization": 0.8}, {"gpu_memory_utilization": 0.8}),
        (
            {"model": "m", "environment": {"VLLM_GPU_MEMORY_UTILIZATION": "0.9", "MINE": "1"}},
            {"gpu_memory_utilization": 0.8},
            {"model": "m", "environment": {"MINE": "1"}, "gpu_memory_utilization": 0.8},
        ),
        (
            {"tensor_parallel_size": 8},
            {"environment": {"VLLM_TENSOR_PARALLEL": 4}},
            {"environment": {"VLLM_TENSOR_PARALLEL": 4}},
        ),
        ({"resources": {"memory": "8G", "gpu": 1}}, {"memory": "16G"}, {"resources": {"gpu": 1}, "memory": "16G"}),
        ({"memory": "8G"}, {"resources": {"memory": "16G"}}, {"resources": {"memory": "16G"}}),
        ({"max_model_len": 9}, {"max_model_len": None}, {"max_model_len": None}),
        ({"environment": {"A": "1"}}, {"environment": {"A": "2", "B": "3"}}, {"environment": {"A": "2", "B": "3"}}),
        ({"environment": {"A": "1"}}, {"environment": "no object"}, {"environment": "no object"}),
        ({}, {"nonsense": 1}, {"nonsense": 1}),
    ],
)
def test_a_change_takes_the_place_of_what_was_given_in_any_spelling(config: JSON, changes: JSON, result: JSON) -> None:
    recipe: Recipe = BOOK.find(RECIPE)
    before = repr(config)
    assert amended(config, changes, recipe) == result
    assert repr(config) == before


# Over HTTP


class Caller:
    def __init__(self, http: TestClient, app: Any) -> None:
        self.http, self.app = http, app

    def start(self, config: JSON, recipe: str = RECIPE) -> str:
        answer = self.http.post("/api/v1/services", json={"recipe_name": recipe, "config": config})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def show(self, service_id: str) -> JSON:
        return dict(self.http.get(f"/api/v1/services/{service_id}").json())

    def until(self, service_id: str, status: str) -> JSON:
        asyncio.run(until(lambda: self.show(service_id)["status"] == status))
        return self.show(service_id)

    def retry(self, service_id: str, body: JSON | None = None, **headers: str) -> tuple[int, JSON]:
        path = f"/api/v1/services/{service_id}/retry"
        answer = self.http.post(path, json=body, headers=headers) if body else self.http.post(path, headers=headers)
        return answer.status_code, answer.json()

    def look(self) -> None:
        assert self.http.portal is not None
        self.http.portal.call(self.app.state.orchestrator.watcher.look)

    def folder(self, service_id: str) -> Path:
        one = self.app.state.orchestrator
        assert self.http.portal is not None
        service, _ = self.http.portal.call(one.store.find, service_id)
        return Path(one.services.folder(service.submission_id).path)


@contextmanager
def serving(home: Path, scheduler: Scheduler, poll_seconds: float) -> Iterator[Caller]:
    home.mkdir(mode=0o700)
    site = Site(engines={"vllm": Engine(command=CROWDED)})
    settings = Settings(home=home, scheduler="local", site=site, probe_seconds=0.05, poll_seconds=poll_seconds)
    app = create_app(settings, scheduler)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as http:
        yield Caller(http, app)
        for service in http.get("/api/services").json():
            http.post(f"/api/services/{service['id']}/status", json={"status": "cancelled"})


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Caller]:
    with serving(tmp_path / "home", Local(tmp_path / "home"), 0.05) as caller:
        yield caller


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


@pytest.fixture
def queued(slurm: FakeSlurm) -> Iterator[Caller]:
    """On a Slurm where jobs only wait. It looks when it is told to."""
    with serving(slurm.home / "o", slurm.scheduler(), 3600) as caller:
        yield caller


@pytest.mark.system
def test_an_engine_without_memory_is_explained_and_started_again_with_less(local: Caller) -> None:
    first = local.start(CPU)
    told = local.until(first, "failed")
    assert told["reason"] == "NonZeroExitCode (exit code 1)"
    diagnosis = told["diagnosis"]
    assert diagnosis.pop("advice").startswith("Lower config.gpu_memory_utilization")
    assert diagnosis == {
        "name": "gpu-memory",
        "sentence": "The GPU's memory was used up when 224.00 MiB more were asked for.",
        "changes": {"gpu_memory_utilization": 0.8},
    }
    status, made = local.retry(first)
    assert (status, made["config"]) == (200, CPU | {"gpu_memory_utilization": 0.8})
    assert made["id"] != first
    assert local.until(made["id"], "running")["diagnosis"] is None
    assert local.show(first)["status"] == "failed"
    status, refused = local.retry(made["id"])
    assert status == 409 and "has not failed" in refused["detail"]


@pytest.mark.system
def test_an_engine_that_dies_without_a_word_is_told_by_its_exit_code(local: Caller) -> None:
    service = local.start(CPU | {"gpu_memory_utilization": 0.8})
    local.until(service, "running")
    local.http.post(f"/api/v1/vllm/{service}/prompt", json={"prompt": "please die now"})
    diagnosis = local.until(service, "failed")["diagnosis"]
    assert (diagnosis["name"], diagnosis["changes"]) == ("unknown", {})
    assert "exit code 9," in diagnosis["sentence"]
    assert "/services/{id}/logs" in diagnosis["advice"]


@pytest.mark.system
def test_a_replica_that_is_started_again_and_again_is_explained_meanwhile(local: Caller) -> None:
    group = local.start({"resources": {"gpu": 1}}, "inference/vllm-replicas")
    asyncio.run(until(lambda: local.show(group)["diagnosis"] is not None))
    told = local.show(group)
    assert (told["status"], told["diagnosis"]["name"]) == ("configuring", "gpu-memory")


def test_one_s_own_changes_win_and_a_key_makes_one_service_of_two_requests(slurm: FakeSlurm, queued: Caller) -> None:
    slow = queued.start({"time_limit": 20, "environment": {"VLLM_MAX_MODEL_LEN": "4096"}})
    assert queued.show(slow)["diagnosis"] is None
    slurm.change(slow, state="TIMEOUT", reason="TimeLimit", exit_code="0")
    queued.look()
    assert queued.show(slow)["diagnosis"]["changes"] == {"time_limit": 40}
    wanted = {"changes": {"time_limit": 30, "max_model_len": 512}}
    answers = [queued.retry(slow, wanted, **{"Idempotency-Key": "again"}) for _ in range(2)]
    assert answers[0] == answers[1]
    status, made = answers[0]
    assert (status, made["config"]) == (200, {"time_limit": 30, "environment": {}, "max_model_len": 512})
    assert len(slurm.calls("sbatch")) == 2
    status, refused = queued.retry(slow, {"changes": {"max_model_len": "many"}})
    assert status == 422 and "max_model_len" in refused["detail"]


def test_secrets_are_carried_over_or_asked_for(slurm: FakeSlurm, queued: Caller) -> None:
    first = queued.start({"environment": {"WANDB_API_KEY": "planted", "MINE": "1"}})
    slurm.change(first, state="NODE_FAIL", reason="NodeFail")
    queued.look()
    status, made = queued.retry(first)
    assert (status, made["config"]["environment"]) == (200, {"WANDB_API_KEY": "***", "MINE": "1"})
    assert "WANDB_API_KEY=planted" in (queued.folder(made["id"]) / "secrets.env").read_text()
    (queued.folder(first) / "secrets.env").unlink()
    status, refused = queued.retry(first)
    assert status == 422 and "send them again as changes.environment, here WANDB_API_KEY" in refused["detail"]
    status, made = queued.retry(first, {"changes": {"environment": {"WANDB_API_KEY": "other"}}})
    assert status == 200
    assert "WANDB_API_KEY=other" in (queued.folder(made["id"]) / "secrets.env").read_text()
    status, refused = queued.retry(first, {"changes": {"environment": {"WANDB_API_KEY": "x", "HF_TOKEN": "***"}}})
    assert status == 422 and "send the value itself" in refused["detail"]


def test_what_slurm_refused_is_explained(slurm: FakeSlurm, queued: Caller) -> None:
    slurm.behave("sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1")
    answer = queued.http.post("/api/v1/services", json={"recipe_name": RECIPE})
    assert answer.status_code == 502
    (service,) = queued.http.get("/api/v1/services").json()
    told = queued.show(service["id"])
    assert (told["status"], told["diagnosis"]["name"]) == ("failed", "bad-partition")
    slurm.behave("sbatch")
    assert queued.retry(service["id"])[0] == 200


def test_what_a_user_has_cancelled_has_not_failed(slurm: FakeSlurm, queued: Caller) -> None:
    ours, theirs = queued.start({}), queued.start({})
    queued.http.post(f"/api/v1/services/{ours}/status", json={"status": "cancelled"})
    for job in (ours, theirs):
        slurm.change(job, state="CANCELLED", reason="None")
    queued.look()
    assert (queued.show(ours)["status"], queued.show(ours)["diagnosis"]) == ("cancelled", None)
    assert queued.retry(ours)[0] == 409
    assert queued.show(theirs)["diagnosis"]["name"] == "cancelled"
    assert queued.retry(theirs)[0] == 200


def test_one_replica_cannot_be_started_again_and_what_is_not_there_is_said(queued: Caller) -> None:
    group = queued.start({"resources": {"gpu": 2}}, "inference/vllm-replicas")
    status, refused = queued.retry(f"{group}:8001")
    assert status == 409 and "only its group" in refused["detail"]
    assert queued.retry("4711")[0] == 404

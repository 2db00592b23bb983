"""A machine on which one model at a time is in memory, as the switchboard's document has it: its models, its calls, its
two keys. Each row is a call of the document and what it says of the answer.
"""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.clients.place import Place, place, wait
from tests.gateway.sshd import BINARY
from tests.test_quirks import absent

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

USER, ADMIN = {"X-API-Key": "of-the-users"}, {"X-API-Key": "of-the-admin"}
SMALL = {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}}
MODELS = {
    "gpt-oss120": {
        "source": {"type": "huggingface_repo", "value": "openai/gpt-oss-120b"},
        "backend": {"image": "vllm/vllm-openai", "port": 8101, "vllm_args": ["--max-model-len", "4096"]},
        "config": SMALL,
        "slot": "active",
    },
    "qwen3-30b": {
        "source": {"type": "huggingface_repo", "value": "Qwen/Qwen3-30B-A3B"},
        "config": SMALL,
        "slot": "active",
    },
    "qwen3-235b-4bit": {
        "source": {"type": "local_path", "value": "/models/qwen3-235b"},
        "quantization": "awq",
        "config": SMALL,
        "slot": "active",
    },
}


@pytest.fixture(scope="module")
def there() -> Iterator[Place]:
    if BINARY is None:
        absent("NO SSHD, so the switchboard is not tested: apt-get install openssh-server")
    keys = {"GATEWAY_API_KEY": "of-the-users", "GATEWAY_ADMIN_API_KEY": "of-the-admin"}
    with place("fake_engine.py", MODELS, ORCHESTRATOR_WAKE_HOLD_SECONDS="60", **keys) as one:
        yield one


def later(there: Place, model: str, prompt: str = "Hello") -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "async": True}
    answer = there.http.post("/v1/chat/completions", json=body, headers=USER)
    assert answer.status_code == 202, answer.text
    told: dict[str, Any] = answer.json()
    assert told["status"] == "queued"
    return told


def state(there: Place, job: str) -> str:
    return str(there.http.get(f"/jobs/{job}", headers=USER).json()["status"])


def one_at_most(there: Place) -> bool:
    slot = there.http.get("/slots/active", headers=USER).json()
    return [model["state"] for model in slot["models"]].count("running") <= 1


@pytest.mark.parametrize(
    ("path", "headers", "status", "names"),
    [
        ("/health", {}, 200, {"status"}),
        ("/v1/models", {}, 401, {"error"}),
        ("/v1/models", USER, 200, {"object", "data"}),
        ("/status", USER, 403, {"detail"}),
        ("/status", ADMIN, 200, {"services", "models", "queue", "version"}),
        ("/queue", USER, 403, {"detail"}),
        ("/queue", ADMIN, 200, {"counts", "models", "oldest_wait_seconds", "items"}),
        ("/jobs/none", USER, 404, {"detail"}),
        ("/jobs/none/result", USER, 404, {"detail"}),
    ],
)
def test_the_documents_calls_and_their_keys(
    there: Place, path: str, headers: dict[str, str], status: int, names: set[str]
) -> None:
    answer = there.http.get(path, headers=headers)
    assert answer.status_code == status, answer.text
    assert names <= answer.json().keys(), answer.text


def test_the_models_of_the_list_are_offered(there: Place) -> None:
    listed = there.http.get("/v1/models", headers=USER).json()["data"]
    assert MODELS.keys() <= {card["id"] for card in listed}


@pytest.mark.parametrize("model", list(MODELS))
def test_a_job_of_each_model_is_answered_with_one_model_at_a_time(there: Place, model: str) -> None:
    job = later(there, model)["job_id"]
    wait(lambda: one_at_most(there) and state(there, job) == "done", 60)
    result = there.http.get(f"/jobs/{job}/result", headers=USER)
    assert (result.status_code, result.json()["model"]) == (200, model)
    assert "Hello" in result.json()["choices"][0]["message"]["content"]


def test_a_job_is_cancelled_also_while_its_model_answers(there: Place) -> None:
    job = later(there, "qwen3-30b", "delay 0.5 " + "word " * 60)["job_id"]
    wait(lambda: state(there, job) == "running", 60)
    cancelled: httpx2.Response = there.http.post(f"/jobs/{job}/cancel", headers=USER)
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert there.http.get(f"/jobs/{job}/result", headers=USER).status_code == 409
    assert there.http.post("/jobs/none/cancel", headers=USER).status_code == 404

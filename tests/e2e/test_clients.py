"""Unmodified clients on the laptop, real engines in Slurm jobs: through gateway, SSH and orchestrator."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import environments
from tests.e2e.deployment import Deployment, laptop_api, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

MODEL = "org/smollm2-135m"
WITHOUT = ("tool",)  # its chat template knows no tools
EXACT = {"temperature": 0, "max_tokens": 40}
ASKED: list[dict[str, Any]] = [
    {"name": "whole", "do": "chat", "options": EXACT},
    {"name": "stream", "do": "chat", "options": EXACT, "stream": True},
    {"name": "completion", "do": "completion"},
    {"name": "embedding", "do": "embedding"},
    {"name": "response", "do": "response"},
    {"name": "streamed response", "do": "response", "stream": True},
    {"name": "models", "do": "models"},
    {"name": "model", "do": "model"},
    {"name": "parse", "do": "parse", "prompt": "Paris has two million inhabitants. Answer as JSON."},
    {"name": "tool", "do": "tool", "prompt": "What is the weather in Paris?"},
]
SDK = [str(case["name"]) for case in ASKED]
CAN = {
    "openai2": SDK,
    "openai3": SDK,
    "langchain": ["whole", "stream", "completion", "embedding", "parse"],
    "litellm": ["whole", "stream", "completion", "embedding"],
    "curl": ["whole", "stream", "completion", "embedding", "models", "model"],
    "openai-node": ["whole", "stream", "completion", "embedding", "response", "models", "model"],
    "ai-sdk": ["whole", "stream"],
}


def cases(client: str, model: str, without: tuple[str, ...]) -> list[dict[str, Any]]:
    return [case | {"model": model} for case in ASKED if case["name"] in CAN[client] and case["name"] not in without]


@pytest.fixture(scope="module")
def url(clients: list[str], shared_deployment: Deployment) -> Iterator[str]:
    """The gateway's, with llama.cpp as a Slurm job behind it."""
    shared_deployment.start_orchestrator()
    shared_deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        config = {"model": MODEL, "resources": {"cpu": 1}}
        api.until(str(api.start("inference/llamacpp-cpu", config)["id"]), "running")
        yield "http://localhost:8001/v1"


@pytest.fixture(scope="module", params=environments.ALL)
def seen(request: pytest.FixtureRequest, clients: list[str], url: str) -> tuple[str, dict[str, Any]]:
    if request.param not in clients:
        pytest.skip(environments.missing(request.param))
    return request.param, environments.run(request.param, url, cases(request.param, MODEL, WITHOUT))


def check(client: str, found: dict[str, Any], model: str) -> None:
    """Every answer is there, and what it says is right."""
    assert not {name: one for name, one in found.items() if "error" in one}, client
    for name in ("whole", "stream"):
        assert "Paris" in found[name]["text"], (client, found[name])
        assert found[name]["usage"] > 3, (client, found[name])
    for name in found.keys() & {"completion", "response", "streamed response"}:
        assert found[name]["text"].strip(), (client, name)
    for name, value in {"models": {"ids": [model]}, "model": {"id": model}}.items():
        assert found.get(name, value) == value, client
    if "streamed response" in found:
        assert found["streamed response"]["last"] == "response.completed"
    if "tool" in found:
        assert found["tool"]["called"] == ["weather"]
    if "parse" in found:
        assert set(found["parse"]) == {"name", "millions"}


def test_all_that_a_client_can_do_works_with_llamacpp(seen: tuple[str, dict[str, Any]]) -> None:
    client, found = seen
    check(client, found, MODEL)
    assert list(found) == [case["name"] for case in cases(client, MODEL, WITHOUT)]
    if "embedding" in found:
        assert found["embedding"]["sizes"] == [576, 576]


def test_a_context_that_is_too_long_is_refused_in_llamacpps_words(clients: list[str], url: str) -> None:
    asked = {"name": "one", "do": "chat", "model": MODEL, "prompt": "word " * 3000}
    error = environments.run("openai3", url, [asked])["one"]["error"]
    assert (error["status"], error["kind"][0]) == (400, "BadRequestError")
    assert "exceeds the available context size" in error["text"]

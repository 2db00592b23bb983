"""Unmodified clients on the laptop, a real vLLM in a Slurm job."""

import pytest

from tests.clients import environments
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for
from tests.e2e.test_clients import cases, check
from tests.vllm.fixtures import VllmEnvironment

pytestmark = [pytest.mark.cluster, pytest.mark.vllm, pytest.mark.timeout(300)]

MODEL = "HuggingFaceTB/smollm2"
WITHOUT = ("embedding",)  # it embeds only with models that are made for it
CLIENTS = {"openai3", "langchain", "openai-node"}  # one of each kind: the others are tried with a faster engine
URL = "http://localhost:8001/v1"


def test_all_that_a_client_can_do_works_with_vllm(
    clients: list[str], deployment: Deployment, vllm_environment: VllmEnvironment, vllm_config: str
) -> None:
    deployment.config = vllm_config
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        start_vllm(api, vllm_environment)
        for client in CLIENTS & set(clients):
            found = environments.run(client, URL, cases(client, MODEL, WITHOUT))
            check(client, found, MODEL)
        asked = {"name": "one", "do": "chat", "model": MODEL, "prompt": "word " * 3000}
        error = environments.run("openai3", URL, [asked])["one"]["error"]
        assert (error["status"], error["kind"][0]) == (400, "BadRequestError")
        assert "maximum context length" in error["text"]


def start_vllm(api: Api, vllm: VllmEnvironment) -> None:
    config = {
        "model": str(vllm.model),
        "served_model_name": MODEL,
        "max_model_len": 1024,
        "vllm_args": ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"],
        "resources": {"gpu": None, "cpu": 2, "memory": "8G", "time_limit": 10},
    }
    api.until(str(api.start("inference/vllm-single-node", config)["id"]), "running", 180)

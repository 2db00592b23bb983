"""What unmodified clients do beside asking well: they leave, come too early, and name what is not there."""

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.clients import environments
from tests.clients.place import Place, place, wait
from tests.gateway.sshd import BINARY
from tests.test_quirks import absent

pytestmark = [pytest.mark.system, pytest.mark.beside, pytest.mark.timeout(120)]

MODEL = "org/fake"
SDKS = [client for client in environments.ALL if client not in ("curl", "ai-sdk")]
SOON = 1.0  # seconds from a client's end until its engine works no more


@pytest.fixture(scope="module")
def there() -> Iterator[Place]:
    if BINARY is None:
        absent("NO SSHD, so no client is tested: apt-get install openssh-server")
    asleep = {
        "source": {"type": "huggingface_repo", "value": MODEL},
        "backend": {"vllm_args": ["--load-seconds", "2"]},
        "config": {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}},
    }
    models = {f"asleep-{client}": asleep for client in SDKS}
    with place("fake_engine.py", models, ORCHESTRATOR_WAKE_HOLD_SECONDS="0.1") as one:
        one.start(MODEL, max_model_len=50)
        yield one


@pytest.fixture(scope="module")
def service(there: Place) -> str:
    return str(there.http.get("/api/v1/services").json()[-1]["id"])


def ask(there: Place, client: str, **case: Any) -> Any:
    if reason := environments.missing(client):
        absent(reason)
    asked = {"name": "one", "do": "chat", "model": MODEL, "timeout": 20} | case
    return environments.run(client, f"{there.url}/v1", [asked])["one"]


@pytest.mark.parametrize(
    ("prompt", "stream", "received"),
    [("delay 0.3", True, True), ("sleep 30", True, False), ("sleep 30", False, False)],
    ids=["within a stream", "before a stream", "before an answer"],
)
def test_the_engine_stops_when_its_client_leaves(
    there: Place, service: str, prompt: str, stream: bool, received: bool
) -> None:
    cancelled = there.logs(service).count("cancelled")
    asked = there.logs(service).count("POST")
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{prompt} a b c d e f"}], "stream": stream}
    request = there.http.build_request("POST", "/v1/chat/completions", json=body)
    with socket.create_connection(("127.0.0.1", there.http.base_url.port)) as client:
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + request.content)
        if received:
            assert b"200 OK" in client.recv(1000)
        wait(lambda: there.logs(service).count("POST") > asked)
    left = time.time()
    assert stopped_at(there, service, cancelled) - left < SOON


@pytest.mark.parametrize("client", ["openai2", "openai3", "openai-node", "ai-sdk", "curl"])
def test_the_engine_stops_when_a_client_loses_its_patience(there: Place, service: str, client: str) -> None:
    cancelled = there.logs(service).count("cancelled")
    found = ask(there, client, prompt="sleep 30", stream=True, timeout=1)
    left = time.time()
    assert "error" in found
    assert stopped_at(there, service, cancelled) - left < SOON


def stopped_at(there: Place, service: str, before: int) -> float:
    """When the engine has stopped working for one more client than before, by its own clock, which is ours too."""
    wait(lambda: there.logs(service).count("cancelled at ") > before)
    return float(re.findall(r"cancelled at ([0-9.]+)", there.logs(service))[-1])


def test_a_client_that_comes_too_early_tries_again_by_itself(there: Place) -> None:
    """Its model loads for three seconds: 503 with Retry-After, which the SDKs obey. All of them at the same time."""
    body = {"served_model_name": "late", "vllm_args": ["--load-seconds", "3"], "resources": {"gpu": None}}
    started = there.http.post("/api/v1/services", json={"recipe_name": "vllm-single-node", "config": body}).json()
    early = there.http.post("/v1/chat/completions", json={"model": "late", "messages": []})
    assert early.status_code == 503
    assert int(early.headers["retry-after"]) >= 1
    assert started["id"] in early.json()["error"]["message"]
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda client: ask(there, client, model="late", prompt="hi", retries=6), SDKS))
    for client, one in zip(SDKS, found, strict=True):
        assert one.get("text", "").startswith("hi | "), (client, one)


@pytest.mark.parametrize("client", ["openai2", "openai3", "openai-node"])
def test_a_sleeping_model_is_woken_by_a_stream_and_then_by_the_sdks_own_retry(there: Place, client: str) -> None:
    model = f"asleep-{client}"
    streamed = ask(there, client, model=model, prompt="hi", stream=True, timeout=60)
    assert streamed["text"].startswith("hi | ")
    assert there.http.post(f"/slots/{model}/switch", json={"model": None}).status_code == 202
    wait(lambda: bool(there.http.get(f"/slots/{model}").json()["phase"] == "empty"))
    whole = ask(there, client, model=model, prompt="again", retries=2, timeout=60)
    assert whole["text"].startswith("again | ")


def test_without_retries_a_client_sees_503(there: Place) -> None:
    body = {"served_model_name": "never", "vllm_args": ["--load-seconds", "60"], "resources": {"gpu": None}}
    there.http.post("/api/v1/services", json={"recipe_name": "vllm-single-node", "config": body})
    error = ask(there, "openai3", model="never")["error"]
    assert error["status"] == 503
    assert "APIStatusError" in error["kind"]
    assert int(error["headers"]["retry-after"]) >= 1


@pytest.mark.parametrize("client", ["openai2", "openai3", "langchain"])
def test_an_unknown_model_is_not_found(there: Place, client: str) -> None:
    error = ask(there, client, model="org/unknown")["error"]
    assert error["status"] == 404
    assert "NotFoundError" in error["kind"]
    assert "The model 'org/unknown' does not exist; there is" in error["text"] and MODEL in error["text"]


@pytest.mark.parametrize("client", ["openai2", "openai3", "langchain"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_context_that_is_too_long_is_a_bad_request_in_the_engines_words(
    there: Place, client: str, stream: bool
) -> None:
    error = ask(there, client, prompt="word " * 60, stream=stream)["error"]
    assert error["status"] == 400
    assert "BadRequestError" in error["kind"]
    assert "maximum context length is 50 tokens" in error["text"]


def test_the_base_url_of_one_service(there: Place, service: str) -> None:
    """It has that service's models alone, and answers to any client."""
    asked = [
        {"name": "chat", "do": "chat", "model": MODEL, "prompt": "hello"},
        {"name": "ids", "do": "models"},
        {"name": "model", "do": "model", "model": MODEL},
        {"name": "other", "do": "model", "model": "org/other"},
    ]
    found = environments.run("openai3", f"{there.url}/api/v1/services/{service}/v1", asked)
    assert found["chat"]["text"].startswith("hello | ")
    assert found["ids"]["ids"] == [MODEL]
    assert found["model"]["id"] == MODEL
    assert found["other"]["error"]["status"] == 404
    assert "there is org/fake" in found["other"]["error"]["text"], found["other"]


@pytest.mark.parametrize("path", ["/health", "/version", "/ping", "/v1/models"])
def test_beside_the_base_url_of_a_service_its_engine_answers(there: Place, service: str, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = there.http.request(method, f"/api/v1/services/{service}{path}")
        assert (answer.status_code, answer.headers["server"]) == (200, "uvicorn"), answer.text
    assert there.http.delete(f"/api/v1/services/{service}{path}").headers["allow"] == "GET, HEAD"

"""The fake engine is a program of its own, so what other tests rely on is checked here."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

KEY = {"Authorization": "Bearer secret"}
Start = Callable[..., tuple[subprocess.Popen[str], http.client.HTTPConnection]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start an engine on a free port, wait for its ready line, and connect."""
    running: list[tuple[subprocess.Popen[str], http.client.HTTPConnection]] = []

    def start(name: str = "org/model", **environment: str) -> tuple[subprocess.Popen[str], http.client.HTTPConnection]:
        command = [sys.executable, str(Path(__file__).with_name("fake_engine.py")), "--model", "/models/m", "--port=0"]
        command += ["--served-model-name", name, "--tensor-parallel-size", "2", "--max-model-len", "50"]
        command += ["--gpu-memory-utilization", "0.9", "--enforce-eager", "--dtype", "auto"]
        env = os.environ | {"VLLM_API_KEY": "secret", "CUDA_VISIBLE_DEVICES": "2,3"} | environment
        engine = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert engine.stdout
        ready = engine.stdout.readline()
        port = int(ready.split("127.0.0.1:")[1].split(",")[0])
        running.append((engine, http.client.HTTPConnection("127.0.0.1", port, timeout=20)))
        return running[-1]

    yield start
    for engine, connection in running:
        connection.close()
        engine.kill()
        engine.communicate()


def ask(connection: http.client.HTTPConnection, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), KEY | headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "org/model", "messages": [{"role": "user", "content": text}], **more}


def test_answers_like_vllm(start: Start) -> None:
    engine, connection = start()
    assert ask(connection, "/health") == (200, "")
    status, body = ask(connection, "/v1/models")
    assert status == 200
    assert [(model["id"], model["root"]) for model in json.loads(body)["data"]] == [("org/model", "/models/m")]
    status, body = ask(connection, "/v1/chat/completions", chat("say hello to me"))
    said = json.loads(body)
    text = f"say hello to me | org/model CUDA_VISIBLE_DEVICES=2,3 port={connection.port}"
    assert said["choices"][0]["message"]["content"] == text
    assert said["usage"] == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}
    status, body = ask(connection, "/v1/completions", {"prompt": ["one two"], "max_tokens": 1})
    assert json.loads(body)["choices"][0] == {"index": 0, "text": "one", "logprobs": None, "finish_reason": "length"}
    status, body = ask(connection, "/metrics", Authorization="")
    assert 'vllm:prompt_tokens_total{engine="0",model_name="org/model"} 6.0' in body
    engine.send_signal(signal.SIGTERM)
    assert engine.wait(20) == 0


def test_its_own_key_leaves_open_what_vllms_does(start: Start) -> None:
    _, connection = start()
    status, body = ask(connection, "/invocations", chat("say hello"), Authorization="")
    assert (status, json.loads(body)["object"]) == (200, "chat.completion")
    assert ask(connection, "/tokenize", {"prompt": "one two"}, Authorization="")[0] == 200
    assert ask(connection, "/v1/completions", {"prompt": "one two"}, Authorization="")[0] == 401


def test_refuses_like_vllm(start: Start) -> None:
    _, connection = start()
    assert ask(connection, "/v1/models", Authorization="Bearer wrong") == (401, '{"error": "Unauthorized"}')
    status, body = ask(connection, "/v1/chat/completions", chat("hi") | {"model": "other"})
    assert (status, json.loads(body)["error"]["type"]) == (404, "NotFoundError")
    status, body = ask(connection, "/v1/chat/completions", chat("word " * 51))
    assert (status, json.loads(body)["error"]["code"]) == (400, 400)
    assert "maximum context length is 50" in body
    assert ask(connection, "/v1/chat/completions", chat("status 500"))[0] == 500
    assert ask(connection, "/v1/chat/completions", [])[0] == 400
    _, base = start("org/model-base")
    status, body = ask(base, "/v1/chat/completions", chat("hi") | {"model": "org/model-base"})
    assert status == 400
    assert "chat template" in body


@pytest.mark.parametrize(
    ("path", "asked", "said"),
    [
        ("/v1/embeddings", {"input": ["ab", "c"]}, {"index": 1, "embedding": [1.0, 1.0]}),
        ("/v1/rerank", {"query": "a b", "documents": ["c", "b a"]}, {"index": 1, "relevance_score": 1.0}),
        ("/v1/score", {"text_1": "a b", "text_2": ["c", "b a"]}, {"index": 1, "score": 1.0}),
        ("/v1/responses", {"input": "say hello"}, {"text": "say hello"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "say hello"}]}, {"text": "say hello"}),
        ("/tokenize", {"prompt": "say hello"}, {"count": 2, "tokens": [0, 1]}),
        ("/detokenize", {"tokens": [1, 2]}, {"prompt": "word1 word2"}),
    ],
)
def test_other_tasks_have_their_forms(start: Start, path: str, asked: dict[str, Any], said: dict[str, Any]) -> None:
    _, connection = start()
    status, body = ask(connection, path, asked)
    assert status == 200
    found = [one for one in objects(json.loads(body)) if said.keys() <= one.keys()]
    assert any(said.items() <= one.items() for one in found), body
    assert ask(connection, path, {"other": 1})[0] == 400
    assert ask(connection, path, asked | {"model": "other"})[0] == 404


def objects(content: Any) -> Iterator[dict[str, Any]]:
    """All that there are within a decoded JSON, the outer ones first."""
    if isinstance(content, dict):
        yield content
    for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from objects(inner)


def test_streams_and_notices_that_the_client_left(start: Start) -> None:
    engine, connection = start()
    asked = chat("one two three", stream=True, stream_options={"include_usage": True})
    status, body = ask(connection, "/v1/chat/completions", asked)
    *events, done, rest = [event.removeprefix("data: ") for event in body.split("\n\n")]
    assert (status, done, rest) == (200, "[DONE]", "")
    chunks = [json.loads(event) for event in events]
    assert chunks[-1]["usage"]["prompt_tokens"] == 3
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]).startswith("one two three |")
    for stream in (True, False):  # also before the first byte
        connection.request("POST", "/v1/chat/completions", json.dumps(chat("sleep 1000", stream=stream)), KEY)
        connection.close()
        assert engine.stderr
        while not engine.stderr.readline().startswith("cancelled at "):
            assert engine.poll() is None


def test_answers_so_many_at_once_as_it_was_told(start: Start) -> None:
    _, connection = start(FAKE_SLOTS="1")

    def sleepy() -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", connection.port, timeout=20)) as own:
            return ask(own, "/v1/chat/completions", chat("sleep 1"))[0]

    def under_way() -> list[str]:
        lines = [line for line in ask(connection, "/metrics")[1].splitlines() if line.startswith("vllm:num_requests_")]
        return sorted(f"{line.partition('{')[0]} {line.rpartition(' ')[2]}" for line in lines)

    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(sleepy) for _ in range(2)]
        while under_way() != ["vllm:num_requests_running 1.0", "vllm:num_requests_waiting 1.0"]:
            assert time.monotonic() - begin < 1, "the second waits for the first"
        assert [job.result() for job in work] == [200, 200]
    assert time.monotonic() - begin >= 2


def test_dies_by_itself(start: Start) -> None:
    engine, _ = start(FAKE_EXIT_AFTER="0.5", FAKE_EXIT_CODE="7")
    assert engine.wait(20) == 7

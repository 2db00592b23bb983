"""What asks for the key inside vLLM: the middleware itself, and an engine that a job's script has started with it."""

import asyncio
import http.client
import json
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import resolve
from orchestrator.recipes import RecipeBook, builtin_recipes
from orchestrator.runs import RunFolder
from orchestrator.script import Target, render
from orchestrator.settings import Engine, Site
from tests.orchestrating import FAKE_ENGINE, until

KEY = "0123456789abcdef" * 4
GUARD = builtin_recipes() / "guard.py"
BEARER = (b"authorization", b"Bearer " + KEY.encode())


def guarded(monkeypatch: pytest.MonkeyPatch, app: Any, key: str = KEY) -> Any:
    monkeypatch.setenv("VLLM_API_KEY", key)
    return runpy.run_path(str(GUARD))["Guard"](app)


def asked(
    monkeypatch: pytest.MonkeyPatch, path: str, *headers: tuple[bytes, bytes], kind: str = "http", **more: Any
) -> tuple[bool, list[dict[str, Any]]]:
    """Whether a request reached vLLM, and what was sent in its place."""
    reached: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": kind, "method": "POST", "path": path, "headers": list(headers), **more}
    asyncio.run(guarded(monkeypatch, app)(scope, None, send))
    return reached != [], sent


PATHS = [
    "/invocations", "/tokenize", "/detokenize", "/pooling", "/classify", "/score", "/rerank", "/pause", "/sleep",
    "/v1/models", "/metrics", "/ping", "/load", "/version", "/docs", "/openapi.json", "/", "",
    "/health/", "//health", "/health/x", "/healthx", "/HEALTH", "/x/health", "/health;x", "/invocations/../health",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_path_but_one_wants_the_key(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    reached, (start, body) = asked(monkeypatch, path)
    assert (reached, start["status"], body["body"]) == (False, 401, b'{"error":"Unauthorized"}')
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    assert asked(monkeypatch, path, BEARER) == (True, [])


@pytest.mark.parametrize("method", ["OPTIONS", "GET", "HEAD", "DELETE", "TRACE"])
def test_no_method_goes_without_a_key(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    assert not asked(monkeypatch, "/v1/models", method=method)[0]


def test_health_is_open_also_below_a_root_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "/health") == (True, [])
    assert asked(monkeypatch, "/below/health", root_path="/below") == (True, [])
    assert not asked(monkeypatch, "/below/tokenize", root_path="/below")[0]


@pytest.mark.parametrize(
    ("headers", "reaches"),
    [
        ([BEARER], True),
        ([(b"Authorization", b"bearer " + KEY.encode())], True),
        ([(b"authorization", KEY.encode())], False),
        ([(b"authorization", b"Basic " + KEY.encode())], False),
        ([(b"authorization", b"Bearer " + KEY[:-1].encode())], False),
        ([(b"authorization", b"Bearer " + KEY.encode() + b"0")], False),
        ([(b"authorization", b"Bearer \xff\xfe")], False),
        ([(b"authorization", b"Bearer ")], False),
        ([(b"x-api-key", KEY.encode())], False),
        ([BEARER, (b"authorization", b"Bearer x")], False),
    ],
)
def test_only_the_key_itself_is_the_key(
    monkeypatch: pytest.MonkeyPatch, headers: list[tuple[bytes, bytes]], reaches: bool
) -> None:
    assert asked(monkeypatch, "/tokenize", *headers)[0] is reaches


def test_a_websocket_wants_the_key_and_a_lifespan_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, "/health", kind="websocket") == (False, [{"type": "websocket.close", "code": 1008}])
    assert asked(monkeypatch, "/v1/realtime", BEARER, kind="websocket") == (True, [])
    assert asked(monkeypatch, "", kind="lifespan") == (True, [])


def test_an_engine_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="VLLM_API_KEY is not set"):
        guarded(monkeypatch, None, key="")


@pytest.mark.system  # the script and its engine
@pytest.mark.parametrize("recipe", ["vllm-single-node", "vllm-replicas", "vllm-multi-node"])
def test_an_engine_that_the_script_started_asks_for_the_key_everywhere(tmp_path: Path, recipe: str) -> None:
    one = RecipeBook([builtin_recipes()]).find(recipe)
    site = Site(engines={"vllm": Engine(command=FAKE_ENGINE)})
    plan = resolve(one, {"nodes": 1, "gpu": None if recipe != "vllm-replicas" else 1}, site)
    folder = RunFolder(tmp_path / "a run")
    target = Target("sluice-1", "c:1", folder, "127.0.0.1", sys.executable, tmp_path)
    folder.write(render(one, plan, site, target), {"VLLM_API_KEY": KEY})
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(["bash", str(folder.script)], stdout=log, stderr=log)
    try:
        asyncio.run(until(lambda: "listens on" in (tmp_path / "log").read_text()))
        endpoints = folder.read_endpoints()
        assert endpoints is not None
        port = endpoints.all[0].port
        body = json.dumps({"prompt": "tell me", "max_tokens": 5})
        for path in ("/invocations", "/tokenize", "/v1/completions"):
            assert status(port, "POST", path, body) == 401
            assert status(port, "POST", path, body, KEY) == 200
        assert (status(port, "GET", "/metrics"), status(port, "GET", "/metrics", key=KEY)) == (401, 200)
        assert status(port, "GET", "/health") == 200
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(20)


def status(port: int, method: str, path: str, body: str | None = None, key: str = "") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {key}"} if key else {})
        return connection.getresponse().status
    finally:
        connection.close()

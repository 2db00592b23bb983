"""Both halves on this machine with fake engines, for a browser."""

import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from gateway.child import Child, end_all_in
from gateway.settings import environment_of_a_child

_ENGINE = [sys.executable, str(Path(__file__).with_name("small_engine.py"))]
_QDRANT = [sys.executable, str(Path(__file__).parents[2] / "recipes/vector-db/qdrant-embedded/serve.py")]
SITE = {"engines": {"vllm": {"command": _ENGINE}, "qdrant": {"command": _QDRANT}}}


@dataclass
class Site:
    """`http` is a client of the gateway. `orchestrator` can be ended and started again."""

    url: str
    http: httpx2.Client
    environment: dict[str, str]
    home: Path
    orchestrator: contextlib.ExitStack

    def start(self, recipe: str = "inference/vllm-single-node", **config: Any) -> str:
        """A service of the fake engine, without GPUs unless they are asked for; its id."""
        body = {"recipe_name": recipe, "config": {"gpu": None} | config}
        answer = self.http.post("/api/v1/services", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def status(self, service: str) -> str:
        return str(self.http.get(f"/api/v1/services/{service}/status").json()["status"])

    def until(self, service: str, status: str) -> None:
        until(lambda: self.status(service) == status)

    def begin(self) -> None:
        """The orchestrator."""
        log = self.home / "orchestrator.log"
        self.orchestrator.enter_context(Child("orchestrator", self.environment, log))
        until(self.is_ready)

    def is_ready(self) -> bool:
        try:
            return self.http.get("/ready").status_code == 200
        except httpx2.TransportError:
            return False


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Ask again and again, as a user would."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


@contextlib.contextmanager
def site(**settings: str) -> Iterator[Site]:
    """From ready to closed, with these settings of the gateway. Nothing of it is left."""
    with contextlib.ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="sg-", dir="/tmp")))
        opened.callback(end_all_in, home)
        port = _free_port()
        environment = environment_of_a_child(
            ORCHESTRATOR_HOME=str(home),
            ORCHESTRATOR_SCHEDULER="local",
            ORCHESTRATOR_SITE=json.dumps(SITE),
            ORCHESTRATOR_POLL_SECONDS="0.2",
            ORCHESTRATOR_PROBE_SECONDS="0.2",
            GATEWAY_PORT=str(port),
            GATEWAY_LOCAL_SOCKET=str(home / "orchestrator.sock"),
            GATEWAY_MODELS_FILE=str(home / "models.json"),
            GATEWAY_KEYS_FILE=str(home / "keys.json"),
            **settings,
        ) | {"HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "*"}
        url = f"http://localhost:{port}"
        key = {"X-API-Key": settings["GATEWAY_API_KEY"]} if "GATEWAY_API_KEY" in settings else {}
        http = opened.enter_context(httpx2.Client(base_url=url, trust_env=False, timeout=20, headers=key))
        opened.enter_context(Child("gateway", environment, home / "gateway.log"))
        made = Site(url, http, environment, home, opened.enter_context(contextlib.ExitStack()))
        made.begin()
        opened.callback(_cancel_all, http)
        yield made


def _cancel_all(http: httpx2.Client) -> None:
    """What still runs ends with the orchestrator; without one there is nothing to ask."""
    with contextlib.suppress(httpx2.TransportError, ValueError):
        for service in http.get("/api/v1/services").json():
            http.post(f"/api/v1/services/{service['id']}/status", json={"status": "cancelled"})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port

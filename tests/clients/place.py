"""Both halves as processes with a real sshd between them, and engines that do as their prompts say."""

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from gateway.child import Child, end_all_in
from gateway.settings import environment_of_a_child
from tests.gateway.sshd import Sshd, free_port
from tests.orchestrating import until

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Place:
    """`http` is a client of the gateway, `direct` one of the orchestrator."""

    http: httpx2.Client
    direct: httpx2.Client

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    def start(self, name: str, recipe: str = "vllm-single-node", **config: Any) -> str:
        """The id of a new service whose model has this name, once it runs."""
        options = {"served_model_name": name, "resources": {"gpu": None, "cpu": 1, "memory": "1G"}} | config
        answer = self.http.post("/api/v1/services", json={"recipe_name": recipe, "config": options})
        assert answer.status_code == 200, answer.text
        service = str(answer.json()["id"])
        wait(lambda: self.status(service) == "running")
        return service

    def status(self, service: str) -> str:
        return str(self.http.get(f"/api/v1/services/{service}/status").json()["status"])

    def logs(self, service: str) -> str:
        return str(self.http.get(f"/api/v1/services/{service}/logs", params={"tail": 1000}).json()["logs"])


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    asyncio.run(until(condition, seconds))


@contextlib.contextmanager
def place(engine: str, models: dict[str, Any] | None = None, **settings: str) -> Iterator[Place]:
    """From ready to closed. `engine`: the program of tests/ that stands in for vLLM; `models`: the list of those that
    are started when they are asked for; `settings`: further variables. Nothing of it is left."""
    with contextlib.ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="sg-", dir="/tmp")))
        opened.callback(end_all_in, home)
        (home / "ssh").mkdir()
        sshd = Sshd(home / "ssh")
        opened.callback(sshd.stop)
        sshd.start()
        environment, port = _environment(home, sshd, engine) | settings, free_port()
        (home / "models.yaml").write_text(json.dumps({"models": models or {}}))
        environment["ORCHESTRATOR_MODELS"] = str(home / "models.yaml")
        opened.enter_context(Child("orchestrator", environment, home / "orchestrator.log"))
        opened.enter_context(Child("gateway", environment | {"GATEWAY_PORT": str(port)}, home / "gateway.log"))
        http = opened.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30))
        uds = httpx2.HTTPTransport(uds=str(home / "o.sock"))
        direct = opened.enter_context(httpx2.Client(transport=uds, base_url="http://orchestrator", timeout=30))
        wait(lambda: _ready(http))
        yield Place(http, direct)


def _environment(home: Path, sshd: Sshd, engine: str) -> dict[str, str]:
    site = {"engines": {"vllm": {"command": [sys.executable, str(TESTS / engine)]}}}
    return environment_of_a_child(
        ORCHESTRATOR_HOME=str(home / "o"),
        ORCHESTRATOR_SOCKET=str(home / "o.sock"),
        ORCHESTRATOR_SCHEDULER="local",
        ORCHESTRATOR_SITE=json.dumps(site),
        ORCHESTRATOR_POLL_SECONDS="0.2",
        ORCHESTRATOR_PROBE_SECONDS="0.2",
        GATEWAY_CLUSTER="login",
        GATEWAY_MODELS_FILE=str(home / "models.json"),
        GATEWAY_SSH_CONFIG=str(sshd.configure(home)),
        GATEWAY_REMOTE_SOCKET=str(home / "o.sock"),
        GATEWAY_BACKOFF_MAX_SECONDS="0.2",
    )


def _ready(http: httpx2.Client) -> bool:
    try:
        return http.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False

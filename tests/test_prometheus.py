"""Debian's Prometheus with the configuration of docs/metrics.md, before both halves as processes."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.child import Child, end_all_in
from gateway.settings import environment_of_a_child
from tests.gateway.serving import short_folder
from tests.orchestrating import FAKE_ENGINE, RECIPE

pytestmark = pytest.mark.system

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
GROUP = "inference/vllm-replicas"
CPU = {"cpu": 1, "memory": "1G"}


@pytest.fixture(scope="module")
def binary() -> str:
    if found := shutil.which("prometheus"):
        return found
    reason = "NO PROMETHEUS, so docs/metrics.md is not tested: apt-get install prometheus"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def documented(port: int) -> str:
    """The page's configuration, for a gateway at another port and in a hurry."""
    (yaml,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert yaml.count("localhost:8001") == 3
    return str(yaml).replace("localhost:8001", f"localhost:{port}").replace("15s", "1s")


def until(condition: Callable[[], bool], seconds: float, told: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


@contextmanager
def halves(home: Path, port: int, **settings: str) -> Iterator[httpx2.Client]:
    """Gateway and orchestrator with the local scheduler and the fake engine; a client of the gateway. `settings`:
    further variables."""
    environment = environment_of_a_child(
        ORCHESTRATOR_HOME=str(home),
        ORCHESTRATOR_SCHEDULER="local",
        ORCHESTRATOR_SITE=json.dumps({"engines": {"vllm": {"command": FAKE_ENGINE}}}),
        ORCHESTRATOR_PROBE_SECONDS="0.1",
        GATEWAY_PORT=str(port),
        GATEWAY_LOCAL_SOCKET=str(home / "orchestrator.sock"),
        GATEWAY_MODELS_FILE=str(home / "models.json"),
        **settings,
    )
    with ExitStack() as opened:
        opened.callback(end_all_in, home)
        children = [
            opened.enter_context(Child(half, environment, home / f"{half}.log")) for half in ("orchestrator", "gateway")
        ]
        client = opened.enter_context(httpx2.Client(base_url=f"http://localhost:{port}", trust_env=False, timeout=10))
        until(lambda: answers(client, "/ready"), 30, lambda: [child.tail() for child in children])
        yield client
        for service in client.get("/api/v1/services").json():
            client.post(f"/api/v1/services/{service['id']}/status", json={"status": "cancelled"})


def answers(client: httpx2.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def prometheus(binary: str, folder: Path, configuration: str) -> Iterator[httpx2.Client]:
    address, log = f"127.0.0.1:{free_port()}", folder / "prometheus.log"
    (folder / "prometheus.yml").write_text(configuration)
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, *words, f"--web.listen-address={address}"], stdout=output, stderr=output, cwd=folder
        )
    try:
        with httpx2.Client(base_url=f"http://{address}", trust_env=False, timeout=10) as client:
            until(lambda: answers(client, "/-/ready"), 20, log.read_text)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def start(client: httpx2.Client, recipe: str, resources: dict[str, Any]) -> str:
    body = {"recipe_name": recipe, "config": {"resources": CPU | resources}}
    answer = client.post("/api/v1/services", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def ask(client: httpx2.Client, query: str) -> list[tuple[dict[str, str], str]]:
    """The labels and the value of each series."""
    answer = client.get("/api/v1/query", params={"query": query}).json()
    return [(series["metric"], series["value"][1]) for series in answer["data"]["result"]]


def test_everything_is_scraped_as_documented(binary: str, tmp_path: Path) -> None:
    port = free_port()
    with (
        short_folder() as home,
        halves(home, port) as gateway,
        prometheus(binary, tmp_path, documented(port)) as watching,
    ):
        single, group = start(gateway, RECIPE, {"gpu": None}), start(gateway, GROUP, {"gpu": 2})
        health = f"/api/v1/service-groups/{group}/status"
        until(lambda: gateway.get(health).json()["healthy_replicas"] == 2, 30, lambda: gateway.get(health).text)
        status = f"/api/v1/services/{single}/status"
        until(lambda: gateway.get(status).json()["status"] == "running", 30, lambda: gateway.get(status).text)

        until(
            lambda: [value for _, value in ask(watching, "up")] == ["1"] * 4,
            20,
            lambda: watching.get("/api/v1/targets").text,
        )
        assert {(labels["job"], labels.get("service_id")) for labels, _ in ask(watching, "up")} == {
            ("gateway", None), ("orchestrator", None), ("services", single), ("services", group),
        }  # fmt: skip
        assert {(m["service_id"], value) for m, value in ask(watching, "service_status_info")} == {
            (single, "2"), (group, "2"),
        }  # fmt: skip
        engines = [labels for labels, _ in ask(watching, "vllm:num_requests_running")]
        assert len({(labels["service_id"], labels.get("replica_id")) for labels in engines}) == 3
        assert all(labels["recipe_name"] and labels["model"] for labels in engines)
        assert ask(watching, '{__name__=~".+", exported_service_id=~".+"}') == []
        assert [value for _, value in ask(watching, 'sluice_gateway_tunnel{state="up"}')] == ["1"]
        assert [value for _, value in ask(watching, "sluice_replicas_ready")] == ["3"]

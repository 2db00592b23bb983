"""A slot on the real cluster: three models with llama.cpp as Slurm jobs, through gateway, SSH and orchestrator."""

import asyncio
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cluster.cluster import Cluster, residents
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for

pytestmark = pytest.mark.cluster

NAMES = ("a", "b", "c")
_MODEL = re.compile(rb"llamacpp-cpu/serve\.py\0.*--served-model-name\0([a-z]+)\0")


def engines(cluster: Cluster) -> set[str]:
    """The models whose engines live on the cluster, answering or not."""
    found = set()
    for pid, _ in residents(cluster):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if model := _MODEL.search(words):
            found.add(model[1].decode())
    return found


@contextmanager
def sampled(cluster: Cluster) -> Iterator[list[set[str]]]:
    """Which engines were alive, each 50 ms."""
    found: list[set[str]] = []
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.05):
            found.append(engines(cluster))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stopped.set()
        thread.join(10)


@pytest.fixture
def slot(deployment: Deployment) -> Iterator[Api]:
    """Three models of one slot, all asleep."""
    small = {"resources": {"cpu": 1, "memory": "1G", "time_limit": 10}}
    entry = {"recipe": "inference/llamacpp-cpu", "slot": "main", "config": small}
    path = deployment.cluster.home / "models.yaml"
    path.write_text(json.dumps({"models": {name: entry for name in NAMES}}))
    deployment.environment |= {"ORCHESTRATOR_MODELS": str(path), "ORCHESTRATOR_WAKE_HOLD_SECONDS": "120"}
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        yield api


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Name a river."}]}


def phase(api: Api) -> str:
    return str(api.get("/slots/main")["phase"])


async def ask_all(asked: list[str]) -> list[float]:
    """Each request a while after the one before it; how long each took."""
    async with httpx2.AsyncClient(base_url="http://127.0.0.1:8001", timeout=150, trust_env=False) as http:

        async def ask(n: int, model: str) -> float:
            await asyncio.sleep(0.05 * n)
            began = time.monotonic()
            answer = await http.post("/v1/chat/completions", json=chat(model))
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == model
            return time.monotonic() - began

        return await asyncio.gather(*(ask(n, model) for n, model in enumerate(asked)))


@pytest.mark.timeout(300)
def test_sixty_interleaved_requests_of_six_clients_and_never_two_engines(slot: Api, deployment: Deployment) -> None:
    asked = [NAMES[(who + turn) % 3] for turn in range(10) for who in range(6)]
    with sampled(deployment.cluster) as samples:
        took = asyncio.run(ask_all(asked))
        shown = slot.get("/slots/main")
    assert len(took) == 60
    assert [alive for alive in samples if len(alive) > 1] == [], "two engines at once"
    assert len(samples) > 50
    assert set().union(*samples) == set(NAMES)
    print(f"switches {shown['switches']}, longest wait {max(took):.1f} s, {len(samples)} looks")
    assert 3 <= shown["switches"] <= 6


@pytest.mark.timeout(300)
def test_kill_9_during_a_switch_leaves_one_engine_and_loses_nothing(slot: Api, deployment: Deployment) -> None:
    with sampled(deployment.cluster) as samples:
        for at in ("leaving", "loading"):
            asyncio.run(ask_all(["a"]))
            assert slot.http.post("/slots/main/switch", json={"model": "b"}).status_code == 202
            wait_for(lambda at=at: phase(slot) == at, f"the slot is {at}")  # type: ignore[misc]
            deployment.stop_orchestrator(signal.SIGKILL)
            deployment.start_orchestrator()
            wait_for(slot.ready, "the gateway is ready again")
            asyncio.run(ask_all(["b", "c"]))
    assert [alive for alive in samples if len(alive) > 1] == [], "two engines at once"
    running = slot.get("/api/v1/services", status="running")
    assert len(running) == 1
    jobs = [line for line in deployment.cluster.squeue().splitlines() if "|RUNNING|" in line or "|PENDING|" in line]
    assert len(jobs) == 1, jobs

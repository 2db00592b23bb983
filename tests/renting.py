"""A rented machine in parts, for tests that turn its keeper by hand: a fake vast.ai, a fake engine, a clock."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr

from orchestrator.replicas import Replicas, probe
from orchestrator.settings import Vast
from orchestrator.store import Store, open_store
from orchestrator.vast.api import open_api
from orchestrator.vast.keeper import Check, Keeper
from orchestrator.vast.ledger import Ledger
from orchestrator.vast.sight import Sight
from tests.fake_vast import ID, KEY, FakeVast
from tests.orchestrating import FAKE_ENGINE, Clock

MODEL = "mistralai/Mistral-7B-Instruct-v0.3"
ENGINE_KEY = "engine-0123456789"
CONTROL = "control-0123456789abcdef"
CHECK = Check(8001, "/health")


@contextmanager
def engine() -> Iterator[int]:
    """The port of an engine that answers, with a key."""
    argv = [*FAKE_ENGINE, "--model", MODEL, "--port", "0"]
    environment = {"VLLM_API_KEY": ENGINE_KEY}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()  # it says at once where it listens, or ends
            found = re.search(r":(\d+),", line)
            assert found is not None, line
            yield int(found[1])
        finally:
            process.kill()


def settings_for(vast: FakeVast, **more: Any) -> Vast:
    given: dict[str, Any] = {
        "api_key": SecretStr(KEY),
        "instance_id": ID,
        "control_api_key": SecretStr(CONTROL),
        "engine_key": SecretStr(ENGINE_KEY),
        "api_url": vast.url,
        "wait_timeout_s": 20,
        "poll_seconds": 0.01,
    }
    return Vast(**given | more)


def rented_in_the_environment(vast: FakeVast, control: str) -> dict[str, str]:
    """The same for a process."""
    return {
        "VAST_API_KEY": KEY,
        "VAST_INSTANCE_ID": str(ID),
        "VAST_API_URL": vast.url,
        "VAST_POLL_SECONDS": "0.05",
        "CONTROL_API_KEY": control,
    }


@dataclass
class Parts:
    keeper: Keeper
    store: Store
    replicas: Replicas
    clock: Clock

    async def words(self) -> list[str]:
        """The events of the audit, the oldest first."""
        return [event.kind for event in await self.keeper.ledger.audit_after(0)]

    async def power_on(self, *, wait: bool = True) -> Any:
        return await self.keeper.power_on(CHECK, wait=wait, actor="test")


@asynccontextmanager
async def rented(home: Path, vast: FakeVast, clock: Clock | None = None, **more: Any) -> AsyncIterator[Parts]:
    """Without its loop. Opened again on the same home it is what comes up after a crash."""
    home.mkdir(mode=0o700, exist_ok=True)
    settings, clock = settings_for(vast, **more), clock or Clock()
    async with (
        open_store(home / "orchestrator.db") as store,
        open_api(settings) as api,
        httpx2.AsyncClient(timeout=5, trust_env=False) as client,
    ):
        api.pause = 0.01
        replicas = Replicas()
        keeper = Keeper(Sight(settings, api, Ledger(store, ID), replicas, clock), client, timedelta(seconds=5))
        keeper.settle, keeper.serve_seconds = 0.0, 5.0
        probing = asyncio.create_task(_probe(client, replicas))
        try:
            yield Parts(keeper, store, replicas, clock)
        finally:
            await keeper.close(probing)


async def _probe(client: httpx2.AsyncClient, replicas: Replicas) -> None:
    """As the watcher does."""
    while True:
        for replica in replicas.every():
            await probe(client, replica)
        await asyncio.sleep(0.01)

"""Both halves as processes, in front of a Slurm whose queue does not move by itself."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from gateway.child import Child
from gateway.settings import environment_of_a_child
from tests.fake_slurm import PATH, FakeSlurm
from tests.halves import SITE, free_port


@dataclass(frozen=True)
class Queued:
    slurm: FakeSlurm
    url: str
    gateway: Child
    orchestrator: Child

    def asked(self) -> dict[str, int]:
        """How often Slurm has been asked: for our jobs, for everybody's, for the nodes."""
        squeue = self.slurm.calls("squeue")
        everybody = sum("--priority" in call for call in squeue)
        return {"ours": len(squeue) - everybody, "everybody's": everybody, "nodes": len(self.slurm.calls("sinfo"))}


@contextmanager
def queued(home: Path, slurm: FakeSlurm, **settings: Any) -> Iterator[Queued]:
    """From ready to closed. `settings` are those of both, by their full names."""
    port = free_port()
    environment = environment_of_a_child(
        ORCHESTRATOR_HOME=str(home / "o"),
        ORCHESTRATOR_SOCKET=str(home / "o.sock"),
        ORCHESTRATOR_SITE=json.dumps(SITE),
        GATEWAY_PORT=str(port),
        GATEWAY_LOCAL_SOCKET=str(home / "o.sock"),
        GATEWAY_MODELS_FILE=str(home / "models.json"),
        GATEWAY_KEYS_FILE=str(home / "keys.json"),
        **{name: str(value) for name, value in settings.items()},
    ) | {"HOME": str(home), "PATH": PATH, "NO_PROXY": "*"}
    url = f"http://127.0.0.1:{port}"
    with (
        Child("orchestrator", environment, home / "orchestrator.log") as orchestrator,
        Child("gateway", environment, home / "gateway.log") as gateway,
    ):

        def ready() -> bool:
            orchestrator.check()
            gateway.check()
            try:
                return httpx2.get(f"{url}/ready", trust_env=False).status_code == 200
            except httpx2.TransportError:
                return False

        deadline = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < deadline, "they are not ready"
            time.sleep(0.05)
        yield Queued(slurm, url, gateway, orchestrator)

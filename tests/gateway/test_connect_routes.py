"""`/orchestrator/…` on a gateway: an orchestrator of this machine, started and stopped through it."""

import json
from pathlib import Path

import httpx2
import pytest

from gateway.settings import Settings
from orchestrator import __version__
from orchestrator.access import needed
from orchestrator.keys import Scope
from tests.gateway.serving import gateway, settings_through, until, until_ready
from tests.gateway.sshd import Sshd

pytestmark = [pytest.mark.anyio, pytest.mark.system]


async def test_an_orchestrator_of_this_machine_is_started_and_stopped(folder: Path) -> None:
    (folder / "site.toml").write_text('scheduler = "local"\n')
    settings = Settings(local_socket=folder / "orchestrator.sock", models_file=folder / "models.json", hold_seconds=0)
    async with gateway(settings) as client:
        status = (await client.get("/orchestrator/status")).json()
        assert (status["state"], status["running"], status["pid"]) == ("stopped", None, None)
        started = await client.post("/orchestrator/start", timeout=60)
        assert started.status_code == 200, started.text
        told = started.json()
        assert (told["state"], told["message"]) == ("running", "The orchestrator was started.")
        try:
            await until_ready(client)
            assert (await client.get("/health")).json()["orchestrator"]["version"] == __version__
            again = (await client.post("/orchestrator/start")).json()
            assert (again["pid"], "runs already" in again["message"]) == (told["pid"], True)
        finally:
            stopped = (await client.post("/orchestrator/stop", timeout=60)).json()
        assert (stopped["state"], stopped["message"]) == ("stopped", "The orchestrator was stopped; jobs go on.")
        assert (await client.get("/ready")).status_code == 503


async def test_where_nothing_is_installed_it_says_what_to_do(sshd: Sshd, folder: Path) -> None:
    async with gateway(settings_through(sshd, folder)) as client:
        await _connected(client)
        assert (await client.get("/orchestrator/status")).json()["state"] == "absent"
        refused = await client.post("/orchestrator/start")
        assert (refused.status_code, "run `sluice connect login` once" in refused.json()["detail"]) == (409, True)
        assert (await client.post("/orchestrator/stop")).json()["message"] == "No orchestrator runs."
        endpoint = (await client.get("/orchestrator/endpoint")).json()
        assert (endpoint["cluster"], endpoint["state"]) == ("login", "up")
        for method, path, allowed in (
            ("GET", "/orchestrator/start", "POST"),
            ("POST", "/orchestrator/status", "GET, HEAD"),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_without_a_connection_it_is_a_503(sshd: Sshd, folder: Path) -> None:
    settings = settings_through(sshd, folder)
    sshd.configure(folder, key="other")
    async with gateway(settings) as client:
        answer = await client.get("/orchestrator/status")
        assert (answer.status_code, bool(json.loads(answer.content)["detail"])) == (503, True)


@pytest.mark.parametrize("path", ["/orchestrator/status", "/orchestrator/start", "/orchestrator%2Fstop"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_it_needs_an_admin(method: str, path: str) -> None:
    assert needed(method, path) is Scope.ADMIN


async def _connected(client: httpx2.AsyncClient) -> None:
    async def up() -> bool:
        return bool((await client.get("/orchestrator/endpoint")).json()["state"] == "up")

    await until(up)

"""The gateway's own metrics; on this machine's socket, and through SSH for the tunnel."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.settings import Settings
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, served_orchestrator, until, until_ready
from tests.gateway.sshd import Sshd

pytestmark = pytest.mark.anyio


async def read(client: httpx2.AsyncClient) -> dict[Any, float]:
    """The values of /metrics by name and labels' values, in the order of the labels' names."""
    answer = await client.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for s in samples}


async def test_requests_are_counted_by_kind_and_status(folder: Path, orchestrator: FakeOrchestrator) -> None:
    settings = Settings(local_socket=folder / "o.sock")
    async with served_orchestrator(orchestrator, folder / "o.sock"), gateway(settings) as client:
        for path in ("/api/echo", "/api/nothing", "/jobs/1", "/v1/nothing", "/nothing", "/health"):
            await client.get(path)
        await client.post("/metrics")
        await client.get("/api/echo", headers={"Host": "evil.example"})
        await client.request("PROPFIND", "/api/echo")
        told = await read(client)
    name = "sluice_gateway_requests_total"
    assert {key[1:]: value for key, value in told.items() if key[0] == name} == {
        ("api", "GET", "200"): 1, ("api", "GET", "404"): 1, ("relayed", "GET", "404"): 1, ("v1", "GET", "404"): 1,
        ("other", "GET", "404"): 1, ("own", "GET", "200"): 1, ("own", "POST", "405"): 1, ("api", "GET", "403"): 1,
        ("api", "other", "200"): 1,
    }  # fmt: skip
    assert told["sluice_gateway_requests_in_flight",] == 1, "this one"
    assert told["sluice_gateway_request_seconds_count", "api", "GET"] == 3
    assert (told["sluice_gateway_tunnel", "up"], told["sluice_gateway_tunnel", "down"]) == (1, 0)
    assert told["sluice_gateway_requests_waiting",] == 0


async def test_it_needs_no_orchestrator_and_a_request_that_got_nowhere_is_503(folder: Path) -> None:
    async with gateway(Settings(local_socket=folder / "o.sock")) as client:
        assert (await client.get("/api/echo")).status_code == 503
        assert (await read(client))["sluice_gateway_requests_total", "api", "GET", "503"] == 1


async def test_for_targets_the_orchestrator_is_told_the_name_by_which_it_was_asked(
    folder: Path, orchestrator: FakeOrchestrator
) -> None:
    settings = Settings(local_socket=folder / "o.sock")
    async with served_orchestrator(orchestrator, folder / "o.sock"), gateway(settings) as client:
        headers = {"Host": "localhost:8001", "X-Forwarded-Host": "evil.example"}
        told = (await client.get("/api/v1/services/targets", headers=headers)).json()["headers"]
    assert [value for name, value in told if name == "x-forwarded-host"] == ["localhost:8001"]


async def test_a_tunnel_that_was_opened_again_is_counted(
    sshd: Sshd, ssh_settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock"), gateway(ssh_settings) as client:
        await until_ready(client)
        assert (await read(client))["sluice_gateway_tunnel_reconnects_total",] == 0

        async def again() -> bool:
            return (await read(client))["sluice_gateway_tunnel_reconnects_total",] == 1

        sshd.kill_sessions()
        await until(again)
        assert (await read(client))["sluice_gateway_tunnel", "up"] == 1

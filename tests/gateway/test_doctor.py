"""The doctor on real parts: sshd, gateways, programs that are none; one fault at a time, and what it says of it."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.doctor.command import examine
from gateway.doctor.finding import Finding, Level
from gateway.doctor.looking import Looking
from gateway.settings import Settings, environment_of_a_child
from orchestrator import __version__
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.kbdint_server import Site
from tests.gateway.serving import gateway, served, served_orchestrator, settings_through
from tests.gateway.sshd import Sshd, free_port
from tests.gateway.test_second_factor import Session

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.beside]

HEALTH = {
    "status": "healthy",
    "version": __version__,
    "scheduler": "slurm",
    "watcher": {"late": False, "stale_since": None},
}
SCHEDULER = {"check": "scheduler", "level": "ok", "message": "the job would start", "next_step": ""}


class Telling(FakeOrchestrator):
    """One that tells of itself as a whole orchestrator does. `answers`: what it says, by path."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, tuple[int, Any]] = {
            "/health": (200, HEALTH), "/ready": (200, HEALTH), "/recipes": (200, []),
            "/services": (200, []), "/preflight": (200, {"verdicts": [SCHEDULER]}),
        }  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix("/api").removeprefix("/v1")
        if path not in self.answers:
            await super().__call__(scope, receive, send)
            return
        if scope["method"] == "POST":
            body = b""
            while True:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            assert json.loads(body)["recipe_name"] == "inference/vllm-single-node"
        status, answer = self.answers[path]
        await JSONResponse(answer, status)(scope, receive, send)


@pytest.fixture(autouse=True)
def programs(sshd: Sshd) -> None:
    """What an ordinary login node has, before whatever this machine has of it."""
    the_programs_of(sshd)


def the_programs_of(sshd: Sshd) -> None:
    folder = sshd.home / "bin"
    folder.mkdir(exist_ok=True)
    (sshd.home / ".bash_profile").write_text(f"PATH={folder}:$PATH\n")
    words = {"sluice": f"sluice {__version__}", "sinfo": "slurm 24.11.1"}
    for name in ("sluice", "sinfo", "scontrol", "sacctmgr", "sshare"):
        lines = f"[ \"$1\" != --version ] || {{ echo '{words.get(name)}'; exit 0; }}\n"
        lines += f"[ {name} != sinfo ] || echo 'gpu|gpu*|up|1:00:00|2|idle|gpu:h100:4|4|1000|(null)'\n"
        (folder / name).write_text(f"#!/bin/sh\n{lines}")
        (folder / name).chmod(0o755)


@pytest.fixture
def telling() -> Telling:
    return Telling()


def meant(monkeypatch: pytest.MonkeyPatch, settings: Settings, **more: str) -> None:
    """These settings are those of the user's environment."""
    chosen = {
        "GATEWAY_CLUSTER": settings.cluster or "",
        "GATEWAY_SSH_CONFIG": str(settings.ssh_config),
        "GATEWAY_REMOTE_SOCKET": settings.remote_socket,
        "GATEWAY_TRANSPORT": settings.transport,
        "GATEWAY_PORT": str(free_port()),
        "GATEWAY_CONNECT_SECONDS": "5",
    }
    for name, value in (chosen | more).items():
        monkeypatch.setenv(name, value)


async def examined(alias: str | None = None) -> dict[str, Finding]:
    """The finding of each check, the worst where it has several."""
    found: dict[str, Finding] = {}
    order = [Level.UNKNOWN, Level.WELL, Level.ODD, Level.BROKEN]
    for one in await examine(Looking(alias), None):
        if one.check not in found or order.index(one.level) > order.index(found[one.check].level):
            found[one.check] = one
    return found


def levels(found: dict[str, Finding], level: Level) -> list[str]:
    return [name for name, one in found.items() if one.level is level]


@pytest.fixture(params=["asyncssh", "openssh"])
def through(request: pytest.FixtureRequest, sshd: Sshd, folder: Path) -> Settings:
    return settings_through(sshd, folder).model_copy(update={"transport": request.param})


async def test_all_is_well(through: Settings, folder: Path, telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served_orchestrator(telling, folder / "orchestrator.sock"), gateway(through) as client:
        meant(monkeypatch, through, GATEWAY_URL=str(client.base_url))
        found = await examined()
    assert levels(found, Level.BROKEN) == []
    assert levels(found, Level.UNKNOWN) == []
    assert found["gateway"].words == f"version {__version__} runs"
    assert "forwards" in found["forwarding"].words
    assert found["login"].words == "it works without a question"
    assert found["orchestrator"].level is Level.WELL
    assert found["account"].level is Level.WELL
    assert found["clock"].level is Level.WELL
    assert found["home"].level in (Level.WELL, Level.ODD)


async def test_without_a_gateway_it_logs_in_itself(
    through: Settings, folder: Path, telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant(monkeypatch, through)
    async with served_orchestrator(telling, folder / "orchestrator.sock"):
        found = await examined()
    assert levels(found, Level.BROKEN) == ["gateway"]
    assert found["gateway"].fix == "start it: GATEWAY_CLUSTER=login sluice gateway"
    assert "is free" in found["port"].words
    assert [found[name].level for name in ("orchestrator", "database", "account", "services")] == [Level.WELL] * 4


async def test_an_orchestrator_that_is_not_there(ssh_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    meant(monkeypatch, ssh_settings)
    found = await examined()
    assert (found["orchestrator"].level, found["orchestrator"].words) == (Level.BROKEN, "none runs")
    assert "sluice orchestrator" in found["orchestrator"].fix
    assert found["login"].level is Level.WELL
    assert found["database"].level is Level.UNKNOWN


async def test_forwarding_is_forbidden(telling: Telling, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_strict_sshd() as strict:
        settings = settings_through(strict, folder)
        meant(monkeypatch, settings)
        async with served_orchestrator(telling, folder / "orchestrator.sock"):
            found = await examined()
    assert (found["forwarding"].level, "forbids forwarding" in found["forwarding"].words) == (Level.ODD, True)
    assert found["orchestrator"].level is Level.WELL


@contextmanager
def a_strict_sshd() -> Iterator[Sshd]:
    with tempfile.TemporaryDirectory(prefix="sg-sshd-") as name:
        one = Sshd(Path(name))
        one.start("DisableForwarding yes")
        the_programs_of(one)
        yield one
        one.stop()


@pytest.mark.parametrize(
    ("known", "key", "check", "words"),
    [
        ("", "user", "host key", "not in your known_hosts"),
        ("other", "user", "host key", "is not the one in your known_hosts"),
        ("host", "other", "login", "refused"),
    ],
)
async def test_a_login_that_does_not_come_about(
    known: str,
    key: str,
    check: str,
    words: str,
    through: Settings,
    sshd: Sshd,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sshd.configure(folder, known=known, key=key)
    meant(monkeypatch, through)
    found = await examined()
    assert levels(found, Level.BROKEN) == ["gateway", check]
    assert words in found[check].words
    assert found[check].fix
    assert found["orchestrator"].level is Level.UNKNOWN


@pytest.mark.parametrize(
    ("before", "after", "check", "words"),
    [
        ("HostName 127.0.0.1", "HostName no-such-host.invalid", "name", "no address is known for no-such-host.invalid"),
        ("Port {port}", "Port {closed}", "network", "takes no connection"),
        ("Port {port}", "Port none", "ssh config", "cannot be used"),
    ],
)
async def test_the_way_to_the_login_node(
    before: str, after: str, check: str, words: str, sshd: Sshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_through(sshd, folder)
    numbers = {"port": sshd.port, "closed": free_port()}
    config = folder / "ssh_config"
    config.write_text(config.read_text().replace(before.format(**numbers), after.format(**numbers)))
    meant(monkeypatch, settings)
    found = await examined()
    assert levels(found, Level.BROKEN) == ["gateway", check]
    assert words in found[check].words
    assert found["login"].level is Level.UNKNOWN


async def test_a_host_to_jump_over_is_where_the_way_begins(
    sshd: Sshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_through(sshd, folder)
    config = folder / "ssh_config"
    config.write_text(config.read_text() + f"ProxyJump way\nHost way\nHostName 127.0.0.1\nPort {free_port()}\n")
    meant(monkeypatch, settings)
    found = await examined()
    assert "over 127.0.0.1" in found["ssh config"].words or "login is" in found["ssh config"].words
    assert levels(found, Level.BROKEN) == ["gateway", "network"]


async def test_a_site_that_asks_for_a_code_is_not_asked_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Site(folder, "246 813") as site:
        meant(monkeypatch, Settings(cluster="login", ssh_config=site.ssh_config))
        found = await examined()
        assert site.asked == 0
    assert found["login"].level is Level.UNKNOWN
    assert "sluice doctor login --login" in found["login"].fix
    assert levels(found, Level.BROKEN) == ["gateway"]


@pytest.mark.parametrize("transport", ["asyncssh", "openssh"])
async def test_with_login_the_person_at_the_terminal_is_asked(transport: str, folder: Path, telling: Telling) -> None:
    async with Site(folder, "246 813") as site, served_orchestrator(telling, folder / "orchestrator.sock"):
        session = Session(site, transport, "-c", "from gateway.cli import main; main()", "doctor", "--login")
        await session.shows("Code: ")
        session.types("246 813")
        await session.shows("broken, the first is: gateway")
        assert session.process.wait(20) == 1
        assert site.asked == 1
    assert "it works" in session.screen
    assert "246" not in session.screen


@asynccontextmanager
async def another_program() -> AsyncIterator[int]:
    """At a port of its own, where somebody looks for a gateway."""

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await JSONResponse({"hello": "world"})(scope, receive, send)

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    async with served(answers, listener):
        yield int(listener.getsockname()[1])


async def test_the_port_is_another_programs(ssh_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with another_program() as port:
        meant(monkeypatch, ssh_settings, GATEWAY_PORT=str(port))
        found = await examined()
    assert "another program's" in found["port"].words
    assert f"GATEWAY_PORT={port + 1}" in found["port"].fix
    assert levels(found, Level.BROKEN)[:2] == ["port", "gateway"]


async def test_a_gateway_that_wants_a_key(ssh_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with_key = Settings(**{**ssh_settings.model_dump(), "api_key": "secret"})
    async with gateway(with_key) as client:
        meant(monkeypatch, ssh_settings, GATEWAY_URL=str(client.base_url))
        without = await examined()
        monkeypatch.setenv("GATEWAY_API_KEY", "secret")
        with_it = await examined()
    assert (without["key"].level, "wants an API key" in without["key"].words) == (Level.BROKEN, True)
    assert with_it["key"].level is not Level.BROKEN


async def test_a_gateway_that_leads_elsewhere(ssh_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway(ssh_settings) as client:
        meant(monkeypatch, ssh_settings, GATEWAY_URL=str(client.base_url))
        found = await examined("127.0.0.1")
    assert "leads to login, not to 127.0.0.1" in found["gateway"].words


async def test_what_the_orchestrator_says_of_itself(
    ssh_settings: Settings, folder: Path, telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = {
        "late": False,
        "stale_since": "2026-11-27T11:00:00Z",
        "trouble": "squeue: Unable to contact slurm controller",
    }
    telling.answers["/health"] = telling.answers["/ready"] = (
        200,
        HEALTH | {"status": "degraded", "version": "0.0.1", "watcher": stale},
    )
    telling.answers["/services"] = (503, {"detail": "the database does not answer"})
    refused = SCHEDULER | {"level": "error", "message": "the scheduler would refuse the job: Invalid account"}
    telling.answers["/preflight"] = (200, {"verdicts": [refused]})
    async with served_orchestrator(telling, folder / "orchestrator.sock"), gateway(ssh_settings) as client:
        meant(monkeypatch, ssh_settings, GATEWAY_URL=str(client.base_url))
        found = await examined()
    assert levels(found, Level.BROKEN) == ["database", "scheduler", "account"]
    assert "the database does not answer" in found["database"].words
    assert "Unable to contact" in found["scheduler"].words
    assert "Invalid account" in found["account"].words
    assert "0.0.1" in found["version"].words


async def test_an_orchestrator_that_hangs(
    ssh_settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant(monkeypatch, ssh_settings)
    holder = {
        "host": "login01",
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid": os.getpid(),
    }
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    (folder / "orchestrator.holder").write_text(json.dumps(holder | {"started": started}))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "orchestrator.sock"))
        silent.listen()
        looking = Looking(None, health_seconds=1.0)
        found = {one.check: one for one in await examine(looking, None)}
    assert found["orchestrator"].level is Level.BROKEN
    assert f"process {os.getpid()} runs there but does not answer: no answer within 1 s" in found["orchestrator"].words


async def test_wrong_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "many")
    found = await examined()
    assert found["settings"].level is Level.BROKEN
    assert "GATEWAY_PORT" in found["settings"].words or "port" in found["settings"].words


async def test_without_a_cluster(folder: Path, sshd: Sshd, telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(sshd.home))
    monkeypatch.setenv("GATEWAY_LOCAL_SOCKET", str(folder / "orchestrator.sock"))
    monkeypatch.setenv("GATEWAY_PORT", str(free_port()))
    async with served_orchestrator(telling, folder / "orchestrator.sock"):
        found = await examined()
    assert levels(found, Level.BROKEN) == ["gateway"]
    assert "there is no SSH between" in found["ssh config"].words
    assert "login" not in found
    assert found["orchestrator"].level is Level.WELL


def test_the_command_in_a_pipe(ssh_settings: Settings) -> None:
    environment = environment_of_a_child(
        GATEWAY_CLUSTER="login", GATEWAY_SSH_CONFIG=str(ssh_settings.ssh_config), GATEWAY_PORT=str(free_port()),
        GATEWAY_REMOTE_SOCKET=ssh_settings.remote_socket,
    )  # fmt: skip
    argv = [sys.executable, "-c", "from gateway.cli import main; main()", "doctor"]
    plain = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)
    assert (plain.returncode, plain.stderr) == (1, "")
    lines = plain.stdout.splitlines()
    assert lines[0].startswith("✓ settings     the cluster login")
    assert "✗ gateway      no gateway runs on this machine" in lines
    assert "               fix: start it: GATEWAY_CLUSTER=login sluice gateway" in lines
    assert lines[-1].endswith("broken, the first is: gateway")

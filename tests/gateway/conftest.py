"""Real parts: sshd on loopback, uvicorn on both sides, and a small orchestrator behind it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import settings_through, short_folder
from tests.gateway.sshd import BINARY, Sshd


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GATEWAY_CONFIG", "GATEWAY_CLUSTER", "GATEWAY_API_KEY", "GATEWAY_HOST", "ORCHESTRATOR_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")  # where the keys of whoever runs the tests are not
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def sshd() -> Iterator[Sshd]:
    if BINARY is None:
        reason = "NO SSHD, so the tunnel is not tested: apt-get install openssh-server"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="sg-sshd-") as name:
        server = Sshd(Path(name))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def orchestrator() -> FakeOrchestrator:
    return FakeOrchestrator()


@pytest.fixture
def ssh_settings(sshd: Sshd, folder: Path) -> Settings:
    return settings_through(sshd, folder)

"""From nothing to an answer, as README and tutorial say: the wheel, by pip, in a clean environment on each side.

The login node has no internet, so docs/site-offline.md comes first: what it brings is what pip finds there.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, namespace
from tests.e2e.deployment import FAKE, REPOSITORY, UV, laptop_api, site_config, wait_for
from tests.e2e.walking import LOGIN, Reader
from tests.fake_hub import fake_hub
from tests.pages import ROOT, WALKED, Block, Command, blocks_of, walked
from tests.vllm import make

pytestmark = pytest.mark.cluster

LAPTOP = "on the laptop"
ORCHESTRATOR, GATEWAY = "sluice orchestrator ", "GATEWAY_CLUSTER=mycluster sluice gateway"
ID = "3652098"
OPTIONS = {"PIP_NO_COMPILE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By `uv build --wheel`, as the README says."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([UV, "build", "-q", "--wheel", "-o", str(folder), str(REPOSITORY)], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def reader(cluster: Cluster, wheel: Path, tmp_path: Path) -> Iterator[Reader]:
    """With the wheel on both sides, and nothing else. What pip fetched for the laptop is kept for the next run."""
    with ExitStack() as stack:
        with namespace(cluster, "login"):
            hub = stack.enter_context(fake_hub()).url
        there = {"PATH": f"{cluster.home}/sluicegate/bin:/usr/bin:/bin", "HF_ENDPOINT": hub, "PIP_NO_INDEX": "1"}
        there |= OPTIONS | {"PIP_FIND_LINKS": str(cluster.home / "wheels")}
        mine = Path.home() / ".config" / "pip" / "pip.conf"  # a mirror may be named there
        here = OPTIONS | {"PIP_CACHE_DIR": str(make.cache() / "pip"), "PIP_CONFIG_FILE": str(mine)}
        one = Reader(cluster, tmp_path, path=f"{tmp_path}/sluicegate/bin:/usr/bin", here=here, there=there)
        one.at_home()
        shutil.copy(wheel, tmp_path)
        shutil.copy(wheel, cluster.home)
        yield one


class Walk:
    """Through pages in their order. An installation that was typed before is not typed again; what serves, stays."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._typed: set[tuple[str, str]] = set()
        self._serve: list[subprocess.Popen[bytes]] = []

    def follow(self, page: Path) -> None:
        for block in blocks_of(page):
            for host in (LAPTOP, LOGIN):
                if host in block.title:
                    self._do(self._new(block, host), host)

    def _new(self, block: Block, host: str) -> list[Command]:
        """Those that do something when they are typed again, and those that were not typed."""
        new = [one for one in walked(block) if (host, one.text) not in self._typed]
        self._typed |= {(host, one.text) for one in new if "venv" in one.text or "pip" in one.text or _serves(one)}
        return new

    def _do(self, commands: list[Command], host: str) -> None:
        if any(map(_serves, commands)):
            self._start(commands, host)
            return
        # The laptop's network ends at login, so what it has from the internet comes by the machine's own.
        online = host == LAPTOP and any("/pip " in one.text for one in commands)
        with nullcontext() if online else namespace(self.reader.cluster, "laptop"):
            printed = self.reader.type(commands, host)
        if any(one.text.startswith("sluice run ") for one in commands):
            self.reader.ids[ID] = printed.split()[-1]

    def _start(self, commands: list[Command], host: str) -> None:
        (command,) = commands
        if host == LOGIN:
            self._edit()
            self._serve.append(self.reader.cluster.popen("login", ["bash", "-c", f"exec {command.text}"], user=True,
                                                         env=self.reader.there))  # fmt: skip
            wait_for(lambda: self._lives() and self._listens(), "the orchestrator listens")
            return
        with namespace(self.reader.cluster, "laptop"):
            words = ["bash", "-c", command.text]
            self._serve.append(
                subprocess.Popen(words, env=self.reader.environment, cwd=self.reader.home, start_new_session=True)
            )
            with laptop_api() as api:
                wait_for(lambda: self._lives() and api.ready(), "the gateway is ready")

    def _lives(self) -> bool:
        assert [one.poll() for one in self._serve] == [None] * len(self._serve), "one has ended"
        return True

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.reader.cluster.home / ".sluicegate" / "orchestrator.sock")) == 0

    def _edit(self) -> None:
        """What a reader writes into ~/site.toml on this cluster; its vLLM is the fake engine."""
        cluster = self.reader.cluster
        engine = cluster.root / "readme_engine.py"
        shutil.copy(FAKE, engine)
        engine.chmod(0o755)
        (cluster.home / "site.toml").write_text(site_config(cluster, ["/usr/bin/python3", str(engine)]))

    def end(self) -> None:
        """In reverse; jobs are Slurm's."""
        for one in reversed(self._serve):
            with suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGTERM)
            one.wait(20)


def _serves(command: Command) -> bool:
    return command.text.startswith((ORCHESTRATOR, GATEWAY))


@contextmanager
def walking(reader: Reader) -> Iterator[Walk]:
    walk = Walk(reader)
    try:
        yield walk
    finally:
        walk.end()
        reader.cluster.run("login", ["scancel", f"--user={reader.cluster.user}"])
        wait_for(lambda: not reader.cluster.run("login", ["squeue", "-h"]).stdout.strip(), "no job is left")
        home = ["sluicegate", ".sluicegate", "wheels", "site.toml"]
        reader.cluster.run("login", ["rm", "-rf", *home], user=True)


@pytest.mark.timeout(600)  # it installs everything, twice
def test_from_nothing_to_an_answer(reader: Reader) -> None:
    with walking(reader) as walk:
        for name in WALKED:
            (page,) = (path for path in (ROOT / name, ROOT / "docs" / name) if path.exists())
            walk.follow(page)
        assert "README.md" in WALKED and reader.ids[ID]

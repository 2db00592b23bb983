"""From nothing to an answer, as README and tutorial say: the wheel by pip in a clean environment, `sluice connect`.

Also docs/site-offline.md, which installs by hand on a login node without internet, as that of the cluster is.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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
CONNECT = "sluice connect mycluster"
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
        there = OPTIONS | {"PATH": f"{cluster.home}/sluicegate/bin:/usr/bin:/bin"}
        mine = Path.home() / ".config" / "pip" / "pip.conf"  # a mirror may be named there
        here = OPTIONS | {"PIP_CACHE_DIR": str(make.cache() / "pip"), "PIP_CONFIG_FILE": str(mine)}
        one = Reader(cluster, tmp_path, path=f"{tmp_path}/sluicegate/bin:/usr/bin", here=here, there=there)
        one.at_home()
        shutil.copy(wheel, tmp_path)
        write_site(cluster, hub)
        yield one


def write_site(cluster: Cluster, hub: str) -> None:
    """What a reader has in ~/.sluicegate/site.toml on this cluster; its vLLM is the fake engine."""
    engine = cluster.root / "readme_engine.py"
    shutil.copy(FAKE, engine)
    engine.chmod(0o755)
    text = site_config(cluster, ["/usr/bin/python3", str(engine)]) + f'\n[site.environment]\nHF_ENDPOINT = "{hub}"\n'
    cluster.run("login", ["mkdir", "-m", "700", ".sluicegate"], user=True, check=True)
    cluster.run("login", ["tee", ".sluicegate/site.toml"], user=True, check=True, input=text)


class Walk:
    """Through pages in their order. An installation that was typed before is not typed again; what serves, stays."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._typed: set[tuple[str, str]] = set()
        self._serves: list[subprocess.Popen[bytes]] = []

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
            self._start(commands)
            return
        # The laptop's network ends at login, so what it has from the internet comes by the machine's own.
        online = host == LAPTOP and any("/pip " in one.text for one in commands)
        with nullcontext() if online else namespace(self.reader.cluster, "laptop"):
            printed = self.reader.type(commands, host)
        if any(one.text.startswith("sluice run ") for one in commands):
            self.reader.ids[ID] = printed.split()[-1]

    def _start(self, commands: list[Command]) -> None:
        """It stays, as in a terminal of its own."""
        (command,) = commands
        with namespace(self.reader.cluster, "laptop"):
            words, home = ["bash", "-c", f"exec {command.text}"], self.reader.home
            with (home / "connect.log").open("wb") as log:
                self._serves.append(
                    subprocess.Popen(words, env=self.reader.environment, cwd=home, stderr=log, start_new_session=True)
                )
            with laptop_api() as api:
                wait_for(lambda: self._lives() and api.ready(), "the gateway is ready", 200)

    def _lives(self) -> bool:
        said = (self.reader.home / "connect.log").read_text()
        assert [one.poll() for one in self._serves] == [None] * len(self._serves), said
        return True

    def end(self) -> None:
        with namespace(self.reader.cluster, "laptop"):
            self.reader.type([Command("disconnect", 1, LAPTOP, "sluice disconnect --stop")], LAPTOP)
        for one in self._serves:
            one.wait(20)


def _serves(command: Command) -> bool:
    return command.text == CONNECT


@contextmanager
def walking(reader: Reader) -> Iterator[Walk]:
    walk = Walk(reader)
    try:
        yield walk
    finally:
        walk.end()
        reader.cluster.run("login", ["scancel", f"--user={reader.cluster.user}"])
        wait_for(lambda: not reader.cluster.run("login", ["squeue", "-h"]).stdout.strip(), "no job is left")
        home = ["sluicegate", ".sluicegate", "wheels"]
        reader.cluster.run("login", ["rm", "-rf", *home], user=True)


@pytest.mark.timeout(600)  # it installs everything, twice
def test_from_nothing_to_an_answer(reader: Reader) -> None:
    with walking(reader) as walk:
        for name in WALKED:
            (page,) = (path for path in (ROOT / name, ROOT / "docs" / name) if path.exists())
            walk.follow(page)
        assert "README.md" in WALKED and reader.ids[ID]

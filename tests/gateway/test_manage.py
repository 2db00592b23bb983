"""What runs on the login node, run here: an installation, a start, a crash, an upgrade, an end."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.connect import packages
from gateway.connect.bundle import Bundle
from gateway.connect.host import Failed, Host
from gateway.connect.plan import Wanted
from gateway.connect.standing import Standing
from gateway.connect.wheel import running
from gateway.link import LocalLink
from gateway.trunk import Trunk
from orchestrator.lock import start_of, this_process

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.beside]

SITE = 'scheduler = "local"\n'


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """An empty one, short enough for a socket's path; the same for all tests, as an installation takes seconds."""
    with tempfile.TemporaryDirectory(prefix="sg-home-") as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", name)
        patch.delenv("XDG_RUNTIME_DIR", raising=False)
        yield Path(name)


class Place:
    """A login node's home, as the gateway would see it."""

    def __init__(self, home: Path) -> None:
        self.state = home / ".sluicegate"
        self.link = LocalLink(self.state / "orchestrator.sock")
        self.host = Host(self.link, ".sluicegate")
        self.bundle = Bundle(running(), packages.here())
        self.wanted: Wanted = self.bundle.wanted

    async def install(self, name: str | None = None) -> None:
        """Its packages are those of this test run."""
        await self.host.manage("tidy")
        await self.host.push(self.bundle.incoming, "", "incoming")
        folder = self.state / "packages"
        folder.mkdir(exist_ok=True)
        if not (folder / self.wanted.packages).exists():
            (folder / self.wanted.packages).symlink_to(sysconfig.get_path("purelib"))
        python = str(Path(sysconfig.get_config_var("BINDIR")) / "python3")
        await self.host.manage("install", name or self.wanted.name, python, self.wanted.packages, "", "")

    async def stop(self) -> None:
        with contextlib.suppress(Failed):
            await self.host.manage("stop")

    async def standing(self) -> Standing:
        return await self.host.standing()

    async def version(self) -> str:
        trunk = Trunk(self.link, connect_seconds=5)
        try:
            return str(json.loads((await trunk.ask(b"GET", b"/health"))[1])["version"])
        finally:
            trunk.close()


@pytest.fixture
async def place(home: Path) -> AsyncIterator[Place]:
    """With nothing running, and without a site file."""
    one = Place(home)
    yield one
    await one.stop()
    for name in ("site.toml", "orchestrator.holder"):
        (one.state / name).unlink(missing_ok=True)


@pytest.fixture
async def installed(place: Place) -> Place:
    if not (place.state / "versions" / place.wanted.name).exists():
        await place.install()
    await place.host.manage("switch", place.wanted.name)
    return place


async def test_nothing_stands_in_an_empty_home(place: Place) -> None:
    if not place.state.exists():  # the first of this module
        assert await place.standing() == Standing(state=str(place.state), host=os.uname().nodename)


async def test_it_is_started_killed_upgraded_and_stopped(installed: Place) -> None:
    place, manage = installed, installed.host.manage
    await place.host.put_site(SITE)
    await manage("start", "detached")
    there = await place.standing()
    assert (there.running, there.runs, there.how) == ("yes", place.wanted.name, "detached")
    assert (there.installed, there.version) == (place.wanted.name, await place.version())
    assert there.since is not None and there.pid is not None
    assert place.state.stat().st_mode & 0o777 == 0o700
    assert list(place.state.glob("*/.*part*")) == []

    # again: nothing changes
    assert (await manage("start", "detached")).last("already") == str(there.pid)
    with pytest.raises(Failed):
        await place.host.put_site("# another one\n")
    assert (place.state / "site.toml").read_text() == SITE

    # the command there is the current version's
    said = await place.link.execute(f"{place.state}/bin/sluice --version")
    assert said.out.strip() == f"sluice {there.version}"

    # killed: the socket that is left behind is in nobody's way
    os.kill(there.pid, signal.SIGKILL)
    await _gone(there.pid)
    assert (await place.standing()).running == "no"
    assert (place.state / "orchestrator.sock").exists()
    await manage("start", "again")
    before = await place.standing()
    assert before.how == "detached" and before.pid is not None

    # upgraded: another name is all that this test has of another version
    versions = place.state / "versions"
    shutil.copytree(versions / place.wanted.name, versions / "9.9.9-ffffffffff", symlinks=True)
    await manage("replace", "9.9.9-ffffffffff", "detached")
    after = await place.standing()
    assert (after.runs, after.installed) == ("9.9.9-ffffffffff", "9.9.9-ffffffffff")
    assert start_of(before.pid) is None
    await manage("prune")
    assert set((await place.standing()).present) == {place.wanted.name, "9.9.9-ffffffffff"}

    # ended
    assert (await manage("stop")).last("stopped") == str(after.pid)
    assert (await place.standing()).running == "no"
    assert (await manage("stop")).last("already") == "stopped"


async def test_what_does_not_start_says_why(installed: Place) -> None:
    await installed.host.put_site("polls = 3\n")
    with pytest.raises(Failed, match=r"has not started\n(.*\n)*.*polls"):
        await installed.host.manage("start", "detached")
    with pytest.raises(Failed, match="no such way to start: somehow"):
        await installed.host.manage("start", "somehow")


async def test_a_damaged_or_interrupted_installation_is_seen(installed: Place) -> None:
    name = installed.wanted.name
    module = next((installed.state / "versions" / name).glob("lib/python*/site-packages/orchestrator/app.py"))
    kept = module.rename(module.with_suffix(".kept"))
    with pytest.raises(Failed, match="does not start"):
        await installed.host.manage("check", name)
    kept.rename(module)
    await installed.host.manage("check", name)
    (installed.state / "versions" / ".x.part").mkdir()
    await installed.host.manage("tidy")
    assert list(installed.state.glob("versions/.*")) == []


async def test_whose_process_it_is(place: Place) -> None:
    """A number that another process has by now is nobody's orchestrator; one of another machine is elsewhere."""
    await place.host.manage("tidy")
    mine = this_process()
    holder = place.state / "orchestrator.holder"

    def write(**facts: object) -> None:
        holder.write_text(json.dumps({**mine.__dict__, **facts}))

    write(started="1")
    assert (await place.standing()).running == "no"
    assert (await place.host.manage("stop")).last("already") == "stopped"
    write()
    there = await place.standing()
    assert (there.running, there.pid, there.runs) == ("yes", os.getpid(), ""), "started by hand"
    write(boot="another", host="login7")
    assert ((there := await place.standing()).running, there.where) == ("elsewhere", "login7")
    for verb in ("stop", "start"):
        with pytest.raises(Failed, match="login7"):
            await place.host.manage(verb, "detached")
    os.utime(holder, (1, 1))
    assert (await place.standing()).running == "no"


# In a Slurm job of its own


@pytest.fixture
async def slurm(place: Place) -> AsyncIterator[Path]:
    """What stands in the place of Slurm's commands: the file is what squeue lists, `scancel` empties it."""
    listed, program = place.state / "listed", place.state / "bin" / "slurm"
    program.parent.mkdir(parents=True, exist_ok=True)
    kept = program.read_bytes() if program.exists() else None
    program.write_text(f"#!/bin/sh\ncase $1 in squeue) cat {listed} ;; scancel) : >{listed} ;; *) exit 1 ;; esac\n")
    program.chmod(0o700)
    yield listed
    listed.write_text("")
    await place.stop()  # as long as its holder says which process it is
    for name in ("orchestrator.holder", "orchestrator.job", "listed"):
        (place.state / name).unlink(missing_ok=True)
    if kept is None:
        program.unlink()
    else:
        program.write_bytes(kept)


@pytest.mark.parametrize(
    ("line", "holder", "running", "where", "waits"),
    [
        ("17|RUNNING|node1|1795800000|None", "17", "yes", "node1", ""),
        # Slurm's name for a machine need not be the one that it has itself
        ("17|RUNNING|node1.cluster.example|1795800000|None", "17", "yes", "node1.cluster.example", ""),
        ("17|PENDING||N/A|Priority", "", "queued", "", "PENDING (Priority)"),
        ("17|PENDING||1795800000|BeginTime", "17", "queued", "", "PENDING (BeginTime)"),  # started again
        ("17|CONFIGURING|cloud3|1795800000|None", "", "queued", "cloud3", "CONFIGURING (None)"),
        ("17|RUNNING|node1|1795800000|None", "", "queued", "node1", "RUNNING (the orchestrator is about to listen)"),
        ("18|RUNNING|node1|1795800000|None", "17", "no", "", ""),
        ("", "", "no", "", ""),
    ],
)
async def test_how_its_job_is(
    place: Place, slurm: Path, line: str, holder: str, running: str, where: str, waits: str
) -> None:
    slurm.write_text(f"170|RUNNING|node9|1795800000|None\n{line}\n")
    (place.state / "orchestrator.job").write_text("17\n")
    if holder:
        mine = this_process(holder, Path("/tmp/s/orchestrator.sock"))
        (place.state / "orchestrator.holder").write_text(mine.text())
    there = await place.standing()
    assert (there.running, there.where, there.waits) == (running, where, waits)
    assert there.pid == (os.getpid() if running == "yes" else None)
    assert (there.job, there.before) == (("", "job") if running == "no" else ("17", ""))


async def test_a_job_that_waits_does_not_keep_another_way_out(installed: Place, slurm: Path) -> None:
    await installed.host.put_site(SITE)
    slurm.write_text("17|PENDING||N/A|Priority\n")
    (installed.state / "orchestrator.job").write_text("17\n")
    await installed.host.manage("start", "detached")
    there = await installed.standing()
    assert (there.running, there.how, there.job) == ("yes", "detached", "")
    assert slurm.read_text() == "" and not (installed.state / "orchestrator.job").exists()


async def _gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while start_of(pid) is not None:  # noqa: ASYNC110 (another process's end is no event of ours)
            await asyncio.sleep(0.02)

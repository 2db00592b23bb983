"""After the laptop's sleep: a connection that does not answer is replaced at once, one that does is kept."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from gateway.kept import Kept
from gateway.link import LinkState
from gateway.openssh import OpenSsh
from gateway.settings import Settings
from gateway.trunk import Trunk
from gateway.tunnel import Tunnel
from gateway.waking import Waking
from tests.gateway.serving import settings_through, until
from tests.gateway.sshd import Sshd

pytestmark = [pytest.mark.anyio, pytest.mark.system]


class Clocks:
    """One that stands still while the machine sleeps, and one that does not."""

    def __init__(self) -> None:
        self.standing = self.through = 100.0

    def __call__(self) -> tuple[float, float]:
        return self.standing, self.through

    def wake(self, seconds: float) -> None:
        self.standing += seconds
        self.through += seconds

    def sleep(self, seconds: float) -> None:
        self.through += seconds


def test_sleep_is_told_once_and_nothing_else_is_taken_for_it() -> None:
    clocks = Clocks()
    waking = Waking(clocks)
    clocks.wake(500)  # a busy machine: a late tick
    assert waking.slept() == 0
    clocks.sleep(2)  # a clock that was corrected
    assert waking.slept() == 0
    clocks.sleep(-3600)
    assert waking.slept() == 0
    clocks.wake(1)
    clocks.sleep(3600)
    assert waking.slept() == 3600
    clocks.wake(1)
    assert waking.slept() == 0


def test_the_clocks_of_this_machine_agree() -> None:
    assert Waking().slept() == 0


@pytest.fixture(params=["asyncssh", "openssh"])
def link(request: pytest.FixtureRequest, sshd: Sshd, folder: Path) -> Kept:
    settings: Settings = settings_through(sshd, folder)
    return OpenSsh(settings) if request.param == "openssh" else Tunnel(settings)


async def test_after_sleep_a_dead_connection_is_replaced(sshd: Sshd, link: Kept) -> None:
    clocks = Clocks()
    async with link:
        await _until_up(link)
        trunk = Trunk(link, connect_seconds=5, waking=Waking(clocks))
        (session,) = sshd.sessions()
        os.kill(session, signal.SIGSTOP)
        clocks.sleep(3600)
        started = time.perf_counter()
        trunk.tick()
        await until(lambda: _holds(link.status.reconnects == 1), seconds=10)
        assert 2.5 < time.perf_counter() - started < 8
        assert "ended" not in link.status.error
        os.kill(session, signal.SIGKILL)
        trunk.close()


async def test_after_sleep_a_live_connection_is_kept(sshd: Sshd, link: Kept) -> None:
    async with link:
        await _until_up(link)
        before = sshd.sessions()
        for _ in range(2):
            link.check()
            async with asyncio.timeout(3):
                await link.sign_of_life()
        assert (link.status.state, link.status.reconnects) == (LinkState.UP, 0)
        assert sshd.sessions() == before


async def test_after_sleep_a_delay_ends(sshd: Sshd, folder: Path) -> None:
    settings = settings_through(sshd, folder).model_copy(update={"backoff_min_seconds": 60.0})
    text = (folder / "ssh_config").read_text()
    (folder / "ssh_config").write_text(text.replace("127.0.0.1", "127.0.0.9", 1))
    async with Tunnel(settings) as link:
        while link.status.state is not LinkState.DOWN:
            await link.changed()
        (folder / "ssh_config").write_text(text)
        link.check()
        await _until_up(link)


async def _until_up(link: Kept) -> None:
    async with asyncio.timeout(10):
        while link.status.state is not LinkState.UP:
            await link.changed()


async def _holds(condition: bool) -> bool:
    return condition

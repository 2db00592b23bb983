"""A site that wants a code: asked for once, on the terminal, and never kept; without a terminal nothing is begun."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.kept import Kept
from gateway.link import LinkState
from gateway.openssh import OpenSsh
from gateway.settings import Settings, environment_of_a_child
from gateway.terminal import plain
from gateway.tunnel import Tunnel
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.kbdint_server import Site
from tests.gateway.serving import served_orchestrator, until
from tests.gateway.sshd import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.system]

CODE = "246 813 sesame"


@pytest.fixture
async def site(folder: Path) -> AsyncIterator[Site]:
    async with Site(folder, CODE) as site:
        yield site


@pytest.fixture(params=["asyncssh", "openssh"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Session:
    """A gateway, or another program of ours, at a terminal of its own: `screen` is what the terminal has shown."""

    def __init__(self, site: Site, transport: str, *program: str) -> None:
        self.port = free_port()
        environment = environment_of_a_child(
            GATEWAY_CLUSTER="login", GATEWAY_SSH_CONFIG=str(site.ssh_config), GATEWAY_PORT=str(self.port),
            GATEWAY_REMOTE_SOCKET=str(site.folder / "orchestrator.sock"), GATEWAY_TRANSPORT=transport,
            GATEWAY_LOG_LEVEL="debug",
        )  # fmt: skip
        self._master, terminal = os.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, *(program or ("-m", "gateway"))],
            env=environment, stdin=terminal, stdout=terminal, stderr=terminal,
        )  # fmt: skip
        os.close(terminal)
        fcntl.fcntl(self._master, fcntl.F_SETFL, os.O_NONBLOCK)
        self.screen = ""

    async def shows(self, text: str, *, times: int = 1, seconds: float = 20) -> None:
        async def shown() -> bool:
            self._read()
            return self.screen.count(text) >= times

        try:
            await until(shown, seconds=seconds)
        except TimeoutError:
            raise AssertionError(f"not shown {times} times: {text!r} in {self.screen}") from None

    def _read(self) -> None:
        try:
            self.screen += os.read(self._master, 65536).decode(errors="replace")
        except (BlockingIOError, OSError):  # nothing new; or the process has ended
            return

    def types(self, line: str) -> None:
        os.write(self._master, f"{line}\n".encode())

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    async def state(self) -> str:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as client:
            return str((await client.get("/health")).json()["tunnel"]["state"])

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(20)
        self._read()
        os.close(self._master)
        return status


@pytest.fixture
def session(site: Site, transport: str) -> Iterator[Session]:
    one = Session(site, transport)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.mark.system
async def test_the_code_is_asked_for_on_the_terminal(
    site: Site, session: Session, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock"):
        await session.shows("Code: ")
        assert not session.echoes
        assert await session.state() == "connecting"
        session.types(CODE)
        await session.shows("login: up")
        assert session.echoes
        assert (await session.state(), site.asked, site.logins) == ("up", 1, 1)

        site.drop()  # the connection is lost: asked again, once, and answered wrongly
        await session.shows("Code: ", times=2)
        session.types("wrong")
        await session.shows("press Enter to log in again")
        assert (await session.state(), site.logins) == ("auth_required", 1)
        asked = site.asked

        session.types("")
        await session.shows("Code: ", times=3)
        assert site.asked == asked + 1
        session.types(CODE)
        await session.shows("login: up", times=2)
    assert session.end() == 0
    assert CODE not in session.screen, "it is neither shown nor logged"
    assert "\x1b]0;" not in session.screen and "\x1b[2J" not in session.screen


@pytest.mark.system
async def test_the_gateway_ends_while_it_asks(session: Session) -> None:
    await session.shows("Code: ")
    assert session.end() == 0


async def test_without_a_terminal_no_code_is_ever_wanted(site: Site, transport: str) -> None:
    naps: asyncio.Queue[float] = asyncio.Queue()
    over = asyncio.Semaphore(0)

    async def nap(seconds: float) -> None:
        naps.put_nowait(seconds)
        await over.acquire()

    settings = Settings(
        cluster="login", ssh_config=site.ssh_config, remote_socket="/tmp/none.sock",
        transport="openssh" if transport == "openssh" else "asyncssh",
    )  # fmt: skip
    link: Kept = OpenSsh(settings, sleep=nap) if transport == "openssh" else Tunnel(settings, sleep=nap)
    async with link:
        for _ in range(3):
            assert await asyncio.wait_for(naps.get(), 10) == 60
            assert link.status.state is LinkState.AUTH_REQUIRED
            assert "start the gateway in a terminal" in link.status.advice
            assert "ControlMaster" in link.status.advice
            over.release()
    assert site.asked == 0


def test_a_server_s_words_cannot_steer_the_terminal() -> None:
    assert plain("Code\x1b[31m\x07\r\u202e: \x9b2J\n") == "Code[31m: 2J\n"

"""The SSH connection: lost, refused, not to be trusted, and back again; against a real sshd."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.kept import Kept
from gateway.link import LinkState
from gateway.openssh import OpenSsh
from gateway.settings import Settings
from gateway.tunnel import Tunnel
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, served_orchestrator, settings_through, until, until_ready
from tests.gateway.sshd import Sshd, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.system]  # real SSH, and bounds of seconds: not beside others


@pytest.fixture(params=["asyncssh", "openssh"])
def ssh_settings(request: pytest.FixtureRequest, sshd: Sshd, folder: Path) -> Settings:
    """With each of the two who speak SSH."""
    return settings_through(sshd, folder).model_copy(update={"transport": request.param})


def tunnel(settings: Settings, **more: Any) -> Kept:
    return OpenSsh(settings, **more) if settings.transport == "openssh" else Tunnel(settings, **more)


class Naps:
    """A `sleep` that notes how long it was asked to sleep, and returns when told to."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.over = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.asked.put_nowait(seconds)
        await self.over.acquire()


async def test_without_an_orchestrator_the_answer_says_what_to_do(ssh_settings: Settings) -> None:
    async with gateway(ssh_settings) as client:

        async def up() -> bool:
            return bool((await client.get("/health")).json()["tunnel"]["state"] == "up")

        await until(up)
        answer = await client.get("/api/v1/services")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "sluice orchestrator" in answer.json()["detail"]
        assert (await client.get("/v1/models")).json()["error"]["code"] == "service_unavailable"
        prompt = await client.post("/api/v1/vllm/1/prompt", json={"prompt": "x"})
        assert prompt.json()["success"] is False
        health = (await client.get("/health")).json()
        assert (health["status"], health["ready"], health["orchestrator"]["answered"]) == ("degraded", False, False)
        assert (await client.get("/ready")).status_code == 503


async def test_a_lost_connection_is_a_503_and_comes_back(
    sshd: Sshd, ssh_settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock"), gateway(ssh_settings) as client:
        await until_ready(client)
        asking = asyncio.create_task(client.post("/v1/slow", json={}))
        await orchestrator.arrived.get()
        sshd.kill_sessions()
        assert (await asking).status_code == 502  # it may have been carried out, so it is not repeated
        killed = time.perf_counter()
        assert (await client.get("/api/v1/echo")).status_code in (200, 503)
        await until_ready(client)
        assert time.perf_counter() - killed < 2
        assert (await client.get("/api/v1/echo")).status_code == 200
        assert len(sshd.sessions()) == 1


async def test_while_the_host_is_away_the_answer_is_503_at_once(ssh_settings: Settings, folder: Path) -> None:
    text = (folder / "ssh_config").read_text()
    (folder / "ssh_config").write_text(text.replace("Port ", f"Port {free_port()} #"))
    async with gateway(ssh_settings.model_copy(update={"hold_seconds": 0.0})) as client:

        async def down() -> bool:
            return bool((await client.get("/health")).json()["tunnel"]["error"])

        await until(down)
        started = time.perf_counter()
        answer = await client.get("/api/v1/services")
        assert time.perf_counter() - started < 1
        assert (answer.status_code, "ssh login" in answer.json()["detail"]) == (503, True)
        assert answer.json()["code"] == "tunnel_down"


async def test_a_changed_host_key_ends_all_attempts_until_its_file_is_corrected(
    sshd: Sshd, ssh_settings: Settings, folder: Path
) -> None:
    sshd.configure(folder, known="other")
    known = (folder / "known_hosts").read_text()
    (folder / "known_hosts").write_text(f"# a comment\nelsewhere.example {known.split(' ', 1)[1]}\n{known}\n")
    naps = Naps()
    async with tunnel(ssh_settings, sleep=naps) as one:
        await until(_is(one, LinkState.HOST_KEY_CHANGED))
        assert f"({folder}/known_hosts line 4)" in one.status.advice

        async def gone() -> bool:
            return not sshd.sessions()

        await until(gone)
        for _ in range(3):  # it looks at the file, not at the host
            assert await asyncio.wait_for(naps.asked.get(), 20) == 2
            assert not sshd.sessions()
            naps.over.release()
        assert one.status.state is LinkState.HOST_KEY_CHANGED
        sshd.configure(folder)
        naps.over.release()
        await until(_is(one, LinkState.UP))


async def test_an_unknown_host_is_tried_again_slowly(sshd: Sshd, ssh_settings: Settings, folder: Path) -> None:
    sshd.configure(folder, known="")
    naps = Naps()
    async with tunnel(ssh_settings, sleep=naps) as one:
        assert await asyncio.wait_for(naps.asked.get(), 20) == 60
        assert one.status.state is LinkState.HOST_KEY_UNKNOWN
        sshd.configure(folder)
        naps.over.release()
        await until(_is(one, LinkState.UP))


async def test_trusting_any_host_is_refused(ssh_settings: Settings, folder: Path) -> None:
    """To asyncssh `none` means that any host is trusted, so we refuse it; to OpenSSH that no host is known."""
    text = (folder / "ssh_config").read_text()
    text = text.replace(f"File {folder}/known_hosts", "File none")
    (folder / "ssh_config").write_text(f"{text}StrictHostKeyChecking no\n")
    by_itself = ssh_settings.transport == "openssh"
    async with tunnel(ssh_settings) as one:
        await until(_is(one, LinkState.HOST_KEY_UNKNOWN if by_itself else LinkState.HOST_KEY_CHANGED))
        assert ("known_hosts" if by_itself else "UserKnownHostsFile") in one.status.error


async def test_a_refused_login_is_tried_again_slowly(sshd: Sshd, ssh_settings: Settings, folder: Path) -> None:
    sshd.configure(folder, key="other")
    naps = Naps()
    async with tunnel(ssh_settings, sleep=naps) as one:
        assert await asyncio.wait_for(naps.asked.get(), 20) == 60
        assert one.status.state is LinkState.AUTH_REQUIRED
        assert "ssh-add" in one.status.advice


async def test_delays_grow_to_their_bound(ssh_settings: Settings, folder: Path) -> None:
    text = (folder / "ssh_config").read_text()
    (folder / "ssh_config").write_text(text.replace("Port ", f"Port {free_port()} #"))
    settings = ssh_settings.model_copy(update={"backoff_min_seconds": 1.0, "backoff_max_seconds": 10.0})
    naps = Naps()
    async with tunnel(settings, sleep=naps, jitter=lambda: 0.0):
        asked = []
        for _ in range(6):
            asked.append(await asyncio.wait_for(naps.asked.get(), 20))
            naps.over.release()
        assert asked == [1, 2, 4, 8, 10, 10]


async def test_the_socket_is_found_below_the_remote_home(
    sshd: Sshd, ssh_settings: Settings, orchestrator: FakeOrchestrator
) -> None:
    settings = ssh_settings.model_copy(update={"remote_socket": "o.sock"})
    async with served_orchestrator(orchestrator, sshd.home / "o.sock"), gateway(settings) as client:
        await until_ready(client)
        assert (await client.get("/")).json()["orchestrator"] == f"{sshd.home}/o.sock on login"


async def test_no_packet_waits_for_the_client_s_delayed_ack(
    ssh_settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    """Before OpenSSH 10.1 sshd holds small packets back, 40 ms, until a command has run on the connection."""
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock"), gateway(ssh_settings) as client:
        await until_ready(client)
        waits = []
        for _ in range(20):  # each answer comes in two small packets, its head and its body
            started = time.perf_counter()
            await client.get("/api/v1/echo")
            waits.append(time.perf_counter() - started)
        assert sorted(waits)[len(waits) // 2] < 0.02


@pytest.mark.usefixtures("sshd")  # where there is none
@pytest.mark.parametrize(("cipher", "hides"), [("aes256-gcm@openssh.com", False), ("aes256-ctr", True)])
async def test_no_empty_packet_goes_ahead_of_a_sealed_one(
    orchestrator: FakeOrchestrator, folder: Path, cipher: str, hides: bool
) -> None:
    server = Sshd(folder)
    server.start(f"Ciphers {cipher}", "LogLevel DEBUG3")
    empty = "Received SSH2_MSG_IGNORE"
    try:
        settings = settings_through(server, folder)
        async with served_orchestrator(orchestrator, folder / "orchestrator.sock"), gateway(settings) as client:
            await until_ready(client)
            before = (folder / "log").read_text().count(empty)
            assert before > 0, "asyncssh logs in as it always does"
            for _ in range(30):
                assert (await client.get("/api/v1/echo")).status_code == 200
            # sshd's log may lag behind by a few
            assert ((folder / "log").read_text().count(empty) >= before + 20) is hides
    finally:
        server.stop()


async def test_a_control_master_of_the_user_is_used_and_outlives_us(
    sshd: Sshd, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    settings = settings_through(sshd, folder).model_copy(update={"transport": "openssh"})
    with (folder / "ssh_config").open("a") as config:
        config.write(f"ControlMaster auto\nControlPath {folder}/cm\nControlPersist 60\n")

    async def master(command: str, *more: str) -> int:
        silent = asyncio.subprocess.DEVNULL
        words = ["ssh", "-F", str(folder / "ssh_config"), *more, "-O", command, "login"]
        process = await asyncio.create_subprocess_exec(*words, stdin=silent, stdout=silent, stderr=silent)
        return await process.wait()

    try:
        for _ in range(2):
            async with served_orchestrator(orchestrator, folder / "orchestrator.sock"), gateway(settings) as client:
                await until_ready(client)
                assert (await client.get("/health")).json()["tunnel"]["via"] == "unix-socket"
            assert await master("check") == 0
            assert len(sshd.sessions()) == 1, "one login for all"
    finally:
        await master("exit")


def _is(tunnel: Kept, state: LinkState) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return tunnel.status.state is state

    return reached


async def test_through_a_host_to_jump_over(
    sshd: Sshd, ssh_settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    """`ProxyJump`, to itself: the second connection is inside the first one."""
    text = (folder / "ssh_config").read_text()
    (folder / "ssh_config").write_text(f"{text.replace('Host login', 'Host jump')}{text}ProxyJump jump\n")
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock"), gateway(ssh_settings) as client:
        await until_ready(client)
        assert (await client.get("/api/v1/echo")).status_code == 200
        assert (await client.get("/health")).json()["tunnel"]["via"] == "unix-socket"
        assert len(sshd.sessions()) == 2

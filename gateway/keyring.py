"""What becomes of a file of keys by command: of `sluice keys`, and of the dashboard's page. Nothing is printed here."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator import keys as known
from orchestrator.keys import Key, Scope, changing, hash_of, new_secret, read_keys, shown


@dataclass(frozen=True)
class Made:
    """A key and its secret, which is in no file: this is the only time that it is known."""

    key: Key
    secret: str


def create(file: Path, name: str, scope: Scope, lifetime: str | None) -> Made:
    """`lifetime` as 30d; None for no end. Raises KeysError."""
    now, secret = known.now(), new_secret()
    ends = None if lifetime is None else known.until(lifetime, now)
    key = Key(name, scope, hash_of(secret.encode()), now, ends)
    with changing(file) as keys:
        keys[:] = known.created(keys, key, now)
    return Made(key, secret)


def rotate(file: Path, name: str) -> Made:
    """A new secret, as long to live as before. Raises KeysError."""
    now, secret = known.now(), new_secret()
    with changing(file) as keys:
        keys[:] = known.rotated(keys, name, hash_of(secret.encode()), now)
        key = known.named(keys, name)
    return Made(key, secret)


def revoke(file: Path, name: str) -> None:
    """Raises KeysError."""
    with changing(file) as keys:
        keys[:] = known.revoked(keys, name, known.now())


def rows(file: Path, now: datetime) -> list[dict[str, str | None]]:
    """What may be shown of each key, with its state. Raises KeysError."""
    return [shown(key) | {"state": key.state(now)} for key in read_keys(file)]

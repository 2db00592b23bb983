"""`sluice keys`: the secret alone on stdout, words on stderr, the list on stdout."""

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from gateway import keyring
from gateway.settings import SettingsError, keys_path
from orchestrator.keys import KeysError, Scope, now, said
from orchestrator.settings import read_settings as read_orchestrator_settings

HEADERS = "`Authorization: Bearer …`, `X-API-Key` or `api-key`"


def create(file: Path | None, orchestrator: bool, name: str, scope: Scope, expires: str | None) -> int:
    def work(path: Path) -> None:
        made = keyring.create(path, name, scope, expires)
        _give(made.secret, f"The key {name!r} with the scope {scope} is in {path}{_end(made.key.expires)}.")

    return _told(work, file, orchestrator)


def rotate(file: Path | None, orchestrator: bool, name: str) -> int:
    def work(path: Path) -> None:
        made = keyring.rotate(path, name)
        _give(made.secret, f"The key {name!r} has a new secret{_end(made.key.expires)}; the old one is taken no more.")

    return _told(work, file, orchestrator)


def revoke(file: Path | None, orchestrator: bool, name: str) -> int:
    def work(path: Path) -> None:
        keyring.revoke(path, name)
        sys.stderr.write(f"The key {name!r} of {path} is revoked; it is refused within a second or two.\n")

    return _told(work, file, orchestrator)


def show(file: Path | None, orchestrator: bool, as_json: bool) -> int:
    def work(path: Path) -> None:
        rows = keyring.rows(path, now())
        if as_json:
            sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        elif not rows:
            sys.stderr.write(f"There are no keys in {path}; `sluice keys create NAME` makes one.\n")
        else:
            sys.stdout.write(_table([[str(value or "-") for value in row.values()] for row in rows], list(rows[0])))

    return _told(work, file, orchestrator)


def _told(work: Callable[[Path], None], file: Path | None, orchestrator: bool) -> int:
    """Work on the file that is meant. The exit status; what is wrong is said on stderr."""
    try:
        if file is not None and orchestrator:
            raise KeysError("--file and --orchestrator name two files; give one of them")
        if file is not None:
            work(file.expanduser().absolute())
        else:
            work(read_orchestrator_settings().keys_path if orchestrator else keys_path())
    except (KeysError, SettingsError) as exc:
        sys.stderr.write(f"sluice keys: {exc}\n")
        return 2
    return 0


def _give(secret: str, words: str) -> None:
    sys.stderr.write(f"{words}\nIts secret, which is shown this once; send it as {HEADERS}:\n")
    sys.stderr.flush()
    sys.stdout.write(f"{secret}\n")


def _end(ends: datetime | None) -> str:
    return "" if ends is None else f" until {said(ends)}"


def _table(rows: list[list[str]], titles: list[str]) -> str:
    lines = [[title.upper() for title in titles], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"{line.rstrip()}\n" for line in padded)

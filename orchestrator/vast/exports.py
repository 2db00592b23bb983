"""Copies of the audit and of the state in files, for other programs. The database is what counts.

A file that cannot be written is said in the log and keeps nobody from anything: the machine costs money meanwhile.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.models import Event

log = logging.getLogger(__name__)


def line_of(event: Event) -> dict[str, Any]:
    """A line of the audit as users see it."""
    return {"ts": event.at.isoformat(), "event": event.kind, "actor": event.actor, "meta": event.detail}


def lines_in(path: Path) -> int:
    """How many lines the file has; 0 for one that is not there."""
    try:
        with path.open("rb") as file:
            return sum(line.endswith(b"\n") for line in file)
    except FileNotFoundError:
        return 0


def append(path: Path, events: Sequence[Event]) -> None:
    """One line of JSON for each, readable by the owner only."""
    text = "".join(json.dumps(line_of(event)) + "\n" for event in events)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(text.encode())


def replace(path: Path, state: dict[str, Any]) -> None:
    """The file with this content, readable by the owner only: whoever reads has the old one or the new one, whole."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(json.dumps(state).encode() + b"\n")
    new.replace(path)

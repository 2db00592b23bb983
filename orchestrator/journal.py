"""What a process says of itself: a line for each record, on stderr and in a file. A secret is masked in every line.

To a terminal a line is text; to a file or a program it is JSON: {"at", "level", "logger", "message", "request"?,
"error"?}. `request` is the id of the request that was being served, the same in gateway and orchestrator.
"""

import contextlib
import io
import json
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, cast

from orchestrator.confidential import redacted
from orchestrator.wire.hosted import SERVED
from orchestrator.wire.http1 import Request
from orchestrator.wire.server import CLIENT_LEFT

log = logging.getLogger(__name__)

Format = Literal["auto", "text", "json"]
Observe = Callable[[Request, int, float], None]

_OLDER = 3  # files before the present one
_READING = frozenset({b"GET", b"HEAD", b"OPTIONS"})
# Questions that come as a POST, and what is done a thousand times a second: of these only errors are worth a line.
_TRAFFIC = re.compile(
    r"/v[12]/.*|/(de)?tokenize|/(rerank|score|pooling|classify)"
    r"|/api/(v1/)?(services/)?(vllm|vector-db)/.*/(prompt|search|points|qdrant/.*)"
    r"|/api/(v1/)?services/[^/]+/(v[12]/.*|(de)?tokenize|rerank|score|pooling|classify)"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@contextlib.contextmanager
def open_journal(level: str, style: Format, file: Path | None = None, megabytes: int = 8) -> Iterator[None]:
    """Within it, records of `level` and above are written. `file` is made readable by its owner only."""
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handlers: list[logging.Handler] = [Stderr(sys.stderr)]
    handlers[0].setFormatter(Text() if as_text else Json())
    if file is not None:
        handlers.append(PrivateFile(file, megabytes))
        handlers[1].setFormatter(Json())
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


class Text(logging.Formatter):
    """`2026-11-21T21:14:05Z INFO orchestrator: words [req-1a2b-3]`, an error's lines below it."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        identity = _identity(record)
        line = f"{at} {record.levelname} {record.name}: {_escaped(redacted(record.getMessage()))}"
        line += f" [{_escaped(identity)}]" if identity else ""
        return "\n  ".join([line, *map(_escaped, _error(self, record).splitlines())])


class Json(logging.Formatter):
    """One object on one line, of ASCII only: nothing in it can end the line or move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
            "request": _identity(record),
            "error": _error(self, record),
        }
        return json.dumps({name: value for name, value in told.items() if value})


def _identity(record: logging.LogRecord) -> str:
    """The id of the request that a record is about."""
    identity: bytes = getattr(record, "request", b"") or SERVED.get()
    return redacted(identity.decode("latin-1")[:100])


def _error(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return redacted(formatter.formatException(record.exc_info)) if record.exc_info else ""


def _escaped(text: str) -> str:
    """A line break in a line of the journal would look like a line of ours."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Discreet(logging.Handler):
    """Of a record that cannot be written, nothing is said but that: logging's own way would print it unmasked.

    A full disk ends no request. It is said once, on stderr, where the records go on.
    """

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        if not self._told:
            self._told = True
            with contextlib.suppress(OSError, ValueError):  # stderr itself may be closed: there is nobody to tell
                sys.stderr.write(f"a line of the log is lost: {redacted(str(sys.exc_info()[1]))}\n")


class Stderr(Discreet, logging.StreamHandler[TextIO]):
    """To whoever has started this process."""


class PrivateFile(Discreet, RotatingFileHandler):
    """A file of its owner alone. At its size it is renamed to FILE.1, and so on; the oldest is removed."""

    def __init__(self, file: Path, megabytes: int) -> None:
        super().__init__(file, maxBytes=megabytes << 20, backupCount=_OLDER, encoding="utf-8")

    def _open(self) -> Any:
        # Without a buffer: what a full disk did not take would be tried again with every line, and at the end.
        file = io.FileIO(_open_private(self.baseFilename), "a")
        return io.TextIOWrapper(cast(BinaryIO, file), encoding="utf-8", write_through=True)


def _open_private(path: str) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a regular file")
    os.fchmod(fd, 0o600)
    return fd


class Noted:
    """The `observe` of a server: each request that failed or changed something has a line, then `further` is told.

    What models answer has none, unless it failed.
    """

    def __init__(self, further: Observe) -> None:
        self._further = further

    def __call__(self, request: Request, status: int, seconds: float) -> None:
        head = request.head
        # The data path's own 2xx costs these comparisons and no more.
        if status >= 400 or (head.method not in _READING and not head.target.startswith(b"/v1/")):
            self._note(request, status, seconds)
        self._further(request, status, seconds)

    def _note(self, request: Request, status: int, seconds: float) -> None:
        path = request.path  # without its query, which may hold anything
        if path == "/ready" or ((status < 400 or status == CLIENT_LEFT) and _TRAFFIC.fullmatch(path)):
            return
        level = logging.WARNING if status >= 500 else logging.INFO
        words = "%s %s was answered with %d after %.0f ms"
        method = request.method.decode("latin-1")
        log.log(level, words, method, path[:200], status, seconds * 1000, extra={"request": request.id})

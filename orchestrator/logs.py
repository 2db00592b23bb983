"""The output of a job: its end, or all of it as it is written. Memory does not grow with the files."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from orchestrator.untrusted import open_regular

CHUNK = 64 * 1024
MOST = 4 * 1024 * 1024  # bytes of one file in an answer


def tail(path: Path, lines: int | None = None, most: int = MOST) -> str:
    """The last `lines` lines of a file, or all of it, never more than `most` bytes; "" for a file that is not there.

    What is not UTF-8 becomes U+FFFD. A line ends with a line feed; a progress bar's carriage returns end none.
    """
    file = _opened(path)
    if file is None:
        return ""
    with file:
        return _end(file, lines, most)[1].decode(errors="replace")


def _end(file: BinaryIO, lines: int | None, most: int) -> tuple[int, bytes]:
    """How long a file is, and its last lines."""
    size = file.seek(0, os.SEEK_END)
    data, at = b"", size
    while at > 0 and len(data) < most and (lines is None or data.count(b"\n") <= lines):
        step = min(CHUNK, at, most - len(data))
        at -= step
        file.seek(at)
        data = file.read(step) + data
    return size, data if lines is None else _last(data, lines)


async def follow(
    paths: Sequence[Path],
    over: Callable[[], bool],
    *,
    lines: int | None = None,
    nothing: bytes = b"",
    interval: float = 0.3,
) -> AsyncIterator[bytes]:
    """The bytes of several files as they are written, until `over()` says that nothing more will come.

    Of what is there at the beginning all is sent, with `lines` only so many last lines of each, at most MOST bytes.
    Files that grow together alternate line by line. Where one of them has stopped within a line, a line feed is put
    before the other's. `nothing` is said first when there is nothing yet. `interval`: seconds between two looks.
    """
    files = [await asyncio.to_thread(_Growing, path, lines) for path in paths]
    if nothing and not any(file.size for file in files):
        yield nothing
    last, quiet = None, False
    while True:
        ends = over()  # asked before reading: what was written before the end is still sent
        found = False
        for file in files:
            if data := await asyncio.to_thread(file.read, whole_lines=not (ends or quiet)):
                yield b"\n" + data if last is not None and last is not file and last.within_line else data
                last, found = file, True
        quiet = not found
        if quiet and ends:
            return
        if quiet:
            await asyncio.sleep(interval)


class _Growing:
    """A file that is read as it grows. `size`: at the beginning."""

    within_line = False  # so far

    def __init__(self, path: Path, lines: int | None) -> None:
        """All of it, or from its last lines on."""
        self._path = path
        self._at = self.size = 0
        if (file := _opened(path)) is not None:
            with file:
                self.size, end = _end(file, lines, MOST if lines is not None else 0)
                self._at = 0 if lines is None else self.size - len(end)

    def read(self, *, whole_lines: bool) -> bytes:
        """What comes next, at most CHUNK bytes. With `whole_lines` a line waits for its end, unless it is longer."""
        data = _read(self._path, self._at)
        if end := data.rfind(b"\n") + 1:
            data = data[:end]
        elif whole_lines and len(data) < CHUNK:
            return b""
        self._at += len(data)
        if data:
            self.within_line = not data.endswith(b"\n")
        return data


def _last(data: bytes, lines: int) -> bytes:
    start = len(data) - data.endswith(b"\n")
    for _ in range(lines):
        start = data.rfind(b"\n", 0, start)
        if start < 0:
            return data
    return data[start + 1 :] if lines else b""


def _read(path: Path, at: int) -> bytes:
    file = _opened(path)
    if file is None:
        return b""
    with file:
        file.seek(at)
        return file.read(CHUNK)


def _opened(path: Path) -> BinaryIO | None:
    """A regular file; None for anything else, which a job may have put there."""
    try:
        return open(open_regular(path), "rb")  # noqa: PTH123 - a descriptor; closed by the caller
    except OSError:
        return None

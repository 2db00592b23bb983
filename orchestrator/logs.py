"""The output of a job: its end, or all of it as it is written. Memory does not grow with the file."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
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
        size = file.seek(0, os.SEEK_END)
        data, at = b"", size
        while at > 0 and len(data) < most and (lines is None or data.count(b"\n") <= lines):
            step = min(CHUNK, at, most - len(data))
            at -= step
            file.seek(at)
            data = file.read(step) + data
    if lines is not None:
        data = _last(data, lines)
    return data.decode(errors="replace")


async def follow(path: Path, over: Callable[[], bool], interval: float = 0.3) -> AsyncIterator[bytes]:
    """A file's bytes as they are written, until `over()` says that nothing more will come and all has been read."""
    at = 0
    while True:
        ends = over()  # asked before reading: what was written before the end is still sent
        data = await asyncio.to_thread(_read, path, at)
        at += len(data)
        if data:
            yield data
        elif ends:
            return
        else:
            await asyncio.sleep(interval)


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

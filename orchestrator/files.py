"""The contents of files that clients upload and batches write: one private folder, every name decided here."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import NotFound, not_written

_PART = ".part"  # of one that is not complete yet
_PIECE = 1024 * 1024  # bytes that are read or written in one go


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"


class Draft:
    """A content that is being written. Its methods may block: large ones are for a thread."""

    def __init__(self, file: BinaryIO, part: Path, path: Path) -> None:
        self._file, self._part, self._path = file, part, path

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        """All of it is on the disk, under its own name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.rename(self._path)


class Files:
    """By the id of a file, which is never what a client has called it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file_id: str) -> Path:
        return self._folder / file_id

    @contextmanager
    def writing(self, file_id: str) -> Iterator["Draft"]:
        """A content to be written. It is there when `finish` was called, else nothing is left of it.

        Raises what `not_written` makes of the file system's errors.
        """
        part = self.path(file_id + _PART)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(opened, "wb", buffering=_PIECE) as file:  # noqa: PTH123 - a descriptor, not a path
                yield Draft(file, part, self.path(file_id))
        except OSError as exc:
            raise not_written(part, exc) from exc
        finally:
            part.unlink(missing_ok=True)

    def opened(self, file_id: str) -> BinaryIO:
        """For reading. Raises NotFound."""
        try:
            return self.path(file_id).open("rb")
        except OSError as exc:
            raise NotFound(f"the content of file {file_id} cannot be read: {exc.strerror}") from exc

    async def pieces(self, file: BinaryIO) -> AsyncIterator[bytes]:
        """All that an open file has; it is closed at the end."""
        with file:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece

    def delete(self, file_id: str) -> None:
        self.path(file_id).unlink(missing_ok=True)

    def tidy(self, known: Collection[str]) -> None:
        """Remove what a crash has left: contents that no file has."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in known:
                    path.unlink(missing_ok=True)

"""A program beside us, started without a copy of ours.

uvloop starts programs by fork. That copies our page tables while the event loop stands still (7 ms with 150 MB, against
0.2 ms here), and runs Python in the child of a process that has threads, whose locks nobody opens there.
subprocess.Popen starts them by vfork, with nothing of Python in between.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO

_LIMIT = 64 * 1024  # bytes of a line, for who reads by lines
_REAP_SECONDS = 1.0  # a file system that hangs may hold a killed process for ever
_LOOK_SECONDS = (0.001, 0.05)  # between two looks whether it has ended: the first pause, and the longest


class NotHeard(Exception):
    """It was started, but there is no way to read what it prints."""


class Process:
    """Made by `started`. `stdout` and `stderr` are there as far as they are pipes."""

    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        # What is to be closed. A pipe is its transport's from when it has one.
        self._open: list[IO[bytes] | asyncio.ReadTransport] = [
            pipe for pipe in (popen.stdin, popen.stdout, popen.stderr) if pipe is not None
        ]

    async def connect(self, limit: int) -> None:
        """To its output. Raises NotHeard."""
        try:
            if self._popen.stdout is not None:
                self.stdout = await self._reader(self._popen.stdout, limit)
            if self._popen.stderr is not None:
                self.stderr = await self._reader(self._popen.stderr, limit)
        except OSError as exc:
            raise NotHeard(f"what it prints cannot be read: {exc}") from exc

    async def _reader(self, pipe: IO[bytes], limit: int) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=limit)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._open.remove(pipe)
        self._open.append(transport)
        return reader

    async def write(self, data: bytes) -> None:
        """To its stdin, which stays open. Raises ConnectionError when it has ended."""
        assert self._popen.stdin is not None
        await asyncio.to_thread(_write, self._popen.stdin.fileno(), data)

    async def communicate(self) -> tuple[bytes, bytes]:
        """All that it prints to stdout and stderr, once it has ended."""
        printed = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return printed

    async def wait(self) -> int:
        """Its exit status once it has ended, negative for the signal that has killed it.

        Looked for: what tells it at once (pidfd_open) is not there in the kernels of many clusters, and who has read
        its output to the end has hardly to wait.
        """
        pause, longest = _LOOK_SECONDS
        while (status := self._popen.poll()) is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        return status

    async def end(self) -> None:
        """Kill it with all its children, unless it has ended, and reap it unless the kernel holds it."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP_SECONDS):
                    await self.wait()

    def close(self) -> None:
        """All pipes."""
        for one in self._open:
            one.close()


@asynccontextmanager
async def started(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
    limit: int = _LIMIT,
) -> AsyncIterator[Process]:
    """`argv` in a session of its own; at the end of the `async with` it is killed if it has not ended.

    Raises OSError when it is not started, NotHeard. `environment`: None for ours. `limit`: bytes of a line of stdout.
    """
    popen = subprocess.Popen(  # noqa: ASYNC220 - it returns at once, see above
        argv, env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, bufsize=0, start_new_session=True
    )
    process = Process(popen)
    try:
        await process.connect(limit)
        yield process
    finally:
        try:
            await process.end()
        finally:
            process.close()


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

"""A program of ours beside us: it gets its task on stdin, says what went wrong on stdout, and ends when we do.

What downloads is one: huggingface_hub blocks a thread that nothing can end, and has one HTTP client for a process,
which here is the one of orchestrator.hub_client.
"""

import asyncio
import contextlib
import os
import signal
import sys
from typing import Self

MOST_WORDS = 64 * 1024  # bytes that are kept of what it says


class Child:
    """`python -m module`, opened by `async with`. Its stdin stays open: whoever reads its end there knows that we are
    gone, also after kill -9. Its own session, so that its children end with it."""

    def __init__(self, module: str, task: str) -> None:
        self._module, self._task = module, task

    async def __aenter__(self) -> Self:
        creating = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=MOST_WORDS,
                start_new_session=True,
            )
        )
        try:
            self._process = await asyncio.shield(creating)
        except asyncio.CancelledError:  # within the start of a process asyncio 3.11 would wait for ever
            self._process = await creating
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def words(self) -> tuple[int, list[str]]:
        """Give it its task and wait for its end: its exit status, and the last lines that it has said."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it has ended: its status says so
            self._process.stdin.write(self._task.encode() + b"\n")
            await self._process.stdin.drain()
        said: list[str] = []
        while line := await self._process.stdout.readline():
            said = [*said[-20:], line.decode(errors="replace").rstrip()]
        return await self._process.wait(), said

"""A program of ours beside us: it gets its task on stdin, says what went wrong on stdout, and ends when we do.

What downloads is one: huggingface_hub blocks a thread that nothing can end, and has one HTTP client for a process,
which here is the one of orchestrator.hub_client.
"""

import contextlib
import subprocess
import sys
from contextlib import AsyncExitStack
from typing import Self

from orchestrator.process import started

MOST_WORDS = 64 * 1024  # bytes that are kept of what it says


class Child:
    """`python -m module`, opened by `async with`. Its stdin stays open: whoever reads its end there knows that we are
    gone, also after kill -9. Its own session, so that its children end with it."""

    def __init__(self, module: str, task: str) -> None:
        self._module, self._task = module, task
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        argv, pipe, nothing = [sys.executable, "-m", self._module], subprocess.PIPE, subprocess.DEVNULL
        starting = started(argv, stdin=pipe, stderr=nothing, limit=MOST_WORDS)
        self._process = await self._opened.enter_async_context(starting)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def words(self) -> tuple[int, list[str]]:
        """Give it its task and wait for its end: its exit status, and the last lines that it has said."""
        with contextlib.suppress(ConnectionError):  # it has ended: its status says so
            await self._process.write(self._task.encode() + b"\n")
        said: list[str] = []
        while line := await self._process.stdout.readline():
            said = [*said[-20:], line.decode(errors="replace").rstrip()]
        return await self._process.wait(), said

"""What the system's ssh has to ask a person: it runs a small program for each question, which brings it to us."""

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

_MOST_QUESTION = 4096
_PROGRAM = """\
import socket, sys
with socket.socket(socket.AF_UNIX) as gateway:
    gateway.connect({path!r})
    gateway.sendall(sys.argv[1].encode("utf-8", "surrogateescape"))
    gateway.shutdown(socket.SHUT_WR)
    answer = b"".join(iter(lambda: gateway.recv(4096), b""))
sys.stdout.buffer.write(answer)
sys.exit(not answer)
"""

Answer = Callable[[str], Awaitable[str | None]]
"""A question in, what is to be said to it out; None for nobody."""


class Asking:
    """Within `async with`, what `environment` names puts a question of ssh to `answer`. `folder` is private."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self._folder, self._answer = folder, answer
        self._open: set[asyncio.Task[None]] = set()

    @property
    def environment(self) -> dict[str, str]:
        """DISPLAY is for OpenSSH before 8.4, which asks by a program only where there seems to be a screen."""
        return {"SSH_ASKPASS": str(self._folder / "ask"), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}

    async def __aenter__(self) -> Self:
        socket, program = self._folder / "ask.sock", self._folder / "ask"
        (self._folder / "ask.py").write_text(_PROGRAM.format(path=str(socket)))
        words = shlex.join([sys.executable, "-IS", str(self._folder / "ask.py")])
        program.write_text(f'#!/bin/sh\nexec {words} "$1"\n')
        program.chmod(0o700)
        self._server = await asyncio.start_unix_server(self._take, socket)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.forget()

    def forget(self) -> None:
        """The ssh that asked has ended; its program does not notice."""
        for task in self._open:
            task.cancel()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._reply(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = await reader.read(_MOST_QUESTION)
            answer = await self._answer(question.decode(errors="replace"))
            if answer is not None:
                writer.write(f"{answer}\n".encode("utf-8", "surrogateescape"))
        finally:
            writer.close()

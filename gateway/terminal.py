"""The terminal that the gateway was started at, for what only a person can answer."""

import asyncio
import os
import sys
import termios

_MOST_ANSWER = 4096


class Unanswered(Exception):
    """Nobody has answered."""


class Terminal:
    """`fd_in` and `fd_out` are standard input and standard error; tests give their own."""

    def __init__(self, fd_in: int = 0, fd_out: int = 2) -> None:
        self._in, self._out = fd_in, fd_out
        self._free = asyncio.Lock()

    @property
    def present(self) -> bool:
        """Is there one, and does it listen to us? A process in the background would be stopped by reading."""
        if not (os.isatty(self._in) and os.isatty(self._out)):
            return False
        try:
            return os.tcgetpgrp(self._in) == os.getpgrp()
        except OSError:  # a terminal, but not ours
            return False

    def say(self, text: str) -> None:
        """Show a server's words, without what would steer the terminal."""
        os.write(self._out, (plain(text) + "\n").encode())

    async def ask(self, prompt: str, *, echo: bool) -> str:
        """One line. Raises Unanswered at the end of the input."""
        async with self._free:
            os.write(self._out, plain(prompt).encode())
            before = termios.tcgetattr(self._in)
            try:
                if not echo:
                    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
                    termios.tcsetattr(self._in, termios.TCSAFLUSH, silent)
                return await self._line()
            finally:
                termios.tcsetattr(self._in, termios.TCSADRAIN, before)
                if not echo:
                    os.write(self._out, b"\n")

    async def _line(self) -> str:
        # No thread: a blocked one could not be ended, and the process would wait for it.
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._in, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._in)
        line = os.read(self._in, _MOST_ANSWER)  # the terminal gives whole lines
        if not line:
            raise Unanswered
        return line.decode(sys.stdin.encoding or "utf-8", "surrogateescape").rstrip("\r\n")


def plain(text: str) -> str:
    """Without control characters, which could move the cursor, retitle the window or answer for the user."""
    return "".join(char for char in text if char.isprintable() or char == "\n")

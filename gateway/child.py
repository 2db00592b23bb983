"""A child process in its own session, with its output in a file, that never outlives its `with`."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

_TERM_SECONDS = 10.0  # from TERM to KILL; both halves end within 5 s when asked


class ChildError(Exception):
    """A child ended by itself; the text has its last words."""


class Child:
    """`python -m module` with `environment`. The session of its own keeps the terminal's Ctrl-C from it."""

    def __init__(self, module: str, environment: dict[str, str], log: Path) -> None:
        self._module = module
        self._environment = environment
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_TERM_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises ChildError when it has ended."""
        if (status := self._process.poll()) is not None:
            raise ChildError(f"`python -m {self._module}` ended with status {status}. Its last words:\n{self.tail()}")

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def end_all_in(folder: Path) -> list[int]:
    """Kill what of our own still works in `folder` or below; return the process ids. The last resort, Linux only."""
    ended = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(folder) and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
                ended.append(int(entry.name))
        except OSError:  # gone meanwhile, or somebody else's
            continue
    return ended

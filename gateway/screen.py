"""What `sluice demo` shows: one line that changes on a terminal; in a pipe, a line for each thing that is new."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.status import Status

PIPE_SECONDS = 10.0  # between two lines about the same in a pipe


class Screen:
    """Writes to stdout, in colour where that is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)

    def say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator["Waiting"]:
        """Show `text` until the end of the `with`, or until something else is shown by what it gives."""
        if self._console.is_terminal:
            with self._console.status(escape(text)) as line:
                yield Waiting(self, text, line)
        else:
            self.say(text)
            yield Waiting(self, text, None)


class Waiting:
    """Counts the seconds and shows what is waited for."""

    def __init__(self, screen: Screen, text: str, line: Status | None) -> None:
        self._screen = screen
        self._shown = text
        self._line = line
        self._started = time.monotonic()
        self._said: tuple[str | None, float] = None, 0  # what the last line in a pipe was about, and when it was

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def show(self, text: str, about: str | None = None) -> None:
        """With `about` a pipe gets a line when that is another one, and else only now and then: numbers may run."""
        if self._line is not None:
            self._line.update(escape(f"{text} ({self.seconds:.0f} s)"))
        elif text != self._shown and self._is_news(about):
            self._screen.say(f"{text} ({self.seconds:.1f} s)")
            self._said = about, self.seconds
        self._shown = text

    def _is_news(self, about: str | None) -> bool:
        last, at = self._said
        return about is None or about != last or self.seconds - at >= PIPE_SECONDS

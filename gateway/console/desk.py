"""Where a command works: a client, a place for answers (stdout) and one for words about them (stderr)."""

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from gateway.client import ApiError, Client, ClientError, NotReachable
from gateway.console.tables import Column, plain, tabbed, table
from gateway.settings import SettingsError, address

FAILED, USAGE, NOT_NOW, NOT_FOUND, NOT_ALLOWED, INTERRUPTED = 1, 2, 3, 4, 5, 130
"""Exit statuses, explained in docs/cli.md."""

_OF_STATUS = {401: NOT_ALLOWED, 403: NOT_ALLOWED, 404: NOT_FOUND, 503: NOT_NOW}


@dataclass(frozen=True)
class Desk:
    """`as_json`: answers are the API's JSON."""

    client: Client
    as_json: bool
    out: Console
    err: Console

    @property
    def has_person(self) -> bool:
        """Somebody sees our words, and can answer a question."""
        return sys.stdin.isatty() and self.err.is_terminal

    def give(self, answer: Any, columns: Iterable[Column], rows: Iterable[Any]) -> None:
        """An answer; without JSON its `rows`."""
        shown = list(columns)
        if self.as_json:
            self.give_json(answer)
        elif self.out.is_terminal:
            self.out.print(table(shown, rows))
        else:
            self.write(tabbed(shown, rows))

    def give_text(self, answer: Any, text: str) -> None:
        """An answer whose text is all that a person wants of it."""
        if self.as_json:
            self.give_json(answer)
        else:
            self.write(f"{plain(text) if self.out.is_terminal else text}\n")

    def give_json(self, answer: Any) -> None:
        self.write(json.dumps(answer, indent=1, ensure_ascii=False) + "\n")

    def write(self, text: str) -> None:
        """Exactly this, at once."""
        self.out.file.write(text)
        self.out.file.flush()

    def say(self, text: str) -> None:
        self.err.print(plain(text), markup=False)


def at_desk(work: Callable[[Desk], int | None], url: str | None, as_json: bool = False) -> int:
    """Work at the gateway of the settings, or at `url`. The exit status; what went wrong is said on stderr."""
    out, err = Console(highlight=False), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        settled, key = address()
        with closing(Client(url or settled, key=key)) as client:
            return work(Desk(client, as_json, out, err)) or 0
    except (ClientError, SettingsError) as exc:
        err.print(f"sluice: {plain(str(exc))}", markup=False)
        return status_of(exc)
    except KeyboardInterrupt:
        err.print("sluice: interrupted", markup=False)
        return INTERRUPTED


def status_of(exc: ClientError | SettingsError) -> int:
    """The exit status of a failure."""
    if isinstance(exc, SettingsError):
        return USAGE
    if isinstance(exc, NotReachable):
        return NOT_NOW
    return _OF_STATUS.get(exc.status, FAILED) if isinstance(exc, ApiError) else FAILED

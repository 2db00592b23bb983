"""SIGINT, SIGTERM and SIGHUP as one exception, raised once, and only where nothing is left half done."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption(BaseException):
    """A signal asked for the end. `signum` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interruptions:
    """Within `with`, the signals are noted; within `allowed()`, the first of them raises Interruption.

    What is opened before `allowed()` and closed behind it is therefore always closed to the end, also when a second
    signal arrives while that is going on.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._noted: int | None = None

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._note) for signum in _SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self._allowed = True
        try:
            if self._noted is not None:
                raise Interruption(self._noted)
            yield
        finally:
            self._allowed = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = signum
        if self._allowed:
            self._allowed = False
            raise Interruption(signum)

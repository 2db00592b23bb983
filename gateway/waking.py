"""Has this machine slept? The connection may be dead then, and no timer of ours has noticed."""

import time
from collections.abc import Callable

_TOLERANCE_SECONDS = 3.0  # clocks are corrected by less, and a shorter sleep ends no connection

Clocks = tuple[float, float]
"""Seconds of a clock that stands still while the machine sleeps, and of one that does not."""


def _read_clocks() -> Clocks:
    # macOS has no CLOCK_BOOTTIME. There the time of day may be set, which costs one question too many.
    through = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()
    return time.monotonic(), through


class Waking:
    def __init__(self, clocks: Callable[[], Clocks] = _read_clocks) -> None:
        self._clocks = clocks
        self._last = clocks()

    def slept(self) -> float:
        """Seconds that the machine has slept since the last call; 0.0 for none, or too few to matter."""
        standing, through = self._clocks()
        seconds = (through - self._last[1]) - (standing - self._last[0])
        self._last = standing, through
        return seconds if seconds > _TOLERANCE_SECONDS else 0.0

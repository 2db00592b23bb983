"""Which Python of a login node the orchestrator runs under: pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OLDEST = (3, 11)
TESTED = (3, 14)  # the newest one with which packages with machine code are known to be there
BROUGHT = "3.12"  # what uv is asked for where there is none

Version = tuple[int, ...]


@dataclass(frozen=True)
class Python:
    """`module`: what must be loaded for it; then its path is only known afterwards, and is "" here."""

    path: str
    version: Version
    module: str = ""

    @property
    def named(self) -> str:
        return f"Python {'.'.join(map(str, self.version))} ({self.path or f'module {self.module}'})"


def choice(found: Iterable[Python], brought: Sequence[Python], mine: Version) -> Python | None:
    """The best of those that are new enough; None for none.

    One of the version that runs here comes first, because what is installed here may then be copied; then the newest,
    without those that are newer than tested, unless there is no other; one of a module last, because its libraries are
    not where a job looks for them; and among equals one that we brought.
    """
    usable = [one for one in (*brought, *found) if one.version[:2] >= OLDEST]
    if not usable:
        return None

    def rank(one: Python) -> tuple[bool, bool, bool, Version]:
        return not one.module, one.version[:2] <= TESTED, one.version[:2] == mine[:2], one.version

    return max(usable, key=rank)


def too_old(found: Iterable[Python]) -> str:
    """What there is instead, for a sentence."""
    old = [one.named for one in found if one.version[:2] < OLDEST]
    return f"there is only {', '.join(old)}" if old else "there is none"

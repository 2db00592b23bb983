"""What a check of a model or a job concludes: a level, a sentence, and what to do next."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it may fail
    ERROR = "error"  # it will fail
    UNKNOWN = "unknown"  # nothing can be said


@dataclass(frozen=True)
class Verdict:
    """`check` is one word for what was looked at; `next_step` is "" where there is nothing to do."""

    check: str
    level: Level
    message: str
    next_step: str = ""

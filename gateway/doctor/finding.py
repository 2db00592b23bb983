"""What a check has found: one line, and how to mend it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """`odd`: it works, but somebody should know. `unknown`: it could not be looked at; `words` say why."""

    WELL = "well"
    ODD = "odd"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """`check`: its name in docs/doctor.md. `words`: half a sentence. `fix`: what to do, "" where there is nothing."""

    check: str
    level: Level
    words: str
    fix: str = ""


def well(check: str, words: str) -> Finding:
    return Finding(check, Level.WELL, words)


def odd(check: str, words: str, fix: str) -> Finding:
    return Finding(check, Level.ODD, words, fix)


def broken(check: str, words: str, fix: str) -> Finding:
    return Finding(check, Level.BROKEN, words, fix)


def unknown(check: str, words: str, fix: str = "") -> Finding:
    return Finding(check, Level.UNKNOWN, words, fix)

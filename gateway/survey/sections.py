"""The script's output, cut into the answers to its questions. Pure; nothing in it can make this fail."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.survey.facts import Version

_MARK = "#sluice# "
_NUMBER = re.compile(r"([0-9]{1,18})[+*]?")
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})+")
LATE = "late"


@dataclass(frozen=True)
class Section:
    """`status`: the command's exit status, "late" when its time was over, "" when the output ends within it."""

    name: str
    status: str
    lines: Sequence[str]

    @property
    def good(self) -> bool:
        return self.status == "0"

    @property
    def last_words(self) -> str:
        return next((line.strip() for line in reversed(self.lines) if line.strip()), "")


@dataclass(frozen=True)
class Sections:
    """All of them, in their order. `trouble`: what the script says of itself; `whole`: it came to its end."""

    all: Sequence[Section]
    trouble: Sequence[str]
    whole: bool

    def named(self, name: str) -> list[Section]:
        return [one for one in self.all if one.name == name]

    def first(self, name: str) -> Section:
        """An empty one that failed, where there is none."""
        return next(iter(self.named(name)), Section(name, "1", ()))

    def values(self, name: str, key: str) -> Iterator[str]:
        """What stands behind `key=`, in each section of a name, line after line."""
        for section in self.named(name):
            for line in section.lines:
                found, equals, value = line.partition("=")
                if equals and found.strip() == key:
                    yield value.strip()

    def value(self, name: str, key: str) -> str:
        return next(self.values(name, key), "")

    def records(self, name: str, key: str, fields: int) -> Iterator[list[str]]:
        """The values of `key=a|b|c` in `fields` pieces; those with fewer are filled up with ""."""
        for value in self.values(name, key):
            pieces = value.split("|", fields - 1)
            yield pieces + [""] * (fields - len(pieces))


def sections(text: str) -> Sections:
    """What a login shell prints before the script begins is passed over."""
    found: list[Section] = []
    trouble: list[str] = []
    lines: list[str] = []
    name, whole = "", False
    for line in text.replace("\r\n", "\n").split("\n"):
        word, _, rest = line.removeprefix(_MARK).partition(" ") if line.startswith(_MARK) else ("", "", "")
        if word == "begin":
            name, lines = rest.strip(), []
        elif word == "end":
            found.append(Section(name, rest.strip(), tuple(lines)))
            name, lines = "", []
        elif word == "trouble":
            trouble.append(rest.strip())
        elif word == "complete":
            whole = True
        elif name:
            lines.append(line)
    if name:
        found.append(Section(name, "", tuple(lines)))
    return Sections(tuple(found), tuple(trouble), whole)


def number(text: str) -> int | None:
    """A whole number, also with Slurm's + or * behind it; None for anything else."""
    found = _NUMBER.fullmatch(text.strip())
    return int(found[1]) if found else None


def version(text: str) -> Version:
    """The first dotted number of a text: "slurm-wlm 22.05.8" → (22, 5, 8); () where there is none."""
    found = _VERSION.search(text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()

"""The curl commands of a Markdown document: text in, commands out. Nothing is run here.

Commands are read as bash and zsh both read them. What either would expand, redirect or join is refused, so that what is
tested is what a reader's shell would run.
"""

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

REPOSITORY = Path(__file__).parents[1]
OURS = (REPOSITORY / "docs" / "api.md", REPOSITORY / "docs" / "async.md")
DOCUMENTS = (*OURS, REPOSITORY / "tests" / "documents" / "server_api.md")
"""Those whose commands must do what they promise: our own, and the server API's, by which users wrote their scripts."""
_BLOCK = re.compile(r"^```bash[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
# Line by line what a shell sees: quotes may span lines, a comment may hold one quote.
PIECE = re.compile(
    r"""(?P<joined>\\\n) | (?P<end>\n) | (?P<comment>(?<!\S)\#[^\n]*) | (?P<single>'[^']*')
    | (?P<double>"(?:\\.|[^"\\])*") | (?P<plain>\\. | [^'"\\\n])""",
    re.VERBOSE | re.DOTALL,
)
_ACTIVE = frozenset("$`&|;<>()*?[]{}~!")


class CurlError(ValueError):
    """The document has a command that would not do everywhere what it shows."""


@dataclass(frozen=True)
class Curl:
    """One command. `line`: where it begins in the document; `path` is without the query."""

    document: str
    line: int
    argv: tuple[str, ...]
    method: str
    url: str
    headers: tuple[str, ...]
    body: str | None

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def query(self) -> str:
        return urlsplit(self.url).query


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CurlError(message)


def curls(document: str, text: str) -> list[Curl]:
    """All of a document's, in its order. `document`: its name, for the reader."""
    return [
        _curl(document, line, shlex.split(command))
        for line, command in _commands(document, text)
        if command.split(maxsplit=1)[0] == "curl"
    ]


def _commands(document: str, text: str) -> Iterator[tuple[int, str]]:
    """Each command of the bash blocks with its line; comments and continuations are gone."""
    for block in _BLOCK.finditer(text):
        command, line = "", 0
        for kind, piece, at in _pieces(document, text, block.start(1), block.end(1)):
            if kind == "end":
                if command.strip():
                    yield line, command
                command = ""
            elif kind not in ("comment", "joined"):
                line = line if command.strip() else text.count("\n", 0, at) + 1
                command += piece


def _pieces(document: str, text: str, at: int, end: int) -> Iterator[tuple[str, str, int]]:
    while at < end:
        found = PIECE.match(text, at, end)
        where = f"{document}:{text.count(chr(10), 0, at) + 1}"
        if found is None:
            raise CurlError(f"{where}: {text[at]} has no partner in its block; close it")
        kind, piece = str(found.lastgroup), found[0]
        if (kind == "plain" and piece in _ACTIVE) or (kind == "double" and set(piece) & set("$`!")):
            raise CurlError(f"{where}: a shell would act on one of {piece[:20]!r}; put it in single quotes")
        yield kind, piece, at
        at = found.end()


def _curl(document: str, line: int, argv: list[str]) -> Curl:
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("url")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data")
    parser.add_argument("-F", "--form", action="append", default=[])
    parser.add_argument("-N", "--no-buffer", action="store_true")
    try:
        known = parser.parse_args(argv[1:])
    except CurlError as exc:
        raise CurlError(f"{document}:{line}: {exc}; what is known here is one URL, -X, -H, -d, -F and -N") from exc
    method = known.request or ("GET" if known.data is None and not known.form else "POST")
    return Curl(document, line, tuple(argv), method, known.url, tuple(known.header), known.data)

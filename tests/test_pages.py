"""The pages: every command has a test or a reason, every example is what it says, every link leads somewhere."""

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from gateway.cli import app
from orchestrator.settings import Settings
from tests.cluster.cluster import describe
from tests.e2e.walking import Reader
from tests.pages import (
    ELSEWHERE,
    LANGUAGES,
    NOT_RUN,
    PAGES,
    ROOT,
    WALKED,
    Block,
    Command,
    begins_so,
    blocks,
    blocks_of,
    elsewhere,
    not_run,
    outside_of_fences,
    walked,
)


def first_words(one: Command) -> str:
    return f"{one.document}:{one.line} {one.text.splitlines()[0][:40]}"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
EXAMPLES = [block for block in BLOCKS if block.language != "bash"]
COMMANDS = [command for block in BLOCKS for command in block.commands]
HOSTS = {"", "on the laptop", "on the login node", "on the laptop and on the login node", "in a job", "as root"}

PAGE = """\
# A page

```bash title="on the login node"
# don't be misled by a quote here
one 'a
b'   # nor "here
two | \\
  three
four &&
  five
```

```toml
[site]
```
"""


def test_commands_are_complete() -> None:
    bash, toml = blocks("page.md", PAGE)
    assert [(one.line, one.text.splitlines()[0], one.host) for one in bash.commands] == [
        (5, "one 'a", "on the login node"),
        (7, "two | \\", "on the login node"),
        (9, "four &&", "on the login node"),
    ]
    assert (toml.language, toml.line, toml.commands) == ("toml", 14, [])
    with pytest.raises(ValueError, match="not complete"):
        _ = blocks("page.md", "```bash\necho 'a\n```\n")[0].commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_stands_in_fences_that_say_what_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    unknown = [(one.line, one.language) for one in blocks_of(page) if one.language not in LANGUAGES]
    assert unknown == []
    rest = outside_of_fences(text)
    assert "```" not in rest, "a fence without its end"
    assert re.findall(r"\n\n {4,}\S[^\n]*", rest) == [], "code by indentation: nobody runs that"


@pytest.mark.parametrize("command", COMMANDS, ids=first_words)
def test_every_command_is_run_or_has_a_reason(command: Command) -> None:
    assert command.host in HOSTS, "say where it is to be typed as the others do"
    assert not (elsewhere(command) and not_run(command))


def test_every_exception_is_one() -> None:
    for table in (ELSEWHERE, NOT_RUN):
        for begins in table:
            for word in re.split(r"\|(?![^(]*\))", begins):
                assert any(begins_so(command, word) for command in COMMANDS), f"no command begins with {word}"


@pytest.mark.parametrize("named", sorted({*ELSEWHERE.values()}))
def test_the_tests_that_are_named_are_there(named: str) -> None:
    path, _, name = named.partition("::")
    assert (ROOT / path).is_file()
    assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_greatest_part_is_walked_through() -> None:
    assert sum(len(walked(block)) for block in BLOCKS) > 60
    assert {page.name for page in PAGES} >= set(WALKED)


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda one: f"{one.document}:{one.line}")
def test_examples_are_what_they_say(block: Block) -> None:
    if block.language == "json":
        decoder, rest = json.JSONDecoder(), block.text.strip()
        while rest:
            _, end = decoder.raw_decode(rest)
            rest = rest[end:].strip()
    elif block.language == "yaml":
        assert yaml.safe_load(block.text)
    elif block.language == "python":
        assert ast.parse(block.text).body
    elif block.language == "toml":
        assert Settings(**tomllib.loads(block.text))


# What stands in a sentence

_WORDS = re.compile(r"`(sluice [^`]+)`")
SAID = sorted({found for page in PAGES for found in _WORDS.findall(outside_of_fences(page.read_text("utf-8")))})


@pytest.mark.parametrize("said", SAID)
def test_a_command_in_a_sentence_is_one(said: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in said.split()[1:]:
        if word.startswith("-"):
            known = {option for one in command.params for option in one.opts} | {"--help", "--install-completion"}
            assert word.partition("=")[0] in known, f"{said}: there is no {word}"
        elif hasattr(command, "commands"):
            names = [name for name in word.split("|") if name.isalpha() and name.islower()]
            assert names and all(name in command.commands for name in names), f"{said}: there is no {word}"
            command = command.commands[names[0]]


# Links

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.+)$", outside_of_fences(page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", head).replace("`", "") for head in heads)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_leads_to_a_place_that_is_there(page: Path) -> None:
    for link in _LINK.findall(outside_of_fences(page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target == ROOT / "docs" / "swagger" / "index.html" or target.is_file():
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"
        else:
            raise AssertionError(f"{page.name}: {link}: no such file")


# Walking


def test_the_command_that_fails_is_named(tmp_path: Path) -> None:
    reader = Reader(describe("a"), tmp_path, ids={"3652098": "7"})
    there = [Command("page.md", 3, "", "B=3652098"), Command("page.md", 4, "", 'echo "$B" | tr 7 8')]
    assert reader.type(there, "on the laptop") == "8\n"
    with pytest.raises(AssertionError, match=r"failed: page\.md:9"):
        reader.type([*there, Command("page.md", 9, "", "false | cat")], "on the laptop")
    with pytest.raises(AssertionError, match=r"failed: page\.md:5"):
        reader.type([Command("page.md", 5, "", "curl http://127.0.0.1:9/nobody")], "")

"""The pages of the documentation, and the commands in them: text in, commands out. Nothing is run here.

A command is what stands in a fence of `bash`. Each is run by a test: by walking through its page
(`tests/e2e/test_pages.py`, `tests/e2e/test_readme.py`), by another test that is named here, or not at all, for a reason
that stands here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.curls import DOCUMENTS, PIECE

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(
    r'^```(?P<language>\S*)(?: title="(?P<title>[^"\n]*)")?(?P<more>[^\n]*)\n(?P<text>.*?)^```[ \t]*$',
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"bash", "text", "json", "yaml", "toml", "python", "js", "jinja", "ini"}

WALKED = ("README.md", "site-offline.md", "tutorial.md")
"""Pages that tests/e2e/test_readme.py follows from nothing, in this order."""

_CURLS = "tests/e2e/test_curls.py::test_it_does_what_the_document_says"
ELSEWHERE = {
    r"make demo$": "tests/test_demo.py::test_once_prints_the_models_answer_and_leaves_nothing",
    r"ORCHESTRATOR_HOST=0\.0\.0\.0 sluice orchestrator": "tests/e2e/test_access.py",
    r"GATEWAY_ALLOWED_HOSTS=\S+ sluice gateway": "tests/gateway/test_gateway_hosts.py",
    r"ORCHESTRATOR_DATABASE_URL=|createuser|pip install 'sluicegate\[postgres\]'": "tests/test_postgres.py",
    r"make bench QUICK=1": "tests/test_bench.py",
    r"make soak SOAK_SECONDS=60": "tests/test_soak.py",
    r"export VAST_|export CONTROL_API_KEY=": "tests/e2e/test_curls.py",
    r"cli\.md: ": "tests/test_client.py::test_every_command_of_the_documentation",
    r"vast\.md: curl -X POST http://localhost:8001/v1/": "tests/test_vast_power_api.py",
    r"site-second-factor\.md: GATEWAY_CLUSTER=mycluster": "tests/gateway/test_second_factor.py",
    r"connect\.md: (sluice (dis)?connect|curl |pip install sluicegate )": "tests/e2e/test_connect.py",
    r"connect\.md: (python3 |~/sluicegate/bin/pip|sluice orch|GATEWAY_CLUSTER)": "tests/e2e/test_main_job.py",
    r"models\.md: sluice (models|images) ": "tests/e2e/test_prefetch.py",
    r"observability\.md: (pip install 'sluicegate\[otel\]'|export OTEL_|sluice gateway)": "tests/test_traces.py",
    r"make openapi ": "tests/test_openapi.py",
    r"make configuration ": "tests/test_configuration.py",
    r"make recordings ": "tests/e2e/test_recordings.py",
    r"make docs ": "tests/test_site.py",
    r"\S+ tests/cluster/cluster\.py ": "tests/cluster/test_cluster.py",
}
"""Commands (their beginnings, or behind the name of their page) that another test runs, in the settings that it has."""

NOT_RUN = {
    r"make (setup|unit|test|check|lock)\b": "this is what runs the tests, or needs a package index",
    r"\.venv/bin/pytest ": "this is what runs the tests",
    r"make bench-peers|make bench  |make soak  ": "half an hour each, on a machine that does nothing else",
    r"apptainer |export APPTAINER": "needs Apptainer and an image of 10 GB",
    r"mkdir -p /scratch": "a folder of the site",
    r"module load|python3 -m venv /scratch|/scratch/\S+/pip install vllm": "needs a site's modules, or gigabytes",
    r"pip install huggingface_hub|hf download|rsync ": "needs the Hugging Face Hub",
    r"sluice run /scratch/": "needs the folder that the lines before it bring",
    r"tailscale ": "needs an account at Tailscale",
    r"OPENAI_API_BASE=\S+ OPENAI_API_KEY=none aider": "a program of others, which waits for a person",
    r"useradd|python3 -m venv /opt|/opt/sluicegate/bin/pip|install -[dm]|systemctl|sudo -u sluicegate":
        "needs root and systemd; tests/test_workstation.py looks at the units",
    r"ssh hpc '(rm|loginctl)|rm -rf ~/\.cache/sluicegate/connect": "takes away what the tests' own users never have",
    r"sqlite3 ": "needs the program sqlite3, which is not ours",
    r"/path/to/vllm": "needs the vLLM that is to be read; tests/test_catalogue.py compares its list",
}  # fmt: skip
"""Commands (their beginnings) that no test can run, and why."""


@dataclass(frozen=True)
class Command:
    """`host`: the title of its fence, "" for the laptop; `line`: where it begins in the document."""

    document: str
    line: int
    host: str
    text: str


@dataclass(frozen=True)
class Block:
    """A fence. `line`: of its first line of text."""

    document: str
    line: int
    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[Command]:
        return list(_commands(self)) if self.language == "bash" else []


def blocks(document: str, text: str) -> list[Block]:
    return [
        Block(document, _line(text, found.start("text")), found["language"], found["title"] or "", found["text"])
        for found in _FENCE.finditer(text)
    ]


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def blocks_of(page: Path) -> list[Block]:
    return blocks(page.name, page.read_text(encoding="utf-8"))


def outside_of_fences(text: str) -> str:
    """The rest of a page, with as many lines."""
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def _commands(block: Block) -> Iterator[Command]:
    """Complete ones: quotes are closed, nothing is to follow behind a backslash, a pipe or `&&`."""
    begun: list[str] = []
    for offset, line in enumerate(block.text.splitlines()):
        if not begun and (not line.strip() or line.startswith("#")):
            continue
        begun.append(line)
        text = "\n".join(begun)
        if _is_complete(text):
            yield Command(block.document, block.line + offset + 1 - len(begun), block.title, text)
            begun = []
    if begun:
        raise ValueError(f"{block.document}:{block.line}: the last command is not complete: {begun[0]}")


def _is_complete(text: str) -> bool:
    at, bare = 0, ""
    while at < len(text):
        found = PIECE.match(text, at)
        if found is None:  # a quote without its partner, or a backslash at the end
            return False
        bare += "" if found.lastgroup == "comment" else found[0]
        at = found.end()
    return not bare.rstrip().endswith(("|", "&&", "\\"))


def is_curl_of_the_api(command: Command) -> bool:
    """Those that `tests/e2e/test_curls.py` runs."""
    return command.text.startswith("curl ") and command.document in {document.name for document in DOCUMENTS}


def elsewhere(command: Command) -> str | None:
    """The test that runs it, or None."""
    if is_curl_of_the_api(command):
        return _CURLS
    return _first(ELSEWHERE, command)


def not_run(command: Command) -> str | None:
    """Why no test runs it, or None."""
    return _first(NOT_RUN, command)


def walked(block: Block) -> list[Command]:
    """What is left to be run by walking through the page."""
    return [one for one in block.commands if elsewhere(one) is None and not_run(one) is None]


def _first(table: dict[str, str], command: Command) -> str | None:
    return next((said for begins, said in table.items() if begins_so(command, begins)), None)


def begins_so(command: Command, begins: str) -> bool:
    return any(re.match(begins, text) for text in (command.text, f"{command.document}: {command.text}"))

"""The dashboard's modules that touch no page, run by Node."""

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.dashboard.static_files import FOLDER

TESTS = Path(__file__).with_name("modules.test.mjs")


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """In a folder of its own: to Node a .js file is a module only where a package.json says so."""
    shutil.copytree(FOLDER, folder / "static")
    shutil.copy(TESTS, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    environment = os.environ | {"SNIPPETS": str(folder / "snippets.json")}
    argv = ["node", "--test", "--test-reporter=tap", TESTS.name]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    if shutil.which("node") is None:
        reason = "NO NODE, so the dashboard's modules are not tested: apt-get install nodejs"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("modules")
    done = run(folder)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout, folder


def test_modules(ran: tuple[str, Path]) -> None:
    told, _ = ran
    passed = re.search(r"^# pass (\d+)$", told, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= 60, told[-3000:]


def test_snippets_say_what_is_asked(ran: tuple[str, Path]) -> None:
    """The body of the curl is read by a real shell, the arguments of the Python by Python."""
    snippets: dict[str, Any] = json.loads((ran[1] / "snippets.json").read_text())
    printed = f'curl() {{ printf "%s\\0" "$@"; }}\n{snippets["curl"]}'
    words = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, timeout=10, check=True).stdout
    *_, flag, body, end = words.split("\0")
    assert (flag, end) == ("-d", "")
    assert json.loads(body) == snippets["body"]
    calls = [node for node in ast.walk(ast.parse(snippets["python"])) if isinstance(node, ast.Call)]
    create = next(call for call in calls if ast.unparse(call.func) == "client.chat.completions.create")
    assert {word.arg: ast.literal_eval(word.value) for word in create.keywords} == snippets["body"]

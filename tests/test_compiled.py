"""The data path as mypyc compiles it: it must do what its sources do, so the same tests run on both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.compiled import MODULES, lacking

pytestmark = [pytest.mark.system, pytest.mark.beside, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/wire", "tests/test_inference.py", "tests/test_quirks.py", "tests/test_routing.py", "tests/test_events.py",
    "tests/gateway/test_gateway_app.py", "tests/gateway/test_gateway_relay.py", "tests/gateway/test_paths.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> Path:
    """A copy of the project, compiled; the one of the last run where nothing has changed."""
    if why := lacking():
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(f"{why}; so the compiled data path is not tested")
    folder = ROOT / "build" / "compiled"
    words = [sys.executable, str(ROOT / "scripts" / "compiled.py"), str(folder)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


def test_it_passes_the_tests_of_its_sources(compiled: Path) -> None:
    """One test, or two processes would compile at once."""
    check_that_each_module_is_the_compiled_one(compiled)
    words = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(words, cwd=compiled, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-10_000:]


def check_that_each_module_is_the_compiled_one(compiled: Path) -> None:
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in MODULES]
    program = f"import importlib\nfor name in {names!r}: print(importlib.import_module(name).__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=compiled, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    files = done.stdout.split()
    assert len(files) == len(MODULES)
    assert all(file.endswith(".so") and Path(file).is_relative_to(compiled) for file in files), files

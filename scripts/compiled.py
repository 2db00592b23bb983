"""The data path as machine code: mypyc compiles the same sources, which run as they are without it, at half the speed.

    python scripts/compiled.py FOLDER           a copy of the project, its compiled modules beside their sources
    SLUICE_COMPILED=1 uv build --wheel          a wheel for this machine and this version of Python, instead of any

It needs a C compiler and the headers of Python (`apt-get install gcc libc6-dev python3-dev`).
"""

import argparse
import hashlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parents[1]
# What is called for each request or each token, and what that calls.
MODULES = (
    "orchestrator/wire/__init__.py", "orchestrator/wire/http1.py", "orchestrator/wire/server.py",
    "orchestrator/wire/mux.py", "orchestrator/wire/front.py", "orchestrator/wire/upstream.py",
    "orchestrator/wire/unchunked.py", "orchestrator/wire/bodiless.py",
    "orchestrator/replicas.py", "orchestrator/routing.py", "orchestrator/events.py",
    "orchestrator/inference.py", "orchestrator/dispatch.py",
    "gateway/guard.py", "gateway/door.py",
)  # fmt: skip
_COPIED = ("gateway", "orchestrator", "recipes", "openapi", "examples", "docs", "bench", "tests", "scripts")
_DIGEST = "compiled.digest"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/compiled.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the copy is made, or brought up to date")
    folder: Path = parser.parse_args().folder.absolute()
    if why := lacking():
        sys.stderr.write(f"compiled: {why}\n")
        return 1
    digest, marker = _digest(), folder / _DIGEST
    if not marker.exists() or marker.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        _copy(folder)
        compile_into(folder)
        marker.write_text(digest)
    return 0


def lacking() -> str:
    """What this machine would need, "" when it is there."""
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        return "NO C COMPILER: apt-get install gcc libc6-dev"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return (
        "" if headers.exists() else f"NO {headers}: apt-get install python3-dev, or use a Python that has its headers"
    )


def compile_into(folder: Path) -> list[Path]:
    """The compiled modules, at their places below `folder`. Reads the sources of this project."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    os.chdir(ROOT)
    scratch = folder / "compiling"
    options = ["--config-file=", "--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent"]
    cache = f"--cache-dir={scratch / 'mypy'}"
    extensions = mypycify([*options, cache, *MODULES], opt_level="3", debug_level="0", target_dir=str(scratch / "c"))
    command: Any = Distribution({"name": "sluicegate", "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder), str(scratch / "o")
    command.ensure_finalized()
    command.run()
    shutil.rmtree(scratch)
    return [Path(made) for made in command.get_outputs()]


def _copy(folder: Path) -> None:
    leave_out = shutil.ignore_patterns("__pycache__", "*.so", "results")
    for name in _COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, folder / file.name)


def _digest() -> str:
    """Of everything that is copied."""
    found = hashlib.sha256(sys.version.encode())
    files = [path for name in _COPIED for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts]
    for path in sorted([*files, *ROOT.iterdir()]):
        if path.is_file() and path.suffix != ".so" and "results" not in path.parts:
            found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()


class Compiled(BuildHookInterface[Any]):
    """hatchling's hook: adds the compiled modules to a wheel where SLUICE_COMPILED=1 asks for it."""

    PLUGIN_NAME = "custom"

    @property
    def _wanted(self) -> bool:
        return os.environ.get("SLUICE_COMPILED") == "1"

    def dependencies(self) -> list[str]:
        """What hatchling installs before it builds."""
        return ["mypy[mypyc]==2.4.1", "setuptools>=80"] if self._wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not self._wanted:
            return
        if why := lacking():
            raise RuntimeError(why)
        self._folder = Path(self.directory) / "compiled"
        for made in compile_into(self._folder):
            build_data["force_include"][str(made)] = str(made.relative_to(self._folder))
        build_data["pure_python"], build_data["infer_tag"] = False, True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._wanted:
            shutil.rmtree(self._folder)


if __name__ == "__main__":
    sys.exit(main())

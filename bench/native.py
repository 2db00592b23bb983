"""The load driver and the engine in C, compiled when their sources have changed."""

import os
import shutil
import subprocess
from pathlib import Path

_SOURCES = Path(__file__).parent
_BUILT = _SOURCES.parent / "build" / "bench"
_FLAGS = ("-O2", "-Wall", "-Wextra", "-std=gnu11")


class NoCompiler(Exception):
    """This machine has no C compiler."""


def driver() -> Path:
    return _compiled("driver")


def replica() -> Path:
    return _compiled("replica")


def _compiled(name: str) -> Path:
    """Raises NoCompiler."""
    program, source = _BUILT / name, _SOURCES / f"{name}.c"
    changed = max(source.stat().st_mtime, (_SOURCES / "wire.h").stat().st_mtime)
    if program.exists() and program.stat().st_mtime >= changed:
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler("NO C COMPILER, and the load driver is a C program: apt-get install gcc libc6-dev")
    _BUILT.mkdir(parents=True, exist_ok=True)
    new = program.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, *_FLAGS, "-o", new, source], check=True)
    new.rename(program)
    return program

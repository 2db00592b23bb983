"""The clients, each in an environment of its own outside the repository, made once from pinned versions.

They lie beside the other test environments (`tests/vllm/make.py`), in folders named after their pins.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vllm import make

HERE = Path(__file__).parent
UV = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
PROGRAMS = {
    "openai2": "openai_program.py",
    "openai3": "openai_program.py",
    "langchain": "langchain_program.py",
    "litellm": "litellm_program.py",
}
NODE = {"openai-node": "openai", "ai-sdk": "ai"}
ALL = ("curl", *PROGRAMS, *NODE)


def missing(client: str) -> str:
    """Why a client cannot run here, "" when it can."""
    wanted = {"curl": ("curl",)} | dict.fromkeys(NODE, ("node", "npm"))
    absent = [name for name in wanted.get(client, ()) if shutil.which(name) is None]
    return f"NO {' AND NO '.join(absent)}, so {client} is not tested" if absent else ""


def command(client: str) -> tuple[list[str], list[str]]:
    """What stands before and behind the base URL."""
    if client in PROGRAMS:
        return [str(python(client)), str(HERE / PROGRAMS[client])], []
    if client in NODE:
        return ["node", str(HERE / "node_program.mjs")], [NODE[client], str(_modules())]
    return [sys.executable, str(HERE / "curl_program.py")], []


def run(client: str, base_url: str, cases: list[dict[str, Any]], seconds: float = 100) -> dict[str, Any]:
    """What the client has seen of each case, by its name."""
    before, behind = command(client)
    proxies = ("http_proxy", "https_proxy", "all_proxy", "openai_api_key")
    environment = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    environment |= {"NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGCHAIN_TRACING_V2": "false"}
    words = [*before, base_url, *behind]
    told = json.dumps(cases)
    done = subprocess.run(words, input=told, capture_output=True, text=True, timeout=seconds, env=environment)
    assert done.returncode == 0, f"{client}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def python(client: str) -> Path:
    pins = HERE / f"{client}.txt"

    def build(part: Path) -> None:
        _call(UV, "venv", "--quiet", "--relocatable", "--python", make.SYSTEM_PYTHON, str(part))
        python = str(part / "bin" / "python")
        _call(UV, "pip", "install", "--quiet", "--link-mode=copy", "--python", python, "-r", str(pins))

    return _made(client, [pins], build) / "bin" / "python"


def _modules() -> Path:
    pins = [HERE / "package.json", HERE / "package-lock.json"]

    def build(part: Path) -> None:
        part.mkdir()
        for file in pins:
            shutil.copy(file, part)
        _call("npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(part))

    return _made("node", pins, build)


def _made(name: str, pins: list[Path], build: Callable[[Path], None]) -> Path:
    """The folder for these pins, built under another name: the right one appears when all is there."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in pins)).hexdigest()[:12]
    folder = make.cache() / f"client-{name}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        build(part)
        try:
            part.rename(folder)
        except OSError:  # another run was first
            shutil.rmtree(part)
    return folder


def _call(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=600)

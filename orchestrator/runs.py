"""Run folders: every file of a job has its name here and nowhere else.

HOME/runs/<submission id>/      0700
  job.sh                        the rendered script
  secrets.env                   0600, KEY=VALUE lines that the script sources
  stdout.log  stderr.log        the job's output
  endpoints.json                written by the script: on which node and ports its engines listen
  endpoints.N.json              the same of node N where the job has several
  exit.json                     written by the script's EXIT trap: how it ended
  claim  claim.N                made by the first job that runs the script, N: one file with its id
  guard/                        of vLLM's recipes: what asks for the engine's key
"""

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import not_written
from orchestrator.untrusted import open_folder, open_regular

# Larger ones are not ours: a user's job can write into its own run folder.
_MAX_JSON = 256 * 1024


@dataclass(frozen=True)
class Endpoint:
    """Where one engine of a job listens.

    `replica` is its number in the service, `gpus` its CUDA_VISIBLE_DEVICES ("" for none), `starts` how often it was
    started. `state` is the script's word: up, down (started again in a moment), failed (given up).
    """

    node: str
    port: int
    replica: int = 0
    gpus: str = ""
    starts: int = 1
    state: str = "up"


@dataclass(frozen=True)
class Endpoints:
    """The content of endpoints.json, of all nodes. `restarts`: from which start of a requeued job it is."""

    job_id: str
    restarts: int
    all: tuple[Endpoint, ...]


@dataclass(frozen=True)
class Exit:
    """The content of exit.json. `signal` is the name without SIG, "" when the script ended by itself."""

    job_id: str
    exit_code: int
    signal: str
    ended_at: datetime


@dataclass(frozen=True)
class RunFolder:
    """One job's folder. Reading is tolerant: a file that is absent, half-written or foreign reads as None."""

    path: Path

    @property
    def script(self) -> Path:
        return self.path / "job.sh"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets.env"

    @property
    def stdout(self) -> Path:
        return self.path / "stdout.log"

    @property
    def stderr(self) -> Path:
        return self.path / "stderr.log"

    def write(self, script: str, secrets: Mapping[str, str]) -> None:
        """Make the folder and put the script and the secrets there, readable by the owner only.

        Raises StateFull, or NotReady; then no folder is left.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = open_folder(self.path)
            try:
                os.fchmod(folder, 0o700)
                _write_private(folder, self.script.name, script)
                _write_private(
                    folder, self.secrets.name, "".join(f"{k}={shlex.quote(v)}\n" for k, v in secrets.items())
                )
            finally:
                os.close(folder)
        except OSError as exc:
            self.remove()
            raise not_written(self.path, exc) from exc

    def remove(self) -> None:
        """Of a job that was never recorded."""
        shutil.rmtree(self.path, ignore_errors=True)

    def read_secrets(self) -> dict[str, str]:
        """The content of secrets.env. Raises OSError when it cannot be read."""
        try:
            with open(open_regular(self.secrets), encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                pairs = [word.partition("=") for word in shlex.split(file.read())]
        except ValueError as exc:
            raise OSError(f"{self.secrets} is not what was written there: {exc}") from exc
        return {name: value for name, _, value in pairs}

    def read_endpoints(self) -> Endpoints | None:
        """The endpoints of all nodes, in the order of the replicas."""
        parts = [parse_endpoints(_read_json(path)) for path in sorted(self.path.glob("endpoints*.json"))]
        return together([part for part in parts if part is not None])

    def read_exit(self) -> Exit | None:
        return parse_exit(_read_json(self.path / "exit.json"))


def parse_endpoints(content: Any) -> Endpoints | None:
    """Endpoints out of decoded JSON, or None when it is not what the script writes."""
    try:
        node = str(content["node"])
        found = tuple(
            Endpoint(
                node=node,
                port=_between(1024, int(e["port"]), 65535),  # below: the system's own services, never an engine
                replica=int(e["replica"]),
                gpus=str(e.get("gpus", "")),
                starts=int(e.get("starts", 1)),
                state=str(e.get("state", "up")),
            )
            for e in content["endpoints"]
        )
        return Endpoints(job_id=str(content["job_id"]), restarts=int(content.get("restarts", 0)), all=found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def together(parts: Sequence[Endpoints]) -> Endpoints | None:
    """The parts that the nodes of a job have written, as one. A part of an earlier start is left out."""
    if not parts:
        return None
    newest = max(parts, key=lambda part: part.restarts)
    current = [part for part in parts if (part.job_id, part.restarts) == (newest.job_id, newest.restarts)]
    found = sorted((e for part in current for e in part.all), key=lambda e: e.replica)
    return Endpoints(job_id=newest.job_id, restarts=newest.restarts, all=tuple(found))


def parse_exit(content: Any) -> Exit | None:
    """An Exit out of decoded JSON, or None when it is not what the script writes."""
    try:
        return Exit(
            job_id=str(content["job_id"]),
            exit_code=_between(0, int(content["exit_code"]), 255),
            signal=str(content.get("signal") or ""),
            ended_at=datetime.fromtimestamp(int(content["ended_at"]), UTC),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError):
        return None


def _between(low: int, number: int, high: int) -> int:
    if not low <= number <= high:
        raise ValueError(number)
    return number


def _read_json(path: Path) -> Any:
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123 - a descriptor
            return json.loads(file.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return None


def _write_private(folder: int, name: str, text: str) -> None:
    """Write by rename, 0600 from the first byte, so that nobody ever sees half a file or an open one."""
    temporary = f"{name}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=folder)
    with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(text)
    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)

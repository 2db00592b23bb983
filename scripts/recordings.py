"""Record what `sluice` shows on a terminal, for the pages: `make recordings`. Needs the cluster of the tests.

The commands are real, on a terminal (pty) of their own; so is the cluster, and so is the small model that answers. The
engine that fails has vLLM's words. A status line, which changes on a terminal, is shown as it was at the moments that a
recording waits for. Ids are written as everywhere in the documentation; a test compares with times left out.
"""

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.cluster import Cluster, down, laptop_namespace, missing, up
from tests.e2e.deployment import Deployment, laptop_api, shared_python, unpacked_wheel, wait_for
from tests.vllm import make

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "recordings"
PLACES = {
    "run": ("docs/index.md", "docs/tutorial.md"),
    "failure": ("docs/troubleshooting.md",),
    "doctor": ("docs/doctor.md",),
}
"""Where each recording is shown, between its two comments."""
IDS = ("3652098", "3652099")
_COLUMNS = 110
_SECONDS = 60.0
_TOKEN = re.compile(r"\x1b\[(?P<numbers>[?0-9;]*)(?P<verb>[A-Za-z])|(?P<control>[\r\n])|(?P<text>[^\x1b\r\n]+)|\x1b")
_LIVE = re.compile(r"^[⠀-⣿] ")  # the status line begins with a spinner


class RecordingError(Exception):
    """A command did not show what its recording waits for."""


class Screen:
    """What a terminal shows of what it is sent, as far as rich makes use of it. Lines have no end."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = self._column = 0

    def feed(self, sent: str) -> None:
        for token in _TOKEN.finditer(sent):
            if token["text"]:
                self._write(token["text"])
            elif token["control"]:
                self._column = 0
                self._row += token["control"] == "\n"
                self.lines += [""] * (self._row + 1 - len(self.lines))
            elif token["verb"] == "A":
                self._row = max(0, self._row - int(token["numbers"] or 1))
            elif token["verb"] == "K":
                kept = "" if token["numbers"] == "2" else self.lines[self._row][: self._column]
                self.lines[self._row] = kept

    def _write(self, text: str) -> None:
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)


@dataclass
class Recording:
    """The lines so far. `reached`: what the login node's commands find, and where the gateway is."""

    environment: Mapping[str, str]
    lines: list[str] = field(default_factory=list)

    def run(self, command: str, moments: Mapping[str, Callable[[], None]] | None = None, status: int = 0) -> list[str]:
        """Run a command to its end; its lines. `moments`: what the status line is waited for to say, and then done."""
        screen, caught = Screen(), dict(moments or {})
        self.lines.append(f"$ {command}")
        began = len(self.lines)
        with _on_a_terminal(command, self.environment) as (process, near):
            deadline = time.monotonic() + _SECONDS
            while _read(near, screen):
                for words in list(caught):
                    if live := [line for line in screen.lines if _LIVE.match(line) and words in line]:
                        self.lines += [*_done(screen)[len(self.lines) - began - _lives(self.lines[began:]) :], live[-1]]
                        caught.pop(words)()
                if time.monotonic() > deadline:
                    raise RecordingError(f"{command} has shown only {screen.lines}; waited for: {[*caught]}")
            if process.wait(10) != status or caught:
                raise RecordingError(f"{command} ended with {process.returncode}: {screen.lines}; missed: {[*caught]}")
        done = _done(screen)
        self.lines += done[len(self.lines) - began - _lives(self.lines[began:]) :]
        return done

    def text(self, ids: tuple[str, ...]) -> str:
        """As wide as the terminal, with the ids of the documentation in place of `ids`."""
        text = "\n".join(_wrapped(line) for line in self.lines) + "\n"
        for ours, shown in zip(ids, IDS, strict=False):
            text = re.sub(rf"(?<![\w.:]){ours}(?!\w|-|[:.]\d| s\b| min\b)", shown, text)
        return text


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()))
    return "\n".join(textwrap.wrap(line, _COLUMNS, subsequent_indent=indent))


def _lives(lines: list[str]) -> int:
    return sum(bool(_LIVE.match(line)) for line in lines)


def _done(screen: Screen) -> list[str]:
    """The lines that do not change any more."""
    lines = [line.rstrip() for line in screen.lines if not _LIVE.match(line)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _read(near: int, screen: Screen) -> bool:
    """Show what has come; False at the end."""
    if not select.select([near], [], [], 0.1)[0]:
        return True
    try:
        sent = os.read(near, 65536)
    except OSError:  # the other end is closed
        return False
    screen.feed(sent.decode(errors="replace"))
    return bool(sent)


@contextmanager
def _on_a_terminal(command: str, environment: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    near, far = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-c", command], stdin=far, stdout=far, stderr=far, env=environment, start_new_session=True, cwd=ROOT
    )
    os.close(far)
    try:
        yield process, near
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(near)


@dataclass(frozen=True)
class Stage:
    """A deployment whose engines load for some seconds, and whose vLLM has not enough of a GPU's memory."""

    deployment: Deployment

    @classmethod
    def set_up(cls, deployment: Deployment) -> "Stage":
        one = deployment
        for name in ("crowded_engine.py", "fake_engine.py"):
            copy = one.cluster.root / name
            copy.write_bytes((ROOT / "tests" / name).read_bytes())
            copy.chmod(0o755)
        one.command_in(one.cluster.home / "sluicegate" / "bin")
        serve = one.site / "orchestrator/builtin_recipes/inference/llamacpp-cpu/serve.py"
        one.config = one.config[: one.config.index("[site.engines.vllm]")] + (
            f"[site.engines.vllm]\ncommand = {_slow('/usr/bin/python3', one.cluster.root / 'crowded_engine.py')}\n"
            f"[site.engines.llamacpp]\ncommand = {_slow(one.python, serve)}\n"
        )
        return cls(one)

    @property
    def environment(self) -> dict[str, str]:
        terminal = {"TERM": "xterm", "COLUMNS": str(_COLUMNS), "LINES": "40", "LANG": "C.UTF-8", "TZ": "UTC"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return terminal | {"PATH": path, "HOME": str(self.deployment.cluster.root)}

    @property
    def cluster(self) -> Cluster:
        return self.deployment.cluster

    def newest(self) -> str:
        with laptop_api() as api:
            return str(api.get("/api/v1/services", limit=1)[0]["id"])

    def fill(self) -> str:
        """Somebody else takes both nodes; the job's id."""
        words = ["sbatch", "--parsable", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600"]
        job = self.cluster.run("login", words, user=self.cluster.other, check=True).stdout.strip()
        wait_for(lambda: f"{job}|" in self.cluster.squeue() and "|RUNNING|" in self.cluster.squeue(), "they have them")
        return job

    def leave(self, job: str) -> None:
        self.cluster.run("login", ["scancel", job], user=self.cluster.other, check=True)


def _slow(*command: object) -> list[str]:
    """A command that takes as long as a model to be seen loading."""
    return ["/bin/sh", "-c", f'sleep 4; exec {shlex.join(map(str, command))} "$@"', "engine"]


def run(stage: Stage) -> str:
    """A model from the queue to its answer."""
    recording = Recording(stage.environment)
    job = stage.fill()
    moments: dict[str, Callable[[], None]] = {
        "position 1 in the queue; expected to start": lambda: stage.leave(job),
        "on node1": lambda: None,
    }
    recording.run("sluice run llamacpp-cpu", moments)
    service = stage.newest()
    shown = recording.run(f'sluice prompt {service} "Which city is the capital of France?" --temperature 0')
    assert "Paris" in "".join(shown), shown
    recording.run(f"sluice stop {service}")
    return recording.text((service,))


def failure(stage: Stage) -> str:
    """A model that is too large, why, and once more with what was advised."""
    recording = Recording(stage.environment)
    recording.run("sluice run Qwen/Qwen2.5-32B-Instruct --gpus 1", {"on node1": lambda: None}, status=1)
    failed = stage.newest()
    recording.run(f"sluice retry {failed}", {"on node1": lambda: None})
    again = stage.newest()
    recording.run(f"sluice stop {again}")
    return recording.text((failed, again))


def doctor(stage: Stage) -> str:
    """All is well; then Slurm's controller is away."""
    cluster = stage.cluster
    reached = {"GATEWAY_CLUSTER": cluster.alias, "GATEWAY_SSH_CONFIG": str(cluster.ssh_config),
               "GATEWAY_REMOTE_SOCKET": str(stage.deployment.socket)}  # fmt: skip
    recording = Recording(stage.environment | reached)
    recording.run("sluice doctor")
    cluster.stop_controller()
    try:
        recording.run("sluice doctor", status=1)
    finally:
        cluster.start_controller()
    text = recording.text(())
    for ours, shown in ((str(cluster.home), "/home/ada"), (cluster.user, "ada"), (str(cluster.root), "/home/ada"),
                        (cluster.hosts["login"], "192.0.2.7"), (sys.prefix, "/home/ada/sluicegate")):  # fmt: skip
        text = text.replace(ours, shown)
    return text


RECORDINGS: dict[str, Callable[[Stage], str]] = {"doctor": doctor, "run": run, "failure": failure}


def without_times(text: str) -> str:
    """What must be the same in every run: no numbers, no spinner, no line breaks, which numbers move."""
    return re.sub(r"\d+([.:-]\d+)*", "N", re.sub(r"[⠀-⣿]", "*", " ".join(text.split())))


def put(name: str, text: str) -> None:
    """Into its file, and into the pages that show it."""
    (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
    for place in PLACES[name]:
        page = ROOT / place
        page.write_text(shown_in(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def shown_in(page: str, name: str, text: str) -> str:
    """A page with the recording between its comments."""
    begin, end = (f"<!-- recording: {name}: {word} -->" for word in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise RecordingError(f"the page has no {begin} … {end}")
    return f"{before}{begin}\n\n```text\n{text}```\n\n{end}{after}"


@contextmanager
def staged(deployment: Deployment) -> Iterator[Stage]:
    """Both halves, the calling thread being on the laptop's network."""
    stage = Stage.set_up(deployment)
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
    try:
        yield stage
    finally:
        deployment.stop_gateway()
        deployment.stop_orchestrator()


def main() -> int:
    if reason := missing():
        sys.stderr.write(f"no cluster, so nothing can be recorded: {reason}\n")
        return 1
    cluster = up()
    try:
        installed = shared_python(make.cache()), unpacked_wheel(cluster.root)
        with laptop_namespace(cluster), staged(Deployment.of(cluster, installed)) as stage:
            for name, record in RECORDINGS.items():
                _keep(name, record(stage))
    finally:
        down(cluster)
    return 0


def _keep(name: str, text: str) -> None:
    """Times alone are no change."""
    before = FOLDER / f"{name}.txt"
    same = before.exists() and without_times(before.read_text(encoding="utf-8")) == without_times(text)
    put(name, before.read_text(encoding="utf-8") if same else text)


if __name__ == "__main__":
    sys.exit(main())

"""A reader who types what the pages show, on the host that the pages name: one bash for each block."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.cluster import Cluster, login_inside
from tests.pages import Command

LOGIN = "on the login node"
JOB = "in a job"
# A refusal is a failure; the words are as in a terminal.
_PRELUDE = """\
set -eE -o pipefail
curl() { command curl -q -sS --fail-with-body "$@"; }
# These look for their configuration in the home of /etc/passwd, whatever HOME says.
ssh() { command ssh -F ~/.ssh/config "$@"; }
scp() { command scp -F ~/.ssh/config "$@"; }
"""
_SECONDS = 250


@dataclass
class Reader:
    """`home` is theirs on the laptop; on the cluster they are its user. `ids`: for those that the documents write.

    `path` and `there`: what is before PATH on the laptop, and the environment on the cluster.
    """

    cluster: Cluster
    home: Path
    path: str = str(Path(sys.executable).parent)
    here: Mapping[str, str] = field(default_factory=dict)
    there: Mapping[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def at_home(self) -> None:
        """What the documents take for granted: `ssh mycluster` works."""
        (self.home / ".ssh").mkdir(parents=True)
        config = self.cluster.ssh_config.read_text().replace(f"Host {self.cluster.alias}\n", "Host mycluster\n")
        (self.home / ".ssh" / "config").write_text(config)

    def type(self, commands: list[Command], host: str) -> str:
        """What they print. Fails with the place of the first that fails."""
        if not commands:
            return ""
        script = _PRELUDE + "\n".join(f"at={one.document}:{one.line}\n{self._of_ours(one.text)}" for one in commands)
        script += "\n"
        traced = f"trap 'echo \"failed: $at\" >&2' ERR\n{script}"
        began = time.monotonic()
        done = self._run(traced, host)
        self.seconds[f"{commands[0].document}:{commands[0].line}"] = time.monotonic() - began
        assert done.returncode == 0, f"{host or 'laptop'}: {done.returncode}\n{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _of_ours(self, text: str) -> str:
        for written, ours in self.ids.items():
            text = re.sub(rf"\b{written}\b", ours, text)
        return text.replace("login1:", f"{login_inside(self.cluster)}:")

    def run(self, script: str, host: str) -> subprocess.CompletedProcess[str]:
        """Whatever becomes of it."""
        return self._run(self._of_ours(script), host)

    def _run(self, script: str, host: str) -> subprocess.CompletedProcess[str]:
        words = ["bash", "-c", script]
        if host in (LOGIN, JOB):
            place = "login" if host == LOGIN else "node1"
            return self.cluster.run(place, words, user=True, env=self.there, timeout=_SECONDS)
        return subprocess.run(
            words, env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=_SECONDS, check=False
        )

    @property
    def environment(self) -> dict[str, str]:
        """On the laptop: no settings of whoever runs the tests."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "ORCHESTRATOR_"))}
        return {**ours, "HOME": str(self.home), "PATH": f"{self.path}:{os.environ['PATH']}", **self.here}

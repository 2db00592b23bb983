"""The programs of others that ours is measured beside, and how to get them: `python -m bench.peers`."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.settings import cache_folder


@dataclass(frozen=True)
class Peer:
    """`package` is pip's, None for what comes with the system; `install` is what a person types."""

    name: str
    package: str | None
    install: str
    version_option: str = "--version"

    @property
    def environment(self) -> Path:
        """A virtual environment of its own: their dependencies are not ours."""
        return cache_folder() / "bench" / self.name

    def found(self) -> Path | None:
        if self.package is None:
            system = shutil.which(self.name, path=f"{os.environ['PATH']}:/usr/sbin")
            return Path(system) if system else None
        program = self.environment / "bin" / self.name
        return program if program.exists() else None

    def program(self) -> Path:
        found = self.found()
        if found is None:
            raise FileNotFoundError(f"{self.name} is not installed: {self.install}")
        return found

    def version(self) -> str:
        if self.package is None:
            told = subprocess.run([self.program(), self.version_option], capture_output=True, text=True)
            numbers = re.search(r"\d+\.\d+[.\w]*", told.stdout + told.stderr)
            return numbers[0] if numbers else "unknown"
        name = re.split(r"\W", self.package)[0].replace("-", "_")
        folders = self.environment.glob("lib/python*/site-packages/*.dist-info")
        wanted = self.package.partition("[")[0].replace("-", "_") + "-"
        found = [f.name.removesuffix(".dist-info").removeprefix(wanted) for f in folders if f.name.startswith(wanted)]
        return found[0] if found else f"unknown {name}"


NGINX = Peer("nginx", None, "apt-get install nginx-light", "-v")
SSH = Peer("ssh", None, "apt-get install openssh-client openssh-server", "-V")
VLLM_ROUTER = Peer("vllm-router", "vllm-router", "python -m bench.peers")
LITELLM = Peer("litellm", "litellm[proxy]", "python -m bench.peers")
ALL = (NGINX, SSH, VLLM_ROUTER, LITELLM)


def main() -> int:
    """Install what pip has; say what the system lacks."""
    uv = Path(sys.executable).with_name("uv")
    for peer in ALL:
        if peer.found() is None and peer.package is not None:
            subprocess.run([uv, "venv", "--quiet", peer.environment], check=True)
            python = peer.environment / "bin" / "python"
            subprocess.run([uv, "pip", "install", "--quiet", "--python", python, peer.package], check=True)
        print(f"{peer.name} {peer.version()}" if peer.found() else f"{peer.name} is missing: {peer.install}")
    return 0 if all(peer.found() for peer in ALL) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What is brought along: the wheel, its packages, a Python. Reads and packs what is here; blocks."""

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import Distribution
from pathlib import Path

from gateway.connect import packages, wheel
from gateway.connect.packages import Kind, NotHad
from gateway.connect.plan import Wanted
from gateway.settings import cache_folder

_KEPT = 3  # archives of packages, the newest


@dataclass(frozen=True)
class Bundle:
    """For one kind of machine. `name` of the version changes with every file of it and of its packages."""

    wheel: wheel.Wheel
    kind: Kind

    @cached_property
    def distributions(self) -> list[Distribution]:
        return list(packages.closure(self.wheel.requirements).values())

    @cached_property
    def pinned(self) -> str:
        return packages.pins(self.distributions)

    @property
    def wanted(self) -> Wanted:
        of_packages = packages.identity(self.pinned, self.kind)
        digest = sha256(f"{self.wheel.digest} {of_packages}".encode()).hexdigest()[:10]
        return Wanted(f"{self.wheel.version}-{digest}", self.wheel.version, of_packages)

    @property
    def incoming(self) -> bytes:
        """The wheel, and what an installer is told."""
        texts = {"requirements.txt": packages.plain(self.wheel.requirements), "constraints.txt": self.pinned}
        return packages.in_memory(
            {self.wheel.name: self.wheel.content} | {name: t.encode() for name, t in texts.items()}
        )

    @property
    def why_not_copied(self) -> str:
        """Why what is installed here does not run there, "" when it does."""
        return packages.why_not(packages.here(), self.kind, packages.tags_of(self.distributions))

    def copied(self) -> Path:
        """An archive of what is installed here, made once."""
        file = _archives() / f"{self.wanted.packages}.tar.gz"
        if not file.is_file():
            packages.copied(self.distributions, file)
            _forget(file)
        return file

    def fetched(self) -> Path:
        """An archive of what the index has for that kind of machine. Raises NotHad."""
        file = _archives() / f"{self.wanted.packages}.fetched.tar.gz"
        if not file.is_file():
            packages.fetched(packages.plain(self.wheel.requirements), self.pinned, self.kind, file)
            _forget(file)
        return file


def _archives() -> Path:
    folder = cache_folder() / "connect"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _forget(newest: Path) -> None:
    """Archives of former versions."""
    by_age = sorted(newest.parent.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in by_age[_KEPT:]:
        old.unlink(missing_ok=True)


def python_for(machine: str, version: str) -> Path:
    """An archive of a Python for a Linux machine, brought by this machine's uv. Raises NotHad."""
    uv = packages.program("uv")
    if uv is None:
        raise NotHad("uv is not here either; install it (pip install uv)")
    file = _archives() / f"python-{version}-{machine}.tgz"
    if file.is_file():
        return file
    with tempfile.TemporaryDirectory(prefix="sluice-python-") as name:
        done = subprocess.run(
            bringing(uv, machine, version, Path(name)), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip
        found = sorted(Path(name).glob(f"cpython-{version}.*/bin/python3"))
        if done.returncode or not found:
            words = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise NotHad(f"uv cannot bring Python {version} for {machine} from here: {words}")
        with packages.packing(file) as archive:
            archive.add(found[0].parents[1], ".", filter=packages.anybody)
    return file


def bringing(uv: str, machine: str, version: str, folder: Path) -> Sequence[str]:
    return [uv, "python", "install", "--install-dir", str(folder), f"cpython-{version}-linux-{machine}-gnu"]

"""Fetch the JavaScript of others that is kept in this repository, or checked by tests: from npm, by its integrity.

    .venv/bin/python scripts/vendor.py            what pages load, into gateway/dashboard/static/vendor

A package of another version: change the version and its integrity (`npm view NAME@VERSION dist.integrity`) below.
"""

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).parents[1] / "gateway/dashboard/static/vendor"
_SECONDS = 120


@dataclass(frozen=True)
class Package:
    """`files`: those that are wanted, by their paths in the package, and what they are called here."""

    name: str
    version: str
    integrity: str
    files: dict[str, str]


HTMX = Package(
    "htmx.org",
    "4.0.1",
    "sha512-oF7JgXhDW9UXCy/k1ZYFUQgzu/rm19ORWPSPNL91vPluB2PB9+MV55tyQdH/w7o2EAbTYUG5SDW1R60mdkdqGg==",
    {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "htmx.LICENSE.txt"},
)
UPLOT = Package(
    "uplot",
    "1.6.32",
    "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
    {"dist/uPlot.iife.min.js": "uPlot.min.js", "dist/uPlot.min.css": "uPlot.min.css", "LICENSE": "uPlot.LICENSE.txt"},
)
AXE = Package(  # for tests/browser alone
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    {"axe.min.js": "axe.min.js", "LICENSE": "axe.LICENSE.txt"},
)


class WrongPackage(Exception):
    """npm gave something else than what is written here."""


def fetch(package: Package, into: Path) -> None:
    """Put the package's files there. Raises WrongPackage, and CalledProcessError with npm's words."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"{package.name}@{package.version}"
        command = ["npm", "pack", wanted, "--silent", "--ignore-scripts", "--pack-destination", folder]
        subprocess.run(command, check=True, timeout=_SECONDS, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if f"sha512-{digest}" != package.integrity:
            raise WrongPackage(f"{wanted} is sha512-{digest}, not {package.integrity}")
        into.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as content:
            for path, name in package.files.items():
                member = content.extractfile(f"package/{path}")
                if member is None:
                    raise WrongPackage(f"{wanted} has no file {path}")
                (into / name).write_bytes(member.read())


if __name__ == "__main__":
    for package in (HTMX, UPLOT):
        fetch(package, STATIC)
        sys.stderr.write(f"{package.name} {package.version}: {', '.join(package.files.values())}\n")

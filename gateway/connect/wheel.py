"""This program as a wheel, made of the files that run: from an installation or a checkout, without a build tool.

It is pure Python also where the data path runs compiled: the machine that it is for may have another Python.
"""

import base64
import csv
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gateway
import orchestrator

DISTRIBUTION = "sluicegate"
_WHEEL = "Wheel-Version: 1.0\nGenerator: sluicegate\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_KEPT = ("METADATA", "entry_points.txt", "licenses/LICENSE")  # of the installation's own .dist-info
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip file has: the same files are the same wheel
_LEFT_OUT = {".so", ".pyc", ".pyd"}


class NotInstalled(Exception):
    """There is nothing to make a wheel of; the text says what to do."""


@dataclass(frozen=True)
class Wheel:
    """`requirements`: its own, as they stand in the metadata."""

    version: str
    content: bytes
    requirements: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{DISTRIBUTION}-{self.version}-py3-none-any.whl"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def running() -> Wheel:
    """The wheel of what runs here. Raises NotInstalled."""
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as exc:
        raise NotInstalled(
            f"{DISTRIBUTION} runs here without being installed; `pip install` it, also editable"
        ) from exc
    about = {name: text for name in _KEPT if (text := installed.read_text(name)) is not None}
    packages = Path(gateway.__file__).parent, Path(orchestrator.__file__).parent
    return wheel_of(orchestrator.__version__, sources(*packages), about)


def sources(gateway_folder: Path, orchestrator_folder: Path) -> dict[str, bytes]:
    """Path in the wheel → content. What a checkout has beside the packages is put where an installation has it."""
    files = dict(_below(gateway_folder, "gateway")) | dict(_below(orchestrator_folder, "orchestrator"))
    if "gateway/server-openapi.json" not in files:
        files["gateway/server-openapi.json"] = (gateway_folder.parent / "openapi/server-openapi.json").read_bytes()
    if not any(name.startswith("orchestrator/builtin_recipes/") for name in files):
        files |= dict(_below(orchestrator_folder.parent / "recipes", "orchestrator/builtin_recipes"))
    return files


def _below(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in _LEFT_OUT and "__pycache__" not in path.parts:
            yield f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def wheel_of(version: str, files: Mapping[str, bytes], about: Mapping[str, str]) -> Wheel:
    """Pure: the same in, the same bytes out. `about`: what belongs into .dist-info, METADATA with this version."""
    info = f"{DISTRIBUTION}-{version}.dist-info"
    metadata = _of_version(about["METADATA"], version)
    further = {"METADATA": metadata, "WHEEL": _WHEEL} | {
        name: text for name, text in about.items() if name != "METADATA"
    }
    members = dict(sorted(files.items())) | {f"{info}/{name}": text.encode() for name, text in sorted(further.items())}
    members[f"{info}/RECORD"] = record(members, f"{info}/RECORD")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = 0o644 << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return Wheel(version, buffer.getvalue(), tuple(_requirements(metadata)))


def record(members: Mapping[str, bytes], own: str) -> bytes:
    """The RECORD of a wheel: each file with its hash and size, itself without."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.writerow((name, f"sha256={digest}", len(content)))
    lines.writerow((own, "", ""))
    return text.getvalue().encode()


def _of_version(metadata: str, version: str) -> str:
    """An editable installation may have been made before the version was changed."""
    head, blank, body = metadata.partition("\n\n")
    lines = [f"Version: {version}" if line.startswith("Version: ") else line for line in head.splitlines()]
    return "\n".join(lines) + ("\n\n" if blank else "\n") + body


def _requirements(metadata: str) -> Iterator[str]:
    for line in metadata.partition("\n\n")[0].splitlines():
        if line.startswith("Requires-Dist: "):
            yield line.removeprefix("Requires-Dist: ")

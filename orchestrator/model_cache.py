"""The cache of huggingface_hub as jobs see it: which models are complete in it, and how files get into it.

    ROOT/models--OWNER--NAME/blobs/<hash>                     contents; a hash is SHA-256, or git's SHA-1 of small files
                             blobs/<hash>.<transfer>.incomplete   one that is on its way; no two transfers share it
                             snapshots/<commit>/<path>        links to them
                             refs/<revision>                  the commit of a branch or tag

The layout is the library's own; tests compare with it. Reading is tolerant: the folder is anybody's.
"""

import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from orchestrator.checkpoint import complete, loaded
from orchestrator.errors import Invalid, OrchestratorError, StateFull, not_written
from orchestrator.settings import Engine, Site

MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
ENGINES = ("vllm", "sglang")
"""Those that take their models from this cache."""

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REVISION = re.compile(r"[\w.-]{1,100}(/[\w.-]{1,100}){0,3}", re.ASCII)
_PIECE = 1 << 20
_SPARE = 1 << 30  # bytes that stay free: the file system is not ours alone
# Contents that are weights, whatever reads them; engines read those of `_READ`, the first kind that there is.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite",
            ".npz", ".ckpt", ".mlmodel")  # fmt: skip
_READ = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_NAMING = re.compile(r"--(tokenizer|speculative|lora|hf-config|draft|([a-z]+-)?revision)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)


class CachedFile(NamedTuple):
    """A file of a model: its path in it, its bytes, and the name of its content."""

    path: str
    size: int
    blob: str


class ModelCache:
    """The cache below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, model: str) -> Path:
        return self.root / f"models--{model.replace('/', '--')}"

    def blob(self, model: str, name: str) -> Path:
        return self.folder(model) / "blobs" / name

    def part(self, model: str, name: str, transfer: str) -> Path:
        return self.folder(model) / "blobs" / f"{name}.{transfer}.incomplete"

    def size_of_part(self, model: str, name: str, transfer: str) -> int:
        """Bytes of a content that have come so far."""
        return _size(self.part(model, name, transfer))

    def snapshot(self, model: str, revision: str = MAIN) -> Path | None:
        """The folder of a revision, None where there is none."""
        folder = self.folder(model)
        try:
            commit = revision
            if not COMMIT.fullmatch(revision):
                commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
            found = folder / "snapshots" / commit
            return found if COMMIT.fullmatch(commit) and found.is_dir() else None
        except (OSError, ValueError):
            return None

    def has(self, model: str, revision: str = MAIN) -> bool:
        """Whether an engine needs no network for a model. See `checkpoint.complete`."""
        try:
            return (found := self.snapshot(model, revision)) is not None and complete(found)
        except (OSError, OrchestratorError):
            return False  # what cannot be read here is no reason to keep a job from the hub

    def missing(self, model: str, files: Iterable[CachedFile]) -> list[CachedFile]:
        """Those whose contents are not here."""
        return [file for file in files if not self.blob(model, file.blob).is_file()]

    def arrived(self, model: str, files: Iterable[CachedFile], transfer: str) -> int:
        """Bytes of the files that are here, also of those that a transfer is still at."""
        return sum(
            file.size if self.blob(model, file.blob).is_file() else _size(self.part(model, file.blob, transfer))
            for file in files
        )

    def check_space(self, what: str, needed: int, *, reserved: int = 0) -> None:
        """Raises StateFull where so many bytes more would not fit. Quotas that `df` does not show show later.

        `reserved`: bytes that are free still, and will not be."""
        free = max(0, free_at(self.root) - reserved)
        if needed + _SPARE > free:
            raise StateFull(
                f"{what} needs {in_gb(needed)}, and {in_gb(free)} are free at {self.root}", "the cache of models"
            )

    def place(self, model: str, file: CachedFile, transfer: str) -> None:
        """Give a content that is complete its name. Raises Invalid for another one, which is deleted; blocks."""
        part = self.part(model, file.blob, transfer)
        try:
            if _size(part) != file.size or digest_of(part, file) != file.blob:
                part.unlink(missing_ok=True)
                raise Invalid(f"what came as {file.path} of {model} is something else; it was deleted, send it again")
            part.rename(self.blob(model, file.blob))
        except OSError as exc:
            raise not_written(part, exc) from exc

    def finish(self, model: str, revision: str, commit: str, files: Iterable[CachedFile]) -> Path:
        """Make the snapshot of files that are all here; then engines find them. Its folder."""
        folder, snapshot = self.folder(model), self.folder(model) / "snapshots" / commit
        try:
            for file in files:
                link = snapshot / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                target = os.path.relpath(self.blob(model, file.blob), link.parent)
                _replace(link, partial(Path.symlink_to, target=target))
            if revision != commit:
                ref = folder / "refs" / revision
                ref.parent.mkdir(parents=True, exist_ok=True)
                _replace(ref, lambda new: new.write_text(commit, encoding="ascii"))
        except OSError as exc:
            raise not_written(snapshot, exc) from exc
        return snapshot

    def discard(self, model: str, files: Iterable[CachedFile], transfer: str) -> None:
        """Remove what a transfer has left that nobody will go on with."""
        for file in files:
            self.part(model, file.blob, transfer).unlink(missing_ok=True)


def cache_of(
    site: Site, engine_name: str, cache_dir: Path, home: Path, own: Mapping[str, str] | None = None
) -> ModelCache:
    """The cache that the jobs of an engine use, as their script sets it. `own`: the variables of one service."""
    engine = site.engines.get(engine_name, Engine())
    environment = cache_variables(site, engine, cache_dir) | site.environment | engine.environment | dict(own or {})
    return ModelCache(root_of(environment, home))


def cache_variables(site: Site, engine: Engine, cache_dir: Path) -> dict[str, str]:
    """Where a job's engine caches, {} for its home. In docker and podman the engine has no home of its own."""
    if site.cache_dir is not None or (engine.runtime or site.runtime) in ("docker", "podman"):
        return {"HF_HOME": f"{cache_dir}/huggingface", "VLLM_CACHE_ROOT": f"{cache_dir}/vllm"}
    return {}


def transfer_of(kind: str, home: Path) -> str:
    """A name for what an orchestrator's transfers leave on their way: two orchestrators may have one cache."""
    return f"{kind}-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"


def root_of(environment: Mapping[str, str], home: Path) -> Path:
    """The folder that huggingface_hub uses in an environment (its constants.py)."""
    if named := environment.get("HF_HUB_CACHE"):
        return Path(named)
    if named := environment.get("HF_HOME"):
        return Path(named) / "hub"
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface" / "hub"


def is_hub_id(model: str) -> bool:
    return _HUB_ID.fullmatch(model) is not None and ".." not in model


def wants_more(words: Sequence[str]) -> bool:
    """Whether an engine's further arguments name something else that may be on the hub: a draft model, a LoRA, a
    tokenizer, another revision. Of other words only those without / , or with one in front, are certainly none."""
    values = (word.partition("=")[2] if word.startswith("-") else word for word in words)
    return any("/" in value and not value.startswith("/") for value in values) or any(map(_NAMING.match, words))


def chosen(files: Sequence[CachedFile], patterns: Sequence[str] = ()) -> list[CachedFile]:
    """What of a model is fetched: with `patterns` what one of them matches, else all but the weights that no engine
    would read: safetensors, or the next kind that there is. A model of parts in folders is fetched whole."""
    if patterns:
        return [file for file in files if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in patterns)]
    weights = {file.path for file in files if file.path.endswith(_WEIGHTS)}
    top = [name for name in weights if "/" not in name]
    kept = next((found for suffix in _READ if (found := loaded(top, suffix))), None)
    if kept is None:
        return list(files)
    return [file for file in files if file.path in kept or file.path not in weights]


def check_names(revision: str, commit: str, files: Iterable[CachedFile]) -> None:
    """Raises Invalid for what could become a path elsewhere."""
    if not _REVISION.fullmatch(revision) or ".." in revision or "." in revision.split("/"):
        raise Invalid(f"{revision[:200]!r} is not a revision; it is a branch, a tag or a commit, such as main")
    if not COMMIT.fullmatch(commit):
        raise Invalid(f"{commit[:200]!r} is not a commit of 40 hexadecimal digits")
    for file in files:
        parts = file.path.split("/")
        if not file.path.isprintable() or len(file.path) > 500 or {"", ".", ".."} & set(parts) or "\\" in file.path:
            raise Invalid(f"{file.path[:200]!r} is not the path of a file of a model")
        if not _BLOB.fullmatch(file.blob) or not 0 <= file.size < 1 << 50:
            raise Invalid(f"{file.path} has no size and hash that can be: {file.size}, {file.blob[:80]!r}")


def digest_of(path: Path, file: CachedFile) -> str:
    """The name that the content of `path` has. git's begins with a header."""
    digest = hashlib.sha256() if len(file.blob) == 64 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def free_at(path: Path) -> int:
    """Bytes that are free where `path` is, or will be. Raises what `not_written` makes of the file system's errors."""
    there = next(one for one in (path, *path.parents) if one.exists())
    try:
        return shutil.disk_usage(there).free
    except OSError as exc:
        raise not_written(there, exc) from exc


def in_gb(size: float) -> str:
    """15_231_271_888 → "15.2 GB", 4_000_000 → "4.0 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file beside `path` and put it in its place, so that readers see the old one or the new one."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new.unlink(missing_ok=True)
    make(new)
    new.rename(path)

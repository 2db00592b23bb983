"""A model as its files describe it: config.json, the headers of its weights. Read from a folder; the hub's are read by
orchestrator.hub.

The files may be anybody's, so that what is read of each is bounded, and nothing in it is believed. Links are followed:
the cache of huggingface_hub consists of them.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.errors import Invalid, NotFound

JSON = dict[str, Any]
CONFIG, MODELOPT, INDEX = "config.json", "hf_quant_config.json", "model.safetensors.index.json"
PYTORCH_INDEX = "pytorch_model.bin.index.json"

_MOST_JSON = 4 << 20  # of one file: the largest config.json known has 200 KB
_MOST_INDEX = 32 << 20
_MOST_HEADER = 100_000_000  # of a safetensors file, by its own definition
_MOST_HEADERS = 256 << 20  # of all of a model's
_MOST_FILES = 2000
_GGUF = b"GGUF"
_TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model",
                         "sentencepiece.bpe.model", "tiktoken.model"})  # fmt: skip
_PART = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.")


@dataclass(frozen=True)
class Checkpoint:
    """`where` is said to people. `weights`: bytes, None where they are not known; `dtypes`: the same by the names of
    the safetensors format; `missing`: files that the index names and that are not there; `gguf`: there are only GGUFs.
    """

    where: str
    config: JSON = field(default_factory=dict)
    modelopt: JSON = field(default_factory=dict)
    weights: int | None = None
    dtypes: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    gguf: bool = False

    @property
    def architectures(self) -> tuple[str, ...]:
        given = self.config.get("architectures")
        return tuple(name[:200] for name in given if isinstance(name, str)) if isinstance(given, list) else ()


def read_checkpoint(path: Path) -> Checkpoint:
    """The model in a folder, or in one GGUF file. Raises NotFound where there is none, Invalid for files that are not
    what their names say."""
    try:
        if path.is_file():
            return _single(path)
        if not path.is_dir():
            raise NotFound(f"there is no model at {path}, as far as this machine sees")
        return _folder(path)
    except OSError as exc:
        raise NotFound(f"the model at {path} cannot be read: {exc.strerror or exc}") from exc


def _single(path: Path) -> Checkpoint:
    with _opened(path) as (file, size):
        if file.read(4) != _GGUF:
            raise Invalid(f"{path} is a file, but no GGUF; a model of another kind is a folder")
    return Checkpoint(str(path), weights=size, gguf=True)


def _folder(path: Path) -> Checkpoint:
    names = _names(path)
    config = _read_json(path / CONFIG, _MOST_JSON) if CONFIG in names else {}
    modelopt = _read_json(path / MODELOPT, _MOST_JSON) if MODELOPT in names else {}
    index = _read_json(path / INDEX, _MOST_INDEX) if INDEX in names else {}
    tensors = loaded(names, ".safetensors")
    missing = _missing(index, names)
    if tensors or missing:
        dtypes = _measured([path / name for name in tensors])
        weights = _total(index) if missing else sum(dtypes.values())
        return Checkpoint(str(path), config, modelopt, weights, dtypes, missing)
    pytorch = loaded(names, ".bin")
    ggufs = loaded(names, ".gguf")
    if not config and not pytorch and not ggufs:
        raise NotFound(f"{path} holds no model: neither {CONFIG} nor weights")
    weights = sum((path / name).stat().st_size for name in pytorch) or None
    if weights is None and len(ggufs) == 1:
        weights = (path / ggufs[0]).stat().st_size
    return Checkpoint(str(path), config, modelopt, weights, gguf=bool(ggufs) and not pytorch)


def complete(path: Path) -> bool:
    """Whether a folder has all that an engine without a network would look for: a config.json without the code of
    another repository, the weights that their index names, or all parts of them, and a tokenizer.

    Raises OSError and Invalid where it cannot be read. A link to a content that is not there says that more is to come.
    """
    names = _names(path)
    broken = any(not (path / name).exists() for name in names)
    if broken or CONFIG not in names or names.isdisjoint(_TOKENIZERS):
        return False
    code = _read_json(path / CONFIG, _MOST_JSON).get("auto_map")
    if code is not None and "--" in json.dumps(code):  # as in "owner/name--modeling.Model"
        return False
    for suffix, index in ((".safetensors", INDEX), (".bin", PYTORCH_INDEX)):
        if index in names:
            return not _missing(_read_json(path / index, _MOST_INDEX), names)
        if weights := loaded(names, suffix):
            parts = {(part[1], part[2]) for name in weights if (part := _PART.search(name))}
            return all(len(parts) == int(of) for _, of in parts)
    return False


def loaded(names: Iterable[str], suffix: str) -> list[str]:
    """The files of weights that an engine loads: not those in folders, nor Mistral's second copy (consolidated*)."""
    found = sorted(name for name in names if name.endswith(suffix) and "/" not in name)
    return [name for name in found if not name.startswith("consolidated")] or found


def _names(path: Path) -> set[str]:
    with os.scandir(path) as entries:
        found = {entry.name for entry, _ in zip(entries, range(_MOST_FILES + 1), strict=False)}
    if len(found) > _MOST_FILES:
        raise Invalid(f"{path} has more than {_MOST_FILES} files; name the folder of the model itself")
    return found


def _missing(index: JSON, names: set[str]) -> tuple[str, ...]:
    files = index.get("weight_map")
    wanted = {name for name in files.values() if isinstance(name, str)} if isinstance(files, dict) else set()
    return tuple(sorted(wanted - names))


def _total(index: JSON) -> int | None:
    metadata = index.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(size) if isinstance(size, int | float) and 0 < size < 1e18 else None


def _measured(paths: list[Path]) -> dict[str, int]:
    """Bytes of tensors by dtype, as the headers of some safetensors files say it."""
    found: dict[str, int] = {}
    left = _MOST_HEADERS
    for path in paths:
        header, size = read_header(path, left)
        left -= size
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            dtype, length = _tensor(path, tensor)
            found[dtype] = found.get(dtype, 0) + length
    return found


def read_header(path: Path, most: int = _MOST_HEADER) -> tuple[JSON, int]:
    """The header of a safetensors file and its size: 8 bytes that say how long it is, little-endian, then JSON.

    Raises Invalid for a file of another kind, and for more than `most` bytes.
    """
    with _opened(path) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, most, _MOST_HEADER):
            raise Invalid(f"{path} is no safetensors file, or only a part of one")
        return _parsed(path, file.read(length)), length


def _tensor(path: Path, tensor: Any) -> tuple[str, int]:
    try:
        start, end = tensor["data_offsets"]
        length = int(end) - int(start)
        dtype = str(tensor["dtype"])[:20]
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise Invalid(f"{path} is no safetensors file: {exc!r} in its header") from exc
    if not 0 <= length < 1 << 60:
        raise Invalid(f"{path} is no safetensors file: a tensor of {length} bytes")
    return dtype, length


def _read_json(path: Path, most: int) -> JSON:
    with _opened(path) as (file, size):
        if size > most:
            raise Invalid(f"{path} has {size} bytes; more than {most} are not read")
        return _parsed(path, file.read(most))


def _parsed(path: Path, content: bytes) -> JSON:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise Invalid(f"{path} is no JSON: {str(exc)[:200]}") from exc
    if not isinstance(found, dict):
        raise Invalid(f"{path} holds no JSON object")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. Raises Invalid for a pipe or a device, which would make us wait."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Invalid(f"{path} is not a regular file")
        yield file, status.st_size

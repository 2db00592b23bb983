"""What a target is, and the cutting of its input into pieces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
CRASHERS = HERE / "crashers"


@dataclass(frozen=True)
class Target:
    """`run` raises for an input that shows a bug. `words`: what mutations put in, beside bytes."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()
    longest: int = 4096  # bytes of an input


def names() -> list[str]:
    """All targets, by the names of their modules."""
    return sorted(path.stem for path in (HERE / "targets").glob("*.py") if path.stem != "__init__")


def load(module: str) -> Target:
    target = import_module(module).TARGET
    assert isinstance(target, Target), module
    return target


def kept(name: str) -> list[Path]:
    """The crashers of a target."""
    return sorted((CRASHERS / name).glob("*"))


def cut(data: bytes) -> list[bytes]:
    """An input that is received in pieces: a number of sizes, the sizes, and what is cut by them."""
    if not data:
        return []
    number = data[0] % 16
    sizes, content = data[1 : 1 + number], data[1 + number :]
    pieces = []
    for size in sizes:
        pieces.append(content[:size])
        content = content[size:]
    return [piece for piece in (*pieces, content) if piece]


def uncut(content: bytes, *sizes: int) -> bytes:
    """The input that `cut` makes the pieces of."""
    return bytes([len(sizes), *sizes]) + content

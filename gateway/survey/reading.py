"""The script, and its output as a Survey."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.survey.facts import (
    Index,
    Installed,
    Limits,
    Modules,
    OwnJob,
    Process,
    Program,
    Python,
    Sessions,
    Survey,
)
from gateway.survey.sections import LATE, Section, Sections, number, sections, version
from gateway.survey.slurm import slurm
from gateway.survey.storage import places

SCRIPT = Path(__file__).with_name("survey.sh").read_text(encoding="utf-8")

_MODULE = re.compile(r"[A-Za-z0-9_][\w.+/-]*")
_MODULE_PYTHON = re.compile(r"(?:^|/)(?:cray-|intel-)?python3?/(?P<version>[0-9]+(?:\.[0-9]+)+)", re.IGNORECASE)
_LIMIT = re.compile(r"(?P<name>Max [a-z ]+?) {2,}(?P<soft>\S+)")
_ENDLESS = 2**60  # cgroups of version 1 write "unlimited" as a number that is larger


def read(text: str) -> Survey:
    """What SCRIPT has printed, also cut off or with a login shell's words around it. Never raises."""
    found = sections(text)
    modules = _modules(found)
    return Survey(
        host=found.value("host", "host"),
        user=found.value("host", "user"),
        home=found.value("host", "home"),
        shell=found.value("host", "shell"),
        system=found.value("host", "system"),
        machine=found.value("host", "machine"),
        glibc=_glibc(found.value("host", "glibc")),
        clock=number(found.value("host", "clock")),
        cpus=number(found.value("host", "cpus")),
        groups=tuple(found.value("host", "groups").split()),
        login_path=_login_path(found),
        needs_login_shell=bool(found.named("slurm-version")) and not found.value("login", "plain-sinfo"),
        pythons=(*_pythons(found), *_module_pythons(modules)),
        uv=next((Program("uv", path, words) for path, words in found.records("uv", "uv", 2)), None),
        index=_index(found),
        slurm=slurm(found),
        modules=modules,
        containers=tuple(_containers(found)),
        images=tuple(dict.fromkeys(found.values("place", "image"))),
        vllm=tuple(Program("vllm", path, words) for path, words in found.records("vllm", "vllm", 2)),
        gpus=tuple(found.values("gpus", "gpu")),
        token_file=found.value("token", "token"),
        places=places(found),
        sessions=_sessions(found),
        limits=_limits(found),
        installed=tuple(_installed(found)),
        socket=found.value("orchestrator", "socket"),
        process=_process(found),
        job=_job(found),
        trouble=tuple(_trouble(found)),
    )


def _trouble(found: Sections) -> Iterator[str]:
    yield from found.trouble
    for section in found.all:
        if section.status == LATE:
            yield f"{section.name}: no answer in time"
    if not found.whole:
        yield "the output ends before the script does"


def _login_path(found: Sections) -> str:
    lines = found.first("login").lines
    return next((line.removeprefix("sluice-path:") for line in lines if line.startswith("sluice-path:")), "")


def _glibc(words: str) -> tuple[int, ...] | None:
    """None for another C library, such as musl, whose ldd has no version in its first line."""
    return version(words) or None if re.search("glibc|gnu", words, re.IGNORECASE) else None


# Programs


def _pythons(found: Sections) -> Iterator[Python]:
    """Each interpreter once, by the first path that leads to it."""
    seen = set()
    for path, numbers, venv, whole, real in found.records("python", "python", 5):
        if version(numbers) and (real or path) not in seen:
            seen.add(real or path)
            yield Python(path, version(numbers), "", venv == "1", whole == "1")


def _module_pythons(modules: Modules | None) -> Iterator[Python]:
    for name in modules.names if modules else ():
        one = _MODULE_PYTHON.search(name)
        if one:
            yield Python("", version(one["version"]), name)


def _index(found: Sections) -> Index | None:
    url = found.value("index", "url")
    if not url:
        return None
    status = number(found.value("index", "status"))
    if status:
        return Index(url, True, f"HTTP {status}")
    said = [line for line in found.first("index").lines if line.strip() and not line.startswith(("url=", "status="))]
    return Index(url, False, said[-1].strip() if said else "no answer")


def _containers(found: Sections) -> Iterator[Program]:
    for name, path, works, words in found.records("container", "container", 4):
        yield Program(name, path, words, works == "1")


def _installed(found: Sections) -> Iterator[Installed]:
    seen = set()
    for path, words in found.records("installed", "installed", 2):
        if path not in seen:
            seen.add(path)
            yield Installed(path, words.removeprefix("sluice ") if words.startswith("sluice ") else "")


def _process(found: Sections) -> Process | None:
    record = next(found.records("orchestrator", "process", 4), None)
    if record is None or (pid := number(record[1])) is None:
        return None
    return Process(record[0], pid, record[2] == "1", record[3] == "1")


def _job(found: Sections) -> OwnJob | None:
    """`NUMBER|HOLDS|STATE|NODE|REASON|WORDS`."""
    record = next(found.records("orchestrator", "job", 6), None)
    if record is None or number(record[0]) is None:
        return None
    return OwnJob(record[0], record[1] == "1", *record[2:])


# Modules


def _modules(found: Sections) -> Modules | None:
    section = found.first("modules")
    if not any(line.startswith(("lmod=", "tmod=")) for line in section.lines):
        return None
    lmod = found.value("modules", "lmod")
    words = " ".join(found.values("modules", "version"))
    names = tuple(_names(found.first("module-names")))
    return Modules(
        kind="lmod" if lmod else "environment-modules",
        version=lmod or ".".join(str(part) for part in version(words)),
        init=found.value("modules", "init"),
        names=names,
        hidden=tuple(name for name in _names(found.first("module-spider")) if name not in names),
    )


def _names(section: Section) -> Iterable[str]:
    """Of `module -t avail`: folders end with a colon, families with a slash, defaults with a word in brackets."""
    found: dict[str, None] = {}
    for line in section.lines:
        name = line.partition("(")[0].strip().rstrip("@")
        if _MODULE.fullmatch(name) and not name.endswith("/"):
            found[name] = None
    return found


# Sessions and limits


def _sessions(found: Sections) -> Sessions:
    manager = found.value("sessions", "manager")
    lingers = found.value("sessions", "Linger")
    bus = found.value("sessions", "bus").removeprefix("b ")
    words = bus if bus in ("true", "false") else [*found.values("sessions", "KillUserProcesses"), ""][-2:][0]
    return Sessions(
        systemd_user=manager in ("running", "degraded", "starting", "initializing"),
        lingers=None if not lingers else lingers == "yes",
        kills=None if not words else words.lower() in ("true", "yes", "on", "1"),
        tmux=bool(found.value("sessions", "tmux")),
    )


def _limits(found: Sections) -> Limits:
    told = {}
    for line in found.first("limits").lines:
        if one := _LIMIT.match(line):
            told[one["name"]] = number(one["soft"])
    cgroup = [size for text in found.values("cgroup", "memory.max") if (size := number(text)) is not None]
    pids = [count for text in found.values("cgroup", "pids.max") if (count := number(text)) is not None]
    return Limits(
        cpu_seconds=told.get("Max cpu time"),
        processes=_least([told.get("Max processes"), *pids]),
        open_files=told.get("Max open files"),
        memory=_least([told.get("Max address space"), *cgroup]),
    )


def _least(sizes: Iterable[int | None]) -> int | None:
    return min((size for size in sizes if size is not None and size < _ENDLESS), default=None)

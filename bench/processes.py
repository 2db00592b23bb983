"""Processes: started on one core, watched from outside, ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_CORES = sorted(os.sched_getaffinity(0))
UNDER_TEST, BESIDE = _CORES[-1], _CORES[0]
"""The cores: of what is measured, and of those who measure and answer."""

_TERM_SECONDS = 10.0


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started within is bound to `core`, and so are its children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def end_well_when_told() -> None:
    """SIGTERM ends this process like Ctrl-C: with what it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, *, core: int = UNDER_TEST, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in `log` and an open pipe as its input; ended, with what it has started, at the end."""
    with log.open("ab") as output, on_core(core):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end; after a while do not ask. Its children that are left are killed."""
    family = tree(process.pid)
    stdin: IO[bytes] | None = process.stdin
    if stdin is not None:
        stdin.close()
    process.terminate()
    try:
        process.wait(_TERM_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in family[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


def tree(pid: int) -> list[int]:
    """A process and all its descendants that live."""
    found, at = [pid], 0
    while at < len(found):
        for children in Path(f"/proc/{found[at]}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in children.read_text().split()]
        at += 1
    return found


def of_program(program: Path) -> list[int]:
    """The processes that run this file, whoever their parent is now: an orchestrator that has ended leaves its jobs."""
    found = []
    for link in Path("/proc").glob("[0-9]*/exe"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if link.readlink() == program:
                found.append(int(link.parent.name))
    return found


def run_seconds(pids: Iterable[int]) -> float:
    """How long the scheduler has let them run, by its own clock: all their threads that live."""
    total = 0
    for pid in pids:
        for told in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                total += int(told.read_text().split()[0])
    return total / 1e9


def resident_megabytes(pids: Iterable[int]) -> float:
    page = os.sysconf("SC_PAGE_SIZE")
    pages = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * page / 1e6


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def busy_seconds() -> float:
    """How long all cores have worked since the machine began."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _wait, interrupts, soft, *_ = (int(field) for field in fields)
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")

"""One orchestrator on a state folder, also where several login nodes share it.

orchestrator.lock     locked by the kernel, which some shared file systems see to on each machine by itself only
orchestrator.holder   who has the folder; touched every BEAT seconds, so that other machines see that it lives
"""

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.settings import SettingsError

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds
STALE = 120.0  # without a beat: then another machine takes the folder
_OF_A_JOB = ("job", "socket", "version")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """A process. `boot` is new with each start of a machine, `started` tells processes of one number apart.

    For one in a Slurm job of its own: `job` is its id, `socket` where it listens on that node, `version` the folder of
    what runs. Others on the login node find it by these; "" for one that is in no job.
    """

    host: str
    boot: str
    pid: int
    started: str
    job: str = ""
    socket: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", Slurm job {self.job}" if self.job else "")

    def text(self) -> str:
        """The content of orchestrator.holder."""
        return json.dumps({name: value for name, value in asdict(self).items() if value or name not in _OF_A_JOB})


def this_process(job: str = "", socket_path: Path | None = None) -> Holder:
    """`job`: the Slurm job that it is in, "" for none."""
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except FileNotFoundError:  # not Linux
        boot = host
    mine = Holder(host, boot, os.getpid(), start_of(os.getpid()) or "")
    return replace(mine, job=job, socket=str(socket_path or ""), version=Path(sys.prefix).name) if job else mine


def start_of(pid: int) -> str | None:
    """When a process of this machine was started, in ticks of the kernel; None if it is gone, "" if nobody can say."""
    if not Path("/proc/self/stat").exists():
        return "" if _answers(pid) else None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]  # one that has ended, and that nobody has taken note of


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def parse(text: str) -> Holder | None:
    """The content of orchestrator.holder; None for anything else."""
    try:
        content = json.loads(text)
        more = {name: str(content[name]) for name in _OF_A_JOB if name in content}
        return Holder(
            str(content["host"])[:200], str(content["boot"]), int(content["pid"]), str(content["started"]), **more
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def refusal(holder: Holder | None, mine: Holder, age: float, start: str | None, stale: float = STALE) -> str:
    """Why `mine` may not have what `holder` had, "" if it may. Pure.

    `age`: seconds since the holder was last seen. `start`: when the process with its number on this machine was
    started, None if there is none; means nothing if the holder is on another machine.
    """
    if holder is None or holder == mine:
        return ""
    if holder.job and holder.job == mine.job:  # Slurm has started our job again, so it has ended the one before
        return ""
    if holder.boot == mine.boot:
        if start is None or start != holder.started:
            return ""
        return f"{holder}. Stop that orchestrator, or set ORCHESTRATOR_HOME to another folder"
    if age >= stale:
        return ""
    return (
        f"{holder}, seen {max(age, 0):.0f} s ago. Stop that orchestrator there, or set ORCHESTRATOR_HOME to another "
        f"folder; should that machine be down, one can be started here {stale:g} s after the other was last seen, or "
        "at once when the file orchestrator.holder in that folder is removed"
    )


@contextmanager
def held(
    home: Path, mine: Holder, lost: Callable[[str], None], *, beat: float = BEAT, stale: float = STALE
) -> Iterator[None]:
    """Have the folder. `lost` is called, in a thread, when another process has taken it.

    Raises SettingsError naming who has it, OSError when the folder cannot be used.
    """
    path = home / "orchestrator.holder"
    lock = os.open(home / "orchestrator.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    over = threading.Event()
    try:
        if not _locked(lock):
            holder = _read(path) or "another process"
            raise SettingsError(
                f"{home} is in use by {holder}. Stop that orchestrator, or set ORCHESTRATOR_HOME to another folder"
            )
        written = _take(path, mine, stale)
        told = (path, mine, lost, over, beat, stale, written)
        beating = threading.Thread(target=_beat, args=told, name="beat", daemon=True)
        beating.start()
        try:
            yield
        finally:
            over.set()
            beating.join(timeout=beat)
            with suppress(OSError):  # whoever comes next finds that we are gone
                if _read(path) == mine:
                    path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    """False when another process has it. Where the file system has no locks, orchestrator.holder alone decides."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if exc.errno not in _NO_LOCKS:
            raise
    return True


def _take(path: Path, mine: Holder, stale: float) -> bool:
    """Write down that the folder is ours. False on a full disk, where that has to wait.

    Raises SettingsError naming who has it, OSError.
    """
    new = path.with_name(f"{path.name}.{mine.host}.{mine.pid}")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        holder = _read(path)
        # Two times of one clock, the file server's: those of two machines may differ.
        age = new.stat().st_mtime - path.stat().st_mtime if holder else 0.0
        why = refusal(holder, mine, age, start_of(holder.pid) if holder else None, stale)
        if why:
            raise SettingsError(f"{path.parent} is in use by {why}")
        if holder is not None:
            log.warning("taking %s over from %s, which ended without saying so", path.parent, holder)
        try:
            os.write(fd, mine.text().encode())
        except OSError as exc:
            if exc.errno not in _FULL:
                raise
            return _overwritten(path, mine)
        new.rename(path)
        return True
    finally:
        os.close(fd)
        new.unlink(missing_ok=True)


def _overwritten(path: Path, mine: Holder) -> bool:
    """Write in the place of the last holder, which needs no space; False where there was none."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.pwrite(fd, mine.text().ljust(os.fstat(fd).st_size).encode(), 0)
    finally:
        os.close(fd)
    return True


def _read(path: Path) -> Holder | None:
    try:
        return parse(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None


def _beat(
    path: Path,
    mine: Holder,
    lost: Callable[[str], None],
    over: threading.Event,
    seconds: float,
    stale: float,
    written: bool,
) -> None:
    """Say that we live, as long as the folder is ours: a machine that slept may find that it no longer is."""
    pause = seconds / 10  # soon: of two that took it in one moment the first learns of the other
    while not over.wait(pause):
        pause = seconds
        try:
            if not written:
                written = _take(path, mine, stale)
                continue
            holder = _read(path)
            if holder != mine:
                lost(f"{path.parent} has been taken by {holder or 'whoever removed ' + path.name}")
                return
            os.utime(path)
        except SettingsError as exc:
            lost(str(exc))
            return
        except OSError as exc:
            log.warning("cannot touch %s: %s", path, exc)  # the next beat may; others wait for several

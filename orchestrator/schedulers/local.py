"""Scheduler `local`: the very script that sbatch would get, run as a plain process group on this machine (Linux).

    home/local/ids/17           an empty file for each id ever given: ids are never reused
    home/local/jobs/NAME.json   one `_Record` for each job, 0600, replaced by rename

Nothing is kept in memory: whether a job runs is read from /proc, so jobs outlive the orchestrator and a restarted one
finds them again. When a job's script ends, what is left of its process group is killed, as Slurm does. A process that
calls setsid leaves the group, and with it this scheduler's reach. A plain process has no walltime: `--time` is ignored.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import SchedulerError, SchedulerUnknown
from orchestrator.models import JobState
from orchestrator.schedulers import JobInfo, JobSpec, NodeGroup, Queue, Rehearsal
from orchestrator.schedulers.machine import machine

# What a job inherits. Everything else stays behind: the orchestrator's own environment may hold tokens.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "LOGNAME", "SHELL", "TMPDIR", "TERM", "CUDA_VISIBLE_DEVICES")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
# The script starts only once its pid is on disk. If the orchestrator dies before, `read` meets the end of the pipe
# and nothing runs, so a job that has no pid on disk can safely be submitted again.
WAIT_THEN_RUN = 'read -r go && exec bash "$1" </dev/null'
_KILL_SECONDS = 5.0  # how long cancel() waits for processes to vanish after SIGKILL


class _Process(NamedTuple):
    """One line of /proc/PID/stat. `started` is field 22: clock ticks since boot, so pid + started is an identity."""

    pid: int
    alive: bool  # not a zombie
    group: int
    started: int


class _Record(BaseModel):
    """What is known of one job. Times are seconds since the epoch.

    `pid` is None until the script's process exists: until then the record is the claim of the process `claimed_by`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    name: str
    folder: Path
    machine: str
    boot: str
    claimed_by: tuple[int, int]  # pid and start of the submitting process
    submitted_at: float
    pid: int | None = None  # also the id of the process group
    started: int | None = None
    started_at: float | None = None
    cancelled_at: float | None = None  # when the end was asked for; on disk before the first signal
    ended_at: float | None = None
    exit_code: int | None = None
    reason: str = ""

    @property
    def state(self) -> JobState:
        if self.ended_at is None:
            return JobState.RUNNING if self.cancelled_at is None else JobState.COMPLETING
        if self.cancelled_at is not None:
            return JobState.CANCELLED
        return JobState.COMPLETED if self.exit_code == 0 else JobState.FAILED

    def info(self) -> JobInfo:
        return JobInfo(
            job_id=self.job_id,
            name=self.name,
            state=self.state,
            reason=self.reason,
            nodes="localhost",
            exit_code=self.exit_code,
            submitted_at=_datetime(self.submitted_at),
            started_at=_datetime(self.started_at),
            ended_at=_datetime(self.ended_at),
        )

    def leader(self) -> _Process | None:
        """The script's process, possibly a zombie; None when it is gone or its pid belongs to another by now."""
        process = _process(self.pid) if self.pid is not None and self.boot == _boot() else None
        return process if process is not None and process.started == self.started else None

    def has_processes(self) -> bool:
        """Does anything of the process group live?

        The kernel does not reuse a pid while a group of that number exists, so as long as no other process has the
        leader's pid, the group is the job's.
        """
        if self.boot != _boot() or self.pid is None:
            return False
        leader = _process(self.pid)
        if leader is not None and leader.started != self.started:
            return False
        return any(process.alive and process.group == self.pid for process in _processes())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group. Raises SchedulerError when the kernel refuses."""
        if self.pid is None or (self.leader() is None and not self.has_processes()):
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return  # gone since we looked
        except OSError as exc:
            raise SchedulerError(f"cannot send {number.name} to job {self.job_id} (process {self.pid}): {exc}") from exc


class _Ending(NamedTuple):
    exit_code: int | None
    reason: str  # "" for a success, else Slurm's word for it


class _ExitFile(BaseModel):
    """`exit.json`, written by the EXIT trap of the script. `ended_at`: seconds since the epoch."""

    exit_code: int | None = None
    ended_at: float | None = None

    @property
    def ending(self) -> _Ending | None:
        if self.exit_code is None:
            return None
        return _Ending(self.exit_code, "NonZeroExitCode" if self.exit_code else "")


class _Waiting(subprocess.Popen[bytes]):
    """A process whose script starts at go(). It may outlive this object, so nothing warns when it does."""

    def __del__(self) -> None:
        pass

    def go(self) -> None:
        """Start the script. A process that was killed meanwhile is no error here: the next query tells."""
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self.stdin:
                self.stdin.write(b"go\n")  # unbuffered

    def abandon(self) -> None:
        """End the process before its script has started."""
        if self.stdin is not None:
            self.stdin.close()
        self.wait()


class Local:
    """`Scheduler` for one machine.

    Several in one home never give an id twice. One at a time should follow the jobs: only the parent of a script learns
    how it ended when it left no exit file.
    """

    name = "local"
    bind_host = "127.0.0.1"

    def __init__(
        self,
        home: Path,
        clock: Callable[[], float] = time.time,
        *,
        grace: float = 10.0,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`clock` gives seconds since the epoch; `grace` is the seconds between SIGTERM and SIGKILL of a cancel;
        `environment` is where the few variables that a job inherits are taken from."""
        self._ids = home / "local" / "ids"
        self._jobs = home / "local" / "jobs"
        self._clock = clock
        self._grace = grace
        self._environment = environment
        self._lock = threading.Lock()  # each record is read, judged and replaced by one thread at a time

    async def submit(self, spec: JobSpec) -> str:
        """Start the script and return the job id. A name that was submitted before is not run again: it keeps its id.

        Raises SchedulerError when the process could not be started (no trace of it is left) and SchedulerUnknown when
        somebody else is submitting the same name at this moment.
        """
        return await asyncio.to_thread(self._submit, spec)

    async def starts_at(self, script: Path) -> datetime | None:
        """A plain process starts at once."""
        return _datetime(self._clock())

    async def rehearse(self, script: Path) -> Rehearsal:
        """Nothing is refused here."""
        return Rehearsal(starts_at=_datetime(self._clock()))

    async def query(self, names: Collection[str]) -> Mapping[str, JobInfo]:
        """The jobs of these names. Left out: names never submitted, or submitted on another machine with this home
        and not known to have ended. Raises SchedulerUnknown when a record cannot be read or written."""
        return await asyncio.to_thread(self._query, names)

    async def cancel(self, job_id: str, name: str) -> None:
        """End the whole process group: SIGTERM, and SIGKILL after the grace. Returns when nothing of it is left.

        No such job, or one that has ended: nothing happens. If the orchestrator dies in between, the next one's
        `query` sends the SIGKILL. Raises SchedulerError when the job runs on another machine or a signal is refused,
        SchedulerUnknown when the group survives SIGKILL (a process in an uninterruptible system call).
        """
        started = time.monotonic()
        ended = await asyncio.to_thread(self._terminate, job_id, name)
        pause = 0.01
        while not ended:
            waited = time.monotonic() - started
            if waited > self._grace + _KILL_SECONDS:
                raise SchedulerUnknown(f"job {job_id} is still there {waited:.0f} s after its end was asked for")
            await asyncio.sleep(min(pause, max(self._grace - waited, 0.01)))
            pause = min(2 * pause, 0.2)
            kill = time.monotonic() - started >= self._grace
            ended = await asyncio.to_thread(self._has_ended, name, kill=kill)

    async def nodes(self) -> Sequence[NodeGroup]:
        """This machine."""
        return [await asyncio.to_thread(machine, self._environment)]

    async def queue(self) -> Queue:
        """A plain process never waits."""
        return Queue()

    # What follows runs in worker threads.

    def _submit(self, spec: JobSpec) -> str:
        if not _NAME.fullmatch(spec.name):
            raise SchedulerError(f"{spec.name!r} is no job name: use 1 to 200 of A-Z a-z 0-9 . _ -")
        with self._lock:
            try:
                claim = self._claim(spec)
                if claim.pid is None:
                    self._start(claim, spec)
            except OSError as exc:
                raise SchedulerError(f"cannot start {spec.script}: {exc}") from exc
        return claim.job_id

    def _claim(self, spec: JobSpec) -> _Record:
        """The record of this name: the one that exists, or a new one without pid that is ours to start."""
        existing = self._read(spec.name)
        if existing is not None and existing.pid is not None:
            return existing
        if existing is not None and self._is_being_submitted(existing):
            raise SchedulerUnknown(f"the job {spec.name} is being submitted by process {existing.claimed_by[0]}")
        me = _process(os.getpid()) or _no_proc()
        record = _Record(
            job_id=existing.job_id if existing is not None else self._new_id(),
            name=spec.name,
            folder=spec.folder,
            machine=_machine(),
            boot=_boot(),
            claimed_by=(me.pid, me.started),
            submitted_at=self._clock(),
        )
        try:
            self._write(record, new=existing is None)
        except FileExistsError as exc:
            raise SchedulerUnknown(f"the job {spec.name} is being submitted by somebody else") from exc
        return record

    @staticmethod
    def _is_being_submitted(claim: _Record) -> bool:
        if claim.machine != _machine():
            return True  # whether that process lives cannot be seen from here
        process = _process(claim.claimed_by[0])
        return claim.boot == _boot() and process is not None and process.started == claim.claimed_by[1]

    def _start(self, claim: _Record, spec: JobSpec) -> None:
        """Start the claimed job. Raises OSError, after which nothing of the claim is left."""
        try:
            process = self._spawn(claim.job_id, spec)
            try:
                started = _process(process.pid) or _no_proc()
                facts = {"pid": process.pid, "started": started.started, "started_at": self._clock()}
                self._write(claim.model_copy(update=facts))
            except OSError:
                process.abandon()
                raise
        except OSError:
            self._path(claim.name).unlink(missing_ok=True)
            raise
        process.go()

    def _spawn(self, job_id: str, spec: JobSpec) -> "_Waiting":
        environment = {name: self._environment[name] for name in _INHERITED if name in self._environment}
        with _appended(spec.stdout) as stdout, _appended(spec.stderr) as stderr:
            return _Waiting(
                ["bash", "-c", WAIT_THEN_RUN, "bash", str(spec.script)],
                cwd=spec.folder,
                env=environment | {"SLUICE_JOB_ID": job_id},
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,
            )

    def _query(self, names: Collection[str]) -> dict[str, JobInfo]:
        found = {}
        for name in names:
            with self._lock:
                record = self._follow(name)
            if record is not None and (record.ended_at is not None or record.machine == _machine()):
                found[name] = record.info()
        return found

    def _terminate(self, job_id: str, name: str) -> bool:
        """Note the wish, then send SIGTERM. True when there is nothing (left) to end."""
        with self._lock:
            record = self._follow(name)
            if record is None or record.job_id != job_id or record.ended_at is not None:
                return True
            if record.machine != _machine():
                raise SchedulerError(f"job {job_id} runs on another machine than this one; stop it there")
            if record.cancelled_at is None:
                record = record.model_copy(update={"cancelled_at": self._clock()})
                self._rewrite(record)
        record.signal(signal.SIGTERM)
        return False

    def _has_ended(self, name: str, *, kill: bool) -> bool:
        with self._lock:
            record = self._follow(name, kill=kill)
        return record is None or record.ended_at is not None

    def _follow(self, name: str, *, kill: bool = False) -> _Record | None:
        """The record of a started job, brought up to date with /proc: the one place where a job's end is noticed.

        None for a name without record, or with a mere claim: that is not a job yet. The lock must be held.
        """
        record = self._read(name)
        if record is None or record.pid is None:
            return None
        if record.ended_at is not None or record.machine != _machine():
            return record
        asked = record.cancelled_at
        overdue = kill or (asked is not None and self._clock() - asked >= self._grace)
        leader = record.leader()
        if leader is not None and leader.alive:
            if overdue:
                record.signal(signal.SIGKILL)
            return record
        if asked is not None and not overdue and record.has_processes():
            return record  # the script has ended, its children still have the rest of the grace
        record.signal(signal.SIGKILL)
        return record if record.has_processes() else self._ended(record, leader)

    def _ended(self, record: _Record, leader: _Process | None) -> _Record:
        """Note how the job ended. A child of ours is reaped after that, so that a crash in between loses nothing."""
        left = _exit_file(record.folder / "exit.json")
        ending = (_peek(leader.pid) if leader is not None else None) or left.ending
        if ending is None:
            restarted = record.boot != _boot()
            reason = "the machine was restarted" if restarted else "the process ended without leaving an exit code"
            ending = _Ending(None, reason)
        ended = record.model_copy(
            update={"exit_code": ending.exit_code, "reason": ending.reason, "ended_at": left.ended_at or self._clock()}
        )
        self._rewrite(ended)
        if leader is not None:
            with contextlib.suppress(ChildProcessError):  # not our child: its parent reaps it
                os.waitpid(leader.pid, os.WNOHANG)
        return ended

    def _path(self, name: str) -> Path:
        return self._jobs / f"{name}.json"

    def _new_id(self) -> str:
        """The next number that was never given in this home. Raises OSError."""
        self._ids.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ids.parent.chmod(0o700)
        while True:
            number = 1 + max((int(path.name) for path in self._ids.iterdir()), default=0)
            with contextlib.suppress(FileExistsError):  # another thread or process took it
                (self._ids / str(number)).touch(mode=0o600, exist_ok=False)
                return str(number)

    def _read(self, name: str) -> _Record | None:
        """Raises SchedulerUnknown for a record that cannot be read."""
        if not _NAME.fullmatch(name):
            return None
        try:
            return _Record.model_validate_json(self._path(name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as exc:
            raise SchedulerUnknown(f"cannot read the job record {self._path(name)}: {exc}") from exc

    def _write(self, record: _Record, *, new: bool = False) -> None:
        """Put the record in place at one stroke. Raises FileExistsError if it is `new` and exists, else OSError."""
        self._jobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._jobs, prefix=".", suffix=".tmp")  # with mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(record.model_dump_json())
                file.flush()
                os.fsync(handle)
            if new:
                self._path(record.name).hardlink_to(temporary)
            else:
                Path(temporary).replace(self._path(record.name))
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _rewrite(self, record: _Record) -> None:
        try:
            self._write(record)
        except OSError as exc:
            raise SchedulerUnknown(f"cannot write the job record {self._path(record.name)}: {exc}") from exc


def _process(pid: int) -> _Process | None:
    """The process of this pid, zombies included; None when there is none. Source: proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # from field 3 on; field 2, the name, may contain anything
    return _Process(pid, alive=fields[0] not in "ZX", group=int(fields[2]), started=int(fields[19]))


def _no_proc() -> NoReturn:
    raise OSError("this machine has no /proc; the local scheduler needs Linux")


def _processes() -> Iterator[_Process]:
    """All processes of this machine."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (process := _process(int(path.name))) is not None:
            yield process


def _boot() -> str:
    """Differs after each start of the machine: start times count from there. Source: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _machine() -> str:
    """Differs from machine to machine: a home may be shared by several login nodes. Source: machine-id(5)."""
    with contextlib.suppress(OSError):
        if name := Path("/etc/machine-id").read_text().strip():
            return name
    return socket.gethostname()  # containers often have no machine-id


def _peek(pid: int) -> _Ending | None:
    """How our child ended, without reaping it; None when it is not our child or still runs."""
    try:
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if status is None:
        return None
    number = status.si_status
    if status.si_code == os.CLD_EXITED:
        return _Ending(number, "NonZeroExitCode" if number else "")
    return _Ending(128 + number, f"RaisedSignal:{number}({signal.strsignal(number)})")  # as Slurm writes it


def _exit_file(path: Path) -> _ExitFile:
    """What the script left; empty when it left none, or half of one on a full disk."""
    try:
        return _ExitFile.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return _ExitFile()


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[int]:
    """A file descriptor that appends to a file which only its owner may read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

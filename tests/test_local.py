"""The local scheduler with real processes. Waiting is bounded polling of what is waited for: no fixed sleeps."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SchedulerError, SchedulerUnknown
from orchestrator.models import JobState
from orchestrator.schedulers import JobInfo, JobSpec, Scheduler
from orchestrator.schedulers.local import WAIT_THEN_RUN, Local

SECONDS = 20.0  # how long a test waits for something that takes milliseconds
# What the recipes' scripts do at their end, in one line.
EXIT_TRAP = (
    """trap 'c=$?; printf "{\\"exit_code\\":%d,\\"ended_at\\":1700000000,\\"signal\\":null}" $c >exit.json' EXIT\n"""
)
FOREVER = "echo started; while :; do sleep 0.05; done\n"


class Bench:
    """A state folder, a maker of scripts, and the records as a stranger would edit them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"

    def spec(self, script: str, name: str = "job-1") -> JobSpec:
        folder = self.folder / name
        folder.mkdir()
        (folder / "job.sh").write_text("#!/bin/bash\n#SBATCH --time=1\n" + script)
        return JobSpec(name, "a comment", folder / "job.sh", folder, folder / "out.log", folder / "err.log")

    def record(self, name: str = "job-1") -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.home / "local/jobs" / f"{name}.json").read_text())
        return content

    def edit(self, name: str = "job-1", **changes: Any) -> None:
        (self.home / "local/jobs" / f"{name}.json").write_text(json.dumps(self.record(name) | changes))

    def kill_all(self) -> None:
        for path in (self.home / "local/jobs").glob("*.json"):
            pid = self.record(path.stem)["pid"]
            if pid is not None and alive(pid):
                os.killpg(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.kill_all()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group(number: int) -> list[int]:
    """The living processes of a process group."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if alive(pid) and os.getpgid(pid) == number]


def zombies() -> list[str]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in children if not alive(int(pid))]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)


async def started(spec: JobSpec) -> None:
    await until(lambda: spec.stdout.exists() and "started" in spec.stdout.read_text())


async def ended(local: Local, name: str = "job-1") -> JobInfo:
    deadline = time.monotonic() + SECONDS
    while not (info := (await local.query([name]))[name]).state.ended:
        assert time.monotonic() < deadline, f"still {info}"
        await asyncio.sleep(0.01)
    return info


def run_one(bench: Bench, script: str) -> JobInfo:
    async def work() -> JobInfo:
        local = Local(bench.home)
        await local.submit(bench.spec(script))
        return await ended(local)

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("script", "state", "exit_code", "reason"),
    [
        ("exit 0", JobState.COMPLETED, 0, ""),
        ("exit 3", JobState.FAILED, 3, "NonZeroExitCode"),
        ("kill -KILL $$", JobState.FAILED, 137, "RaisedSignal:9(Killed)"),
        ("trap 'exit 143' TERM; kill -TERM $$", JobState.FAILED, 143, "NonZeroExitCode"),
        ("no-such-command", JobState.FAILED, 127, "NonZeroExitCode"),
    ],
)
def test_ending(bench: Bench, script: str, state: JobState, exit_code: int, reason: str) -> None:
    before = datetime.now(UTC)
    info = run_one(bench, script)
    assert (info.state, info.exit_code, info.reason) == (state, exit_code, reason)
    assert info.submitted_at and info.started_at and info.ended_at
    assert before <= info.submitted_at <= info.started_at <= info.ended_at <= datetime.now(UTC)
    assert zombies() == []


def test_files_folder_and_modes(bench: Bench) -> None:
    script = "pwd; read -r line || echo no input; echo oops >&2; echo $SLUICE_JOB_ID; ps -o sid=,pgid= -p $$"
    info = run_one(bench, script)
    folder = bench.folder / "job-1"
    out = (folder / "out.log").read_text().split("\n")
    assert out[:3] == [str(folder), "no input", info.job_id]
    assert set(out[3].split()) == {str(bench.record()["pid"])}  # a session and a group of its own
    assert (folder / "err.log").read_text() == "oops\n"
    for path in [folder / "out.log", folder / "err.log", *(bench.home / "local/jobs").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((bench.home / "local").stat().st_mode) == 0o700


def test_environment_is_scrubbed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    monkeypatch.setenv("BASH_ENV", "/nonexistent/planted-secret")
    monkeypatch.setenv("BASH_FUNC_ls%%", "() { echo planted-secret; }")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    run_one(bench, "env; ls")
    out = (bench.folder / "job-1/out.log").read_text()
    assert "planted-secret" not in out
    assert "CUDA_VISIBLE_DEVICES=2,3" in out
    assert f"PATH={os.environ['PATH']}" in out


def test_job_inherits_no_open_files(bench: Bench) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    run_one(bench, f"test ! -e /proc/$$/fd/{writing}")
    os.close(reading)
    os.close(writing)
    assert bench.record()["exit_code"] == 0


STUBBORN = "(trap '' TERM; echo started; while :; do sleep 0.05; done) &\nsleep 1000 &\nwait\n"


@pytest.mark.parametrize("script", [STUBBORN, "trap '' TERM\n" + STUBBORN], ids=["children ignore", "all ignore"])
def test_cancel_ends_the_whole_group(bench: Bench, script: str) -> None:
    async def work() -> JobInfo:
        local = Local(bench.home, grace=0.3)
        spec = bench.spec(script)
        job_id = await local.submit(spec)
        await started(spec)
        cancelling = asyncio.create_task(local.cancel(job_id, spec.name))
        await until(lambda: bench.record()["cancelled_at"] is not None)
        info = (await local.query([spec.name]))[spec.name]
        assert info.state is JobState.COMPLETING  # during the grace
        await cancelling
        assert group(bench.record()["pid"]) == []
        return (await local.query([spec.name]))[spec.name]

    assert asyncio.run(work()).state is JobState.CANCELLED


def test_cancel_lets_the_script_end_itself_and_does_not_wait_for_the_grace(bench: Bench) -> None:
    async def work() -> JobInfo:
        local = Local(bench.home, grace=1000)
        spec = bench.spec("trap 'echo bye; exit 0' TERM\n" + FOREVER)
        job_id = await local.submit(spec)
        await started(spec)
        await local.cancel(job_id, spec.name)
        await local.cancel(job_id, spec.name)  # an ended job is no error
        return (await local.query([spec.name]))[spec.name]

    info = asyncio.run(work())
    assert (info.state, info.exit_code) == (JobState.CANCELLED, 0)
    assert (bench.folder / "job-1/out.log").read_text() == "started\nbye\n"


def test_cancel_checks_id_and_name(bench: Bench) -> None:
    async def work() -> None:
        local = Local(bench.home)
        spec = bench.spec(FOREVER)
        job_id = await local.submit(spec)
        await local.cancel(str(int(job_id) + 1), spec.name)
        await local.cancel(job_id, "another-name")
        await local.cancel(job_id, "../../etc/passwd")
        assert (await local.query([spec.name]))[spec.name].state is JobState.RUNNING

    asyncio.run(work())


ORCHESTRATOR = """
import asyncio, os, signal, sys
from pathlib import Path
from orchestrator.schedulers import JobSpec
from orchestrator.schedulers.local import WAIT_THEN_RUN, Local
for name in sys.argv[2:]:
    folder = Path(sys.argv[1], name)
    spec = JobSpec(name, "", folder / "job.sh", folder, folder / "out.log", folder / "err.log")
    asyncio.run(Local(Path(sys.argv[1], "home")).submit(spec))
os.kill(os.getpid(), signal.SIGKILL)
"""


def submit_and_die(bench: Bench, *specs: JobSpec) -> None:
    """Another orchestrator submits and is killed without notice."""
    command = [sys.executable, "-c", ORCHESTRATOR, str(bench.folder), *(spec.name for spec in specs)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_restart_finds_running_and_ended_jobs(bench: Bench) -> None:
    async def work() -> None:
        names = ["runs", "good", "bad", "silent"]
        local = Local(bench.home)
        await started(runs)
        assert [(await ended(local, name)).state for name in names[1:]] == [
            JobState.COMPLETED,
            JobState.FAILED,
            JobState.FAILED,
        ]
        found = await local.query([*names, "unknown"])
        assert list(found) == names
        assert found["runs"].state is JobState.RUNNING
        assert (found["good"].exit_code, found["bad"].exit_code, found["silent"].exit_code) == (0, 5, None)
        assert found["good"].ended_at == datetime.fromtimestamp(1700000000, UTC)
        assert found["silent"].reason == "the process ended without leaving an exit code"
        await local.cancel(found["runs"].job_id, "runs")
        assert (await local.query(["runs"]))["runs"].state is JobState.CANCELLED

    runs = bench.spec(FOREVER, "runs")
    good, bad = bench.spec(EXIT_TRAP + "true", "good"), bench.spec(EXIT_TRAP + "exit 5", "bad")
    submit_and_die(bench, runs, good, bad, bench.spec("exit 0", "silent"))
    asyncio.run(work())


def test_kill_that_a_dead_orchestrator_owed_is_sent_by_the_next_query(bench: Bench) -> None:
    async def work() -> JobInfo:
        spec = bench.spec("trap '' TERM\n" + STUBBORN)
        await Local(bench.home).submit(spec)
        await started(spec)
        bench.edit(cancelled_at=time.time() - 60)
        return await ended(Local(bench.home))

    assert asyncio.run(work()).state is JobState.CANCELLED


def test_killed_script_takes_its_children_along(bench: Bench) -> None:
    async def work() -> JobInfo:
        local = Local(bench.home)
        spec = bench.spec(STUBBORN)
        await local.submit(spec)
        await started(spec)
        os.kill(bench.record()["pid"], signal.SIGKILL)
        info = await ended(local)
        assert group(bench.record()["pid"]) == []
        return info

    info = asyncio.run(work())
    assert (info.state, info.exit_code, info.reason) == (JobState.FAILED, 137, "RaisedSignal:9(Killed)")


def test_reused_pid_is_not_the_job(bench: Bench) -> None:
    """The record's pid belongs to a process that started at another time: the job is gone, that process is spared."""

    async def work() -> None:
        local = Local(bench.home)
        spec = bench.spec(FOREVER)
        job_id = await local.submit(spec)
        await started(spec)
        pid = bench.record()["pid"]
        bench.edit(started=bench.record()["started"] - 1)
        await local.cancel(job_id, spec.name)
        info = (await local.query([spec.name]))[spec.name]
        assert (info.state, info.exit_code) == (JobState.FAILED, None)
        assert alive(pid)

    asyncio.run(work())


def test_machine_that_was_restarted_or_is_another(bench: Bench) -> None:
    async def work() -> None:
        local = Local(bench.home)
        elsewhere, before = bench.spec(FOREVER, "elsewhere"), bench.spec(FOREVER, "before")
        job_id = await local.submit(elsewhere)
        await local.submit(before)
        bench.edit("elsewhere", machine="another")
        bench.edit("before", boot="another")
        found = await local.query(["elsewhere", "before"])
        assert found["before"].reason == "the machine was restarted"
        assert "elsewhere" not in found  # unknown is not gone
        with pytest.raises(SchedulerError, match="another machine"):
            await local.cancel(job_id, "elsewhere")

    asyncio.run(work())


def test_ids_are_unique_with_threads_and_with_a_second_scheduler(bench: Bench) -> None:
    async def work() -> None:
        first, second = Local(bench.home), Local(bench.home)
        specs = [bench.spec("exit 0", f"job-{number}") for number in range(50)]
        ids = await asyncio.gather(*((first, second)[n % 2].submit(spec) for n, spec in enumerate(specs)))
        assert sorted(map(int, ids)) == list(range(1, 51))
        for spec in specs:
            assert (await ended(first, spec.name)).state is JobState.COMPLETED

    asyncio.run(work())
    assert zombies() == []


def test_script_does_not_run_when_its_orchestrator_dies_before_the_pid_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("touch ran")
    command = ["bash", "-c", WAIT_THEN_RUN, "bash", "job.sh"]
    done = subprocess.run(command, cwd=tmp_path, input=b"", timeout=60, check=False)  # its end of the pipe closes
    assert done.returncode == 1
    assert not (tmp_path / "ran").exists()
    subprocess.run(command, cwd=tmp_path, input=b"go\n", timeout=60, check=True)
    assert (tmp_path / "ran").exists()


def test_same_name_runs_once(bench: Bench) -> None:
    async def work() -> None:
        local = Local(bench.home)
        spec = bench.spec("echo started")
        ids = await asyncio.gather(*(local.submit(spec) for _ in range(10)))
        assert len(set(ids)) == 1
        await ended(local)
        assert await local.submit(spec) == ids[0]
        assert spec.stdout.read_text() == "started\n"

    asyncio.run(work())


def test_claim_of_a_dead_orchestrator_is_no_job_and_is_taken_over(bench: Bench) -> None:
    async def work() -> None:
        local = Local(bench.home)
        spec = bench.spec("echo started")
        job_id = await local.submit(spec)
        await ended(local)
        claim: dict[str, Any] = {"pid": None, "started": None, "started_at": None, "ended_at": None, "exit_code": None}
        bench.edit(**claim)  # as by this living process: its submit is under way
        assert await local.query([spec.name]) == {}
        with pytest.raises(SchedulerUnknown, match="being submitted"):
            await local.submit(spec)
        bench.edit(claimed_by=[os.getpid(), 1])  # as by a process that is gone
        assert await local.submit(spec) == job_id
        assert (await ended(local)).state is JobState.COMPLETED

    asyncio.run(work())


def test_failed_submit_leaves_no_job_and_burns_its_id(bench: Bench) -> None:
    async def work() -> None:
        local = Local(bench.home)
        spec = bench.spec("exit 0")
        spec.stdout.mkdir()  # cannot be opened for writing
        with pytest.raises(SchedulerError, match="cannot start"):
            await local.submit(spec)
        assert await local.query([spec.name]) == {}
        spec.stdout.rmdir()
        assert await local.submit(spec) == "2"
        with pytest.raises(SchedulerError, match="no job name"):
            await local.submit(bench.spec("exit 0", "bad name"))

    asyncio.run(work())


def test_unreadable_record_is_unknown_not_gone(bench: Bench) -> None:
    async def work() -> None:
        local = Local(bench.home)
        spec = bench.spec("exit 0")
        await local.submit(spec)
        await ended(local)
        path = bench.home / "local/jobs/job-1.json"
        whole = path.read_text()
        path.write_text(whole[:20])
        with pytest.raises(SchedulerUnknown, match=r"job-1\.json"):
            await local.query([spec.name])
        path.write_text(whole)

    asyncio.run(work())


def test_it_is_a_scheduler(tmp_path: Path) -> None:
    scheduler: Scheduler = Local(tmp_path)
    assert (scheduler.name, scheduler.bind_host) == ("local", "127.0.0.1")
    assert asyncio.run(scheduler.query(["x"])) == {}
    assert list(tmp_path.iterdir()) == []

"""Following jobs: what one turn concludes, and what it does about it."""

import asyncio
import json
import socket
import sqlite3
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SchedulerUnknown
from orchestrator.models import Job, JobState, Service, ServiceStatus
from orchestrator.runs import Exit
from orchestrator.schedulers import JobInfo
from orchestrator.schedulers.local import Local
from orchestrator.watcher import ACTOR, follow, last_known
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import START, Clock, Parts, orchestrated, until

S = JobState
GRACE = timedelta(seconds=60)
SMALL = {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}}


def ago(seconds: float) -> Any:
    return START - timedelta(seconds=seconds)


@dataclass
class Case:
    """One turn for one job at START. `expected` is compared with those of the changes that it names."""

    name: str
    expected: dict[str, Any] | None
    state: JobState = S.RUNNING
    job: dict[str, Any] = field(default_factory=dict)
    info: JobInfo | None = None
    ended: Exit | None = None
    cancelled: bool = False


def told(state: JobState, **more: Any) -> JobInfo:
    return JobInfo("7", "sluice-x", state, **more)


def left(code: int, signal: str = "", job_id: str = "7") -> Exit:
    return Exit(job_id, code, signal, ended_at=ago(5))


NEW: dict[str, Any] = {"job_id": None, "seen_at": None}
DONE = {"ended_at": ago(5)}
CASES = [
    # 1. the scheduler speaks of it
    Case(
        "its word is taken",
        {"state": S.RUNNING, "nodes": "n1", "seen_at": START},
        S.PENDING,
        info=told(S.RUNNING, nodes="n1"),
    ),
    Case("a job never heard of is adopted", {"job_id": "7", "state": S.PENDING}, S.SUBMITTING, NEW, told(S.PENDING)),
    Case("nothing new is no change", {}, job={"seen_at": ago(20)}, info=told(S.RUNNING)),
    Case("that it was seen is noted now and then", {"seen_at": START}, job={"seen_at": ago(21)}, info=told(S.RUNNING)),
    Case("a word that nobody knows changes nothing", {"job_id": "7", "seen_at": START}, info=told(S.UNKNOWN)),
    Case("an end is dated", {"state": S.TIMEOUT, "ended_at": START}, info=told(S.TIMEOUT)),
    Case("the scheduler dates an end better", {"ended_at": ago(9)}, info=told(S.FAILED, ended_at=ago(9))),
    Case("its exit code is taken", {"exit_code": 9}, info=told(S.FAILED, exit_code=9), ended=left(7)),
    Case("the script knows a code it does not tell", {"exit_code": 7}, info=told(S.FAILED), ended=left(7)),
    Case(
        "but not another job's code",
        {"exit_code": None, "state": S.FAILED},
        job={"exit_code": 1},
        info=told(S.FAILED),
        ended=left(7, job_id="6"),
    ),
    Case("nor while it runs", {"seen_at": START, "restarts": 1}, info=told(S.RUNNING, restarts=1), ended=left(7)),
    Case("the nodes of an ended job are kept", {"state": S.COMPLETED}, job={"nodes": "n1"}, info=told(S.COMPLETED)),
    Case(
        "a requeued job has not started",
        {"state": S.PENDING, "started_at": None, "restarts": 1},
        job={"started_at": ago(9)},
        info=told(S.PENDING, restarts=1),
    ),
    Case(
        "a cancelled job that still ends is taken at its word",
        {"state": S.COMPLETING},
        info=told(S.COMPLETING),
        cancelled=True,
    ),
    # 2. silence and an exit file
    Case("code 0", {"state": S.COMPLETED, "reason": "", "exit_code": 0, **DONE}, ended=left(0)),
    Case("code 7", {"state": S.FAILED, "reason": "NonZeroExitCode", "exit_code": 7, **DONE}, ended=left(7)),
    Case(
        "SIGTERM after a cancel",
        {"state": S.CANCELLED, "exit_code": 143, **DONE},
        ended=left(143, "TERM"),
        cancelled=True,
    ),
    Case("SIGTERM before the limit", {"state": S.CANCELLED}, job={"ends_at": ago(-26)}, ended=left(143, "TERM")),
    Case(
        "SIGTERM at the limit",
        {"state": S.TIMEOUT, "reason": "TimeLimit", **DONE},
        job={"ends_at": ago(-25)},
        ended=left(143, "TERM"),
    ),
    Case("SIGTERM without a limit", {"state": S.CANCELLED}, ended=left(143, "TERM")),
    Case(
        "a cancel at the limit", {"state": S.CANCELLED}, job={"ends_at": START}, ended=left(143, "TERM"), cancelled=True
    ),
    Case(
        "the end of a job whose id we never heard",
        {"job_id": "7", "state": S.FAILED, "exit_code": 7},
        S.SUBMITTING,
        NEW,
        ended=left(7),
    ),
    Case("another job's file is no evidence", {}, ended=left(0, job_id="6")),
    # 3. silence about a job that was never seen
    Case("within the grace it waits", {}, S.SUBMITTING, NEW | {"recorded_at": ago(60)}),
    Case(
        "after a time-out of sbatch it gives up",
        {"state": S.FAILED, "ended_at": START},
        S.SUBMITTING,
        NEW | {"reason": "sbatch did not answer"},
    ),
    Case("after a crash it submits again", None, S.SUBMITTING, NEW),
    Case(
        "a cancelled one is not submitted", {"state": S.CANCELLED, "ended_at": START}, S.SUBMITTING, NEW, cancelled=True
    ),
    Case("a cancelled one may still turn up", {}, S.SUBMITTING, NEW | {"recorded_at": ago(59)}, cancelled=True),
    # 4. silence about a job that was seen
    Case("within the grace nothing is concluded", {}, job={"seen_at": ago(60)}),
    Case("then it is lost", {"state": S.LOST, "ended_at": START}, job={"seen_at": ago(61)}),
    Case("a pending one too", {"state": S.LOST}, S.PENDING, {"seen_at": ago(61)}),
    Case(
        "one that was only accepted counts from then",
        {"state": S.LOST},
        S.PENDING,
        {"seen_at": None, "recorded_at": ago(61)},
    ),
    Case(
        "a cancelled one has ended", {"state": S.CANCELLED, "ended_at": START}, job={"seen_at": START}, cancelled=True
    ),
]


def a_job(**more: Any) -> Job:
    fields: dict[str, Any] = {
        "submission_id": "x", "service": "x", "scheduler": "slurm", "name": "sluice-x", "job_id": "7",
        "state": S.RUNNING, "recorded_at": ago(600), "seen_at": START,
    }  # fmt: skip
    return Job(**(fields | more))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_turn_of_one_job(case: Case) -> None:
    job = a_job(state=case.state, **case.job)
    before = job.model_dump()
    known = last_known(job, START, None)
    changes = follow(job, case.info, case.ended, cancelled=case.cancelled, now=START, grace=GRACE, known=known)
    assert job.model_dump() == before, "follow() is pure"
    if not case.expected:
        assert changes == case.expected
    else:
        assert changes is not None
        final = before | changes
        assert {name: final[name] for name in case.expected} == case.expected


def test_an_unknown_word_keeps_the_state() -> None:
    changes = follow(a_job(), told(S.UNKNOWN), None, cancelled=False, now=START, grace=GRACE, known=START)
    assert changes is not None
    assert "state" not in changes


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


def publish(
    parts: Parts, service: Service, job_id: str, node: str = "node1", restarts: int = 0, port: int = 9009
) -> None:
    """What a job's script writes when its engine starts. Nobody answers there."""
    content = {"job_id": job_id, "node": node, "restarts": restarts, "endpoints": [{"replica": 0, "port": port}]}
    (parts.services.folder(service.submission_id).path / "endpoints.json").write_text(json.dumps(content))


def test_a_scheduler_that_is_down_changes_no_state(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler(), grace=0) as parts:
            service, _ = await parts.start()
            slurm.change("100", state="RUNNING", nodelist="node1")
            await parts.watcher.look()
            publish(parts, service, "100")
            slurm.behave("squeue", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
            parts.clock.advance(10)
            for _ in range(2):
                await parts.watcher.look()
                parts.clock.advance(100_000)
            assert parts.watcher.stale_since == START + timedelta(seconds=10)
            assert "Unable to contact" in parts.watcher.trouble
            assert await parts.status(service) is ServiceStatus.CONFIGURING
            assert len(parts.replicas.of(service.submission_id)) == 1, "replicas are placed without Slurm"
            slurm.behave("squeue")
            await parts.watcher.look()
            assert vars(parts.watcher)["stale_since"] is None
            assert parts.watcher.trouble == ""
            assert parts.watcher.last_look == parts.clock.now

    asyncio.run(work())


def test_one_turn_is_one_question_whatever_the_number_of_jobs(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            services = [await parts.start() for _ in range(20)]
            for job_id in slurm.jobs():
                slurm.change(job_id, state="RUNNING", nodelist="node1")
            await parts.watcher.look()
            assert len(slurm.calls("squeue")) == 1
            assert {await parts.status(service) for service, _ in services} == {ServiceStatus.CONFIGURING}

    asyncio.run(work())


def test_without_open_jobs_slurm_is_left_alone(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            service, _ = await parts.start()
            slurm.change("100", state="COMPLETED", exit_code="0")
            await parts.watcher.look()
            await parts.watcher.look()
            assert await parts.status(service) is ServiceStatus.COMPLETED
            assert len(slurm.calls("squeue")) == 1

    asyncio.run(work())


# sbatch hands the job over and breaks off before it has printed the id.
ACCEPTED_UNSAID = 'rm "$STATE/sbatch.sh"; "$0" "$@" >"$STATE/unsaid"; mv "$STATE/unsaid" "$STATE/reached"; sleep 1000'
NEVER_REACHED = 'touch "$STATE/reached"; sleep 1000'


UNREACHABLE = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
SILENT = "echo 'Socket timed out on send/recv operation' >&2; exit 1"


@pytest.mark.parametrize("cancelled", [False, True], ids=["wanted", "cancelled"])
def test_the_first_answer_after_an_outage_ends_no_job_that_it_lacks(slurm: FakeSlurm, cancelled: bool) -> None:
    """slurmctld is back, and lists the job one answer later."""

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            service, _ = await parts.start()
            slurm.change("100", state="RUNNING", nodelist="node1")
            await parts.watcher.look()
            listed = slurm.jobs()["100"]
            slurm.behave("squeue", UNREACHABLE)
            await parts.watcher.look()
            if cancelled:
                await parts.services.cancel(*await parts.store.find("100"), actor="test", drains=True)
            parts.clock.advance(600)
            slurm.behave("squeue")
            slurm.forget("100")
            await parts.watcher.look()
            assert (await parts.store.find("100"))[1].state is S.RUNNING
            slurm.change("100", **listed)
            parts.clock.advance(10)
            for _ in range(2):
                await parts.watcher.look()
            assert (await parts.store.find("100"))[1].state is (S.CANCELLED if cancelled else S.RUNNING)
            assert slurm.jobs()["100"]["state"] == ("CANCELLED" if cancelled else "RUNNING"), "no job without a service"
            assert await parts.status(service) is (ServiceStatus.CANCELLED if cancelled else ServiceStatus.CONFIGURING)

    asyncio.run(work())


@pytest.mark.parametrize(("cancelled", "end"), [(False, S.LOST), (True, S.CANCELLED)], ids=["wanted", "cancelled"])
def test_after_an_outage_the_grace_is_what_it_was(slurm: FakeSlurm, cancelled: bool, end: JobState) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            await parts.start()
            await parts.watcher.look()
            slurm.behave("squeue", UNREACHABLE)
            await parts.watcher.look()
            if cancelled:
                await parts.services.cancel(*await parts.store.find("100"), actor="test", drains=True)
            parts.clock.advance(600)
            slurm.behave("squeue")
            slurm.forget("100")
            states = []
            for seconds in (0, 60, 1):
                parts.clock.advance(seconds)
                await parts.watcher.look()
                states.append((await parts.store.find("100"))[1].state)
            assert states == [S.PENDING, S.PENDING, end]

    asyncio.run(work())


def test_an_sbatch_that_slurm_takes_after_an_outage_is_adopted(slurm: FakeSlurm) -> None:
    """It was not answered; the request waits in the controller, and is taken after its first answer."""

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            slurm.behave("sbatch", SILENT)
            slurm.behave("squeue", SILENT)
            with pytest.raises(SchedulerUnknown):
                await parts.start()
            ((_, job),) = await parts.store.services()
            await parts.watcher.look()
            parts.clock.advance(600)
            slurm.behave("squeue")
            await parts.watcher.look()
            slurm.change("100", name=job.name, state="PENDING")
            parts.clock.advance(10)
            await parts.watcher.look()
            service, job = await parts.store.find("100")
            assert (service.id, job.state) == ("100", S.PENDING)
            assert len(slurm.calls("sbatch")) == 1

    asyncio.run(work())


def test_what_a_crash_left_in_an_outage_is_not_submitted_again_by_the_first_answer(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        await crash_while_submitting(slurm, clock, NEVER_REACHED)
        clock.advance(600)
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            ((_, job),) = await parts.store.services()
            await parts.watcher.look()
            slurm.change("7", name=job.name, state="PENDING")
            clock.advance(10)
            for _ in range(2):
                await parts.watcher.look()
            assert list(slurm.jobs()) == ["7"], "submitted twice"
            assert (await parts.store.find("7"))[1].state is S.PENDING

    asyncio.run(work())


async def crash_while_submitting(slurm: FakeSlurm, clock: Clock, behaviour: str) -> None:
    """An orchestrator dies while sbatch runs."""
    slurm.behave("sbatch", behaviour)
    async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
        request = asyncio.create_task(parts.start())
        await until((slurm.state / "reached").exists)
        request.cancel()
        await asyncio.wait({request})
    slurm.behave("sbatch")


def test_a_job_that_was_taken_before_a_crash_is_adopted_and_not_submitted_again(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        await crash_while_submitting(slurm, clock, ACCEPTED_UNSAID)
        clock.advance(1000)
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            ((service, job),) = await parts.store.services()
            assert (service.id, job.state) == (None, S.SUBMITTING)
            for _ in range(3):
                await parts.watcher.look()
            service, job = await parts.store.find("100")
            assert (service.name, job.job_id, job.state) == ("inference/vllm-single-node-100", "100", S.PENDING)
            assert list(slurm.jobs()) == ["100"]
            assert await parts.kinds(service) == ["service.created", "job.accepted", "job.state"]

    asyncio.run(work())


def test_a_job_that_never_reached_slurm_before_a_crash_is_submitted_again_exactly_once(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        await crash_while_submitting(slurm, clock, NEVER_REACHED)
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            await parts.watcher.look()
            assert slurm.jobs() == {}, "within the grace it may still turn up"
            clock.advance(61)
            for _ in range(3):
                await parts.watcher.look()
            assert list(slurm.jobs()) == ["100"]
            _service, job = await parts.store.find("100")
            assert (job.state, job.name) == (S.PENDING, slurm.jobs()["100"]["name"])

    asyncio.run(work())


def test_what_is_submitted_again_and_refused_has_failed_in_slurms_words(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        await crash_while_submitting(slurm, clock, NEVER_REACHED)
        slurm.behave("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            await parts.watcher.look()
            clock.advance(61)
            await parts.watcher.look()
            ((_service, job),) = await parts.store.services()
            assert (job.state, job.reason) == (S.FAILED, "sbatch: invalid partition specified: x")
            await parts.watcher.look()
            assert len(slurm.calls("sbatch")) == 2

    asyncio.run(work())


def test_a_job_that_ran_and_was_purged_during_a_crash_is_known_by_its_exit_file(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        await crash_while_submitting(slurm, clock, ACCEPTED_UNSAID)
        slurm.forget("100")
        clock.advance(100_000)
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            ((service, _),) = await parts.store.services()
            content = '{"job_id": "100", "exit_code": 7, "signal": "", "ended_at": 1795274400}'
            (parts.services.folder(service.submission_id).path / "exit.json").write_text(content)
            await parts.watcher.look()
            service, job = await parts.store.find("100")
            assert (service.id, job.state, job.exit_code) == ("100", S.FAILED, 7)
            assert len(slurm.calls("sbatch")) == 2, "the two of the crash"

    asyncio.run(work())


def test_an_answer_older_than_the_submission_concludes_nothing(slurm: FakeSlurm) -> None:
    """squeue is asked while sbatch runs, and answers without the job after the request is served."""
    slurm.behave("sbatch", 'while [ ! -e "$STATE/asked" ]; do sleep 0.01; done')
    slurm.behave("squeue", 'touch "$STATE/asked"; while [ ! -e "$STATE/served" ]; do sleep 0.01; done; exit 0')

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler(), grace=0) as parts:
            request = asyncio.create_task(parts.start())
            await until(lambda: slurm.calls("sbatch") != [])
            parts.clock.advance(1)
            turn = asyncio.create_task(parts.watcher.look())
            service, _ = await request
            parts.clock.advance(1)
            (slurm.state / "served").touch()
            await turn
            assert list(slurm.jobs()) == ["100"]
            assert await parts.status(service) is ServiceStatus.PENDING
            assert await parts.kinds(service) == ["service.created", "job.accepted"]

    asyncio.run(work())


def test_a_service_cancelled_while_it_is_submitted_is_cancelled_when_it_has_an_id(slurm: FakeSlurm) -> None:
    slurm.behave("sbatch", 'while [ ! -e "$STATE/go" ]; do sleep 0.01; done')

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            request = asyncio.create_task(parts.start())
            await until(lambda: slurm.calls("sbatch") != [])
            ((service, job),) = await parts.store.services()
            await parts.services.cancel(service, job, actor="test")
            assert await parts.status(service) is ServiceStatus.CANCELLED
            (slurm.state / "go").touch()
            await request
            slurm.behave("scancel", "echo 'scancel: error: Socket timed out on send/recv operation' >&2; exit 1")
            await parts.watcher.look()
            assert slurm.jobs()["100"]["state"] == "PENDING"
            slurm.behave("scancel")
            await parts.watcher.look()
            await parts.watcher.look()
            assert slurm.jobs()["100"]["state"] == "CANCELLED"
            assert (await parts.store.find("100"))[1].state is S.CANCELLED
            assert len(slurm.calls("scancel")) == 2

    asyncio.run(work())


def test_an_ended_state_is_never_revised(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            service, _ = await parts.start()
            slurm.change("100", state="FAILED", reason="NonZeroExitCode", exit_code="1792")
            await parts.watcher.look()
            slurm.change("100", state="RUNNING")
            parts.clock.advance(1000)
            await parts.watcher.look()
            ended = (await parts.store.find("100"))[1]
            assert (ended.state, ended.exit_code, ended.reason) == (S.FAILED, 7, "NonZeroExitCode")
            assert await parts.status(service) is ServiceStatus.FAILED

    asyncio.run(work())


def test_one_job_that_cannot_be_followed_does_not_hide_the_others(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            broken, _ = await parts.start()
            whole, _ = await parts.start()
            for job_id in ("100", "101"):
                slurm.change(job_id, state="RUNNING", nodelist="node1")
            for service, job_id in ((broken, "100"), (whole, "101")):
                publish(parts, service, job_id)
            parts.services.folder(broken.submission_id).secrets.unlink()
            await parts.watcher.look()
            assert await parts.status(whole) is ServiceStatus.CONFIGURING
            assert len(parts.replicas.of(whole.submission_id)) == 1
            assert parts.watcher.last_look == START

    asyncio.run(work())


@pytest.mark.parametrize(
    ("job_id", "node", "restarts", "port", "placed"),
    [
        ("100", "node1", 1, 9009, True),
        ("99", "node1", 1, 9009, False),
        ("100", "evil.example", 1, 9009, False),
        ("100", "127.0.0.1", 1, 9009, False),
        ("100", "node1", 0, 9009, False),
        ("100", "node1", 1, 1023, False),
        ("100", "node1", 1, 8010, True),
        ("100", socket.gethostname(), 1, 9009, True),
        ("100", socket.gethostname(), 1, 8010, False),  # the orchestrator's own: a job would be asked through it
    ],
)
def test_only_endpoints_of_this_start_of_this_job_are_believed(
    slurm: FakeSlurm, job_id: str, node: str, restarts: int, port: int, placed: bool
) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            service, _ = await parts.start()
            parts.watcher.own_ports = frozenset({8010})
            slurm.change("100", state="RUNNING", nodelist=f"node[1-2],{socket.gethostname()}", restartcnt="1")
            publish(parts, service, job_id, node, restarts, port)
            await parts.watcher.look()
            assert bool(parts.replicas.of(service.submission_id)) is placed

    asyncio.run(work())


def test_replicas_go_with_their_job(slurm: FakeSlurm) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            service, _ = await parts.start()
            publish(parts, service, "100")
            seen = []
            for state in ("PENDING", "RUNNING", "SUSPENDED", "RUNNING", "COMPLETING", "COMPLETED"):
                slurm.change("100", state=state, nodelist="node1")
                await parts.watcher.look()
                seen.append(len(parts.replicas.of(service.submission_id)))
            assert seen == [0, 1, 0, 1, 1, 0]

    asyncio.run(work())


def test_a_service_is_pending_then_configuring_then_running_then_cancelled(tmp_path: Path) -> None:
    async def work() -> None:
        home = tmp_path / "home"
        async with orchestrated(home, Local(home)) as parts:
            service, _job = await parts.start(SMALL)
            seen = [await parts.status(service)]
            try:
                await parts.watcher.look()
                await parts.watcher.probe()
                seen.append(await parts.status(service))
                await until((parts.services.folder(service.submission_id).path / "endpoints.json").exists)
                await parts.watcher.look()
                (replica,) = parts.replicas.of(service.submission_id)
                while not replica.ready:
                    await parts.watcher.probe()
                    assert replica.ready or replica.problem == "the engine does not listen yet"
                seen.append(await parts.status(service))
                assert replica.models == ("Qwen/Qwen2.5-0.5B-Instruct",)
            finally:
                await parts.services.cancel(*await parts.store.find(service.submission_id), actor="test")
            await parts.watcher.look()
            seen.append(await parts.status(service))
            assert seen == ["pending", "configuring", "running", "cancelled"]
            assert parts.replicas.every() == ()
            ended = (await parts.store.find(service.submission_id))[1]
            assert (ended.state, ended.ready_at) == (S.CANCELLED, START)
            events = [(event.actor, event.kind) for event in await parts.store.events(service.submission_id)]
            assert events == [
                ("test", "service.created"), ("test", "job.accepted"), (ACTOR, "job.state"), (ACTOR, "service.ready"),
                ("test", "service.cancelled"), (ACTOR, "job.state"),
            ]  # fmt: skip

    asyncio.run(work())


def test_the_next_orchestrator_finds_the_engine_of_the_last_one(tmp_path: Path) -> None:
    async def work() -> None:
        home = tmp_path / "home"
        async with orchestrated(home, Local(home)) as first:
            service, _ = await first.start(SMALL)
            await until((first.services.folder(service.submission_id).path / "endpoints.json").exists)
        async with orchestrated(home, Local(home)) as second:
            try:
                await second.watcher.look()
                (replica,) = second.replicas.every()
                while not replica.ready:
                    await second.watcher.probe()
                assert await second.status(service) is ServiceStatus.RUNNING
            finally:
                await second.services.cancel(*await second.store.find(service.submission_id), actor="test")

    asyncio.run(work())


@pytest.mark.system  # an engine and two orchestrators: not beside others
def test_an_engine_that_was_not_known_is_asked_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        home = tmp_path / "home"
        async with orchestrated(home, Local(home)) as first:
            service, _ = await first.start(SMALL)
            await until((first.services.folder(service.submission_id).path / "endpoints.json").exists)
            while not first.replicas.every():  # the file is there a moment before the job is seen to run
                await first.watcher.look()
            (replica,) = first.replicas.every()
            while not replica.ready:
                await first.watcher.probe()
        async with orchestrated(home, Local(home)) as second:
            second.watcher.poll_seconds = second.watcher.probe_seconds = 3600
            running = asyncio.create_task(second.watcher.run())
            try:
                await until(lambda: second.replicas.answers(service.submission_id))
            finally:
                running.cancel()
                await asyncio.wait({running})  # else it may still be writing
                await second.services.cancel(*await second.store.find(service.submission_id), actor="test")

    asyncio.run(work())


def test_the_loop_outlives_a_turn_that_fails(slurm: FakeSlurm, caplog: pytest.LogCaptureFixture) -> None:
    def rename(old: str, new: str) -> None:
        with sqlite3.connect(slurm.home / "o" / "orchestrator.db") as database:
            database.execute(f"ALTER TABLE {old} RENAME TO {new}")
        database.close()

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            rename("job", "away")
            parts.watcher.poll_seconds = 0.01
            running = asyncio.create_task(parts.watcher.run())
            await until(lambda: "a turn of the watcher failed" in caplog.text)
            assert parts.watcher.last_look is None
            rename("away", "job")
            await until(lambda: parts.watcher.last_look is not None)
            assert not running.done()
            running.cancel()
            await asyncio.wait({running})

    asyncio.run(work())

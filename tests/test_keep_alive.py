"""Services that outlive their jobs, turn by turn: the next job, the handover, what goes wrong, ids given twice."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.models import Job, JobState, Service, ServiceStatus
from orchestrator.recipes import RecipeBook
from orchestrator.replicas import Replica
from orchestrator.store import Store
from orchestrator.succession import MOST_ATTEMPTS, explain, pause
from orchestrator.watcher import SETTLING
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import START, Clock, Parts, orchestrated, until
from tests.test_watcher import ACCEPTED_UNSAID, NEVER_REACHED

KEPT = {"keep_alive": True}
EPOCH = int(START.timestamp())
HOUR = 3600
REFUSED = "echo 'sbatch: error: Unable to allocate resources: Too many jobs' >&2; exit 1"


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    made = FakeSlurm(tmp_path)
    (made.state / "starts_at").write_text(str(EPOCH))  # no queue
    return made


@asynccontextmanager
async def kept(slurm: FakeSlurm, clock: Clock | None = None) -> AsyncIterator[tuple[Parts, Service]]:
    """A service whose job 100 answers, in its first minute of an hour."""
    async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
        service, _ = await parts.start(KEPT)
        await run(parts, slurm, service.submission_id, "100", ends=EPOCH + HOUR)
        yield parts, service


def script(work: Callable[[Parts, Service], Awaitable[None]], slurm: FakeSlurm) -> None:
    async def opened() -> None:
        async with kept(slurm) as (parts, service):
            await work(parts, service)

    asyncio.run(opened())


async def run(parts: Parts, slurm: FakeSlurm, submission_id: str, job_id: str, ends: int, restarts: int = 0) -> None:
    """Slurm starts a job, and its engine answers; one turn each."""
    now = int(parts.clock.now.timestamp())
    slurm.change(job_id, state="RUNNING", nodelist="node1", starttime=str(now), endtime=str(ends))
    content = {"job_id": job_id, "node": "node1", "restarts": restarts, "endpoints": [{"replica": 0, "port": 9009}]}
    (parts.services.folder(submission_id).path / "endpoints.json").write_text(json.dumps(content))
    await parts.watcher.look()
    answer(parts, job_id)
    await parts.store.ready(submission_id, at=parts.clock.now, actor="watcher")


def answer(parts: Parts, job_id: str) -> None:
    """As when the health check of its engine passes."""
    for replica in parts.replicas.every():
        if replica.job_id == job_id:
            replica.up()


async def row(store: Store, service: Service) -> tuple[Service, Job, Job | None]:
    found, job = await store.find(service.submission_id)
    return found, job, await store.job(found.next_job) if found.next_job else None


async def next_of(parts: Parts, service: Service) -> Job:
    _, _, successor = await row(parts.store, service)
    assert successor is not None
    return successor


def taking(parts: Parts, service: Service) -> list[Replica]:
    """Those that get new requests."""
    return [r for r in parts.replicas.of(service.submission_id) if r.ready and not r.draining]


def test_the_next_job_is_submitted_when_it_is_due_and_once(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        parts.clock.advance(0.9 * HOUR)
        await parts.watcher.look()
        assert list(slurm.jobs()) == ["100"]
        parts.clock.advance(0.05 * HOUR)
        for _ in range(3):
            await parts.watcher.look()
        assert list(slurm.jobs()) == ["100", "101"]
        successor = await next_of(parts, service)
        assert (successor.job_id, successor.replaces) == ("101", service.submission_id)
        assert slurm.jobs()["101"]["name"] == successor.name != slurm.jobs()["100"]["name"]
        assert await parts.status(service) is ServiceStatus.RUNNING
        assert (await parts.kinds(service))[-2:] == ["job.replacing", "job.accepted"]

    script(work, slurm)


@pytest.mark.parametrize("there", [True, False], ids=["there", "gone"])
def test_the_next_job_gets_the_users_secrets_of_the_one_before(slurm: FakeSlurm, there: bool) -> None:
    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            service, _ = await parts.start(KEPT | {"environment": {"MY_TOKEN": "planted"}})
            await run(parts, slurm, service.submission_id, "100", ends=EPOCH + HOUR)
            folder = parts.services.folder(service.submission_id)
            old = folder.read_secrets()
            if not there:
                folder.secrets.unlink()
            parts.clock.advance(0.95 * HOUR)
            await parts.watcher.look()
            successor = await next_of(parts, service)
            if there:
                new = parts.services.folder(successor.submission_id).read_secrets()
                assert (new["MY_TOKEN"], old["MY_TOKEN"]) == ("planted", "planted")
                assert new["VLLM_API_KEY"] != old["VLLM_API_KEY"], "each job has a key of its own"
            else:
                assert successor.state is JobState.FAILED
                assert "the values of MY_TOKEN are not in the run folder" in successor.reason
                assert "start the service again" in successor.reason

    asyncio.run(work())


def test_a_replacement_that_is_not_wanted_any_more_leaves_no_folder(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        folders = parts.services.folder(service.submission_id).path.parent
        _, job, _ = await row(parts.store, service)
        await parts.services.replace(service, job, 1, actor="test")
        assert len(list(folders.iterdir())) == 2
        await parts.services.replace(service, job, 1, actor="test")  # another one is on its way
        assert len(list(folders.iterdir())) == 2
        assert list(slurm.jobs()) == ["100", "101"]

    script(work, slurm)


def test_slurms_estimate_is_asked_now_and_then_and_moves_the_moment(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        def estimates() -> int:
            return sum("--test-only" in call for call in slurm.calls("sbatch"))

        parts.clock.advance(0.45 * HOUR)
        await parts.watcher.look()
        assert estimates() == 0, "before half of the walltime nobody needs to know"
        (slurm.state / "starts_at").write_text(str(EPOCH + int(0.55 * HOUR)))
        parts.clock.advance(0.1 * HOUR)
        for _ in range(3):
            await parts.watcher.look()
        assert (estimates(), len(slurm.jobs())) == (1, 1)
        (slurm.state / "starts_at").write_text(str(EPOCH + 2 * HOUR))
        parts.clock.advance(0.2 * HOUR)
        await parts.watcher.look()
        assert (estimates(), len(slurm.jobs())) == (2, 2)

    script(work, slurm)


@pytest.mark.parametrize("silence", ["exit 1", "echo 'allocation failure: x' >&2; exit 1"])
def test_without_an_estimate_the_default_counts(slurm: FakeSlurm, silence: str) -> None:
    async def work(parts: Parts, service: Service) -> None:
        slurm.behave("sbatch", f'[[ " $* " != *" --test-only "* ]] || {{ {silence}; }}')
        parts.clock.advance(0.5 * HOUR)
        await parts.watcher.look()
        assert list(slurm.jobs()) == ["100", "101"], "half an hour in the queue, and the rest of the hour is short"

    script(work, slurm)


def test_it_takes_over_when_it_answers_and_the_old_one_ends_when_it_is_idle(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        parts.clock.advance(0.95 * HOUR)
        await parts.watcher.look()
        old, successor = taking(parts, service)[0], await next_of(parts, service)
        with old.lease(parts.clock):
            await run(parts, slurm, successor.submission_id, "101", ends=EPOCH + 2 * HOUR)
            assert [r.job_id for r in taking(parts, service)] == ["100", "101"], "new requests need not wait"
            await parts.watcher.look()
            assert [r.job_id for r in taking(parts, service)] == ["101"]
            found, job = await parts.store.find("100")
            assert (found.id, found.handovers, job.job_id) == ("100", 1, "101")
            parts.clock.advance(600)
            await parts.watcher.look()
            assert (slurm.jobs()["100"]["state"], old.ready) == ("RUNNING", True), "a stream is still open"
        parts.clock.advance(SETTLING.total_seconds())
        await parts.watcher.look()
        assert slurm.jobs()["100"]["state"] == "CANCELLED"
        await parts.watcher.look()
        assert [r.job_id for r in parts.replicas.of(service.submission_id)] == ["101"]
        assert await parts.status(service) is ServiceStatus.RUNNING
        assert (await parts.store.find("101"))[0].id == "100", "each of its jobs is known by its id too"
        assert {r.job_id for r in parts.replicas.named("100")} == {"101"}
        assert "service.handover" in await parts.kinds(service)
        await parts.watcher.look()
        assert list(slurm.jobs()) == ["100", "101"]

    script(work, slurm)


def test_an_idle_job_is_given_a_moment_for_what_is_not_counted(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        parts.clock.advance(0.95 * HOUR)
        await parts.watcher.look()
        await run(parts, slurm, (await next_of(parts, service)).submission_id, "101", ends=EPOCH + 2 * HOUR)
        for _ in range(3):
            await parts.watcher.look()
        assert slurm.jobs()["100"]["state"] == "RUNNING"
        parts.clock.advance(SETTLING.total_seconds())
        await parts.watcher.look()
        assert slurm.jobs()["100"]["state"] == "CANCELLED"

    script(work, slurm)


@pytest.mark.parametrize(("behaviour", "seconds"), [(ACCEPTED_UNSAID, 0), (NEVER_REACHED, 61)])
def test_a_crash_while_the_next_job_is_submitted_leaves_one(slurm: FakeSlurm, behaviour: str, seconds: float) -> None:
    async def work() -> None:
        clock = Clock()
        async with kept(slurm, clock) as (parts, service):
            clock.advance(0.95 * HOUR)
            unless_asked = f'[[ " $* " == *" --test-only "* ]] || {{ {behaviour}; }}'
            slurm.behave("sbatch", unless_asked)
            turn = asyncio.create_task(parts.watcher.look())
            await until((slurm.state / "reached").exists)
            turn.cancel()
            await asyncio.wait({turn})
        slurm.behave("sbatch")
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            await parts.watcher.look()
            assert (await next_of(parts, service)).state in (JobState.SUBMITTING, JobState.PENDING)
            clock.advance(seconds)
            for _ in range(4):
                await parts.watcher.look()
            assert list(slurm.jobs()) == ["100", "101"]
            successor = await next_of(parts, service)
            assert (successor.job_id, successor.name) == ("101", slurm.jobs()["101"]["name"])

    asyncio.run(work())


def test_a_replacement_that_is_refused_is_tried_again_later_and_not_for_ever(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        slurm.behave("sbatch", f'[[ " $* " == *" --test-only "* ]] || {{ {REFUSED}; }}')
        parts.clock.advance(0.6 * HOUR)
        (slurm.state / "starts_at").write_text(str(EPOCH + 9 * HOUR))
        for attempt in range(1, MOST_ATTEMPTS + 1):
            for _ in range(3):
                await parts.watcher.look()
            said = explain(*await row(parts.store, service))
            assert "Too many jobs" in said
            assert (f"attempt {attempt + 1} of" in said) is (attempt < MOST_ATTEMPTS)
            assert (await next_of(parts, service)).attempt == attempt
            assert await parts.status(service) is ServiceStatus.RUNNING
            parts.clock.advance(pause(attempt).total_seconds())
        parts.clock.advance(HOUR)
        await parts.watcher.look()
        assert (await next_of(parts, service)).attempt == MOST_ATTEMPTS
        slurm.change("100", state="TIMEOUT", reason="TimeLimit")
        await parts.watcher.look()
        assert await parts.status(service) is ServiceStatus.TIMEOUT
        assert "it was the last" not in explain(*await row(parts.store, service))
        assert "Too many jobs" in explain(*await row(parts.store, service))

    script(work, slurm)


def test_a_recipe_that_is_gone_is_a_failed_attempt(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        parts.services.recipes = RecipeBook([])
        parts.clock.advance(0.95 * HOUR)
        await parts.watcher.look()
        assert list(slurm.jobs()) == ["100"]
        assert "Recipe 'inference/vllm-single-node' not found" in explain(*await row(parts.store, service))

    script(work, slurm)


@pytest.mark.parametrize("state", ["TIMEOUT", "NODE_FAIL", "PREEMPTED"])
def test_a_job_that_ends_without_a_fault_of_its_own_is_followed_at_once(slurm: FakeSlurm, state: str) -> None:
    async def work(parts: Parts, service: Service) -> None:
        parts.clock.advance(60)
        slurm.change("100", state=state, reason="x")
        await parts.watcher.look()
        assert await parts.status(service) is ServiceStatus.PENDING, "never an end that is none"
        assert await parts.store.services(status=ServiceStatus.PENDING)
        for ended in (s for s in ServiceStatus if s.ended):
            assert await parts.store.services(status=ended) == []
        await parts.watcher.look()
        found, job = await parts.store.find("100")
        assert (job.job_id, found.handovers, list(slurm.jobs())) == ("101", 1, ["100", "101"])
        await run(parts, slurm, job.submission_id, "101", ends=EPOCH + 2 * HOUR)
        assert await parts.status(service) is ServiceStatus.RUNNING

    script(work, slurm)


@pytest.mark.parametrize(
    ("state", "status"),
    [("FAILED", ServiceStatus.FAILED), ("COMPLETED", ServiceStatus.COMPLETED), ("CANCELLED", ServiceStatus.CANCELLED)],
)
def test_a_job_that_ends_by_itself_or_by_its_user_is_the_end(
    slurm: FakeSlurm, state: str, status: ServiceStatus
) -> None:
    async def work(parts: Parts, service: Service) -> None:
        slurm.change("100", state=state)
        for _ in range(3):
            await parts.watcher.look()
        assert await parts.status(service) is status
        assert list(slurm.jobs()) == ["100"]
        assert (await parts.kinds(service))[-1] == "service.let_go"

    script(work, slurm)


def test_scancel_of_the_job_that_serves_ends_the_next_one_too(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        parts.clock.advance(0.95 * HOUR)
        await parts.watcher.look()
        slurm.change("100", state="CANCELLED")
        for _ in range(2):
            await parts.watcher.look()
        assert slurm.jobs()["101"]["state"] == "CANCELLED"
        assert await parts.status(service) is ServiceStatus.CANCELLED

    script(work, slurm)


@pytest.mark.parametrize("drains", [False, True])
def test_a_cancel_ends_both_jobs(slurm: FakeSlurm, drains: bool) -> None:
    async def work(parts: Parts, service: Service) -> None:
        parts.clock.advance(0.95 * HOUR)
        await parts.watcher.look()
        found, job = await parts.store.find("100")
        with taking(parts, service)[0].lease(parts.clock):
            await parts.services.cancel(found, job, actor="me", drains=drains)
            await parts.watcher.look()
            assert slurm.jobs()["101"]["state"] == "CANCELLED", "it has nothing to do"
            assert slurm.jobs()["100"]["state"] == ("RUNNING" if drains else "CANCELLED")
        await parts.watcher.look()
        assert slurm.jobs()["100"]["state"] == "CANCELLED"
        parts.clock.advance(HOUR)
        await parts.watcher.look()
        assert await parts.status(service) is ServiceStatus.CANCELLED
        assert list(slurm.jobs()) == ["100", "101"]

    script(work, slurm)


def test_a_cancel_between_two_attempts_is_the_end(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        slurm.behave("sbatch", REFUSED)
        slurm.change("100", state="NODE_FAIL")
        await parts.watcher.look()
        assert await parts.status(service) is ServiceStatus.PENDING
        found, job = await parts.store.find("100")
        await parts.services.cancel(found, job, actor="me")
        slurm.behave("sbatch")
        parts.clock.advance(HOUR)
        await parts.watcher.look()
        assert await parts.status(service) is ServiceStatus.CANCELLED
        assert list(slurm.jobs()) == ["100"]

    script(work, slurm)


def test_what_was_never_accepted_is_not_kept(slurm: FakeSlurm) -> None:
    async def work() -> None:
        slurm.behave("sbatch", "sleep 1000")
        async with orchestrated(slurm.home / "o", slurm.scheduler(timeout=0.2)) as parts:
            with pytest.raises(Exception, match="did not answer"):
                await parts.start(KEPT)
            await parts.watcher.look()
            parts.clock.advance(61)
            await parts.watcher.look()
            ((service, _),) = await parts.store.services()
            assert await parts.status(service) is ServiceStatus.FAILED
            assert await parts.store.kept() == []

    asyncio.run(work())


def test_the_database_takes_one_replacement_for_a_job(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        def successor(name: str, **more: Any) -> Job:
            return Job(
                submission_id=name, service=service.submission_id, scheduler="slurm", name=name, recorded_at=START,
                **({"replaces": service.submission_id} | more),
            )  # fmt: skip

        tried = [parts.store.follows(successor(f"n{n}"), actor="me") for n in range(10)]
        assert sorted(await asyncio.gather(*tried)) == [False] * 9 + [True]
        assert not await parts.store.follows(successor("other", replaces="somebody"), actor="me")
        assert len(await parts.store.open_jobs()) == 2

    script(work, slurm)


def test_of_a_start_that_nobody_saw_end_nothing_is_left(slurm: FakeSlurm) -> None:
    """A job that was requeued and runs again, all between two turns."""

    async def work(parts: Parts, service: Service) -> None:
        slurm.change("100", restartcnt="1")
        await parts.watcher.look()
        assert parts.replicas.of(service.submission_id) == ()
        assert await parts.status(service) is ServiceStatus.CONFIGURING
        await run(parts, slurm, service.submission_id, "100", ends=EPOCH + HOUR, restarts=1)
        (replica,) = parts.replicas.of(service.submission_id)
        assert replica.restarts == 1

    script(work, slurm)


def test_an_id_given_twice_belongs_to_the_newest_and_hides_nobody(slurm: FakeSlurm) -> None:
    """The controller loses its state and counts from the beginning, while the old job's service is not yet given up."""

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            old, _ = await parts.start()
            await run(parts, slurm, old.submission_id, "100", ends=EPOCH + HOUR)
            slurm.forget("100")
            (slurm.state / "scripts" / "100").unlink()
            parts.clock.advance(1)
            new, _ = await parts.start()
            assert (old.id, new.id) == ("100", "100")
            await parts.watcher.look()
            assert (await parts.store.find("100"))[0].submission_id == new.submission_id
            assert (await parts.store.find(old.submission_id))[1].state is JobState.RUNNING, "it has its grace"
            await run(parts, slurm, new.submission_id, "100", ends=EPOCH + HOUR)
            assert [r.submission_id for r in parts.replicas.named("100")] == [new.submission_id]
            assert [r.submission_id for r in parts.replicas.named(old.submission_id)] == [old.submission_id]
            found, job = await parts.store.find(old.submission_id)
            await parts.services.cancel(found, job, actor="me")
            assert slurm.jobs()["100"]["state"] == "RUNNING", "the other service's job is not touched"
            parts.clock.advance(61)
            await parts.watcher.look()
            assert await parts.status(old) is ServiceStatus.CANCELLED
            assert await parts.status(new) is ServiceStatus.RUNNING
            assert [s.submission_id for s, _ in await parts.store.services()] == [new.submission_id, old.submission_id]

    asyncio.run(work())


def test_a_later_jobs_id_does_not_hide_the_service_that_bears_it(slurm: FakeSlurm) -> None:
    async def work(parts: Parts, service: Service) -> None:
        other, _ = await parts.start()
        assert other.id == "101"
        slurm.forget("101")
        (slurm.state / "scripts" / "101").unlink()
        parts.clock.advance(0.95 * HOUR)
        await parts.watcher.look()
        assert (await next_of(parts, service)).job_id == "101"
        assert (await parts.store.find("101"))[0].submission_id == other.submission_id
        assert (await parts.store.find("100"))[0].submission_id == service.submission_id

    script(work, slurm)


def test_after_a_restart_the_old_job_is_still_the_old_one(slurm: FakeSlurm) -> None:
    async def work() -> None:
        clock = Clock()
        async with kept(slurm, clock) as (parts, service):
            clock.advance(0.95 * HOUR)
            await parts.watcher.look()
            await run(parts, slurm, (await next_of(parts, service)).submission_id, "101", ends=EPOCH + 2 * HOUR)
            await parts.watcher.look()
        slurm.behave("scancel", "echo 'scancel: error: Socket timed out' >&2; exit 1")
        async with orchestrated(slurm.home / "o", slurm.scheduler(), clock) as parts:
            await parts.watcher.look()
            for job_id in ("100", "101"):
                answer(parts, job_id)
            assert [r.job_id for r in taking(parts, service)] == ["101"]
            slurm.behave("scancel")
            clock.advance(timedelta(minutes=1).total_seconds())
            await parts.watcher.look()
            assert slurm.jobs()["100"]["state"] == "CANCELLED"

    asyncio.run(work())

"""Start and stop by command, with a Slurm that takes, refuses or says nothing."""

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Conflict, Invalid, NotFound, SchedulerError, SchedulerUnknown
from orchestrator.models import JobState, ServiceStatus
from orchestrator.services import plan_of
from orchestrator.settings import SettingsError
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import RECIPE, START, Parts, fake_engine_site, orchestrated, until

REFUSED = "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1"
SILENT = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


def with_parts(slurm: FakeSlurm, work: Callable[[Parts], Awaitable[None]], **more: Any) -> None:
    async def opened() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler(), **more) as parts:
            await work(parts)

    asyncio.run(opened())


def test_a_service_is_recorded_submitted_and_named_after_its_job(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        service, job = await parts.start({"model": "gpt2"}, idempotency_key="k")
        assert (service.id, service.name, service.recipe_name) == ("100", f"{RECIPE}-100", RECIPE)
        assert (service.config, service.created_at, service.idempotency_key) == ({"model": "gpt2"}, START, "k")
        assert (job.job_id, job.state, job.name) == ("100", JobState.PENDING, slurm.jobs()["100"]["name"])
        assert await parts.status(service) is ServiceStatus.PENDING
        created, accepted = await parts.store.events(service.submission_id)
        assert (created.kind, created.detail) == ("service.created", {"recipe": RECIPE, "config": {"model": "gpt2"}})
        assert (accepted.kind, accepted.detail, accepted.actor) == ("job.accepted", {"job_id": "100"}, "test")
        assert parts.services.submitting == set()

    with_parts(slurm, work)


def test_keys_are_in_a_private_file_and_nowhere_else(slurm: FakeSlurm, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hf_planted\n")

    async def work(parts: Parts) -> None:
        service, job = await parts.start()
        folder = parts.services.folder(service.submission_id)
        keys = folder.read_secrets()
        assert keys["HF_TOKEN"] == "hf_planted"
        assert len(keys["VLLM_API_KEY"]) > 40
        assert stat.S_IMODE(folder.secrets.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        told = f"{folder.script.read_text()} {slurm.calls('sbatch')} {service} {job}"
        told += str(await parts.store.events(service.submission_id)) + str(slurm.environment_of("sbatch"))
        assert [value for value in keys.values() if value in told] == []
        other, _ = await parts.start()
        assert other.submission_id != service.submission_id
        assert parts.services.folder(other.submission_id).read_secrets()["VLLM_API_KEY"] != keys["VLLM_API_KEY"]

    with_parts(slurm, work, site=fake_engine_site(token_file=str(token)))


SECRETS: dict[str, Any] = {"environment": {"WANDB_API_KEY": "planted 'one'", "MINE": "shown"}, "gpu": None}


def test_a_users_secrets_are_in_the_jobs_file_and_masked_everywhere_else(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        service, _ = await parts.start(SECRETS)
        folder = parts.services.folder(service.submission_id)
        assert folder.read_secrets()["WANDB_API_KEY"] == "planted 'one'"
        assert service.config["environment"] == {"WANDB_API_KEY": "***", "MINE": "shown"}
        plan = plan_of(service)
        assert (plan.secrets, plan.environment["MINE"]) == (("WANDB_API_KEY",), "shown")
        told = f"{folder.script.read_text()} {slurm.calls('sbatch')} {await parts.store.events(service.submission_id)}"
        database = (parts.settings.home / "orchestrator.db").read_bytes()
        assert "planted" not in f"{told} {service}" and b"planted" not in database
        assert "export MINE=shown" in folder.script.read_text()

    with_parts(slurm, work)


def test_secrets_of_the_site_are_in_the_jobs_file_too_and_a_users_own_win(slurm: FakeSlurm, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hf_of_the_site\n")
    environment = {"HF_TOKEN": "hf_", "VLLM_API_KEY": "everybodys", "SITE_SECRET": "planted", "OPEN": "shown"}

    async def work(parts: Parts) -> None:
        for config, wanted in (({}, "hf_of_the_site"), ({"environment": {"HF_TOKEN": "hf_mine"}}, "hf_mine")):
            service, _ = await parts.start(config)
            folder = parts.services.folder(service.submission_id)
            keys = folder.read_secrets()
            assert (keys["HF_TOKEN"], keys["SITE_SECRET"], "OPEN" in keys) == (wanted, "planted", False)
            assert len(keys["VLLM_API_KEY"]) == 64, "each service has a key of its own"
            script = folder.script.read_text()
            assert ("planted" in script, "hf_" in script, "export OPEN=shown" in script) == (False, False, True)

    with_parts(slurm, work, site=fake_engine_site(token_file=str(token), environment=environment))


def test_a_key_is_another_requests_when_only_a_secret_differs(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        first, _ = await parts.start(SECRETS, idempotency_key="k")
        again, _ = await parts.start(SECRETS, idempotency_key="k")
        assert again.submission_id == first.submission_id
        for value in ("other", ""):
            changed = {**SECRETS, "environment": SECRETS["environment"] | {"WANDB_API_KEY": value}}
            with pytest.raises(Invalid, match="was used for another request"):
                await parts.start(changed, idempotency_key="k")
        with pytest.raises(Invalid, match="was used for another request"):
            await parts.start({"gpu": None, "environment": {"MINE": "shown"}}, idempotency_key="k")
        parts.services.folder(first.submission_id).secrets.unlink()
        with pytest.raises(Conflict, match="cannot be compared with"):
            await parts.start(SECRETS, idempotency_key="k")
        assert len(slurm.calls("sbatch")) == 1

    with_parts(slurm, work)


def test_a_token_file_that_cannot_be_read_is_named_and_nothing_is_submitted(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        with pytest.raises(SettingsError, match="token file /nowhere/token"):
            await parts.start()
        assert await parts.store.count() == 0
        assert slurm.calls("sbatch") == []

    with_parts(slurm, work, site=fake_engine_site(token_file="/nowhere/token"))


def test_what_is_wrong_is_said_before_anything_is_recorded(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        with pytest.raises(NotFound, match=RECIPE):
            await parts.services.start("inference/nope", {}, actor="test")
        with pytest.raises(Invalid, match=r"resources\.cpu is 0"):
            await parts.start({"resources": {"cpu": 0}})
        assert await parts.store.count() == 0
        assert not (parts.settings.home / "runs").exists()

    with_parts(slurm, work)


def test_a_refusal_is_final_and_in_slurms_words(slurm: FakeSlurm) -> None:
    slurm.behave("sbatch", REFUSED)

    async def work(parts: Parts) -> None:
        with pytest.raises(SchedulerError, match="sbatch: invalid partition specified: x"):
            await parts.start(idempotency_key="k")
        ((service, job),) = await parts.store.services()
        assert (service.id, job.state, job.ended_at) == (None, JobState.FAILED, START)
        assert job.reason == "sbatch: invalid partition specified: x"
        assert await parts.status(service) is ServiceStatus.FAILED
        assert await parts.kinds(service) == ["service.created", "job.refused"]
        with pytest.raises(SchedulerError, match="invalid partition"):
            await parts.start(idempotency_key="k")
        assert len(slurm.calls("sbatch")) == 1, "the same key asks Slurm once"

    with_parts(slurm, work)


def test_silence_is_neither_yes_nor_no_until_the_grace_is_over(slurm: FakeSlurm) -> None:
    slurm.behave("sbatch", SILENT)

    async def work(parts: Parts) -> None:
        with pytest.raises(SchedulerUnknown, match="Socket timed out"):
            await parts.start(idempotency_key="k")
        ((service, job),) = await parts.store.services()
        assert (job.state, job.job_id) == (JobState.SUBMITTING, None)
        with pytest.raises(Conflict, match="still being submitted") as caught:
            await parts.start(idempotency_key="k")
        assert caught.value.retry_after == 2
        await parts.watcher.look()
        parts.clock.advance(60)
        await parts.watcher.look()
        assert await parts.status(service) is ServiceStatus.PENDING
        parts.clock.advance(1)
        await parts.watcher.look()
        assert await parts.status(service) is ServiceStatus.FAILED
        assert len(slurm.calls("sbatch")) == 1, "the user was told; it is not for us to try again"

    with_parts(slurm, work)


def test_a_job_taken_in_silence_is_adopted(slurm: FakeSlurm) -> None:
    slurm.behave("sbatch", f'rm "$STATE/sbatch.sh"; "$0" "$@" >/dev/null; {SILENT}')

    async def work(parts: Parts) -> None:
        with pytest.raises(SchedulerUnknown):
            await parts.start(idempotency_key="k")
        await parts.watcher.look()
        service, job = await parts.start(idempotency_key="k")
        assert (service.id, job.state) == ("100", JobState.PENDING)
        assert list(slurm.jobs()) == ["100"]

    with_parts(slurm, work)


def test_the_same_key_and_request_is_the_same_service(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        config = {"environment": {"A": "1"}, "gpu_memory_utilization": 0.5}
        first, _ = await parts.start(config, idempotency_key="k")
        again, _ = await parts.services.start("vllm", config, actor="x", idempotency_key="k")
        assert again.submission_id == first.submission_id
        for recipe, other in ((RECIPE, {}), ("llamacpp-cpu", config)):
            with pytest.raises(Invalid, match="used for another request"):
                await parts.services.start(recipe, other, actor="x", idempotency_key="k")
        assert list(slurm.jobs()) == ["100"]

    with_parts(slurm, work)


def test_many_requests_at_once_with_one_key_are_one_job(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        asked = [parts.start(idempotency_key="k") for _ in range(10)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        refused = [result for result in results if isinstance(result, BaseException)]
        assert all(isinstance(error, Conflict) for error in refused), refused
        assert len(refused) < 10
        assert list(slurm.jobs()) == ["100"]
        assert await parts.store.count() == 1

    with_parts(slurm, work)


def test_requests_at_once_without_a_key_are_jobs_of_their_own(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        started = await asyncio.gather(*(parts.start() for _ in range(10)))
        assert {service.id for service, _ in started} == slurm.jobs().keys()
        assert len(slurm.jobs()) == 10

    with_parts(slurm, work)


def test_a_cancel_reaches_slurm_once_and_stays_a_cancel(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        service, _ = await parts.start()
        for _ in range(2):
            await parts.services.cancel(*await parts.store.find("100"), actor="me")
            assert await parts.status(service) is ServiceStatus.CANCELLED
            await parts.watcher.look()
        assert len(slurm.calls("scancel")) == 1
        kinds = await parts.kinds(service)
        assert kinds.count("service.cancelled") == 1

    with_parts(slurm, work)


def test_a_cancel_that_slurm_did_not_hear_is_no_cancel(slurm: FakeSlurm) -> None:
    slurm.behave("scancel", "echo 'scancel: error: Socket timed out on send/recv operation' >&2; exit 1")

    async def work(parts: Parts) -> None:
        service, job = await parts.start()
        with pytest.raises(SchedulerUnknown, match="scancel"):
            await parts.services.cancel(service, job, actor="me")
        assert await parts.status(service) is ServiceStatus.PENDING

    with_parts(slurm, work)


def test_cancelling_what_has_ended_changes_nothing(slurm: FakeSlurm) -> None:
    async def work(parts: Parts) -> None:
        service, _ = await parts.start()
        slurm.change("100", state="COMPLETED", exit_code="0")
        await parts.watcher.look()
        await parts.services.cancel(*await parts.store.find("100"), actor="me")
        assert await parts.status(service) is ServiceStatus.COMPLETED
        assert slurm.calls("scancel") == []

    with_parts(slurm, work)


def test_a_request_that_is_broken_off_leaves_the_job_to_the_watcher(slurm: FakeSlurm) -> None:
    slurm.behave("sbatch", "sleep 1000")

    async def work(parts: Parts) -> None:
        request = asyncio.create_task(parts.start())
        await until(lambda: slurm.calls("sbatch") != [])
        assert len(parts.services.submitting) == 1
        request.cancel()
        await asyncio.wait({request})
        assert parts.services.submitting == set()
        slurm.behave("sbatch")
        await parts.watcher.look()
        parts.clock.advance(61)
        await parts.watcher.look()
        assert list(slurm.jobs()) == ["100"]

    with_parts(slurm, work)

"""The login node's clock is set by a day: no job is lost, none is submitted twice, and a grace is what it was."""

import asyncio
from pathlib import Path

import pytest

from orchestrator.models import JobState
from tests.chaos.conftest import Figures
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import orchestrated, until

pytestmark = pytest.mark.chaos

DAY = 86_400.0
BOTH_WAYS = pytest.mark.parametrize("jump", [DAY, -DAY], ids=["ahead", "back"])


@BOTH_WAYS
def test_a_clock_that_jumps_loses_no_job(tmp_path: Path, jump: float, figures: Figures) -> None:
    """In the turn of the jump Slurm does not list the job, for that turn only; later it has forgotten it."""
    slurm = FakeSlurm(tmp_path)

    async def work() -> list[JobState]:
        states: list[JobState] = []
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:

            async def look(*, listed: bool, after: float) -> None:
                parts.clock.advance(after)
                if listed:
                    slurm.change("100", name=job.name, state="RUNNING", nodelist="node1", endtime=str(ends_at))
                elif "100" in slurm.jobs():
                    slurm.forget("100")
                await parts.watcher.look()
                states.append((await parts.store.find("100"))[1].state)

            ends_at = int(parts.clock().timestamp()) + 3600
            _, job = await parts.start()
            await look(listed=True, after=1)
            parts.clock.jump(jump)
            await look(listed=False, after=1)
            await look(listed=True, after=10)
            parts.clock.jump(-jump)
            await look(listed=False, after=1)
            await look(listed=False, after=59)
            await look(listed=False, after=2)
        assert len(slurm.calls("sbatch")) == 1
        assert slurm.calls("scancel") == []
        return states

    states = asyncio.run(work())
    figures.add(f"clock: a day {'ahead' if jump > 0 else 'back'}", lost_at_the_jump=states[:5].count(JobState.LOST))
    assert states == [JobState.RUNNING] * 5 + [JobState.LOST], "the grace counts on, and is not a day longer"


@BOTH_WAYS
def test_a_clock_that_jumps_while_a_job_is_submitted_does_not_submit_it_again(tmp_path: Path, jump: float) -> None:
    """The process died while sbatch ran, and sbatch outlives it: the grace is for that."""
    slurm = FakeSlurm(tmp_path)
    slurm.behave("sbatch", "sleep 30")

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            request = asyncio.create_task(parts.start())
            await until(lambda: slurm.calls("sbatch") != [])
            request.cancel()
            await asyncio.wait({request})
        async with orchestrated(slurm.home / "o", slurm.scheduler(), parts.clock) as parts:
            slurm.behave("sbatch")
            await parts.watcher.look()
            parts.clock.jump(jump)
            parts.clock.advance(1)
            await parts.watcher.look()
            assert len(slurm.calls("sbatch")) == 1, "submitted again within the grace"
            parts.clock.advance(61)
            await parts.watcher.look()
            assert len(slurm.calls("sbatch")) == 2

    asyncio.run(work())

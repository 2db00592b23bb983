"""The login node's clock is set by a day: no job is lost, none is submitted twice, and a grace is what it was.

On the cluster it is the orchestrator's clock that jumps, by libfaketime: all hosts there have the machine's own.
"""

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.models import JobState
from tests.chaos.conftest import Figures, seen_from_the_laptop
from tests.chaos.traffic import getting, prompting, traffic
from tests.e2e.deployment import Deployment, wait_for
from tests.e2e.test_lifecycle import small
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


def faketime() -> str:
    """The library that gives a process another clock."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        reason = "NO LIBFAKETIME, so no clock jumps on the cluster: apt-get install faketime"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return str(found[0])


def set_clock(file: Path, offset: str) -> None:
    part = file.with_suffix(".new")
    part.write_text(f"{offset}\n")
    part.chmod(0o644)
    part.replace(file)


@pytest.mark.timeout(180)
def test_the_orchestrators_clock_jumps_on_the_cluster(deployment: Deployment, figures: Figures) -> None:
    clock = deployment.cluster.root / "clock"
    set_clock(clock, "+0")
    words = {
        "LD_PRELOAD": faketime(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
    python = deployment.cluster.root / "python-of-another-time"
    python.write_text(
        "\n".join(["#!/bin/sh", *(f"export {name}={value}" for name, value in words.items())])
        + f'\nexec {deployment.python} "$@"\n'
    )
    python.chmod(0o755)
    deployment.python = python
    with seen_from_the_laptop(deployment) as api:
        first = str(api.start("vllm-single-node", small())["id"])
        api.until(first, "running")
        status = f"/api/v1/services/{first}/status"
        with traffic(getting(status)) as looked, traffic(prompting(first)) as prompted:
            for offset in ("+1d", "-1d", "+0"):
                set_clock(clock, offset)
                second = str(api.start("vllm-single-node", small())["id"])
                api.until(second, "running")
                looked.more(100)
                assert api.cancel(second)["status"] == "cancelled"
                wait_for(lambda: len(_alive(deployment)) == 1, "the second one has ended")
        names = Counter(_alive(deployment))
        health = api.get("/health")["orchestrator"]
    figures.add(
        "clock: jumps of days on the cluster",
        requests=len(looked.outcomes),
        prompts=len(prompted.outcomes),
        failed=len(looked.failed()) + len(prompted.failed()),
        jobs=sum(names.values()),
    )
    assert looked.failed() == prompted.failed() == []
    assert {outcome.text for outcome in looked.outcomes} == {'{"status":"running"}'}
    assert list(names.values()) == [1], "a job was lost or doubled"
    assert health["status"] == "healthy", health


def _alive(deployment: Deployment) -> list[str]:
    """The names of the jobs that run or wait."""
    lines = deployment.cluster.squeue().splitlines()
    return [line.split("|")[1] for line in lines if "|RUNNING|" in line or "|PENDING|" in line]

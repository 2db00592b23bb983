"""200 services and 20 open tabs: what that costs Slurm and the gateway, and how soon every tab shows a change."""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import insert

from orchestrator.models import Job, JobState, Service
from tests.fake_slurm import FakeSlurm
from tests.gateway.serving import short_folder
from tests.orchestrating import Parts, orchestrated, until
from tests.queued import Queued, queued

pytestmark = pytest.mark.system

SERVICES, TABS, OF_THE_CLUSTER = 200, 20, 4
POLL, CLUSTER, WATCHED = 1.0, 2.0, 6.0  # seconds
MOST_SECONDS = 2.0  # until every tab shows a change
NODES = "gpu*~up~2:00:00~mixed~2~8/24/0/32~gpu:4~gpu:2(IDX:0-1)~node[1-2]~\n"


async def fill(parts: Parts, slurm: FakeSlurm) -> None:
    """SERVICES that wait in the queue, with the ids from 100 on."""
    like, _ = await parts.start({"model": "gpt2"})
    services, jobs = [], []
    for n in range(101, 100 + SERVICES):
        identity, name = f"{n:016}", f"sluice-{n:016}"
        services.append(
            {"submission_id": identity, "job": identity, "id": str(n), "name": f"{like.recipe_name}-{n}",
             "recipe_name": like.recipe_name, "config": like.config, "plan": like.plan, "created_at": like.created_at}
        )  # fmt: skip
        jobs.append(
            {"submission_id": identity, "service": identity, "scheduler": "slurm", "name": name, "job_id": str(n),
             "state": JobState.PENDING, "recorded_at": like.created_at, "reason": "Priority", "nodes": "",
             "restarts": 0}
        )  # fmt: skip
        slurm.change(str(n), name=name, state="PENDING", reason="Priority")
    async with parts.store._writing() as session:
        connection = await session.connection()
        await connection.execute(insert(Service), services)
        await connection.execute(insert(Job), jobs)
        await session.commit()


@dataclass
class Tab:
    """One open page, as its browser's connection sees it."""

    topics: str
    pieces: dict[str, str] = field(default_factory=dict)

    async def watch(self, url: str) -> None:
        async with (
            httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as client,
            client.stream("GET", "/ui/events", params={"topics": self.topics}) as response,
        ):
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    self.pieces |= json.loads(line.removeprefix("data: "))["pieces"]

    def shows(self, service: str, word: str) -> bool:
        return re.search(rf"\b{word}\b", self.pieces.get(f"service-{service}", "")) is not None


@asynccontextmanager
async def open_tabs(url: str) -> AsyncIterator[list[Tab]]:
    """Most show the services, some the cluster, from the first event of each to closed."""
    tabs = [Tab("link,services,cluster" if n < OF_THE_CLUSTER else "link,services") for n in range(TABS)]
    tasks = [asyncio.create_task(tab.watch(url)) for tab in tabs]
    try:
        await until(lambda: all(len(tab.pieces) > SERVICES for tab in tabs), seconds=60)
        await until(lambda: all("cluster-jobs" in tab.pieces for tab in tabs[:OF_THE_CLUSTER]), seconds=60)
        yield tabs
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def cpu_seconds(pid: int) -> float:
    """Of a process and its threads. Source: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def running() -> Iterator[Queued]:
    with short_folder() as home:
        slurm = FakeSlurm(home)
        slurm.show_nodes(NODES)

        async def prepare() -> None:
            async with orchestrated(home / "o", slurm.scheduler()) as parts:
                await fill(parts, slurm)

        asyncio.run(prepare())
        with queued(home, slurm, ORCHESTRATOR_POLL_SECONDS=POLL, ORCHESTRATOR_CLUSTER_SECONDS=CLUSTER) as one:
            yield one


def test_twenty_tabs_are_one_squeue_an_interval_and_little_work(
    running: Queued, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> tuple[dict[str, int], list[float]]:
        async with open_tabs(running.url):
            processes = (running.gateway.pid, running.orchestrator.pid)
            before, began = running.asked(), [cpu_seconds(pid) for pid in processes]
            await asyncio.sleep(WATCHED)  # what is measured is this time
            used = [cpu_seconds(pid) - then for pid, then in zip(processes, began, strict=True)]
            after = running.asked()
        return {name: after[name] - before[name] for name in after}, used

    asked, used = asyncio.run(work())
    gateway, orchestrator = (100 * seconds / WATCHED for seconds in used)
    with capsys.disabled():
        words = f"{SERVICES} services, {TABS} tabs, {WATCHED:g} s, an interval of {POLL:g} s: Slurm was asked {asked}"
        print(f"\n  {words}; CPU: gateway {gateway:.1f} %, orchestrator {orchestrator:.1f} % of one core")
    # An interval is a little longer than POLL: the turn itself takes time. On a busy machine there are fewer.
    most = WATCHED / POLL + 1
    assert 2 <= asked["ours"] <= most
    assert 1 <= asked["everybody's"] <= WATCHED / CLUSTER + 1
    assert 1 <= asked["nodes"] <= WATCHED / CLUSTER + 1
    assert gateway < 50


def test_when_nobody_looks_at_the_cluster_slurm_is_not_asked_about_it(running: Queued) -> None:
    async def work() -> dict[str, int]:
        async with open_tabs(running.url):
            pass
        then = running.asked()["ours"]
        await until(
            lambda: running.asked()["ours"] > then, seconds=60
        )  # a question that had been put is answered by now
        before = running.asked()
        await until(lambda: running.asked()["ours"] >= before["ours"] + 3, seconds=60)
        after = running.asked()
        return {name: after[name] - before[name] for name in after}

    asked = asyncio.run(work())
    assert (asked["everybody's"], asked["nodes"]) == (0, 0)


def test_every_tab_shows_a_change_within_two_seconds(running: Queued, capsys: pytest.CaptureFixture[str]) -> None:
    """What a user does; and what happens in Slurm, which is asked every POLL seconds.

    The best of several: what else the machine does is not meant.
    """

    async def seen(tabs: list[Tab], service: str, word: str) -> float:
        began = time.monotonic()
        await until(lambda: all(tab.shows(service, word) for tab in tabs), seconds=60)
        return time.monotonic() - began

    async def cancelled(tabs: list[Tab], client: httpx2.AsyncClient, service: str) -> float:
        answer = await client.post(f"/api/v1/services/{service}/status", json={"status": "cancelled"})
        assert answer.status_code == 200, answer.text
        return await seen(tabs, service, "cancelled")

    async def failed(tabs: list[Tab], service: str) -> float:
        running.slurm.change(service, state="FAILED", reason="NonZeroExitCode", exit_code="256")
        return await seen(tabs, service, "failed")

    async def work() -> tuple[float, float]:
        client = httpx2.AsyncClient(base_url=running.url, trust_env=False, timeout=60)
        async with open_tabs(running.url) as tabs, client:
            commands = [await cancelled(tabs, client, service) for service in ("150", "151", "152")]
            return min(commands), min([await failed(tabs, service) for service in ("160", "161")])

    by_command, in_slurm = asyncio.run(work())
    with capsys.disabled():
        print(f"\n  all {TABS} tabs: a command after {by_command:.2f} s, a change in Slurm after {in_slurm:.2f} s")
    assert by_command < MOST_SECONDS
    assert in_slurm < POLL + MOST_SECONDS

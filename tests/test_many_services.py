"""A database with 10,000 services: what users and the watcher ask of it stays quick."""

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert
from starlette.testclient import TestClient

from orchestrator.app import create_app
from orchestrator.models import Job, JobState, Service
from orchestrator.settings import Settings
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import RECIPE, START, Parts, fake_engine_site, orchestrated

pytestmark = pytest.mark.system

MANY = 10_000
GROUP = "inference/vllm-replicas"
STATES = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT)


async def fill(parts: Parts) -> None:
    """MANY services that have ended, every tenth a group, and two open ones that are newer, the job ids 100 and 101."""
    single, _ = await parts.start()
    parts.clock.advance(1)
    group, _ = await parts.services.start(GROUP, {}, actor="test")
    services, jobs = [], []
    for n in range(MANY):
        like, identity = (single if n % 10 else group), f"{n:016}"
        services.append(
            {"submission_id": identity, "job": identity, "id": f"old-{n}", "name": f"old-{n}",
             "recipe_name": like.recipe_name, "config": {"model": "gpt2"}, "plan": like.plan,
             "created_at": START - timedelta(seconds=n + 1)}
        )  # fmt: skip
        jobs.append(
            {"submission_id": identity, "service": identity, "scheduler": "slurm", "name": f"old-{n}", "reason": "",
             "nodes": "", "restarts": 0, "job_id": f"old-{n}", "state": STATES[n % 4], "recorded_at": START}
        )  # fmt: skip
    async with parts.store._writing() as session:
        connection = await session.connection()
        await connection.execute(insert(Service), services)
        await connection.execute(insert(Job), jobs)
        await session.commit()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> FakeSlurm:
    return FakeSlurm(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def home(slurm: FakeSlurm) -> Path:
    """An orchestrator's home with that database."""

    async def work() -> None:
        async with orchestrated(slurm.home / "o", slurm.scheduler()) as parts:
            await fill(parts)

    asyncio.run(work())
    return slurm.home / "o"


@pytest.fixture(scope="module")
def http(home: Path, slurm: FakeSlurm) -> Iterator[TestClient]:
    settings = Settings(home=home, site=fake_engine_site(), poll_seconds=3600)
    with TestClient(create_app(settings, slurm.scheduler()), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("query", "first", "number", "total"),
    [
        ("services", "101", 200, MANY + 2),
        ("services?limit=100", "101", 100, MANY + 2),
        ("services?limit=100&offset=9000", "old-8998", 100, MANY + 2),
        ("services?status=failed&limit=100", "old-1", 100, MANY / 4),
        ("services?status=failed&limit=100&offset=2000", "old-8001", 100, MANY / 4),
        ("services?status=pending", "101", 2, 2),
        ("services?status=running", None, 0, 0),
        ("services?status=configuring", None, 0, 0),
        (f"services?recipe={RECIPE}", "100", 200, MANY * 0.9 + 1),
        (f"services?recipe={GROUP}&status=timeout", None, 0, 0),
        (f"services?recipe={GROUP}&status=completed&limit=10", "old-0", 10, MANY / 20),
        ("service-groups?limit=50", "101", 50, MANY / 10 + 1),
        ("services/old-9999", None, None, None),
        ("services/old-9999/status", None, None, None),
        ("vllm/services", None, None, None),
        ("vector-db/services", None, None, None),
    ],
)
def test_a_page_takes_less_than_50_ms(
    http: TestClient, query: str, first: str | None, number: int | None, total: float | None
) -> None:
    """The best of several: what else the machine does is not meant."""
    best = 1.0
    for _ in range(30):
        began = time.perf_counter()
        response = http.get(f"/api/{query}")
        best = min(best, time.perf_counter() - began)
        assert response.status_code == 200, response.text
        if best < 0.05:
            break
    assert best < 0.05
    if number is not None:
        found = [service["id"] for service in response.json()]
        assert (found[0] if found else None, len(found)) == (first, number)
        assert int(response.headers["X-Total-Count"]) == total


def test_the_pages_lead_through_all_of_them(http: TestClient) -> None:
    seen: list[str] = []
    at = "?status=failed&limit=1000"
    while at:
        response = http.get(f"/api/v1/services{at}")
        seen += [service["id"] for service in response.json()]
        at = response.headers.get("Link", "").removesuffix('>; rel="next"').removeprefix("<")
    assert seen == [f"old-{n}" for n in range(1, MANY, 4)]


def test_a_turn_of_the_watcher_is_one_squeue(home: Path, slurm: FakeSlurm) -> None:
    async def work() -> tuple[int, float]:
        async with orchestrated(home, slurm.scheduler()) as parts:
            before = len(slurm.calls("squeue"))
            began = time.process_time()
            await parts.watcher.look()
            return len(slurm.calls("squeue")) - before, time.process_time() - began

    questions, seconds = asyncio.run(work())
    assert questions == 1
    assert seconds < 0.5

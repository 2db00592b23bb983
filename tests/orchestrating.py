"""An orchestrator in parts, for tests that turn its watcher by hand."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2

from orchestrator.caretaker import Caretaker
from orchestrator.models import Job, Service, ServiceStatus, status_of
from orchestrator.recipes import RecipeBook, builtin_recipes
from orchestrator.replicas import Replicas
from orchestrator.schedulers import Scheduler
from orchestrator.services import Services
from orchestrator.settings import Engine, Settings, Site
from orchestrator.store import Store, open_store
from orchestrator.watcher import Watcher

FAKE_ENGINE = [sys.executable, str(Path(__file__).with_name("fake_engine.py"))]
RECIPE = "inference/vllm-single-node"
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Clock:
    """Stands still until it is moved. `steady` is the one that nobody sets."""

    def __init__(self) -> None:
        self.now = START
        self._steady = 0.0

    def __call__(self) -> datetime:
        return self.now

    def steady(self) -> float:
        return self._steady

    def advance(self, seconds: float) -> None:
        """Time goes by."""
        self.now += timedelta(seconds=seconds)
        self._steady += seconds

    def jump(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.now += timedelta(seconds=seconds)


def fake_engine_site(**more: Any) -> Site:
    """A site whose vLLM is the fake engine."""
    engines = {"vllm": Engine(command=FAKE_ENGINE), "llamacpp": Engine(command=FAKE_ENGINE)}
    return Site(engines=engines, **more)


@dataclass
class Parts:
    """What an orchestrator has open, without its HTTP side and without its loops."""

    settings: Settings
    clock: Clock
    store: Store
    services: Services
    replicas: Replicas
    watcher: Watcher
    caretaker: Caretaker

    async def start(self, config: dict[str, Any] | None = None, **more: Any) -> tuple[Service, Job]:
        return await self.services.start(RECIPE, config or {}, actor="test", **more)

    async def status(self, service: Service) -> ServiceStatus:
        now, job = await self.store.find(service.submission_id)
        answers = self.replicas.answers(service.submission_id)
        return status_of(now, job, answers=answers)

    async def kinds(self, service: Service) -> list[str]:
        """The kinds of a service's events."""
        return [event.kind for event in await self.store.events(service.submission_id)]


@asynccontextmanager
async def orchestrated(
    home: Path,
    scheduler: Scheduler,
    clock: Clock | None = None,
    *,
    grace: float = 60,
    site: Site | None = None,
    **more: Any,
) -> AsyncIterator[Parts]:
    """The parts, opened on `home`. Opened again on the same home they are what comes up after a crash. `more`:
    settings."""
    home.mkdir(mode=0o700, exist_ok=True)
    clock = clock or Clock()
    settings = Settings(home=home, site=site or fake_engine_site(), **more)
    async with open_store(home / "orchestrator.db") as store, httpx2.AsyncClient(timeout=10, trust_env=False) as client:
        book = RecipeBook([builtin_recipes()])
        services = Services(settings=settings, recipes=book, scheduler=scheduler, store=store, clock=clock)
        replicas = Replicas()
        watcher = Watcher(
            scheduler=scheduler, store=store, services=services, replicas=replicas, client=client, clock=clock,
            grace=timedelta(seconds=grace), drain=timedelta(seconds=30), poll_seconds=1, probe_seconds=1,
            steady=clock.steady,
        )  # fmt: skip
        caretaker = Caretaker(store, services, replicas, watcher, clock, seconds=1)
        yield Parts(settings, clock, store, services, replicas, watcher, caretaker)


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what another process does. `seconds` is how long it may take, not how long it takes."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event: another process
            await asyncio.sleep(0.005)

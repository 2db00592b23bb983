"""Ends what nobody uses, and what no budget pays for any more; notes when services were last used.

One turn is `look()`. What it concludes is decided by `idleness` and `budgets`, which are pure.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from orchestrator.budgets import draws_on
from orchestrator.errors import OrchestratorError
from orchestrator.idleness import Act, Idleness, decide, ends_at, seen
from orchestrator.models import Job, Service
from orchestrator.replicas import Replicas
from orchestrator.services import Services, plan_of, use_of
from orchestrator.store import Store, Why
from orchestrator.watcher import Watcher

log = logging.getLogger(__name__)

NOTED_EVERY = timedelta(seconds=15)
Rows = list[tuple[Service, Job]]


@dataclass
class Caretaker:
    """`clock` gives aware UTC datetimes."""

    store: Store
    services: Services
    replicas: Replicas
    watcher: Watcher
    clock: Callable[[], datetime]
    seconds: float  # between two turns
    _idle: dict[str, Idleness] = field(default_factory=dict)  # by submission id
    _noted: dict[str, Idleness] = field(default_factory=dict)  # as the database has it
    _noted_at: datetime | None = None
    _warned: dict[str, datetime] = field(default_factory=dict)  # of the end that was announced

    async def run(self) -> None:
        """Turns, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                # The top of the loop: a turn that failed must not be the last one.
                log.exception("a turn of the caretaker failed")
            await asyncio.sleep(self.seconds)

    async def look(self) -> None:
        """One turn over the services that have not ended."""
        rows = [(service, job) for service, job in await self.store.open_services() if service.cancelled_at is None]
        await self._forget({service.submission_id for service, _ in rows})
        for service, job in rows:
            await self._attend(service, job)
        await self._stop_over_budget(rows)
        now = self.clock()
        if self._noted_at is None or not timedelta(0) <= now - self._noted_at < NOTED_EVERY:
            await self.note()

    def idleness(self, service: Service, job: Job) -> Idleness:
        """What is known of a service at this moment."""
        submission_id = service.submission_id
        timed = plan_of(service).idle_timeout is not None
        return seen(
            self._idle.get(submission_id) or _kept(service),
            ready_at=job.ready_at,
            used=self.replicas.last_used(submission_id),
            busy=self.replicas.busy(submission_id),
            on=timed and is_on(job),
            now=self.clock(),
        )

    def shutdown_at(self, service: Service, job: Job) -> datetime | None:
        """When a service will be ended if nobody uses it; None while a request is open, or for never."""
        busy = self.replicas.busy(service.submission_id)
        if busy or not is_on(job) or job.state.ended or service.cancelled_at is not None:
            return None
        return ends_at(self.idleness(service, job).since, plan_of(service).idle_timeout)

    async def _attend(self, service: Service, job: Job) -> None:
        idle = self._idle[service.submission_id] = self.idleness(service, job)
        timeout, now = plan_of(service).idle_timeout, self.clock()
        busy = self.replicas.busy(service.submission_id)
        act = decide(idle, timeout=timeout, busy=busy, on=is_on(job), now=now)
        if act is Act.NOTHING or timeout is None or idle.since is None:
            return
        end, minutes = idle.since + timedelta(minutes=timeout), (now - idle.since) / timedelta(minutes=1)
        detail = {"idle_minutes": round(minutes, 2), "idle_timeout": timeout}
        # Nothing is awaited between the decision and the moment from which the service gets no new requests.
        if act is Act.END:
            log.info("service %s: nobody has used it for %.1f minutes; it is ended", service.id, minutes)
            await self._end(service, job, "idle", Why("service.idle_shutdown", detail))
        elif self._warned.get(service.submission_id) != end:
            self._warned[service.submission_id] = end
            log.warning("service %s: idle for %.1f minutes; it is ended at %s", service.id, minutes, f"{end:%H:%M:%SZ}")
            why = Why("service.idle_warning", detail | {"shutdown_at": end.isoformat()})
            await self.store.warned(service.submission_id, why, at=now, actor="idle")

    async def _stop_over_budget(self, rows: Rows) -> None:
        prices = self.services.settings.prices
        if not any(budget.action == "stop" for budget in self.services.settings.budgets):
            return
        uses = {service.submission_id: use_of(service) for service, _ in rows}
        over = [one for one in await self.services.spent(*uses.values()) if one.over and one.budget.action == "stop"]
        for service, job in rows:
            one = next((o for o in over if draws_on(o.budget, uses[service.submission_id], prices)), None)
            if one is not None:
                log.info("service %s is ended: %s", service.id, one)
                await self._end(service, job, "budget", Why("service.budget_stop", one.detail))

    async def _end(self, service: Service, job: Job, actor: str, why: Why) -> None:
        try:
            await self.watcher.end(service, job, actor=actor, why=why)
        except OrchestratorError as exc:
            log.warning("service %s could not be ended, which is tried again: %s", service.id, exc)

    async def note(self) -> None:
        """Write down what the database does not have yet."""
        new = {name: idle for name, idle in self._idle.items() if _columns(idle) != _columns(self._noted.get(name))}
        if new:
            try:
                await self.store.noted({name: _columns(idle) for name, idle in new.items()})
            except OrchestratorError as exc:
                log.warning("when services were last used could not be written down, which is tried again: %s", exc)
                return
        self._noted |= new
        self._noted_at = self.clock()

    async def _forget(self, there: set[str]) -> None:
        """What has ended is noted for the last time."""
        self.replicas.forget(there)
        over = self._idle.keys() - there
        if over:
            await self.note()
        for gone in over:
            for known in (self._idle, self._noted, self._warned):
                known.pop(gone, None)


def is_on(job: Job) -> bool:
    """Whether a service could be asked: its job runs, and has answered since it was started."""
    return job.state.runs and job.ready_at is not None


def _kept(service: Service) -> Idleness:
    return Idleness(service.last_activity, service.idle_since, service.looked_at)


def _columns(idle: Idleness | None) -> tuple[Any, ...]:
    return (None, None, None) if idle is None else (idle.last_activity, idle.since, idle.looked_at)

"""What is seen of the rented machine. Each look is recorded before the next one begins."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from orchestrator.errors import RentalError
from orchestrator.models import Rental
from orchestrator.replicas import Replica, Replicas
from orchestrator.settings import Vast
from orchestrator.vast import exports
from orchestrator.vast.api import VastApi
from orchestrator.vast.idle import last_use
from orchestrator.vast.instance import Instance, Status, place, url_of
from orchestrator.vast.ledger import Kind, Ledger

log = logging.getLogger(__name__)

NAME = "vast"  # of its group of replicas
FRESH = timedelta(seconds=3)  # for so long a look is news: whoever asks then is told the same


@dataclass
class Sight:
    """Writes sessions as they are seen to begin and to end, and keeps the machine's place among the replicas."""

    settings: Vast
    api: VastApi
    ledger: Ledger
    replicas: Replicas
    clock: Callable[[], datetime]
    active_at: datetime | None = None  # when it was last used, as far as we were told
    ending: bool = False  # the end that was asked for is being waited for
    _last: tuple[datetime, Instance] | None = None  # the newest look
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _exporting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self) -> Instance:
        """Ask vast.ai, and record the answer. Raises RentalError and RentalUnknown."""
        async with self._looking:
            instance = await self.api.instance()
            now = self.clock()
            await self._record(instance, now)
            self._last = now, instance
        await self.export()
        return instance

    async def glance(self) -> Instance:
        """The same, but what was seen a moment ago is good enough."""
        if self._last is not None and abs(self.clock() - self._last[0]) < FRESH:
            return self._last[1]
        return await self.look()

    async def _record(self, instance: Instance, now: datetime) -> None:
        costs = instance.meaning.costs
        rental: Rental | None = None
        if costs:
            used_at = last_use(self.active_at, self.replicas.of(NAME), now)
            rental = await self.ledger.runs(instance.price, at=now, used_at=used_at)
            self.active_at = max(self.active_at or rental.active_at, rental.active_at)
        elif costs is False:
            await self.ledger.ended(at=now, certain=self.ending)
        self._place(instance, rental)

    def _place(self, instance: Instance, rental: Rental | None) -> None:
        """Bring its group of replicas in line with what it is."""
        found: list[Replica] = []
        if instance.status is Status.RUNNING and rental is not None:
            try:
                address, port = place(instance, self.settings.engine_port, loopback=self.settings.local)
                found.append(self._replica(address, port, rental))
            except RentalError as exc:  # which GET /infra/vast/status says too
                log.info("the rented machine: %s", exc)
        if found:
            self.replicas.update(NAME, NAME, found)
        else:
            self.replicas.drop(NAME, NAME)

    def _replica(self, address: str, port: int, rental: Rental) -> Replica:
        return Replica(
            submission_id=NAME,
            service_id=NAME,
            created_at=rental.started_at,
            job_id=NAME,
            index=0,
            node=address,
            port=port,
            gpus="",
            key=self.engine_key,
            health=self.settings.health_path if self.settings.engine_port == self.settings.health_port else "/health",
            models_path="/v1/models",
            rented=True,
            restarts=rental.id or 0,
        )

    @property
    def engine_key(self) -> str:
        key = self.settings.engine_key
        return "" if key is None else key.get_secret_value()

    def used(self) -> datetime:
        """It is used now: that puts its end off."""
        self.active_at = self.clock()
        return self.active_at

    def used_at(self, rental: Rental) -> datetime:
        return last_use(self.active_at, self.replicas.of(NAME), self.clock()) or rental.active_at

    def endpoint(self, instance: Instance) -> str | None:
        """The base URL of its engine, None while there is none."""
        return self.url(instance, self.settings.engine_port)

    def url(self, instance: Instance, port: int, path: str = "") -> str | None:
        try:
            return url_of(self.place_of(instance, port), path)
        except RentalError:  # `_place` has said so in the log
            return None

    def place_of(self, instance: Instance, port: int) -> tuple[str, int]:
        return place(instance, port, loopback=self.settings.local)

    async def note(self, kind: Kind, meta: dict[str, Any], actor: str) -> None:
        await self.ledger.note(kind, meta, at=self.clock(), actor=actor)
        await self.export()

    async def export(self) -> None:
        """Bring the files for other programs up to date."""
        lines, state = self.settings.audit_path, self.settings.state_path
        async with self._exporting:  # or two would append the same line
            try:
                if lines is not None:
                    exports.append(lines, await self.ledger.audit_after(exports.lines_in(lines)))
                if state is not None:
                    exports.replace(state, await self._state())
            except OSError as exc:
                log.warning("the files of the rented machine: %s", exc)

    async def _state(self) -> dict[str, Any]:
        rental, totals = await self.ledger.open(), await self.ledger.totals()
        return {
            "instance_id": self.settings.instance_id,
            "status": None if self._last is None else self._last[1].status,
            "last_activity": None if self.active_at is None else self.active_at.isoformat(),
            "session_started_at": None if rental is None else rental.started_at.isoformat(),
            "total_runtime_seconds": totals.seconds,
            "total_cost_usd": totals.cost,
        }

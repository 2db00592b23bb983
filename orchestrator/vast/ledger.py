"""When the rented machine ran and what that has cost, and who did what with it: statements on the store's database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from orchestrator.models import Event, Rental
from orchestrator.store import Store

SUBJECT = "vast"
SYSTEM = "system"  # the actor of what nobody has asked for just now


class Kind(StrEnum):
    """The words of the audit."""

    POWER_ON_REQUESTED = "power_on_requested"
    POWER_ON_COMPLETE = "power_on_complete"
    POWER_ON_HEALTH_TIMEOUT = "power_on_health_timeout"
    POWER_OFF_REQUESTED = "power_off_requested"
    POWER_OFF_COMPLETE = "power_off_complete"
    AUTO_SHUTDOWN = "auto_shutdown"
    AUTO_SHUTDOWN_COMPLETE = "auto_shutdown_complete"


# Beside the audit, in the same table: what nobody here has asked for, such as an end in vast.ai's own console.
SESSION_OPENED, SESSION_CLOSED = "vast.session_opened", "vast.session_closed"


class Stop(StrEnum):
    """Why a machine is stopped, and how its beginning and its end are called in the audit."""

    POWER_OFF = "power_off"
    AUTO_SHUTDOWN = "auto_shutdown"

    @property
    def begun(self) -> Kind:
        return Kind.POWER_OFF_REQUESTED if self is Stop.POWER_OFF else Kind.AUTO_SHUTDOWN

    @property
    def done(self) -> Kind:
        return Kind.POWER_OFF_COMPLETE if self is Stop.POWER_OFF else Kind.AUTO_SHUTDOWN_COMPLETE


@dataclass(frozen=True)
class Totals:
    """Of all sessions, the open one until it was last seen. `cost` in dollars."""

    sessions: int
    seconds: float
    cost: float


class Ledger:
    """Of one instance. The keeper is the only one who writes."""

    def __init__(self, store: Store, instance_id: int) -> None:
        self._store, self._instance_id = store, instance_id

    async def note(self, kind: Kind, meta: dict[str, Any], *, at: datetime, actor: str) -> None:
        """Write a line of the audit."""
        await self._store.within(lambda session: _note(session, kind, meta, at, actor))

    async def runs(self, price: float, *, at: datetime, used_at: datetime | None) -> Rental:
        """It was seen to run, and costs so much an hour: in the session that is open, or in a new one.

        `used_at`: when it was last used, None where nothing is known of that.
        """

        async def work(session: AsyncSession) -> Rental:
            rental = await self._open(session)
            if rental is None:
                rental = Rental(instance_id=self._instance_id, started_at=at, seen_at=at, active_at=at, price=price)
                await _note(session, SESSION_OPENED, {"instance_id": self._instance_id, "price": price}, at, SYSTEM)
            else:
                rental.cost = cost_until(rental, at)
                rental.seen_at, rental.price = max(at, rental.seen_at), price
                rental.active_at = max(rental.active_at, used_at or rental.active_at)
            session.add(rental)
            return rental

        return await self._store.within(work)

    async def stopping(self, stop: Stop, meta: dict[str, Any], *, at: datetime, actor: str) -> Rental | None:
        """It is about to be stopped. The session that this will end, None when none is open."""

        async def work(session: AsyncSession) -> Rental | None:
            rental = await self._open(session)
            await _note(session, stop.begun, meta, at, actor)
            if rental is not None:
                rental.stopping = str(stop)
                session.add(rental)
            return rental

        return await self._store.within(work)

    async def goes_on(self) -> None:
        """What was to stop it was refused."""

        async def work(session: AsyncSession) -> None:
            rental = await self._open(session)
            if rental is not None:
                rental.stopping = ""
                session.add(rental)

        await self._store.within(work)

    async def ended(self, *, at: datetime, certain: bool) -> Rental | None:
        """It was seen not to run. The session that this has closed, None when none was open: each is closed once.

        `certain`: it has ended just now, under our eyes. Otherwise nobody knows when, and the time when it was last
        seen to run is taken.
        """

        async def work(session: AsyncSession) -> Rental | None:
            rental = await self._open(session)
            if rental is None:
                return None
            end = max(at, rental.seen_at) if certain else rental.seen_at
            rental.cost = cost_until(rental, end)
            rental.seen_at = rental.ended_at = end
            session.add(rental)
            kind = Stop(rental.stopping).done if rental.stopping else SESSION_CLOSED
            await _note(session, kind, told(rental) | {"certain": certain}, at, SYSTEM)
            return rental

        return await self._store.within(work)

    async def open(self) -> Rental | None:
        return await self._store.read(self._open)

    async def session(self, identity: int) -> Rental:
        return await self._store.read(lambda session: session.get_one(Rental, identity))

    async def totals(self) -> Totals:
        async def work(session: AsyncSession) -> Totals:
            query = select(Rental).where(Rental.instance_id == self._instance_id)
            rentals = (await session.exec(query)).all()
            seconds = sum(runtime(rental).total_seconds() for rental in rentals)
            return Totals(len(rentals), seconds, sum(rental.cost for rental in rentals))

        return await self._store.read(work)

    async def last(self) -> Event | None:
        """The newest line of the audit."""
        newest = await self.audit(1)
        return newest[0] if newest else None

    async def audit(self, limit: int) -> Sequence[Event]:
        """The newest lines of the audit, the newest first."""
        query = _LINES.order_by(col(Event.id).desc()).limit(limit)
        return await self._store.read(lambda session: _events(session, query))

    async def audit_after(self, lines: int) -> Sequence[Event]:
        """All lines of the audit but the first so many, the oldest first."""
        query = _LINES.order_by(col(Event.id)).offset(lines)
        return await self._store.read(lambda session: _events(session, query))

    async def _open(self, session: AsyncSession) -> Rental | None:
        query = select(Rental).where(Rental.instance_id == self._instance_id, col(Rental.ended_at).is_(None))
        return (await session.exec(query)).first()


_LINES = select(Event).where(Event.subject == SUBJECT, col(Event.kind).in_([str(kind) for kind in Kind]))


async def _events(session: AsyncSession, query: SelectOfScalar[Event]) -> Sequence[Event]:
    return (await session.exec(query)).all()


async def _note(session: AsyncSession, kind: str, meta: dict[str, Any], at: datetime, actor: str) -> None:
    session.add(Event(at=at, actor=actor, kind=str(kind), subject=SUBJECT, detail=meta))


def runtime(rental: Rental) -> timedelta:
    """How long a session has been known to run."""
    return rental.seen_at - rental.started_at


def cost_until(rental: Rental, at: datetime) -> float:
    """Dollars, with the present price since it was last seen. A clock that was set back makes nothing cheaper."""
    return rental.cost + rental.price * max(0.0, (at - rental.seen_at).total_seconds()) / 3600


def told(rental: Rental) -> dict[str, Any]:
    """A session as the audit has it."""
    minutes = runtime(rental).total_seconds() / 60
    return {
        "instance_id": rental.instance_id,
        "session_runtime_minutes": round(minutes, 1),
        "session_cost_usd": round(rental.cost, 4),
    }

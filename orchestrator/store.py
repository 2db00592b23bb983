"""The database. Each change is written with its event in one transaction; nothing else opens a session."""

import asyncio
import functools
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from pydantic import SecretStr
from sqlalchemy import ColumnElement, func, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import aliased
from sqlmodel import and_, col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from orchestrator import ledger, sqlite
from orchestrator.costs import Use, run_ended, used_seconds
from orchestrator.database import Database
from orchestrator.errors import Conflict, NotFound
from orchestrator.ledger import Entry, Sought
from orchestrator.models import Event, Job, JobState, Service, ServiceStatus, states_of
from orchestrator.settings import SettingsError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


_ENDED = [state for state in JobState if state.ended]


class Tally(NamedTuple):
    """So many jobs are in a state. `cancelled`: a user has asked for the end of their service; `last`: nothing follows
    them, so that their state is their service's."""

    state: JobState
    cancelled: bool
    last: bool
    number: int


class Why(NamedTuple):
    """The event that gives the reason for another one."""

    kind: str
    detail: dict[str, Any]


class Connections:
    """To the database, of all that read and write it. `writer`: one writes at a time."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.writer = asyncio.Lock()
        self.under_way: set[asyncio.Future[Any]] = set()

    async def close(self) -> None:
        """End what is under way."""
        await asyncio.gather(*self.under_way, return_exceptions=True)  # who asked has got the error, or has gone

    @asynccontextmanager
    async def answered(self) -> AsyncIterator[None]:
        """Raises StateFull and NotReady for what the database refuses: nothing was changed then, or it did not say."""
        try:
            async with asyncio.timeout(self.database.seconds):
                yield
        except (SQLAlchemyError, sqlite3.OperationalError, TimeoutError) as exc:
            if (why := self.database.told(exc.orig if isinstance(exc, DBAPIError) else exc)) is not None:
                raise why from exc
            raise


class Tables:
    """Some tables of the database. Objects that are returned are detached: changing them changes nothing here."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[AsyncSession]:
        """A session that reads."""
        there = self.connections
        async with there.answered(), AsyncSession(there.database.reading, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncSession]:
        """A session that reads and then writes. One at a time, so that what it has read is still true."""
        there = self.connections
        async with (
            there.answered(),
            there.writer,
            AsyncSession(there.database.writing, expire_on_commit=False) as session,
        ):
            yield session


S = TypeVar("S", bound=Tables)


def whole(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """What the database has begun is ended, also when the one who asked is cancelled: a connection that is given up
    within a statement keeps its lock, and nothing could be written any more."""

    @functools.wraps(method)
    async def run(tables: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        under_way = tables.connections.under_way
        work = asyncio.ensure_future(method(tables, *args, **kwargs))
        under_way.add(work)
        work.add_done_callback(under_way.discard)
        return await asyncio.shield(work)

    return run


class Store(Tables):
    """Services, jobs and events."""

    @whole
    async def add(self, service: Service, job: Job, *, actor: str) -> None:
        """Record what is about to be submitted. Raises Conflict when the idempotency key is in use."""
        async with self._writing() as session:
            session.add(service)
            try:
                await session.flush()  # the job refers to it
            except IntegrityError as exc:
                raise Conflict(
                    f"another request with Idempotency-Key {service.idempotency_key!r} is being served"
                ) from exc
            session.add(job)
            session.add(
                Event(
                    at=service.created_at,
                    actor=actor,
                    kind="service.created",
                    subject=service.submission_id,
                    detail={"recipe": service.recipe_name, "config": service.config},
                )
            )
            await session.commit()

    @whole
    async def accepted(self, submission_id: str, job_id: str, *, at: datetime, actor: str) -> Service:
        """The scheduler has given the job an id, which becomes the service's id if it has none yet.

        From then on the service is kept, if that was asked for: what was never accepted is not followed by anything.
        """
        async with self._writing() as session:
            job = await session.get_one(Job, submission_id)
            service = await session.get_one(Service, job.service)
            job.job_id = job_id
            if job.state is JobState.SUBMITTING:
                job.state, job.reason, job.seen_at = JobState.PENDING, "", at
            if service.id is None:
                service.id = job_id
                service.kept = bool(service.plan.get("keep_alive")) and service.cancelled_at is None
                service.name = f"{service.recipe_name}-{'group' if service.plan.get('gpus_per_replica') else job_id}"
            session.add(_event(at, actor, "job.accepted", service, {"job_id": job_id}))
            await session.commit()
            return service

    @whole
    async def record(
        self, submission_id: str, changes: dict[str, Any], *, at: datetime, actor: str, kind: str | None
    ) -> None:
        """Write what is known of a job. An ended job is never revised; `kind` None writes no event."""
        async with self._writing() as session:
            job = await session.get_one(Job, submission_id)
            if job.state.ended:
                return
            if (run := run_ended(job, changes, at)) is not None:
                job.earlier_runs = [*job.earlier_runs, run]
            for name, value in changes.items():
                setattr(job, name, value)
            if job.state.ended:
                job.used_seconds = used_seconds(job, at)
            if kind is not None:
                detail = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in changes.items()}
                service = await session.get_one(Service, job.service)
                session.add(_event(at, actor, kind, service, detail))
            await session.commit()

    @whole
    async def ready(self, submission_id: str, *, at: datetime, actor: str) -> None:
        """A job's engine has answered. The first time is kept with the job."""
        async with self._writing() as session:
            job = await session.get_one(Job, submission_id)
            if job.state.ended:
                return
            service = await session.get_one(Service, job.service)
            job.ready_at = job.ready_at or at
            session.add(_event(at, actor, "service.ready", service, {"job_id": job.job_id}))
            await session.commit()

    @whole
    async def cancelled(self, submission_id: str, *, at: datetime, actor: str, why: Why | None = None) -> None:
        """The end of a service has been asked for, by a user or for a reason of ours. The first time counts."""
        async with self._writing() as session:
            service = await session.get_one(Service, submission_id)
            if service.cancelled_at is None:
                service.cancelled_at, service.kept = at, False
                if why is not None:
                    session.add(_event(at, actor, why.kind, service, why.detail))
                session.add(_event(at, actor, "service.cancelled", service, {}))
                await session.commit()

    @whole
    async def warned(self, submission_id: str, why: Why, *, at: datetime, actor: str) -> None:
        """What may end a service that nobody has cancelled yet."""
        async with self._writing() as session:
            service = await session.get_one(Service, submission_id)
            if service.cancelled_at is None:
                session.add(_event(at, actor, why.kind, service, why.detail))
                await session.commit()

    @whole
    async def noted(self, seen: Mapping[str, tuple[datetime | None, datetime | None, datetime | None]]) -> None:
        """When services were last used, since when they are idle, when they were last seen on: by submission id."""
        names = ("submission_id", "last_activity", "idle_since", "looked_at")
        rows = [dict(zip(names, (name, *moments), strict=True)) for name, moments in seen.items()]
        async with self._writing() as session:
            await session.exec(update(Service), params=rows)
            await session.commit()

    @whole
    async def follows(self, job: Job, *, actor: str) -> bool:
        """Record a job that is to take over from the one that it `replaces`; false when that is not wanted any more.

        Nothing is recorded while another one is on its way, or when the service is not kept, or its job another one.
        """
        async with self._writing() as session:
            service = await session.get_one(Service, job.service)
            last = await session.get(Job, service.next_job) if service.next_job else None
            under_way = last is not None and not last.state.ended
            if under_way or not service.kept or service.job != job.replaces:
                return False
            service.next_job = job.submission_id
            session.add(job)
            detail = {"job": job.submission_id, "replaces": job.replaces, "attempt": job.attempt}
            if job.state.ended:
                detail["reason"] = job.reason
            session.add(_event(job.recorded_at, actor, "job.replacing", service, detail))
            await session.commit()
            return True

    @whole
    async def hand_over(self, submission_id: str, successor: str, *, at: datetime, actor: str) -> None:
        """From now on the successor is the service's job, unless it is no longer the one that is to take over."""
        async with self._writing() as session:
            service = await session.get_one(Service, submission_id)
            if service.next_job != successor or not service.kept:
                return
            job = await session.get_one(Job, successor)
            detail = {"from": service.job, "to": successor, "job_id": job.job_id}
            service.job, service.next_job, service.handovers = successor, None, service.handovers + 1
            session.add(_event(at, actor, "service.handover", service, detail))
            await session.commit()

    @whole
    async def let_go(self, submission_id: str, reason: str, *, at: datetime, actor: str) -> None:
        """Nothing follows the service's job any more."""
        async with self._writing() as session:
            service = await session.get_one(Service, submission_id)
            if service.kept:
                service.kept = False
                session.add(_event(at, actor, "service.let_go", service, {"reason": reason}))
                await session.commit()

    @whole
    async def kept(self) -> list[tuple[Service, Job, Job | None]]:
        """The services whose job is followed by another, with it and the last one that was to take over."""
        successor = aliased(Job)
        query = (
            select(Service, Job, successor)
            .join(Job, col(Job.submission_id) == Service.job)
            .outerjoin(successor, col(successor.submission_id) == Service.next_job)
            .where(col(Service.kept))
        )
        async with self._session() as session:
            return [(service, job, successor) for service, job, successor in await session.exec(query)]

    @whole
    async def job(self, submission_id: str) -> Job:
        async with self._session() as session:
            return await session.get_one(Job, submission_id)

    @whole
    async def find(self, service_id: str) -> tuple[Service, Job]:
        """A service with the job that serves, by its id, or by its submission id while it has none. Raises NotFound.

        Also by the id of a job that has followed its first. Slurm may give an id twice in its life; the newest service
        of that id is meant, and only where there is none the newest that has had a job of that id.
        """
        query = select(Service, Job).where(Job.submission_id == Service.job)
        named = query.where(or_(Service.id == service_id, Service.submission_id == service_id))
        had = query.where(col(Service.submission_id).in_(select(Job.service).where(Job.job_id == service_id)))
        async with self._session() as session:
            for one in (named, had):
                row = (await session.exec(one.order_by(col(Service.created_at).desc()).limit(1))).first()
                if row is not None:
                    return row[0], row[1]
        raise NotFound(f"Service {service_id[:100]!r} not found. GET /services lists what there is.")

    @whole
    async def by_idempotency_key(self, key: str) -> tuple[Service, Job] | None:
        query = select(Service, Job).where(Service.idempotency_key == key, Job.submission_id == Service.job)
        async with self._session() as session:
            row = (await session.exec(query.limit(1))).first()
        return None if row is None else (row[0], row[1])

    @whole
    async def services(
        self,
        *,
        recipe: str | None = None,
        status: ServiceStatus | None = None,
        groups: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[tuple[Service, Job]]:
        """Services with the job that serves, the newest first. With `status` those that `states_of` says may be in it;
        with `groups` replica groups only."""
        order = col(Service.created_at).desc(), col(Service.submission_id)
        conditions = _conditions(recipe, status, groups)
        async with self._session() as session:
            if offset:  # by ids alone first: what is left out need not be read
                page = select(Service.submission_id).where(*conditions).order_by(*order).offset(offset).limit(limit)
                ids = (await session.exec(page)).all()
                conditions = [col(Job.submission_id) == Service.job, col(Service.submission_id).in_(ids)]
            query = select(Service, Job).where(*conditions).order_by(*order).limit(limit)
            return [(service, job) for service, job in await session.exec(query)]

    @whole
    async def count(
        self, *, recipe: str | None = None, status: ServiceStatus | None = None, groups: bool = False
    ) -> int:
        query = select(func.count()).where(*_conditions(recipe, status, groups))
        async with self._session() as session:
            return (await session.exec(query)).one()

    @whole
    async def open_jobs(self) -> list[tuple[Service, Job]]:
        """The jobs that have not ended, with their services, the newest first. A service may have several."""
        order = col(Service.created_at).desc(), col(Service.submission_id), col(Job.recorded_at)
        query = select(Service, Job).where(Job.service == Service.submission_id, col(Job.state).not_in(_ENDED))
        async with self._session() as session:
            return [(service, job) for service, job in await session.exec(query.order_by(*order))]

    @whole
    async def open_jobs_of(self, submission_id: str) -> Sequence[Job]:
        """The jobs of a service that have not ended."""
        query = select(Job).where(Job.service == submission_id, col(Job.state).not_in(_ENDED))
        async with self._session() as session:
            return (await session.exec(query)).all()

    @whole
    async def open_services(self) -> list[tuple[Service, Job]]:
        """The services that have not ended, with the job that serves, the newest first."""
        order = col(Service.created_at).desc(), col(Service.submission_id)
        query = select(Service, Job).where(
            Job.submission_id == Service.job, or_(col(Job.state).not_in(_ENDED), col(Service.kept))
        )
        async with self._session() as session:
            return [(service, job) for service, job in await session.exec(query.order_by(*order))]

    @whole
    async def last_load(self, listed: str) -> tuple[datetime, datetime] | None:
        """When the newest job of a listed model that has answered was started, and when it answered first."""
        query = (
            select(Job)
            .join(Service, col(Service.submission_id) == Job.service)
            .where(col(Service.plan)["listed"].as_string() == listed)
            .where(col(Job.started_at).is_not(None), col(Job.ready_at).is_not(None))
            .order_by(col(Job.ready_at).desc())
            .limit(1)
        )
        async with self._session() as session:
            job = (await session.exec(query)).first()
        return None if job is None or job.started_at is None or job.ready_at is None else (job.started_at, job.ready_at)

    @whole
    async def tally(self) -> list[Tally]:
        cancelled = col(Service.cancelled_at).is_not(None)
        last = and_(Job.submission_id == Service.job, col(Service.kept).is_(False))
        query = (
            select(Job.state, cancelled, last, func.count())
            .where(Job.service == Service.submission_id)
            .group_by(col(Job.state), cancelled, last)
        )
        async with self._session() as session:
            rows = await session.exec(query)
            return [Tally(JobState(state), bool(was), bool(is_last), number) for state, was, is_last, number in rows]

    @whole
    async def within(self, work: Callable[[AsyncSession], Coroutine[Any, Any, T]]) -> T:
        """Carry out `work` in one transaction, alone: for the tables that have a module of their own."""
        async with self._writing() as session:
            done = await work(session)
            await session.commit()
            return done

    @whole
    async def read(self, work: Callable[[AsyncSession], Coroutine[Any, Any, T]]) -> T:
        """The same for what only reads."""
        async with self._session() as session:
            return await work(session)

    @whole
    async def events(self, subject: str) -> Sequence[Event]:
        """The events of one submission id, oldest first."""
        async with self._session() as session:
            return (await session.exec(select(Event).where(Event.subject == subject).order_by(col(Event.id)))).all()

    @whole
    async def audit(self, sought: Sought, *, limit: int, offset: int) -> tuple[list[Entry], int]:
        """The events that are sought, the newest first, and how many there are on all pages."""
        async with self._session() as session:
            rows = await session.exec(ledger.entries(sought, limit, offset))
            found = [Entry(event, service_id) for event, service_id in rows]
            return found, (await session.exec(ledger.number(sought))).one()

    @whole
    async def uses(self, *, since: datetime | None = None, service: str | None = None) -> list[Use]:
        """The jobs that may have run at or after `since`; with `service`, its submission id, all of this one."""
        async with self._session() as session:
            return [ledger.use_in(row) for row in await session.exec(ledger.jobs(since, service))]

    @whole
    async def used(self, *, since: datetime | None) -> list[Use]:
        """All that was used from `since` until now, as short as possible: what lies wholly within is added up."""
        async with self._session() as session:
            added = [ledger.use_of_several(row) for row in await session.exec(ledger.sums(since))]
            return added + [ledger.use_in(row) for row in await session.exec(ledger.cut_or_open(since))]


def _conditions(recipe: str | None, status: ServiceStatus | None, groups: bool) -> list[ColumnElement[bool]]:
    """What picks services and their jobs in the database."""
    conditions = [col(Job.submission_id) == Service.job]
    if recipe is not None:
        conditions.append(col(Service.recipe_name) == recipe)
    if groups:
        conditions.append(col(Service.plan)["gpus_per_replica"].as_integer() > 0)
    if status is not None:
        cancelled, kept = col(Service.cancelled_at).is_not(None), col(Service.kept)
        conditions.append(
            or_(
                *(
                    and_(cancelled.is_(was), kept.is_(is_kept), col(Job.state).in_(states))
                    for (was, is_kept), states in states_of(status).items()
                )
            )
        )
    return conditions


def _event(at: datetime, actor: str, kind: str, service: Service, detail: dict[str, Any]) -> Event:
    return Event(at=at, actor=actor, kind=kind, subject=service.submission_id, detail=detail)


@asynccontextmanager
async def open_store(
    path: Path, url: SecretStr | None = None, *, seconds: float = 30, lost: Callable[[str], None] = log.error
) -> AsyncIterator[Store]:
    """The database at `path`, or the PostgreSQL at `url`, made or migrated first.

    `seconds`: how long a PostgreSQL may take for one question. `lost` is called when another process has taken it.
    Raises SettingsError when it cannot be used.
    """
    async with sqlite.opened(path) if url is None else _postgres(url, seconds, lost) as database:
        connections = Connections(database)
        try:
            yield Store(connections)
        finally:
            await connections.close()


def _postgres(url: SecretStr, seconds: float, lost: Callable[[str], None]) -> AbstractAsyncContextManager[Database]:
    try:
        from orchestrator import postgres  # its driver is installed only where it is wanted
    except ImportError as exc:
        raise SettingsError(
            f"ORCHESTRATOR_DATABASE_URL wants a driver that is not installed ({exc}); "
            "install it with: pip install 'sluicegate[postgres]'"
        ) from exc
    return postgres.opened(url.get_secret_value(), seconds=seconds, lost=lost)

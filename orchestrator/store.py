"""The database. Each change is written with its event in one transaction; nothing else opens a session."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, event, func
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel import and_, col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from orchestrator.errors import Conflict, NotFound
from orchestrator.models import Event, Job, JobState, Service, ServiceStatus, states_of
from orchestrator.settings import SettingsError

# The newest migration in orchestrator/migrations/versions.
HEAD = "0002"


class Store:
    """Services, jobs and events. Objects that it returns are detached: changing them changes nothing here."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writer = asyncio.Lock()

    def _session(self) -> AsyncSession:
        return AsyncSession(self._engine, expire_on_commit=False)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncSession]:
        """A session that reads and then writes. One at a time, so that what it has read is still true."""
        async with self._writer, self._session() as session:
            yield session

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

    async def accepted(self, submission_id: str, job_id: str, *, at: datetime, actor: str) -> Service:
        """The scheduler has given the job an id, which becomes the service's id if it has none yet."""
        async with self._writing() as session:
            job = await session.get_one(Job, submission_id)
            service = await session.get_one(Service, job.service)
            job.job_id = job_id
            if job.state is JobState.SUBMITTING:
                job.state, job.reason, job.seen_at = JobState.PENDING, "", at
            if service.id is None:
                service.id = job_id
                service.name = f"{service.recipe_name}-{'group' if service.plan.get('gpus_per_replica') else job_id}"
            session.add(_event(at, actor, "job.accepted", service, {"job_id": job_id}))
            await session.commit()
            return service

    async def record(
        self, submission_id: str, changes: dict[str, Any], *, at: datetime, actor: str, kind: str | None
    ) -> None:
        """Write what is known of a job. An ended job is never revised; `kind` None writes no event."""
        async with self._writing() as session:
            job = await session.get_one(Job, submission_id)
            if job.state.ended:
                return
            for name, value in changes.items():
                setattr(job, name, value)
            if kind is not None:
                detail = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in changes.items()}
                service = await session.get_one(Service, job.service)
                session.add(_event(at, actor, kind, service, detail))
            await session.commit()

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

    async def cancelled(self, submission_id: str, *, at: datetime, actor: str) -> None:
        """A user has asked for the end of a service. The first time counts."""
        async with self._writing() as session:
            service = await session.get_one(Service, submission_id)
            if service.cancelled_at is None:
                service.cancelled_at = at
                session.add(_event(at, actor, "service.cancelled", service, {}))
                await session.commit()

    async def find(self, service_id: str) -> tuple[Service, Job]:
        """A service by its id, or by its submission id while it has none, with its newest job. Raises NotFound.

        Slurm may give an id twice in its life; the newest service of an id is meant.
        """
        named = or_(Service.id == service_id, Service.submission_id == service_id)
        query = select(Service, Job).where(named, Job.service == Service.submission_id)
        async with self._session() as session:
            rows = await session.exec(query.order_by(col(Job.recorded_at).desc()).limit(1))
            row = rows.first()
        if row is None:
            raise NotFound(f"Service {service_id[:100]!r} not found. GET /services lists what there is.")
        return row[0], row[1]

    async def by_idempotency_key(self, key: str) -> tuple[Service, Job] | None:
        query = select(Service, Job).where(Service.idempotency_key == key, Job.service == Service.submission_id)
        async with self._session() as session:
            row = (await session.exec(query.order_by(col(Job.recorded_at).desc()).limit(1))).first()
        return None if row is None else (row[0], row[1])

    async def services(
        self,
        *,
        recipe: str | None = None,
        status: ServiceStatus | None = None,
        groups: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[tuple[Service, Job]]:
        """Services with their job, the newest first. With `status` those that `states_of` says may be in it; with
        `groups` replica groups only."""
        order = col(Service.created_at).desc(), col(Service.submission_id)
        conditions = _conditions(recipe, status, groups)
        async with self._session() as session:
            if offset:  # by ids alone first: what is left out need not be read
                page = select(Service.submission_id).where(*conditions).order_by(*order).offset(offset).limit(limit)
                ids = (await session.exec(page)).all()
                conditions = [col(Job.service) == Service.submission_id, col(Service.submission_id).in_(ids)]
            query = select(Service, Job).where(*conditions).order_by(*order).limit(limit)
            return [(service, job) for service, job in await session.exec(query)]

    async def count(
        self, *, recipe: str | None = None, status: ServiceStatus | None = None, groups: bool = False
    ) -> int:
        query = select(func.count()).where(*_conditions(recipe, status, groups))
        async with self._session() as session:
            return (await session.exec(query)).one()

    async def open_jobs(self) -> list[tuple[Service, Job]]:
        """The jobs that have not ended, with their services, the newest first."""
        ended = [state for state in JobState if state.ended]
        query = select(Service, Job).where(Job.service == Service.submission_id, col(Job.state).not_in(ended))
        async with self._session() as session:
            rows = await session.exec(query.order_by(col(Service.created_at).desc(), col(Service.submission_id)))
            return [(service, job) for service, job in rows]

    async def tally(self) -> list[tuple[JobState, bool, int]]:
        """How many jobs there are, by state and by whether a user has cancelled their service."""
        cancelled = col(Service.cancelled_at).is_not(None)
        query = (
            select(Job.state, cancelled, func.count())
            .where(Job.service == Service.submission_id)
            .group_by(col(Job.state), cancelled)
        )
        async with self._session() as session:
            return [(JobState(state), bool(was), number) for state, was, number in await session.exec(query)]

    async def events(self, subject: str) -> Sequence[Event]:
        """The events of one submission id, oldest first."""
        async with self._session() as session:
            return (await session.exec(select(Event).where(Event.subject == subject).order_by(col(Event.id)))).all()


def _conditions(recipe: str | None, status: ServiceStatus | None, groups: bool) -> list[ColumnElement[bool]]:
    """What picks services and their jobs in the database."""
    conditions = [col(Job.service) == Service.submission_id]
    if recipe is not None:
        conditions.append(col(Service.recipe_name) == recipe)
    if groups:
        conditions.append(col(Service.plan)["gpus_per_replica"].as_integer() > 0)
    if status is not None:
        states, cancelled = states_of(status), col(Service.cancelled_at)
        kept = and_(cancelled.is_(None), col(Job.state).in_(states[False]))
        conditions.append(or_(kept, and_(cancelled.is_not(None), col(Job.state).in_(states[True]))))
    return conditions


def _event(at: datetime, actor: str, kind: str, service: Service, detail: dict[str, Any]) -> Event:
    return Event(at=at, actor=actor, kind=kind, subject=service.submission_id, detail=detail)


def prepare(path: Path) -> None:
    """Make the database, or bring it to this release's form. Raises SettingsError when it cannot be used."""
    try:
        _make_private(path)
        if _version(path) != HEAD:
            _migrate(path)
    except (OSError, sqlite3.Error, SQLAlchemyError) as exc:
        raise SettingsError(f"cannot use the database {path}: {exc}; see ORCHESTRATOR_HOME") from exc


@asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[Store]:
    """The database at `path`, made or migrated first, readable by its owner only."""
    prepare(path)
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    event.listen(engine.sync_engine, "connect", _prepare_connection)
    try:
        yield Store(engine)
    finally:
        await engine.dispose()


def _prepare_connection(connection: Any, record: Any) -> None:
    # A rollback journal, not WAL: the state folder is often on NFS, where WAL's shared memory does not work.
    for pragma in ("journal_mode=DELETE", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _make_private(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _version(path: Path) -> str | None:
    connection = sqlite3.connect(path)
    try:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:  # no such table: a new database
        return None
    finally:
        connection.close()
    return None if row is None else str(row[0])


def _migrate(path: Path) -> None:
    # Imported here: needed once in the life of a release, and it costs 100 ms and 5 MB.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = f"sqlite:///{path}"
    try:
        command.upgrade(config, HEAD)
    except CommandError as exc:
        raise SettingsError(
            f"the database {path} is not of this release ({exc}): was it written by a newer one? "
            "Install that one again, or set ORCHESTRATOR_HOME to another folder"
        ) from exc
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")  # SQLite keeps what was replaced in its free pages, such as secrets (0002)

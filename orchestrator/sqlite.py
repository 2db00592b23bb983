"""SQLite: one file in the state folder, made, migrated as a copy, and opened."""

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from orchestrator.database import HEAD, MIGRATIONS, Database, knows, migrate
from orchestrator.errors import NotReady, OrchestratorError, StateFull
from orchestrator.settings import SettingsError


def prepare(path: Path, migrations: Path = MIGRATIONS, head: str = HEAD) -> None:
    """Make the database, or bring it to this release's form. Raises SettingsError when it cannot be used."""
    try:
        _make_private(path)
        found = _version(path)
        if found != head:
            _migrate(path, found, migrations, head)
    except (OSError, sqlite3.Error, SQLAlchemyError) as exc:
        raise SettingsError(f"cannot use the database {path}: {exc}; see ORCHESTRATOR_HOME") from exc


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Database]:
    """The database at `path`, made or migrated first, readable by its owner only."""
    prepare(path)
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    event.listen(engine.sync_engine, "connect", _prepare_connection)
    try:
        yield Database(reading=engine, writing=engine, told=told)
    finally:
        await engine.dispose()


def told(exc: BaseException | None) -> OrchestratorError | None:
    """What a user is told of SQLite's error, None when the fault is ours."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # without the part that says where
    if code == sqlite3.SQLITE_FULL:
        return StateFull(f"SQLite: {exc}")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY):
        return NotReady(f"the database cannot be used now (SQLite: {exc}); try again, or look at ORCHESTRATOR_HOME")
    return None


def _prepare_connection(connection: Any, record: Any) -> None:
    # A rollback journal, not WAL, also where WAL works: it does not on NFS and Lustre, where home folders are, and on a
    # local disk it saves half a millisecond of a commit, beside an sbatch of tens.
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


def _migrate(path: Path, found: str | None, migrations: Path, head: str) -> None:
    """Migrate a copy and put it in the place of the database: what fails or is killed on the way changes nothing."""
    new = path.with_name(path.name + ".new")
    if found is not None and not knows(found, migrations):
        raise SettingsError(_too_new(path, found, head))
    if found is not None:
        _copy(path, path.with_name(f"{path.name}.before-{head}"))
    try:
        _copy(path, new)
        migrate(f"sqlite:///{new}", migrations, head)
        with closing(sqlite3.connect(new)) as connection:
            connection.execute("VACUUM")  # SQLite keeps what was replaced in its free pages, such as secrets (0002)
        _check(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _too_new(path: Path, found: str, head: str) -> str:
    before = path.with_name(f"{path.name}.before-{found}")
    back = f"put {before} in its place, which has nothing of what happened since, " if before.is_file() else ""
    return (
        f"the database {path} has revision {found}, but this release knows none behind {head}: start the newer release "
        f"that wrote it, {back}or set ORCHESTRATOR_HOME to another folder"
    )


def _copy(path: Path, to: Path) -> None:
    """A private copy of a database, complete also where its last user was killed."""
    to.unlink(missing_ok=True)
    os.close(os.open(to, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def _check(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        broken = connection.execute("PRAGMA integrity_check").fetchone()[0]
        dangling = connection.execute("PRAGMA foreign_key_check").fetchone()
    if broken != "ok" or dangling is not None:
        raise sqlite3.DatabaseError(
            f"a migrated copy of it is damaged ({dangling or broken}), so it was left as it was"
        )

"""PostgreSQL: a database that one orchestrator holds, migrated in one transaction, and opened.

The one connection that writes has the database's advisory lock from its beginning to its end: whoever has lost the lock
has lost the connection, and cannot write.
"""

import asyncio
import functools
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_dumps
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from orchestrator.confidential import redacted
from orchestrator.database import HEAD, MIGRATIONS, Database, knows, migrate
from orchestrator.errors import NotReady, OrchestratorError, StateFull
from orchestrator.lock import this_process
from orchestrator.settings import SettingsError

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between two looks whether the database is ours
# For how long the lock may stay with a process that was killed: the server sees the end of its connection at once,
# unless it is at work for it.
PATIENCE = 3.0  # seconds
LOCK = 0x736C75696365  # "sluice"
_HOLDER = """
SELECT activity.pid, activity.application_name FROM pg_locks lock JOIN pg_stat_activity activity USING (pid)
WHERE lock.locktype = 'advisory' AND lock.granted AND lock.objsubid = 1 AND lock.classid = %s AND lock.objid = %s
AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# A connection whose other end has gone is noticed within a minute, on either side.
_KEPT_ALIVE = {
    "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3", "tcp_user_timeout": "60000",
}  # fmt: skip
_IN_SESSION = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
# What will pass, or what an administrator does meanwhile, of "Appendix A. PostgreSQL Error Codes": 08 connection, 28
# user and password, 3D no such database, 40 two at once, 53 resources, 55P03 a lock, 57 shut down or out of time,
# 58 I/O; 25006: a standby that is not the server yet.
_PASSES = re.compile(r"08...|28...|3D...|40...|53...|55P03|57...|58...|25006")
_DISK_FULL = "53100"
_NUL_IN_JSON = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class Taken(NotReady):
    """Another orchestrator has the database."""


@dataclass
class Server:
    """How a database is reached. `name` is that of our sessions in pg_stat_activity; no other process has it."""

    words: str = field(repr=False)  # libpq's, perhaps with a password
    name: str
    seconds: float  # for one statement
    lost: Callable[[str], None]  # called when the database was ours and is another's
    patience: float = PATIENCE
    ours: bool = False

    async def connect(self, **further: str) -> psycopg.AsyncConnection[Any]:
        """A session with our bounds."""
        connection = await psycopg.AsyncConnection.connect(self.words, autocommit=True)
        set_json_dumps(json_text, connection)
        limits = _IN_SESSION | {"statement_timeout": str(int(self.seconds * 1000))} | further
        try:
            for name, value in limits.items():
                await connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def connect_reading(self) -> psycopg.AsyncConnection[Any]:
        return await self.connect(default_transaction_read_only="on")

    async def connect_writing(self) -> psycopg.AsyncConnection[Any]:
        """The session that holds the database. Raises Taken."""
        connection = await self.connect()
        try:
            await self._hold(connection)
            await connection.set_autocommit(False)
        except BaseException as exc:
            await connection.close()
            if self.ours and isinstance(exc, Taken):
                self.ours = False
                self.lost(str(exc))
            raise
        self.ours = True
        return connection

    async def _hold(self, connection: psycopg.AsyncConnection[Any]) -> None:
        until = time.monotonic() + self.patience
        while True:
            got = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,))).fetchone()
            if got == (True,):
                return
            row = await (await connection.execute(_HOLDER, (LOCK >> 32, LOCK & 0xFFFFFFFF))).fetchone()
            pid, holder = row or (None, "")
            if holder == self.name:  # our own connection before this one, whose end the server has not seen
                await connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
            if time.monotonic() > until:
                raise self._refused(holder)
            await asyncio.sleep(0.1)

    def _refused(self, holder: str) -> NotReady:
        if holder == self.name:
            return NotReady("the database is still busy with a former connection of this orchestrator; try again")
        return Taken(
            f"the database of ORCHESTRATOR_DATABASE_URL is in use by {shown(holder)}. Stop that orchestrator, or name "
            "another database"
        )


def named(who: str, token: str) -> str:
    """Of a process's sessions; the server keeps 63 bytes of it, in ASCII."""
    return f"sluice {token} {who}".encode("ascii", "replace").decode()[:63]


def shown(name: str) -> str:
    """Who is meant by the name of a session."""
    kind, _, rest = name.partition(" ")
    return rest.partition(" ")[2] if kind == "sluice" else repr(name) if name else "another process"


def completed(url: str, name: str) -> str:
    """A URL as libpq reads it, in its own words and with what it leaves open. Raises SettingsError."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # Not `from` it, nor with its words: they repeat parts of the URL.
        raise SettingsError(
            "ORCHESTRATOR_DATABASE_URL is not a URL as PostgreSQL reads it; write postgresql://USER@HOST/DATABASE, "
            "with %40 for an @ within a name or a password and ?host=/run/postgresql for a socket"
        ) from None
    defaults = {"connect_timeout": "10", "target_session_attrs": "read-write", **_KEPT_ALIVE}
    ours = {"application_name": name, "client_encoding": "UTF8"}
    return make_conninfo("", **(defaults | given | ours))


@asynccontextmanager
async def opened(
    url: str,
    *,
    seconds: float = 30,
    lost: Callable[[str], None] = log.error,
    beat: float = BEAT,
    patience: float = PATIENCE,
    migrations: Path = MIGRATIONS,
    head: str = HEAD,
) -> AsyncIterator[Database]:
    """The database at `url`, ours and in this release's form. `lost` is called when another process has taken it.

    Raises SettingsError when it cannot be used, naming who uses it.
    """
    name = named(str(this_process()), secrets.token_hex(4))
    server = Server(completed(url, name), name, seconds, lost, patience)
    reading = _engine(server.connect_reading, seconds, pool_size=8, isolation_level="AUTOCOMMIT")
    writing = _engine(server.connect_writing, seconds, pool_size=1)
    beating = None
    try:
        await _prepare(writing, migrations, head)
        beating = asyncio.create_task(_beat(writing, seconds, beat))
        yield Database(reading=reading, writing=writing, told=told, seconds=seconds)
    finally:
        if beating is not None:
            beating.cancel()
            await asyncio.wait({beating})
        await reading.dispose()
        await writing.dispose()


def _engine(connect: Callable[[], Any], seconds: float, **more: Any) -> AsyncEngine:
    # The URL says nothing but the driver: what the engine has, its errors and its repr may show.
    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=connect,
        pool_pre_ping=True,
        max_overflow=0,
        pool_timeout=2 * seconds,  # whoever waits gives up before
        **more,
    )
    event.listen(engine.sync_engine, "before_cursor_execute", _storable, retval=True)
    return engine


def _storable(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> tuple[str, Any]:
    return statement, without_nul(parameters)


def without_nul(parameters: Any) -> Any:
    """A statement's parameters. PostgreSQL's text has no NUL; the character in its place is found nowhere either."""
    if isinstance(parameters, str):
        return parameters.replace("\0", "\ufffd")
    if isinstance(parameters, Mapping):
        return {name: without_nul(value) for name, value in parameters.items()}
    if isinstance(parameters, Sequence) and not isinstance(parameters, bytes):
        return type(parameters)(without_nul(value) for value in parameters)  # type: ignore[call-arg]
    return parameters


def json_text(value: Any) -> str:
    """JSON of which PostgreSQL can read each part: a NUL, or half of a pair of surrogates, would break the query."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    return _NUL_IN_JSON.sub("\\1\ufffd", text)


async def _prepare(writing: AsyncEngine, migrations: Path, head: str) -> None:
    """Take the database, and make it or bring it to this release's form: all of it or nothing."""
    try:
        async with writing.begin() as connection:
            await connection.run_sync(functools.partial(_bring_up, migrations=migrations, head=head))
    except Taken as exc:
        raise SettingsError(str(exc)) from exc
    except (SQLAlchemyError, OSError) as exc:
        raise SettingsError(
            f"cannot use the database of ORCHESTRATOR_DATABASE_URL: {redacted(_words(exc))}. Look whether the server "
            "runs, whether it has that database (`createdb` makes one) and whether the user may connect (a password "
            "may stand in ~/.pgpass or in PGPASSFILE)"
        ) from exc


def _bring_up(connection: Connection, *, migrations: Path, head: str) -> None:
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise SettingsError(
            f"the database of ORCHESTRATOR_DATABASE_URL has the encoding {encoding}, which cannot hold every name; "
            "make it with: createdb --encoding=UTF8 --template=template0 NAME"
        )
    found = _version(connection)
    if found == head:
        return
    if found is not None and not knows(found, migrations):
        raise SettingsError(
            f"the database of ORCHESTRATOR_DATABASE_URL has revision {found}, but this release knows none behind "
            f"{head}: start the newer release that wrote it, restore a dump of before, or name another database"
        )
    connection.execute(text("SET LOCAL statement_timeout = 0"))  # as long as it takes
    migrate(connection, migrations, head)


def _version(connection: Connection) -> str | None:
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return None if version is None else str(version)


async def _beat(writing: AsyncEngine, seconds: float, beat: float) -> None:
    """See that the database is ours, and take it again after the server was away, unless another was quicker."""
    while True:
        await asyncio.sleep(beat)
        try:
            async with asyncio.timeout(seconds), writing.connect():
                pass  # the pool has asked whether its connection lives
        except (NotReady, SQLAlchemyError, TimeoutError) as exc:
            log.warning("the database does not answer: %s", redacted(_words(exc)))  # the next beat may be answered


def told(exc: BaseException | None) -> OrchestratorError | None:
    """What a user is told of an error of PostgreSQL's or of its silence, None when the fault is ours."""
    state = getattr(exc, "sqlstate", None) or ""
    if state == _DISK_FULL:
        return StateFull(f"PostgreSQL: {_words(exc)}", "the disk of the database")
    # Without a code: the connection could not be made, or broke.
    broken = not state and isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError)
    if broken or isinstance(exc, TimeoutError) or _PASSES.fullmatch(state):
        return NotReady(f"the database cannot be used now (PostgreSQL: {_reason(exc)}); try again")
    return None


def _reason(exc: BaseException | None) -> str:
    """Why, without where: clients need not know the server's address."""
    if isinstance(exc, TimeoutError):
        return "it does not answer"
    return _words(exc).rpartition("failed: ")[2]


def _words(exc: BaseException | None) -> str:
    """The first line of a driver's error."""
    return (str(getattr(exc, "orig", None) or exc).splitlines() or [type(exc).__name__])[0].strip()

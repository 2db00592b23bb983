"""A store on PostgreSQL: who may have it, what is said of it, and that it comes back."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from sqlmodel import SQLModel

from orchestrator.database import HEAD, Database
from orchestrator.errors import NotReady, OrchestratorError, StateFull
from orchestrator.postgres import completed, json_text, named, opened, shown, told, without_nul
from orchestrator.settings import SettingsError, read_settings
from tests.databases.place import Place
from tests.databases.server import PASSWORD, Server, execute
from tests.orchestrating import START
from tests.test_migrations import ROWS, next_release
from tests.test_process import ROOT
from tests.test_store import add, schema, with_store

AWAY = "postgresql://me:planted@/d?host=/nowhere"


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.emptied()


def with_database(url: str, work: Callable[[Database], Awaitable[None]], **more: Any) -> None:
    async def run() -> None:
        async with opened(url, **more) as database:
            await work(database)

    asyncio.run(run())


async def nothing(_: object) -> None:
    """It was enough to open it."""


# Words


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u@h/d", {"user": "u", "host": "h", "dbname": "d", "connect_timeout": "10"}),
        ("postgres://u:p%40ss@h:1/d", {"user": "u", "password": "p@ss", "port": "1"}),
        ("postgresql:///d?host=/run/postgresql", {"host": "/run/postgresql", "dbname": "d"}),
        ("postgresql://u@%2Frun%2Fpg/d", {"host": "/run/pg"}),
        ("postgresql://a,b/d?connect_timeout=3", {"host": "a,b", "connect_timeout": "3"}),
        ("postgresql://h/d?target_session_attrs=any&passfile=/f", {"target_session_attrs": "any", "passfile": "/f"}),
        ("postgresql://h/d?application_name=x", {"application_name": "me", "client_encoding": "UTF8"}),
    ],
)
def test_a_url_is_libpqs_and_completed(url: str, words: dict[str, str]) -> None:
    found = conninfo_to_dict(completed(url, "me"))
    assert {name: found.get(name) for name in words} == words


@pytest.mark.parametrize(
    "url", ["postgresql://u:planted%zz@h/d", "postgresql://h/d?planted", "postgresql://[planted/d"]
)
def test_a_url_that_is_none_is_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="ORCHESTRATOR_DATABASE_URL is not a URL") as refused:
        completed(url, "me")
    assert "planted" not in str(refused.value) and refused.value.__suppress_context__


@pytest.mark.parametrize(
    "value", ["mysql://u:planted@h/d", "u:planted@h", "sqlite:///planted", "postgresql+psycopg://planted"]
)
def test_another_database_is_refused_without_its_words(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", value)
    with pytest.raises(SettingsError, match=r"database_url: .*postgresql://USER@HOST/DATABASE") as refused:
        read_settings()
    assert "planted" not in str(refused.value)


def test_the_setting_is_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(f'database_url = "{AWAY}"\n')
    settings = read_settings(tmp_path / "site.toml")
    assert settings.database_url is not None and settings.database_url.get_secret_value() == AWAY
    assert "planted" not in f"{settings!r}{settings}{settings.model_dump()}{settings.model_dump_json()}"
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "")
    assert read_settings().database_url is None


@pytest.mark.parametrize(
    ("name", "who"),
    [
        (named("process 7 on login1", "0a1b"), "process 7 on login1"),
        (named("process 7 on " + "x" * 80, "0a1b"), "process 7 on " + "x" * 38),
        (named("process 7 on höst", "0a1b"), "process 7 on h?st"),
        ("psql", "'psql'"),
        ("", "another process"),
    ],
)
def test_who_has_it_is_in_the_name_of_its_sessions(name: str, who: str) -> None:
    assert (len(name) <= 63, shown(name)) == (True, who)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": "é\n"}, '{"a": "é\\n"}'),
        ("a\0\0b", '"a\ufffd\ufffdb"'),
        ("\\u0000", '"\\\\u0000"'),
        ("\\\0", '"\\\\\ufffd"'),
        ("\ud800", '"?"'),
        ([1, None, True, 1.5], "[1, null, true, 1.5]"),
    ],
)
def test_json_that_postgresql_can_read(value: Any, text: str) -> None:
    assert json_text(value) == text


def test_no_parameter_has_a_nul() -> None:
    given = [{"a": "x\0", "b": b"\0", "c": None, "d": 1}, {"a": ("\0", START)}]
    assert without_nul(given) == [{"a": "x\ufffd", "b": b"\0", "c": None, "d": 1}, {"a": ("\ufffd", START)}]


def _of(state: str) -> BaseException:
    error = psycopg.errors.lookup(state)("in its words\nDETAIL: more")
    assert error.sqlstate == state
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (_of("53100"), StateFull, "the disk of the database is full (PostgreSQL: in its words)"),
        (_of("57P01"), NotReady, "cannot be used now (PostgreSQL: in its words); try again"),
        (_of("57014"), NotReady, "in its words"),
        (_of("53300"), NotReady, "in its words"),
        (_of("08006"), NotReady, "in its words"),
        (_of("25006"), NotReady, "in its words"),
        (_of("40001"), NotReady, "in its words"),
        (
            psycopg.OperationalError('connection to server at "h", port 1 failed: refused\n\tmore'),
            NotReady,
            "PostgreSQL: refused)",
        ),
        (psycopg.OperationalError("the connection is closed"), NotReady, "the connection is closed"),
        (TimeoutError(), NotReady, "it does not answer"),
        (_of("23505"), None, ""),
        (_of("42P01"), None, ""),
        (_of("22P02"), None, ""),
        (psycopg.DataError("x"), None, ""),
        (None, None, ""),
    ],
)
def test_what_a_user_is_told(error: BaseException | None, kind: type[OrchestratorError] | None, words: str) -> None:
    found = told(error)
    assert type(found) is (kind or type(None)) and words in str(found)


# What cannot be used


def refusal(url: str) -> str:
    with pytest.raises(SettingsError) as refused:
        with_database(url, nothing, patience=0.1)
    said = str(refused.value)
    assert "planted" not in said and "\n" not in said
    return said


def test_what_cannot_be_used_is_said_in_a_sentence(postgres: Server) -> None:
    help = ["ORCHESTRATOR_DATABASE_URL", "createdb", "PGPASSFILE"]
    latin = postgres.database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    for url, words in (
        (AWAY, ["/nowhere", "No such file", *help]),
        (postgres.url("absent"), ['database "absent" does not exist', *help]),
        (postgres.url("postgres", "nobody_here"), ['role "nobody_here" does not exist', *help]),
        (postgres.url("postgres", "secretive", "planted-wrong"), ["password authentication failed", *help]),
        (postgres.url("postgres", "secretive"), ["no password supplied", *help]),
        ("postgresql://u:planted@127.0.0.1:1/d", ["Connection refused", *help]),
        (latin, ["encoding LATIN1", "--encoding=UTF8"]),
    ):
        said = refusal(url)
        assert [word for word in words if word not in said] == [], said


def test_tables_of_others_are_left_alone(postgres: Server, url: str) -> None:
    execute(url, "CREATE TABLE service (theirs text)")
    assert 'relation "service" already exists' in refusal(url)
    assert execute(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(1,)]


def test_a_newer_database_is_refused_and_left(url: str) -> None:
    with_database(url, nothing)
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    said = refusal(url)
    assert f"has revision 9999, but this release knows none behind {HEAD}" in said and "newer release" in said
    assert execute(url, "SELECT version_num FROM alembic_version") == [("9999",)]


OPEN = """
import asyncio, pathlib, sys
from pydantic import SecretStr
from orchestrator.settings import SettingsError
from orchestrator.store import open_store
try:
    asyncio.run(open_store(pathlib.Path("/nowhere"), SecretStr(sys.argv[1])).__aenter__())
except SettingsError as exc:
    print(exc)
"""


def test_a_driver_that_is_missing_is_named(tmp_path: Path) -> None:
    """As where the wheel was installed without its extra."""
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(\"No module named 'psycopg'\")\n")
    said = subprocess.run(
        [sys.executable, "-c", OPEN, AWAY], env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "No module named 'psycopg'" in said and "pip install 'sluicegate[postgres]'" in said
    assert "planted" not in said


def test_a_password_comes_from_the_url_or_from_a_file(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.emptied()
    with_database(postgres.url("again", "secretive", PASSWORD.replace("@", "%40")), nothing)
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:*:secretive:{PASSWORD}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    with_database(postgres.url("again", "secretive"), nothing)


# Its form


def test_the_migrations_make_the_tables_of_the_models(postgres: Server, url: str) -> None:
    with_database(url, nothing)
    migrated = schema(engine_of(url))
    postgres.emptied()
    engine = engine_of(url)
    SQLModel.metadata.create_all(engine, [SQLModel.metadata.tables[table] for table in migrated])
    assert migrated == schema(engine)
    assert set(migrated) >= {"service", "job", "event"}


def engine_of(url: str) -> sa.Engine:
    return sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=sa.NullPool)


def rows(url: str) -> list[list[dict[str, Any]]]:
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
        return [connection.execute(f"SELECT * FROM {t} ORDER BY 1").fetchall() for t in ("service", "job", "event")]


@pytest.mark.parametrize("revision", ROWS)
def test_the_rows_of_each_revision_survive(revision: str, url: str) -> None:
    with_database(url, nothing, head=revision)
    for statement in ROWS[revision]:
        execute(url, statement)
    before = rows(url)
    with_database(url, nothing)
    assert execute(url, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    for was, now in zip(before, rows(url), strict=True):
        assert was and [row | old for row, old in zip(now, was, strict=True)] == now


def test_a_migration_that_fails_changes_nothing(url: str, tmp_path: Path) -> None:
    with_database(url, nothing)
    before = schema(engine_of(url))
    migrations = next_release(tmp_path, "op.execute('INSERT INTO nowhere VALUES (1)')")
    for _ in range(2):
        with pytest.raises(SettingsError, match='relation "nowhere" does not exist'):
            with_database(url, nothing, migrations=migrations, head="9999")
        assert schema(engine_of(url)) == before
    with_database(url, nothing)


def test_a_standby_is_refused(postgres: Server, url: str) -> None:
    postgres.execute("ALTER DATABASE again SET default_transaction_read_only = on")
    try:
        assert "read-only" in refusal(url)
    finally:
        postgres.execute("ALTER DATABASE again RESET default_transaction_read_only")


def test_a_dump_brings_everything_back(postgres: Server, url: str, tmp_path: Path) -> None:
    place = Place(tmp_path, SecretStr(url))
    with_store(place, lambda store: add(store, "a"))
    before = rows(url)
    server = postgres.url("again", "super")
    for command in (
        ["pg_dump", "--format=custom", f"--file={tmp_path / 'dump'}", server],
        ["pg_restore", "--clean", "--if-exists", f"--dbname={server}", str(tmp_path / "dump")],
    ):
        if command[0] == "pg_restore":
            with_store(place, lambda store: add(store, "lost"))
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert rows(url) == before
    with_store(place, lambda store: add(store, "b"))

"""The database of each earlier revision becomes this release's with all its rows, or stays as it was."""

import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from orchestrator.database import HEAD, MIGRATIONS
from orchestrator.settings import SettingsError
from orchestrator.sqlite import prepare

AT = "2026-11-21 15:00:00.000000"
# The rows that a release of each revision has written, as its tables allow.
_FIRST = [
    "INSERT INTO service (submission_id, id, name, recipe_name, config, plan, created_at, idempotency_key)"
    f""" VALUES ('s1', '7', 'r-7', 'inference/r', '{{"a": "é"}}', '{{"p": [1]}}', '{AT}', 'key')""",
    "INSERT INTO service (submission_id, name, recipe_name, config, plan, created_at, cancelled_at)"
    f" VALUES ('s2', 'r', 'inference/r', '{{}}', '{{}}', '{AT}', '{AT}')",
    "INSERT INTO job (submission_id, service, scheduler, name, job_id, state, reason, nodes, restarts, recorded_at)"
    f" VALUES ('s1', 's1', 'slurm', 'sluice-s1', '7', 'RUNNING', '', 'n[1-2]', 3, '{AT}')",
    "INSERT INTO job (submission_id, service, scheduler, name, state, reason, nodes, restarts, recorded_at)"
    f" VALUES ('s2', 's2', 'slurm', 'sluice-s2', 'LOST', 'why', '', 0, '{AT}')",
    f"""INSERT INTO event (at, actor, kind, subject, detail) VALUES ('{AT}', 'me', 'k', 's1', '{{"d": null}}')""",
]
_OF_SERVICES = [
    "UPDATE service SET job = submission_id",
    "UPDATE service SET kept = true, handovers = 2 WHERE id = '7'",
]
_ACCOUNTS = [
    f"UPDATE service SET actor = 'me', last_activity = '{AT}', idle_since = '{AT}', looked_at = '{AT}' WHERE id = '7'",
    f"""UPDATE job SET earlier_runs = '[["{AT}", "{AT}"]]' WHERE job_id = '7'""",
]
_RENTALS = [
    "INSERT INTO rental (instance_id, started_at, seen_at, active_at, ended_at, price, cost, stopping)"
    f" VALUES (12345, '{AT}', '{AT}', '{AT}', '{AT}', 0.45, 0.1, 'power_off')",
    "INSERT INTO rental (instance_id, started_at, seen_at, active_at, price, cost, stopping)"
    f" VALUES (12345, '{AT}', '{AT}', '{AT}', 0.45, 0.1, '')",
]
_OF_TASKS = [
    "INSERT INTO task (id, created_at, actor, target, model, digest, state, attempts, not_before, expires_at,"
    f" batch, custom_id) VALUES ('job_1', '{AT}', 'me', '/v1/x', 'm', 'd', 'DONE', 1, '{AT}', '{AT}',"
    " 'b', 'é')",
    "INSERT INTO batch (id, created_at, actor, endpoint, completion_window, input_file, state, total, completed,"
    f" failed, about, errors, expires_at) VALUES ('b', '{AT}', 'me', '/v1/x', '24h', 'f', 'IN_PROGRESS', 1, 1, 0,"
    f" '{{}}', '[]', '{AT}')",
    "INSERT INTO storedfile (id, created_at, actor, filename, purpose, size)"
    f" VALUES ('f', '{AT}', 'me', 'n', 'batch', 2)",
]
ROWS: dict[str, list[str]] = {
    "0001": _FIRST,
    "0002": _FIRST,
    "0003": [*_FIRST, *_OF_SERVICES],
    "0004": [*_FIRST, *_OF_SERVICES, *_ACCOUNTS],
    "0005": [*_FIRST, *_OF_SERVICES, *_ACCOUNTS, *_OF_TASKS],
    "0006": [*_FIRST, *_OF_SERVICES, *_ACCOUNTS, *_OF_TASKS, *_RENTALS],
}
NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", "{head}"


def upgrade() -> None:
    op.add_column("service", sa.Column("color", sa.String(), nullable=False, server_default="red"))
    {then}
"""


def revisions() -> list[str]:
    """All revisions, the oldest first."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def next_release(folder: Path, then: str = "pass") -> Path:
    """The migrations of a release with one revision more."""
    shutil.copytree(MIGRATIONS, folder / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "migrations/versions/9999_next.py").write_text(NEXT.format(head=HEAD, then=then))
    return folder / "migrations"


def filled(path: Path, revision: str = HEAD) -> dict[str, list[Any]]:
    """A database as a release with this revision has left it; its rows."""
    prepare(path, head=revision)
    with closing(sqlite3.connect(path)) as database:
        for statement in ROWS[revision]:
            database.execute(statement)
        database.commit()
    return rows(path)


def rows(path: Path) -> dict[str, list[Any]]:
    """All rows of all tables, the revision among them."""
    found: dict[str, list[Any]] = {}
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            found[table] = [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY 1")]
        assert database.execute("PRAGMA integrity_check").fetchall()[0][0] == "ok"
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    return found


def holds(now: dict[str, list[Any]], before: dict[str, list[Any]]) -> bool:
    """Whether all of the rows before are there now, with further columns perhaps."""
    return all(
        len(now[table]) == len(before[table])
        and all(row.items() <= new.items() for row, new in zip(before[table], now[table], strict=True))
        for table in before
        if table not in ("alembic_version", "sqlite_sequence")
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_each_revision_has_rows_here_and_the_newest_is_known() -> None:
    assert revisions() == list(ROWS), "a new migration: put the rows into ROWS that its release writes"
    assert revisions()[-1] == HEAD


@pytest.mark.parametrize("revision", ROWS)
def test_the_rows_of_each_revision_survive(revision: str, tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.db"
    before = filled(path, revision)
    assert len(before["service"]) == len(before["job"]) == 2 and len(before["event"]) == 1
    prepare(path)
    now = rows(path)
    assert now["alembic_version"] == [{"version_num": HEAD}] and holds(now, before)
    assert mode(path) == 0o600


@pytest.mark.parametrize("revision", ROWS)
def test_the_database_before_a_migration_is_kept(revision: str, tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.db"
    before = filled(path, revision)
    prepare(path, next_release(tmp_path), "9999")
    now = rows(path)
    assert now["alembic_version"] == [{"version_num": "9999"}] and holds(now, before)
    assert [row["color"] for row in now["service"]] == ["red", "red"]
    copy = tmp_path / "orchestrator.db.before-9999"
    assert rows(copy) == before
    assert mode(copy) == mode(path) == 0o600
    assert sorted(tmp_path.iterdir()) == [tmp_path / "migrations", path, copy]


def test_who_started_a_service_and_what_it_used_is_found_in_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.db"
    filled(path, "0003")
    with closing(sqlite3.connect(path)) as database:
        for actor, kind in (("ana", "service.created"), ("bo", "service.cancelled")):
            event = f"('{AT}', '{actor}', '{kind}', 's1', '{{}}')"
            database.execute(f"INSERT INTO event (at, actor, kind, subject, detail) VALUES {event}")
        times = "started_at = '2026-11-21 12:00:00.000000', ended_at = '2026-11-21 13:01:01.500000'"
        database.execute(f"UPDATE job SET {times} WHERE submission_id = 's1'")
        database.commit()
    prepare(path)
    now = rows(path)
    assert [row["actor"] for row in now["service"]] == ["ana", ""]
    assert [(row["used_seconds"], row["earlier_runs"]) for row in now["job"]] == [(3661.5, "[]"), (0, "[]")]


def test_a_newer_database_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.db"
    filled(path)
    prepare(path, next_release(tmp_path), "9999")
    content = path.read_bytes()
    with pytest.raises(SettingsError) as refused:
        prepare(path)
    said = str(refused.value)
    assert "has revision 9999" in said and f"none behind {HEAD}" in said and "\n" not in said
    assert f"{path}.before-9999 in its place" in said and "ORCHESTRATOR_HOME" in said
    assert path.read_bytes() == content
    (tmp_path / "orchestrator.db.before-9999").replace(path)  # what it says helps
    prepare(path)
    (tmp_path / "orchestrator.db.before-9999").unlink(missing_ok=True)
    prepare(path, tmp_path / "migrations", "9999")
    (tmp_path / "orchestrator.db.before-9999").unlink()
    with pytest.raises(SettingsError, match=r"wrote it, or set ORCHESTRATOR_HOME"):  # there is nothing to go back to
        prepare(path)


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ("op.execute('INSERT INTO nowhere VALUES (1)')", "no such table: nowhere"),
        ("""op.execute("UPDATE job SET service = 'gone'")""", "is damaged .*left as it was"),
    ],
)
def test_a_migration_that_fails_changes_nothing(then: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.db"
    before = filled(path)
    migrations = next_release(tmp_path, then)
    for _ in range(2):  # also when it is tried again
        with pytest.raises(SettingsError, match=why):
            prepare(path, migrations, "9999")
        assert rows(path) == before
        assert not list(tmp_path.glob("*.new*"))


def test_what_a_killed_migration_left_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.db"
    before = filled(path)
    with closing(sqlite3.connect(tmp_path / "orchestrator.db.new")) as database:
        database.execute("CREATE TABLE service (color)")
        database.execute("PRAGMA cache_size=1")
        database.execute("BEGIN IMMEDIATE")
        for number in range(5000):
            database.execute("INSERT INTO service VALUES (?)", (f"{number:0100d}",))
        left = (tmp_path / "orchestrator.db.new-journal").read_bytes()
    assert left
    (tmp_path / "orchestrator.db.new-journal").write_bytes(left)
    prepare(path, next_release(tmp_path), "9999")
    assert holds(rows(path), before)
    assert not list(tmp_path.glob("*.new*"))


def test_what_a_killed_writer_left_is_in_the_copy(tmp_path: Path) -> None:
    """A journal beside the database: what was half written is taken back first."""
    path, killed = tmp_path / "orchestrator.db", tmp_path / "killed"
    before = filled(path)
    killed.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA cache_size=1")
        database.execute("BEGIN IMMEDIATE")
        for number in range(2000):
            database.execute("INSERT INTO event VALUES (NULL, ?, 'me', 'k', 's1', '{}')", (f"{AT}{number}",))
        for name in ("orchestrator.db", "orchestrator.db-journal"):
            shutil.copy(tmp_path / name, killed / name)
    prepare(killed / "orchestrator.db", next_release(tmp_path), "9999")
    assert holds(rows(killed / "orchestrator.db"), before)

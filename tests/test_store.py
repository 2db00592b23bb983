"""The database: what it keeps, for whom, and that nothing slips in between."""

import asyncio
import sqlite3
import stat
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlmodel import SQLModel

from orchestrator import models
from orchestrator.database import HEAD
from orchestrator.errors import Conflict, NotFound
from orchestrator.ledger import Sought
from orchestrator.models import Job, JobState, Service
from orchestrator.settings import SettingsError
from orchestrator.store import Store, Why, open_store
from tests.databases.place import Place
from tests.orchestrating import START


def service(submission_id: str, age: float = 0, **more: Any) -> Service:
    return Service(
        submission_id=submission_id,
        job=submission_id,
        name="r",
        recipe_name="a/r",
        created_at=START - timedelta(seconds=age),
        **more,
    )


def job(submission_id: str, age: float = 0, **more: Any) -> Job:
    fields = {"service": submission_id} | more
    return Job(
        submission_id=submission_id, scheduler="local", name=f"sluice-{submission_id}",
        recorded_at=START - timedelta(seconds=age), **fields,
    )  # fmt: skip


def with_store(place: Path | Place, work: Callable[[Store], Awaitable[None]]) -> None:
    path, url = (place.path, place.url) if isinstance(place, Place) else (place, None)

    async def opened() -> None:
        async with open_store(path / "orchestrator.db", url) as store:
            await work(store)

    asyncio.run(opened())


async def add(store: Store, submission_id: str, age: float = 0, **more: Any) -> None:
    await store.add(service(submission_id, age, **more), job(submission_id, age), actor="me")


def test_a_new_database_is_private_and_migrated(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        assert await store.services() == []

    with_store(tmp_path, work)
    path = tmp_path / "orchestrator.db"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
    database.close()
    path.chmod(0o666)
    with_store(tmp_path, work)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_in_the_place_of_the_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "orchestrator.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match=r"cannot use the database .*symbolic links"):
        asyncio.run(open_store(tmp_path / "orchestrator.db").__aenter__())
    assert (tmp_path / "elsewhere").read_bytes() == b""


@pytest.mark.parametrize("before", [None, "wal", "truncate"])
def test_the_journal_is_a_rollback_journal_also_where_it_was_another(tmp_path: Path, before: str | None) -> None:
    """WAL needs shared memory, which NFS and Lustre do not have; there it would damage the database."""
    path = tmp_path / "orchestrator.db"

    def mode() -> str:
        """As any other connection is told: WAL is a property of the file."""
        with closing(sqlite3.connect(path)) as other:
            return str(other.execute("PRAGMA journal_mode").fetchone()[0])

    async def work(store: Store) -> None:
        await add(store, f"{before}")
        async with store._session() as session:
            own = await session.connection()
            pragmas = [sa.text(f"PRAGMA {name}") for name in ("journal_mode", "synchronous")]
            answers = [(await own.execute(pragma)).scalar() for pragma in pragmas]
        assert answers == ["delete", 2], "2 is FULL"
        assert mode() == "delete"
        assert [name.name for name in tmp_path.iterdir() if name.name.endswith(("-wal", "-shm"))] == []

    if before is not None:
        with_store(tmp_path, lambda store: add(store, "earlier"))
        with closing(sqlite3.connect(path)) as other:
            assert other.execute(f"PRAGMA journal_mode={before}").fetchone() == (before,)
        assert (mode() == "wal") is (before == "wal")
    with_store(tmp_path, work)


def test_reopening_keeps_everything(place: Place) -> None:
    kept: list[dict[str, Any]] = []
    config = {"environment": {"K": "é\u2028'\"$(x)"}, "n": [1, 2.5, None, True]}

    async def write(store: Store) -> None:
        await store.add(service("a", config=config, plan={"p": 1}, idempotency_key="k"), job("a"), actor="me")
        await store.accepted("a", "7", at=START, actor="me")
        changes = {"state": JobState.RUNNING, "started_at": START, "nodes": "n1", "restarts": 2}
        await store.record("a", changes, at=START, actor="watcher", kind="job.state")
        kept.extend(row.model_dump() for row in await store.find("7"))
        kept.extend(event.model_dump() for event in await store.events("a"))

    async def read(store: Store) -> None:
        rows = [*await store.find("7"), *await store.events("a")]
        assert [row.model_dump() for row in rows] == kept
        assert rows[0].model_dump()["config"] == config
        assert (await store.find("7"))[1].started_at == START

    with_store(place, write)
    with_store(place, read)
    assert len(kept) == 5


OF_0_1_0 = Path(__file__).parent / "databases" / "0.1.0.sql"


def test_the_secrets_in_a_database_of_0_1_0_are_gone_and_the_rest_is_there(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.db"
    with sqlite3.connect(path) as database:
        database.executescript(OF_0_1_0.read_text())
    database.close()
    assert path.read_bytes().count(b"planted") >= 3

    async def work(store: Store) -> None:
        service, job = await store.find("7")
        assert service.config == {"environment": {"MY_TOKEN": "***", "MINE": "kept"}, "cpu": 2}
        assert service.plan["environment"] == {"MINE": "kept"}
        assert (service.plan["secrets"], service.plan["recipe"]) == (["MY_TOKEN"], "inference/vllm-single-node")
        (created,) = await store.events("a")
        assert created.detail == {"recipe": "inference/vllm-single-node", "config": service.config}
        assert (job.state, service.idempotency_key) == (JobState.RUNNING, "k")
        without, _ = await store.find("8")
        assert (without.config, without.plan) == ({}, {"environment": {}})

    with_store(tmp_path, work)
    assert b"planted" not in path.read_bytes(), "nor in the pages that SQLite does not use any more"
    with_store(tmp_path, work)


def schema(engine: sa.Engine) -> dict[str, Any]:
    inspector = sa.inspect(engine)
    found = {
        table: {
            "columns": {c["name"]: (str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)},
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "indexes": sorted((i["column_names"], i["unique"]) for i in inspector.get_indexes(table)),
            "uniques": sorted(u["column_names"] for u in inspector.get_unique_constraints(table)),
            "references": [(k["constrained_columns"], k["referred_table"]) for k in inspector.get_foreign_keys(table)],
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }
    engine.dispose()
    return found


def engine_of(path: Path) -> sa.Engine:
    return sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)


def test_the_migrations_make_the_tables_of_the_models(tmp_path: Path) -> None:
    async def nothing(store: Store) -> None:
        assert await store.count() == 0

    with_store(tmp_path, nothing)
    engine = engine_of(tmp_path / "models.db")
    SQLModel.metadata.create_all(engine)
    migrated = schema(engine_of(tmp_path / "orchestrator.db"))
    assert models.Service.__tablename__ in migrated
    assert migrated == schema(engine)


def test_a_database_of_the_first_release_is_brought_up_with_its_rows(tmp_path: Path) -> None:
    """Its services have one job each, whatever its end."""
    config = Config()
    config.set_main_option("script_location", str(Path(models.__file__).parent / "migrations"))
    config.attributes["url"] = f"sqlite:///{tmp_path / 'orchestrator.db'}"
    command.upgrade(config, "0001")
    with sqlite3.connect(tmp_path / "orchestrator.db") as database:
        for name, state in (("a", "RUNNING"), ("b", "TIMEOUT")):
            columns = "submission_id, id, name, recipe_name, config, plan, created_at, idempotency_key"
            values = (name, f"7{name}", "r", "a/r", '{"k": 1}', "{}", "2026-11-01 10:00:00", f"key-{name}")
            database.execute(f"INSERT INTO service ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            columns = "submission_id, service, scheduler, name, job_id, state, reason, nodes, restarts, recorded_at"
            of_job = (name, name, "slurm", f"sluice-{name}", f"7{name}", state, "", "n1", 2, "2026-11-01 10:00:00")
            database.execute(f"INSERT INTO job ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", of_job)
        event = ("2026-11-01 10:00:00", "me", "service.created", "a", "{}")
        database.execute("INSERT INTO event (at, actor, kind, subject, detail) VALUES (?, ?, ?, ?, ?)", event)
    database.close()

    async def work(store: Store) -> None:
        for name, state in (("a", JobState.RUNNING), ("b", JobState.TIMEOUT)):
            found, its_job = await store.find(f"7{name}")
            assert (found.job, found.next_job, found.handovers, found.kept) == (name, None, 0, False)
            assert (found.config, found.idempotency_key) == ({"k": 1}, f"key-{name}")
            assert (its_job.submission_id, its_job.state, its_job.restarts) == (name, state, 2)
            assert (its_job.replaces, its_job.attempt) == (None, 1)
        assert [s.submission_id for s, _ in await store.open_services()] == ["a"]
        assert [event.kind for event in await store.events("a")] == ["service.created"]
        assert await store.kept() == []

    with_store(tmp_path, work)
    engine = engine_of(tmp_path / "orchestrator.db")
    made = schema(engine)
    command.downgrade(config, "0001")
    assert schema(engine) != made
    command.upgrade(config, HEAD)
    assert schema(engine) == made
    with_store(tmp_path, work)


CHANGES: list[tuple[str, Callable[[Store], Awaitable[Any]]]] = [
    ("service.created", lambda store: add(store, "b")),
    ("job.accepted", lambda store: store.accepted("a", "7", at=START, actor="me")),
    ("job.state", lambda s: s.record("a", {"state": JobState.RUNNING}, at=START, actor="me", kind="job.state")),
    ("service.ready", lambda store: store.ready("a", at=START, actor="me")),
    ("service.cancelled", lambda store: store.cancelled("a", at=START, actor="me")),
    ("job.replacing", lambda store: store.follows(successor("b"), actor="me")),
    ("service.handover", lambda store: _handed_over(store)),
    ("service.let_go", lambda store: store.let_go("a", "why", at=START, actor="me")),
]


def successor(submission_id: str, **more: Any) -> Job:
    """A job that is to take over from the first one of service a."""
    return job(submission_id, replaces="a", **({"service": "a"} | more))


async def _handed_over(store: Store) -> None:
    await store.follows(successor("b"), actor="me")
    await store.hand_over("a", "b", at=START, actor="me")


NO_EVENTS = {
    "sqlite": ["CREATE TRIGGER no BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'disk full'); END"],
    "postgres": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'disk full' USING ERRCODE = 'integrity_constraint_violation'; END $$",
        "CREATE TRIGGER no BEFORE INSERT ON event EXECUTE FUNCTION refuse()",
    ],
}


@pytest.mark.parametrize(("kind", "change"), CHANGES, ids=[kind for kind, _ in CHANGES])
def test_a_change_and_its_event_are_one_transaction(
    place: Place, kind: str, change: Callable[[Store], Awaitable[Any]]
) -> None:
    """Where the event cannot be written, nothing is; then both are."""

    def dump() -> list[tuple[Any, ...]]:
        return [*place.execute("SELECT * FROM service"), *place.execute("SELECT * FROM job")]

    async def work(store: Store) -> None:
        await add(store, "a", kept=True)
        before = dump()
        for statement in NO_EVENTS[place.kind]:
            place.execute(statement)
        with pytest.raises(sa.exc.IntegrityError, match="disk full"):
            await change(store)
        assert dump() == before
        place.execute("DROP TRIGGER no" if place.kind == "sqlite" else "DROP TRIGGER no ON event")
        await change(store)
        assert dump() != before
        events = [*await store.events("a"), *await store.events("b")]
        assert (events[-1].kind, events[-1].actor, events[-1].at) == (kind, "me", START)

    with_store(place, work)


def test_of_two_services_with_one_id_the_newest_is_meant(place: Place) -> None:
    async def work(store: Store) -> None:
        await add(store, "new", age=1)
        await add(store, "old", age=100)
        for submission_id in ("new", "old"):
            await store.accepted(submission_id, "7", at=START, actor="me")
        assert (await store.find("7"))[0].submission_id == "new"
        assert (await store.find("old"))[0].id == "7"

    with_store(place, work)


@pytest.mark.parametrize("wanted", ["", "8", "7 ", "' OR 1=1 --", "%", "\0", "é" * 5000, "-1", str(2**63)])
def test_an_unknown_id_is_not_found(place: Place, wanted: str) -> None:
    async def work(store: Store) -> None:
        await add(store, "a")
        await store.accepted("a", "7", at=START, actor="me")
        with pytest.raises(NotFound, match="GET /services") as caught:
            await store.find(wanted)
        assert len(str(caught.value)) < 700

    with_store(place, work)


def test_of_many_requests_with_one_key_one_is_recorded(place: Place) -> None:
    async def work(store: Store) -> None:
        adding = [add(store, str(n), idempotency_key="k") for n in range(20)]
        results = await asyncio.gather(*adding, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 19 + ["NoneType"]
        assert await store.count() == 1
        found = await store.by_idempotency_key("k")
        assert found is not None
        assert len(await store.events(found[0].submission_id)) == 1
        assert await store.by_idempotency_key("other") is None
        with pytest.raises(Conflict, match="Idempotency-Key 'k'"):
            await add(store, "late", idempotency_key="k")

    with_store(place, work)


def test_an_ended_job_is_never_revised_whoever_comes_at_the_same_time(place: Place) -> None:
    async def race(store: Store, name: str) -> None:
        states = [JobState.COMPLETED, JobState.FAILED, JobState.RUNNING, JobState.LOST] * 3
        write = [store.record(name, {"state": s, "reason": s}, at=START, actor="me", kind="job.state") for s in states]
        await asyncio.gather(*write, *(store.ready(name, at=START, actor="me") for _ in range(3)))
        _, found = await store.find(name)
        assert found.reason == found.state
        told = [JobState(event.detail.get("state", "UNKNOWN")) for event in await store.events(name)]
        assert [state for state in told if state.ended] == [found.state]

    async def work(store: Store) -> None:
        for name in "abcdefghij":
            await add(store, name)
            await race(store, name)
        _, found = await store.find("a")
        before = await store.events("a")
        await store.record("a", {"state": JobState.RUNNING, "exit_code": 1}, at=START, actor="me", kind="job.state")
        await store.ready("a", at=START + timedelta(days=1), actor="me")
        assert (await store.find("a"))[1] == found
        assert await store.events("a") == before
        assert await store.open_jobs() == []

    with_store(place, work)


def test_the_first_cancel_counts(place: Place) -> None:
    async def work(store: Store) -> None:
        await add(store, "a")
        cancelling = (store.cancelled("a", at=START + timedelta(seconds=n), actor="me") for n in range(10))
        await asyncio.gather(*cancelling)
        assert (await store.find("a"))[0].cancelled_at == START
        assert [event.kind for event in await store.events("a")] == ["service.created", "service.cancelled"]

    with_store(place, work)


def test_two_thousand_services_are_listed_and_paged_quickly(place: Place) -> None:
    async def work(store: Store) -> None:
        async with store._writing() as session:
            session.add_all(service(f"{n:04}", age=n, id=str(n)) for n in range(2000))
            await session.flush()
            session.add_all(job(f"{n:04}", age=n, job_id=str(n)) for n in range(2000))
            await session.commit()
        began = time.process_time()
        everything = await store.services()
        assert time.process_time() - began < 1
        assert [s.id for s, _ in everything] == [str(n) for n in range(2000)]
        assert await store.count() == 2000
        began = time.process_time()
        page = await store.services(limit=10, offset=1995)
        assert time.process_time() - began < 0.2
        assert [s.id for s, _ in page] == ["1995", "1996", "1997", "1998", "1999"]
        assert await store.services(limit=10, offset=5000) == []
        assert (await store.services(recipe="a/other"), await store.count(recipe="a/other")) == ([], 0)

    with_store(place, work)


def test_whoever_gives_up_waiting_leaves_no_lock(place: Place) -> None:
    """A client that leaves, or a loop that is stopped, at any moment of a question to the database."""

    async def work(store: Store) -> None:
        await add(store, "a")
        for turns in range(0, 40, 3):
            asking = asyncio.create_task(store.open_jobs())
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
            await store.ready("a", at=START, actor="me")

    with_store(place, work)


def test_what_the_store_returns_is_a_copy(place: Place) -> None:
    async def work(store: Store) -> None:
        await add(store, "a")
        (await store.find("a"))[1].state = JobState.LOST
        assert (await store.find("a"))[1].state is JobState.SUBMITTING

    with_store(place, work)


def test_what_was_used_and_done_is_the_same_on_each_database(place: Place) -> None:
    """A job that was put back into the queue, one that runs, one that has never run."""
    plan = {"served_model_name": "m", "resources": {"nodes": 2, "gpu": 3, "cpu": 5}, "gpu_type": None, "price": None}
    hour = timedelta(hours=1)

    async def work(store: Store) -> None:
        for name, actor in (("a", "ana"), ("b", "ana"), ("c", "bo")):
            await store.add(service(name, age=9000, plan=plan, actor=actor), job(name, age=9000), actor=actor)
            await store.accepted(name, f"id-{name}", at=START, actor="me")
        running = {"state": JobState.RUNNING, "started_at": START - 2 * hour}
        for name in ("a", "b"):
            await store.record(name, running, at=START, actor="watcher", kind=None)
        await store.record(
            "a", {"state": JobState.PENDING, "started_at": None}, at=START - hour, actor="watcher", kind=None
        )
        ended = {"state": JobState.COMPLETED, "started_at": START - hour / 2, "ended_at": START}
        await store.record("a", ended, at=START, actor="watcher", kind="job.state")
        assert (await store.job("a")).used_seconds == 5400
        uses = {use.service: use for use in await store.uses()}
        assert [(use.actor, use.model, use.gpus, use.cores, use.price) for use in uses.values()] == [
            ("ana", "m", 6, 10, None), ("ana", "m", 6, 10, None), ("bo", "m", 6, 10, None)
        ]  # fmt: skip
        assert uses["a"].earlier_runs == [[(START - 2 * hour).isoformat(), (START - hour).isoformat()]]
        assert [use.service_id for use in await store.uses(service="b")] == ["id-b"]
        summed = [(use.actor, use.gpus, use.seconds) for use in await store.used(since=None) if use.seconds]
        assert summed == [("ana", 6, 5400)]
        assert {use.service for use in await store.used(since=START - hour)} == {"a", "b", "c"}
        await store.noted({"a": (START, START - hour, None), "b": (None, None, START)})
        one, other = (await store.find("id-a"))[0], (await store.find("id-b"))[0]
        assert (one.last_activity, one.idle_since, one.looked_at) == (START, START - hour, None)
        assert (other.last_activity, other.looked_at) == (None, START)
        await store.cancelled("b", at=START, actor="idle", why=Why("service.idle_shutdown", {"idle_minutes": 1}))
        await store.warned("b", Why("service.idle_warning", {}), at=START, actor="idle")  # it is too late for that
        by_idle, number = await store.audit(Sought(actor="idle"), limit=1, offset=0)
        assert ([(e.event.kind, e.service_id) for e in by_idle], number) == ([("service.cancelled", "id-b")], 2)
        late, _ = await store.audit(Sought(subject="sg-id-a", since=START), limit=9, offset=0)
        assert {entry.event.kind for entry in late} == {"job.accepted", "job.state"}
        assert (await store.audit(Sought(event="service.created", until=START - 3 * hour), limit=9, offset=0))[1] == 0

    with_store(place, work)

"""One orchestrator on a PostgreSQL: who holds it, what comes and goes, and the API on it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from orchestrator.database import Database
from orchestrator.errors import NotReady
from orchestrator.models import JobState
from orchestrator.postgres import LOCK, opened
from orchestrator.store import Connections, Store, open_store
from tests.databases.place import Place
from tests.databases.server import PASSWORD, Server, execute
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import RECIPE, START
from tests.orchestrating import until as it_becomes
from tests.test_app import Client, look, serving
from tests.test_postgres import refusal, with_database
from tests.test_process import CPU, ROOT, Home, a_home, until
from tests.test_store import add, with_store

home = pytest.fixture(a_home, name="home")
# The sessions that hold a database, by what the server says.
WRITERS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.emptied()


# One orchestrator


@pytest.mark.system
def test_a_second_one_is_refused_and_the_next_one_goes_on_where_the_first_was_killed(
    home: Home, postgres: Server
) -> None:
    postgres.emptied()
    url = postgres.url("again", "secretive", PASSWORD.replace("@", "%40"))
    home.variables["ORCHESTRATOR_DATABASE_URL"] = url
    first = home.serve()
    made = home.ask("POST", "/api/services", json={"recipe_name": RECIPE, "config": CPU})
    until(lambda: home.status(made["id"]) == "running")
    said = refusal(url)
    assert f"in use by process {first.pid} on {socket.gethostname()[:40]}" in said and "Stop that orchestrator" in said
    home.end(signal.SIGKILL)
    said += refusal_of(home, url)  # the lock has gone with it
    home.serve()
    until(lambda: home.status(made["id"]) == "running")
    home.ask("POST", f"/api/v1/services/{made['id']}/status", json={"status": "cancelled"})
    said += str(home.ask("GET", "/health")) + (home.path / "orchestrator.log").read_text()
    assert home.end(signal.SIGTERM)[0] == 0
    assert "planted" not in said and not (home.path / "orchestrator.db").exists()


def refusal_of(home: Home, url: str) -> str:
    """What a whole process says while another one has its database."""
    said: list[str] = []

    async def refused(_: Database) -> None:
        command = [sys.executable, "-m", "orchestrator", "--config", str(home.config)]
        environment = {n: v for n, v in os.environ.items() if not n.startswith("ORCHESTRATOR_")} | home.variables
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        said.append(done.stderr)

    with_database(url, refused)
    assert f"in use by process {os.getpid()} on" in said[0]
    return said[0]


@pytest.mark.system
def test_one_whose_database_was_taken_ends(home: Home, url: str) -> None:
    """As by one that was quicker when the server came back."""
    home.variables["ORCHESTRATOR_DATABASE_URL"] = url
    process = home.serve()
    process.send_signal(signal.SIGSTOP)
    execute(url, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid IN ({WRITERS})")
    ended: list[tuple[str, int]] = []

    async def work(_: Database) -> None:
        process.send_signal(signal.SIGCONT)
        with pytest.raises(AssertionError, match=r"the database .* is in use by"):
            await asyncio.to_thread(home.ask, "POST", "/api/services", json={"recipe_name": RECIPE})
        ended.append(((await asyncio.to_thread(process.communicate, timeout=60))[1], process.returncode))

    with_database(url, work)
    ((told, code),) = ended
    assert code == 0 and f"in use by process {os.getpid()} on" in told and "this orchestrator ends" in told
    assert execute(url, "SELECT count(*) FROM service") == [(0,)]


def test_one_is_told_once_that_its_database_was_taken(url: str, postgres: Server) -> None:
    lost: list[str] = []

    async def work(database: Database) -> None:
        with postgres.away():
            pass
        async with opened(url):  # quicker than its next look
            for _ in range(2):
                with pytest.raises(NotReady, match=rf"in use by process {os.getpid()}"):
                    await add(Store(Connections(database)), "a")

    with_database(url, work, lost=lost.append, patience=0.1)
    assert len(lost) == 1 and f"in use by process {os.getpid()} on" in lost[0]
    assert execute(url, "SELECT count(*) FROM service") == [(0,)]


def test_one_that_has_nothing_to_write_takes_its_database_again(url: str, postgres: Server) -> None:
    def restart() -> None:
        with postgres.away():
            pass

    async def work(_: Database) -> None:
        ((before,),) = execute(url, WRITERS)
        await asyncio.to_thread(restart)
        await it_becomes(lambda: execute(url, WRITERS) not in ([], [(before,)]))

    with_database(url, work, beat=0.05)


def test_the_database_stays_ours_when_the_server_did_not_see_our_connection_end(url: str) -> None:
    """Its former session, which has our name, still has the lock."""
    ours = f"SELECT pid, application_name FROM pg_stat_activity WHERE pid IN ({WRITERS})"

    async def work(database: Database) -> None:
        ((pid, name),) = execute(url, ours)
        with psycopg.connect(url, application_name=name, autocommit=True) as former:
            execute(url, f"SELECT pg_terminate_backend({pid}, 5000)")
            former.execute(f"SELECT pg_advisory_lock({LOCK})")
            await add(Store(Connections(database)), "a")
            with pytest.raises(psycopg.errors.AdminShutdown):
                former.execute("SELECT 1")

    with_database(url, work)
    assert execute(url, "SELECT submission_id FROM service") == [("a",)]


def test_only_who_has_the_lock_can_write(url: str) -> None:
    async def work(database: Database) -> None:
        async with database.reading.connect() as connection:
            with pytest.raises(sa.exc.DBAPIError, match="read-only"):
                await connection.execute(sa.text("DELETE FROM service"))

    with_database(url, work)


# What comes and goes


def test_a_server_that_hangs_is_given_up_and_found_again(url: str, postgres: Server) -> None:
    async def work(store: Store) -> None:
        await add(store, "a")
        postgres.signal_all(signal.SIGSTOP)
        try:
            questions = (store.count(), store.ready("a", at=START, actor="me"), store.find("a"))
            for answer in await asyncio.gather(*questions, return_exceptions=True):
                assert isinstance(answer, NotReady) and "it does not answer" in str(answer)
        finally:
            postgres.signal_all(signal.SIGCONT)
        await store.ready("a", at=START, actor="me")
        assert (await store.find("a"))[1].ready_at == START

    async def run() -> None:
        async with open_store(Path("/nowhere"), SecretStr(url), seconds=1) as store:
            await work(store)

    asyncio.run(run())


def test_a_statement_ends_in_time(url: str) -> None:
    async def run() -> None:
        async with open_store(Path("/nowhere"), SecretStr(url), seconds=1) as store:
            await add(store, "a")
            with psycopg.connect(url) as other:
                other.execute("LOCK TABLE job")
                with pytest.raises(NotReady, match=r"timeout|does not answer"):
                    await store.find("a")
            assert (await store.find("a"))[0].submission_id == "a"

    asyncio.run(run())


def test_text_that_postgresql_does_not_have_is_kept_as_near_as_can_be(url: str) -> None:
    async def work(store: Store) -> None:
        await add(store, "a", config={"k\0": ["\0", "\ud800"]}, plan={"gpus_per_replica": 1, "x": "\0"})
        await store.record("a", {"reason": "a\0b"}, at=START, actor="me", kind="job.state")
        service, job = (await store.services(groups=True))[0]
        assert (service.config, job.reason) == ({"k\ufffd": ["\ufffd", "?"]}, "a\ufffdb")
        assert await store.by_idempotency_key("\0") is None

    with_store(Place(Path("/nowhere"), SecretStr(url)), work)


# The API on it


@contextmanager
def served(slurm: FakeSlurm, url: str) -> Iterator[Client]:
    with serving(slurm.home / "o", slurm.scheduler(), poll_seconds=3600, database_url=SecretStr(url)) as client:
        yield client


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


def test_the_api_and_what_a_restart_finds(slurm: FakeSlurm, url: str) -> None:
    with served(slurm, url) as client:
        ids = [client.start(key=f"k{n}")["id"] for n in range(5)]
        assert client.start(key="k0")["id"] == ids[0]
        group = client.http.post("/api/services", json={"recipe_name": "inference/vllm-replicas"}).json()
        assert [s["id"] for s in client.get("/api/services", limit=2, offset=1)] == [ids[4], ids[3]]
        assert client.post(f"/api/services/{ids[2]}/status", {"status": "cancelled"})[0] == 200
        look(client)
        assert [s["id"] for s in client.get("/api/services", status="cancelled")] == [ids[2]]
        assert len(client.get("/api/services", status="pending", recipe=RECIPE)) == 4
        assert [g["id"] for g in client.get("/api/service-groups")] == [group["id"]]
        assert client.http.get("/api/services/424242%00").status_code == 404
        assert 'state="PENDING"' in client.http.get("/metrics").text
        before = client.get("/api/services")
        other = client.http.post(
            "/api/services",
            json={"recipe_name": RECIPE, "config": {"model": "other"}},
            headers={"Idempotency-Key": "k1"},
        )
        assert other.status_code == 422
        assert execute(url, "SELECT count(*) FROM service") == [(6,)]
        slurm.change(ids[0], state="RUNNING", nodelist="n1")
    with served(slurm, url) as client:
        look(client)
        assert [s["id"] for s in client.get("/api/services")] == [s["id"] for s in before]
        assert client.start(key="k3")["id"] == ids[3]


def test_while_the_server_is_away_requests_get_a_503_and_then_an_answer(
    slurm: FakeSlurm, url: str, postgres: Server
) -> None:
    with served(slurm, url) as client:
        body = {"recipe_name": RECIPE, "config": {"resources": {"gpu": None}}}
        first = client.start()["id"]
        for how in (signal.SIGINT, signal.SIGQUIT):
            with postgres.away(how):
                for response in (
                    client.http.get("/api/services"),
                    client.http.get(f"/api/services/{first}"),
                    client.http.post("/api/services", json=body),
                    client.http.post(f"/api/services/{first}/status", json={"status": "cancelled"}),
                ):
                    assert (response.status_code, "Retry-After" in response.headers) == (503, True), response.text
                    assert "the database cannot be used now" in response.json()["detail"]
                client.http.portal.call(failing_look, client)  # type: ignore[union-attr]
                health = client.get("/health")
                assert health["status"] == "degraded"
                assert "the database cannot be used now" in health["watcher"]["trouble"]
                assert str(postgres.folder) not in str(health)
            assert [s["id"] for s in client.get("/api/services")] == [first]
            look(client)
            assert client.get("/health")["status"] == "healthy"
        assert len(slurm.jobs()) == 1, "nothing is submitted that could not be recorded"
        assert client.start()["id"] != first


async def failing_look(client: Client) -> None:
    with pytest.raises(NotReady):
        await client.app.state.orchestrator.watcher.look()


def test_a_full_disk_of_the_database_is_a_507(slurm: FakeSlurm, url: str) -> None:
    with served(slurm, url) as client:
        execute(
            url,
            "CREATE FUNCTION full_() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'could not extend "
            "file' USING ERRCODE = 'disk_full'; END $$; "
            "CREATE TRIGGER full_ BEFORE INSERT ON event EXECUTE FUNCTION full_()",
        )
        status, error = client.post("/api/services", {"recipe_name": RECIPE})
        assert status == 507 and "the disk of the database is full" in error["detail"]
        assert execute(url, "SELECT count(*) FROM service") == [(0,)] and slurm.jobs() == {}
        execute(url, "DROP TRIGGER full_ ON event")
        assert client.start()["status"] == "pending"


def test_an_unknown_outcome_is_found_out_by_the_next_one(url: str) -> None:
    """The connection ends while a change is being committed."""

    async def run() -> None:
        async with open_store(Path("/nowhere"), SecretStr(url)) as store:
            await add(store, "a")
            async with store._writing() as session:
                pid = (await session.exec(sa.text("SELECT pg_backend_pid()"))).scalar_one()  # type: ignore[call-overload]
            ended = asyncio.to_thread(execute, url, f"SELECT pg_terminate_backend({pid})")
            results = await asyncio.gather(
                ended, *(add(store, f"b{n}", idempotency_key=f"k{n}") for n in range(20)), return_exceptions=True
            )
            assert {type(result) for result in results[1:]} <= {type(None), NotReady}
            await store.record("a", {"state": JobState.RUNNING}, at=START, actor="me", kind="job.state")
            kept = {service.submission_id for service, _ in await store.services()}
            done = {f"b{n}" for n, result in enumerate(results[1:]) if result is None}
            assert kept >= done | {"a"}

    asyncio.run(run())

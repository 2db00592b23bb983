"""The orchestrator as a process: one on a home, private, found again after its end."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from orchestrator.__main__ import main
from orchestrator.store import open_store
from tests.orchestrating import FAKE_ENGINE, RECIPE

pytestmark = [pytest.mark.system, pytest.mark.beside]

ROOT = Path(__file__).parents[1]
CPU = {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}}
Refused = Callable[..., str]


class Home:
    """A state folder, and the orchestrators that are started on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "home"
        self.socket = self.path / "orchestrator.sock"
        self.config = folder / "site.toml"
        # The environment says local: it wins.
        self.config.write_text(
            f'scheduler = "slurm"\nprobe_seconds = 0.1\n[site.engines.vllm]\ncommand = {FAKE_ENGINE}\n'
        )
        self.variables = {"ORCHESTRATOR_HOME": str(self.path), "ORCHESTRATOR_SCHEDULER": "local"}
        self.process: subprocess.Popen[str] | None = None

    def serve(self) -> subprocess.Popen[str]:
        """Start one and wait until it answers."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
        command = [sys.executable, "-m", "orchestrator", "--config", str(self.config)]
        process = subprocess.Popen(command, env=inherited | self.variables, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.process = process
        until(lambda: process.poll() is not None or self.answers())
        assert process.poll() is None, process.communicate()[1]
        return process

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send the signal; the exit status, and what was said on stderr."""
        assert self.process is not None
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=20)
        return self.process.returncode, told

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: orchestrator\r\nConnection: close\r\n\r\n")
                return connection.recv(1000).startswith(b"HTTP/1.1 200 ")
            except OSError:
                return False

    def ask(self, method: str, path: str, **more: Any) -> Any:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self.socket)), timeout=20) as client:
            response = client.request(method, f"http://orchestrator{path}", **more)
        assert response.status_code == 200, response.text
        return response.json()

    def status(self, service_id: str) -> str:
        return str(self.ask("GET", f"/api/services/{service_id}/status")["status"])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def a_home() -> Iterator[Home]:
    """In a folder whose name is short enough for a UNIX socket. Nothing that was started outlives the test."""
    with tempfile.TemporaryDirectory(prefix="sg-") as name:
        home = Home(Path(name))
        yield home
        if home.process is not None and home.process.returncode is None:
            home.process.kill()
            home.process.communicate()
        for path in (home.path / "local" / "jobs").glob("*.json"):
            job = json.loads(path.read_text())
            if job["ended_at"] is None:
                os.killpg(job["pid"], signal.SIGKILL)


home = pytest.fixture(a_home, name="home")
lived_in = pytest.fixture(a_home, name="lived_in", scope="module")


@pytest.fixture(scope="module")
def served(lived_in: Home) -> Home:
    """A home with an orchestrator that goes on."""
    lived_in.path.mkdir(mode=0o755)
    lived_in.serve()
    return lived_in


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refused]:
    """Start an orchestrator that cannot serve: exit status 2, and words instead of a traceback. Gives the words."""
    mask, handler = os.umask(0o077), signal.getsignal(signal.SIGTERM)

    def start(*words: str, **variables: str) -> str:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert main(list(words)) == 2
        told = capsys.readouterr().err
        assert told.startswith("sluice orchestrator: ")
        assert "Traceback" not in told
        return told

    yield start
    os.umask(mask)
    signal.signal(signal.SIGTERM, handler)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_it_makes_is_private(served: Home) -> None:
    assert mode(served.path) == 0o700
    assert stat.S_ISSOCK(served.socket.stat().st_mode)
    assert mode(served.socket) == 0o600
    made = {path.name: mode(path) for path in served.path.iterdir() if path.is_file()}
    names = ("orchestrator.db", "orchestrator.holder", "orchestrator.lock", "orchestrator.log")
    assert made == dict.fromkeys(names, 0o600)
    assert served.ask("GET", "/health")["scheduler"] == "local"


def test_a_second_one_on_the_same_home_is_refused_and_names_the_first(served: Home, refused: Refused) -> None:
    told = refused("--config", str(served.config), **served.variables)
    assert served.process is not None
    assert f"process {served.process.pid} on {socket.gethostname()}" in told
    assert "ORCHESTRATOR_HOME" in told
    assert served.answers(), "the first one's socket is untouched"


def test_one_whose_folder_was_given_away_ends(home: Home) -> None:
    """As by a user who was told so on another machine."""
    process = home.serve()
    (home.path / "orchestrator.holder").unlink()
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert "has been taken by whoever removed orchestrator.holder: this orchestrator ends" in told


def test_the_socket_of_another_one_that_lives_is_not_taken(served: Home, refused: Refused, tmp_path: Path) -> None:
    told = refused(ORCHESTRATOR_HOME=str(tmp_path / "other"), ORCHESTRATOR_SOCKET=str(served.socket))
    assert "Address already in use" in told
    assert served.answers()


def test_jobs_outlive_it_and_the_next_one_finds_them(home: Home) -> None:
    """Ended by SIGTERM the first time, killed the second time; the last one by Ctrl-C, while a client hangs on."""
    home.serve()
    made = home.ask("POST", "/api/services", json={"recipe_name": RECIPE, "config": CPU})
    until(lambda: home.status(made["id"]) == "running")
    endpoint = home.ask("GET", f"/api/services/{made['id']}")["endpoint"]
    for number, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        ended, told = home.end(number)
        assert ended == code, told
        assert "Traceback" not in told
        assert home.socket.exists() == (number is signal.SIGKILL)
        assert httpx2.get(f"{endpoint}/health", trust_env=False).status_code == 200, "the engine goes on"
        home.serve()
        until(lambda: home.status(made["id"]) == "running")
        assert {oct(mode(path)) for path in home.path.rglob("*") if not path.is_dir()} == {"0o600"}
        assert {oct(mode(path)) for path in home.path.rglob("*") if path.is_dir()} == {"0o700"}
        answer = home.ask("POST", f"/api/v1/vllm/{made['id']}/prompt", json={"prompt": "hi"})
        assert (answer["success"], answer["endpoint"]) == (True, endpoint)
    home.ask("POST", f"/api/v1/services/{made['id']}/status", json={"status": "cancelled"})
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{endpoint}/health", trust_env=False)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(home.socket))
        idle.sendall(b"GET /health HTTP/1.1\r\n")
        ended, told = home.end(signal.SIGINT)
    assert (ended, "Traceback" in told, home.socket.exists()) == (130, False, False)


def test_a_users_file_in_the_place_of_the_socket_is_kept(refused: Refused, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    told = refused(ORCHESTRATOR_HOME=str(tmp_path / "home"), ORCHESTRATOR_SOCKET=str(thesis))
    assert "cannot listen on" in told
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SCHEDULER", "pbs", ["scheduler", "'pbs'", "'slurm' or 'local'", "ORCHESTRATOR_*"]),
        ("SITE", "{", ["site"]),
        ("CONFIG", "/nowhere.toml", ["cannot read the settings file /nowhere.toml"]),
        ("RECIPES", "/nowhere", ["recipe folder /nowhere does not exist", "ORCHESTRATOR_RECIPES"]),
        ("HOME", "/proc/x", ["cannot use the state folder /proc/x", "ORCHESTRATOR_HOME"]),
        ("SOCKET", "/tmp/" + "x" * 200, ["cannot listen on", "107 bytes", "ORCHESTRATOR_SOCKET"]),
        ("SOCKET", "/nowhere/x.sock", ["cannot listen on /nowhere/x.sock", "No such file"]),
    ],
)
def test_what_is_set_wrong_is_said_in_a_sentence(
    refused: Refused, tmp_path: Path, variable: str, value: str, words: list[str]
) -> None:
    told = refused(**{"ORCHESTRATOR_HOME": str(tmp_path / "home"), f"ORCHESTRATOR_{variable}": value})
    assert [word for word in words if word not in told] == []


def test_a_database_that_is_none_is_named(refused: Refused, home: Home) -> None:
    home.path.mkdir()
    (home.path / "orchestrator.db").write_bytes(b"not a database" * 1000)
    told = refused(**home.variables)
    assert f"cannot use the database {home.path}/orchestrator.db" in told


def test_a_database_of_a_newer_release_is_left_alone(refused: Refused, home: Home) -> None:
    home.path.mkdir(mode=0o700)
    path = home.path / "orchestrator.db"
    asyncio.run(make(path))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    before = path.read_bytes()
    told = refused(**home.variables)
    assert f"the database {path} has revision 9999, but this release knows none behind" in told
    assert path.read_bytes() == before


async def make(path: Path) -> None:
    async with open_store(path) as store:
        assert await store.count() == 0

"""The orchestrator's TCP port, of a real process: who gets in, what is said to the others, and what a key may."""

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from orchestrator.keys import Key, Scope, changing, hash_of, now, revoked
from orchestrator.wire.mux import PROTOCOL
from tests.gateway.sshd import free_port
from tests.orchestrating import RECIPE
from tests.test_process import CPU, ROOT, Home, a_home, until

pytestmark = pytest.mark.system

home = pytest.fixture(a_home, name="home")
lived_in = pytest.fixture(a_home, name="lived_in", scope="module")


LIMITS = httpx2.Limits(max_keepalive_connections=0)


class Remote:
    """An orchestrator that is reached over TCP, with a key of each scope; a key's secret is its scope."""

    def __init__(self, home: Home) -> None:
        self.home, self.port = home, free_port()
        home.variables |= {"ORCHESTRATOR_HOST": "127.0.0.1", "ORCHESTRATOR_PORT": str(self.port)}
        home.variables["ORCHESTRATOR_MAX_CONNECTIONS"] = "20"
        with changing(self.file) as keys:
            keys[:] = [Key(f"the-{scope}", scope, hash_of(scope.encode()), now()) for scope in Scope]
        home.serve()
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=20, limits=LIMITS)

    @property
    def file(self) -> Path:
        return self.home.path / "keys.json"

    def ask(self, method: str, path: str, secret: str = "", **more: Any) -> httpx2.Response:
        headers = {"X-API-Key": secret} if secret else {}
        return self.http.request(method, path, headers=headers | more.pop("headers", {}), **more)

    def raw(self, head: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(head)
            return connection.recv(65536)


@pytest.fixture(scope="module")
def remote(lived_in: Home) -> Iterator[Remote]:
    lived_in.path.mkdir(mode=0o700)
    one = Remote(lived_in)
    with one.http:
        yield one


def test_health_checks_alone_need_no_key_and_tell_nothing_more_than_the_address(remote: Remote) -> None:
    health = remote.ask("GET", "/health")
    assert (health.status_code, health.json()["tcp"]) == (200, f"http://127.0.0.1:{remote.port}")
    assert remote.ask("GET", "/ready").status_code in (200, 503)
    assert str(remote.home.folder) not in health.text
    for path in ("/", "/metrics", "/docs", "/openapi.json", "/v1/models", "/api/services", "/health/x"):
        refused = remote.ask("GET", path)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
    told = remote.ask("POST", "/v1/chat/completions", json={"model": "m"}).json()["error"]
    assert (told["code"], "wants an API key" in told["message"]) == ("invalid_api_key", True)
    assert remote.ask("GET", "/api/services", "wrong").json() == {
        "detail": "this orchestrator does not know the key that was given"
    }


def test_the_socket_of_the_user_needs_none(remote: Remote) -> None:
    assert remote.home.ask("GET", "/api/services") == []
    assert remote.home.ask("GET", "/health")["tcp"] == f"http://127.0.0.1:{remote.port}"


def test_each_scope(remote: Remote) -> None:
    for scope in Scope:
        assert remote.ask("GET", "/api/services", scope).status_code == 200
    refused = remote.ask("POST", "/api/services/start", "use", json={"recipe_name": RECIPE, "config": CPU})
    assert refused.status_code == 403
    for word in ("'the-use'", "scope use", "needs manage"):
        assert word in refused.json()["detail"]
    assert remote.ask("POST", "/api/services/start", "manage", json={"recipe_name": "none"}).status_code == 404
    assert remote.ask("GET", "/api/keys", "manage").status_code == 403
    assert remote.ask("GET", "/api/keys", "admin").status_code == 404


def test_a_chat_over_tcp_from_the_start_of_a_service_to_its_end(remote: Remote) -> None:
    made = remote.ask("POST", "/api/v1/services", "manage", json={"recipe_name": RECIPE, "config": CPU}).json()
    until(lambda: remote.home.status(made["id"]) == "running")
    model = remote.ask("GET", "/v1/models", "use").json()["data"][0]["id"]
    question = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    bearer = {"Authorization": "Bearer use"}
    answer = remote.ask("POST", "/v1/chat/completions", headers=bearer, json=question)
    assert (answer.status_code, bool(answer.json()["choices"][0]["message"]["content"])) == (200, True)
    streamed = remote.ask("POST", "/v1/chat/completions", headers=bearer, json=question | {"stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    path = f"/api/v1/services/{made['id']}/status"
    headers = {"X-Sluice-Actor": "somebody else"}
    assert remote.ask("POST", path, "use", json={"status": "cancelled"}).status_code == 403
    assert remote.ask("POST", path, "manage", json={"status": "cancelled"}, headers=headers).status_code == 200
    with contextlib.closing(sqlite3.connect(remote.home.path / "orchestrator.db")) as database:
        actors = {actor for (actor,) in database.execute("SELECT actor FROM event")}
    assert actors <= {"the-manage", "watcher"}
    assert "the-manage" in actors


def test_pages_of_others_are_refused_and_any_name_of_the_machine_will_do(remote: Remote) -> None:
    assert remote.ask("GET", "/api/services", "use", headers={"Host": "login1.cluster:8010"}).status_code == 200
    page = {"Host": "login1:8010", "Origin": "http://evil.example"}
    assert remote.ask("GET", "/api/services", "use", headers=page).status_code == 403
    assert remote.ask("GET", "/health", headers=page).status_code == 403


@pytest.mark.parametrize(
    ("key", "status"), [(b"", b"401"), (b"X-API-Key: wrong\r\n", b"401"), (b"X-API-Key: use\r\n", b"404")]
)
def test_nobody_gets_many_streams_over_tcp(remote: Remote, key: bytes, status: bytes) -> None:
    """They are for the user's own gateway, on the user's own socket."""
    answer = remote.raw(
        b"GET /mux HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: %s\r\n%s\r\n" % (PROTOCOL, key)
    )
    assert answer.split()[1] == status


def test_a_revoked_key_is_refused_on_the_connection_that_it_opened(remote: Remote) -> None:
    with changing(remote.file) as keys:
        keys.append(Key("ci", Scope.USE, hash_of(b"ci"), now()))
    until(lambda: remote.ask("GET", "/api/services", "ci").status_code == 200)
    asked = b"GET /api/services HTTP/1.1\r\nHost: a\r\nX-API-Key: ci\r\n\r\n"
    with socket.create_connection(("127.0.0.1", remote.port), timeout=20) as connection:

        def status() -> bytes:
            connection.sendall(asked)
            answer = connection.recv(65536)
            length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(answer.partition(b"\r\n\r\n")[2]) < length:
                answer += connection.recv(65536)
            return answer.split()[1]

        assert {status() for _ in range(20)} == {b"200"}
        with changing(remote.file) as keys:
            keys[:] = revoked(keys, "ci", now())
        began = time.monotonic()
        until(lambda: status() == b"401")
        assert time.monotonic() - began < 8, "a second, and what a busy machine adds"


def test_too_many_connections_are_told_so_and_the_user_s_socket_is_not_theirs(remote: Remote) -> None:
    answers: list[bytes] = []
    with contextlib.ExitStack() as opened:
        while len(answers) < 30 and b" 503 " not in b"".join(answers):
            one = opened.enter_context(socket.create_connection(("127.0.0.1", remote.port), timeout=20))
            one.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            answers.append(one.recv(1000))
        assert remote.home.ask("GET", "/health")["tcp"]
    assert 15 < len(answers) <= 21, "those of the tests before this one may not have been seen to end"
    assert b"all 20 connections are taken" in answers[-1]
    assert b"connection: close" in answers[-1]
    until(lambda: remote.ask("GET", "/health").status_code == 200)


def refused(home: Home, **variables: str) -> str:
    """What an orchestrator says that does not start."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator", "--config", str(home.config)],
        env=inherited | home.variables | variables, cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False), ended.stderr
    return ended.stderr


def test_it_does_not_open_a_port_without_a_key_or_with_a_file_that_others_read(home: Home) -> None:
    told = refused(home, ORCHESTRATOR_HOST="127.0.0.1")
    assert "sluice keys create jobs --orchestrator" in told
    file = home.path / "keys.json"
    file.write_text(json.dumps({"version": 1, "keys": []}))
    file.chmod(0o644)
    assert "chmod 600" in refused(home, ORCHESTRATOR_HOST="127.0.0.1")
    assert not home.socket.exists()


def test_a_port_that_is_taken_is_named(home: Home) -> None:
    home.path.mkdir(mode=0o700)
    with changing(home.path / "keys.json") as keys:
        keys.append(Key("a", Scope.USE, hash_of(b"a"), now()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused(home, ORCHESTRATOR_HOST="127.0.0.1", ORCHESTRATOR_PORT=str(port))
    assert f"cannot listen on 127.0.0.1 port {port}" in told
    assert f"ORCHESTRATOR_PORT={port + 1}" in told
    assert "port" in refused(home, ORCHESTRATOR_HOST="127.0.0.1", ORCHESTRATOR_PORT="80")

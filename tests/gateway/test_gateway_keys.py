"""Named keys at the gateway's door: which are taken, what is said of the others, and how fast one is taken away."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from gateway.settings import Settings, SettingsError, environment_of_a_child, read_settings
from orchestrator.keys import Key, Scope, changing, hash_of, now, read_keys, revoked
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, served_orchestrator
from tests.wire.parts import read_answer

pytestmark = pytest.mark.anyio


def key(name: str, scope: Scope = Scope.USE, **more: Any) -> Key:
    """Its secret is its name with `secret-` before it."""
    return Key(name, scope, hash_of(b"secret-" + name.encode()), now(), **more)


def put(path: Path, *keys: Key) -> None:
    with changing(path) as there:
        there[:] = keys


def of(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer secret-{name}"}


@pytest.fixture
async def settings(folder: Path, orchestrator: FakeOrchestrator) -> AsyncIterator[Settings]:
    async with served_orchestrator(orchestrator, folder / "o.sock"):
        yield Settings(local_socket=folder / "o.sock", keys_file=folder / "keys.json")


async def test_each_scope_opens_what_it_is_for(settings: Settings) -> None:
    put(settings.keys_path, *(key(scope, scope) for scope in Scope))
    asked = {"use": ("GET", "/api/v1/echo"), "manage": ("POST", "/api/v1/services"), "admin": ("GET", "/api/v1/keys")}
    async with gateway(settings) as client:
        for has in Scope:
            for needs in Scope:
                answer = await client.request(*asked[needs], headers=of(has))
                assert (answer.status_code == 403) is not has.covers(needs), (has, needs)
                if answer.status_code == 403:
                    assert f"the key '{has}' has the scope {has}" in answer.json()["detail"]
                    assert f"needs {needs}" in answer.json()["detail"]
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/")).status_code == 401


async def test_the_errors_have_the_shape_of_their_path(settings: Settings) -> None:
    put(settings.keys_path, key("old", expires=now() - timedelta(hours=1)), key("use"))
    async with gateway(settings) as client:
        for given, words in (
            (of("old"), "'old' has expired since 20"),
            (of("x"), "does not know"),
            ({}, "wants an API"),
        ):
            openai = await client.get("/v1/models", headers=given)
            assert (openai.status_code, openai.json()["error"]["code"]) == (401, "invalid_api_key")
            assert words in openai.json()["error"]["message"]
            ours = await client.get("/api/v1/services", headers=given)
            assert (ours.status_code, words in ours.json()["detail"]) == (401, True)
            assert ours.headers["www-authenticate"] == "Bearer"
        both = await client.post("/api/v1/vllm/1/prompt", headers=of("old"))
        assert both.json()["error"] == both.json()["detail"]


async def test_the_one_key_of_the_environment_opens_everything_beside_them(settings: Settings) -> None:
    put(settings.keys_path, key("use"))
    async with gateway(settings.model_copy(update={"api_key": SecretStr("secret-env")})) as client:
        assert (await client.get("/api/v1/keys", headers=of("env"))).status_code == 404
        assert (await client.get("/api/v1/echo", headers=of("use"))).status_code == 200
        assert (await client.get("/api/v1/echo")).status_code == 401


async def test_no_credential_goes_further_and_the_name_does(settings: Settings) -> None:
    put(settings.keys_path, key("use"))
    sent = {"X-API-Key": "secret-use", "api-key": "another", "Cookie": "c=1", "Authorization": "Bearer sk-theirs",
            "Proxy-Authorization": "Basic eA==", "X-Sluice-Actor": "root", "X-Sluice-Scope": "admin",
            "X-Other": "kept"}  # fmt: skip
    async with gateway(settings) as client:
        told = (await client.get("/api/v1/echo", headers=sent)).json()["headers"]
    names = [name for name, _ in told]
    assert {"authorization", "x-api-key", "api-key", "cookie", "proxy-authorization"}.isdisjoint(names)
    assert [value for name, value in told if name in ("x-other", "x-sluice-actor")] == ["kept", "use"]
    assert [value for name, value in told if name == "x-sluice-scope"] == ["use"]
    assert "secret-use" not in json.dumps(told)


async def test_without_keys_nobody_is_named(settings: Settings) -> None:
    async with gateway(settings) as client:
        told = (
            await client.get("/api/v1/echo", headers={"X-Sluice-Actor": "root", "X-Sluice-Scope": "admin", **of("x")})
        ).json()["headers"]
    assert {"authorization", "x-sluice-actor", "x-sluice-scope"}.isdisjoint(name for name, _ in told)


async def test_the_first_key_closes_the_door_on_loopback_and_the_last_one_does_not_open_it(settings: Settings) -> None:
    async with gateway(settings) as client:
        open_one = settings.model_copy(update={"loopback_open": True})
        async with gateway(open_one) as other:
            assert (await client.get("/api/v1/echo")).status_code == 200
            put(settings.keys_path, key("use"))
            await until_status(client, 401, {})
            await until_status(client, 200, of("use"))
            settings.keys_path.unlink()
            await until_status(client, 401, of("use"))
            assert (await other.get("/api/v1/echo")).status_code == 200


async def until_status(client: httpx2.AsyncClient, status: int, headers: dict[str, str]) -> float:
    """Ask until the answer has this status, at most 5 s; how long it took."""
    began = time.monotonic()
    while (await client.get("/api/v1/echo", headers=headers)).status_code != status:
        assert time.monotonic() - began < 5, f"it is not {status}"
    return time.monotonic() - began


@pytest.mark.parametrize("ending", ["revoked", "expired", "open to others"])
async def test_a_key_ends_within_a_second_or_so_under_an_open_connection(settings: Settings, ending: str) -> None:
    """The very same bytes on the same connection, whose head the gateway has seen and let in many times."""
    put(settings.keys_path, key("use", expires=now() + timedelta(seconds=1.5 if ending == "expired" else 60)))
    asked = b"GET /api/v1/echo HTTP/1.1\r\nHost: localhost\r\nX-API-Key: secret-use\r\n\r\n"
    async with gateway(settings) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        for _ in range(50):
            writer.write(asked)
            assert (await read_answer(reader))[0] == 200
        if ending == "revoked":
            with changing(settings.keys_path) as keys:
                keys[:] = revoked(keys, "use", now())
        elif ending == "open to others":
            settings.keys_path.chmod(0o604)
        began = time.monotonic()
        status = 200
        while status == 200:
            assert time.monotonic() - began < 5
            writer.write(asked)
            status, _, body = await read_answer(reader)
        assert status == 401
        assert {"revoked": b"was revoked", "expired": b"has expired", "open to others": b"cannot read"}[ending] in body
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("live", [False, True])
def test_an_address_for_others_wants_a_live_key_and_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, live: bool
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GATEWAY_HOST", "0.0.0.0")
    path = tmp_path / "sluicegate" / "keys.json"
    put(path, key("gone", revoked=now()), *([key("use")] if live else []))
    if live:
        assert read_settings().keys_path == path
        return
    with pytest.raises(SettingsError, match="sluice keys create me --scope admin --file") as caught:
        read_settings()
    command = next(line for line in str(caught.value).splitlines() if "sluice keys" in line).partition("sluice keys ")[
        2
    ]
    assert sluice(tmp_path, *command.split()).returncode == 0
    assert [(one.name, one.scope) for one in read_keys(path) if one.revoked is None] == [("me", Scope.ADMIN)]
    assert read_settings().host == "0.0.0.0"


def test_a_file_of_keys_that_others_can_read_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    put(path, key("use"))
    path.chmod(0o640)
    monkeypatch.setenv("GATEWAY_KEYS_FILE", str(path))
    with pytest.raises(SettingsError, match="chmod 600"):
        read_settings()


def sluice(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`sluice keys`, as a process."""
    program = "from gateway.cli import main; main()"
    environment = environment_of_a_child(ORCHESTRATOR_HOME=str(folder / "home"), XDG_CONFIG_HOME=str(folder))
    return subprocess.run(
        [sys.executable, "-c", program, "keys", *words], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.system
def test_the_command(tmp_path: Path) -> None:
    """Made, listed, rotated, revoked; the secret alone on stdout and in no file."""
    made = sluice(tmp_path, "create", "ci", "--scope", "manage", "--expires", "30d")
    assert (made.returncode, bool(re.fullmatch(r"sluice_[\w-]{43}\n", made.stdout))) == (0, True), made
    assert made.stdout.strip() not in made.stderr
    path = tmp_path / "sluicegate" / "keys.json"
    assert str(path) in made.stderr
    again = sluice(tmp_path, "rotate", "ci")
    assert again.stdout != made.stdout
    [row] = json.loads(sluice(tmp_path, "list", "--json").stdout)
    assert (row["name"], row["scope"], row["state"], row["revoked"]) == ("ci", "manage", "live", None)
    assert hash_of(again.stdout.strip().encode()) == read_keys(path)[0].hash
    for secret in (made.stdout, again.stdout):
        assert secret.strip() not in path.read_text()
    assert sluice(tmp_path, "revoke", "ci").stdout == ""
    listed = sluice(tmp_path, "list").stdout.splitlines()
    assert (listed[0].split()[0], listed[1].split()[0], listed[1].split()[-1]) == ("NAME", "ci", "revoked")


@pytest.mark.system
def test_the_command_for_the_orchestrator_and_what_it_refuses(tmp_path: Path) -> None:
    assert sluice(tmp_path, "create", "job", "--orchestrator").returncode == 0
    assert [one.name for one in read_keys(tmp_path / "home" / "keys.json")] == ["job"]
    assert [one.name for one in tmp_path.iterdir()] == ["home"], "the gateway has none"
    for words, told in (
        (("create", "job", "--orchestrator"), "there is a key 'job' already"),
        (("revoke", "x"), "there is no key 'x'; there are: none"),
        (("create", "b", "--expires", "soon"), "'soon' is no lifetime"),
        (("list", "--orchestrator", "--file", "x"), "give one of them"),
        (("create", "b", "--scope", "root"), "'root' is not one of"),
    ):
        refused = sluice(tmp_path, *words)
        assert (refused.returncode, refused.stdout, told in refused.stderr) == (2, "", True), refused
        assert "Traceback" not in refused.stderr

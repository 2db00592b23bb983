"""The page of the keys: who may see it, and what it changes."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from gateway import keyring
from gateway.dashboard.keys import check_first
from gateway.settings import Settings
from orchestrator.keys import PREFIX, KeysError, Scope, hash_of, now, read_keys
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, served_orchestrator

pytestmark = pytest.mark.anyio

SECRET = re.compile(rf"{PREFIX}[\w-]{{43}}")
HTML = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def settings(folder: Path, orchestrator: FakeOrchestrator) -> AsyncIterator[Settings]:
    async with served_orchestrator(orchestrator, folder / "o.sock"):
        yield Settings(local_socket=folder / "o.sock", keys_file=folder / "keys.json")


def bearer(secret: str) -> dict[str, str]:
    return HTML | {"Authorization": f"Bearer {secret}"}


def made(settings: Settings, name: str, scope: Scope) -> dict[str, str]:
    """Headers with a new key."""
    return bearer(keyring.create(settings.keys_path, name, scope, None).secret)


async def new_key(client: httpx2.AsyncClient, headers: dict[str, str] = HTML, **form: str) -> httpx2.Response:
    return await client.post("/ui/keys", headers=headers, data={"scope": "use", "lifetime": ""} | form)


def test_the_ring_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first = keyring.create(file, "a", Scope.USE, "30d")
    assert first.key.hash == hash_of(first.secret.encode())
    assert first.key.expires is not None
    second = keyring.rotate(file, "a")
    assert second.secret != first.secret
    assert [key.hash for key in read_keys(file)] == [second.key.hash]
    keyring.revoke(file, "a")
    [row] = keyring.rows(file, now())
    assert (row["name"], row["scope"], row["state"]) == ("a", "use", "revoked")
    with pytest.raises(KeysError, match="there is no key 'b'"):
        keyring.revoke(file, "b")
    with pytest.raises(KeysError, match="'forever' is no lifetime"):
        keyring.create(file, "b", Scope.USE, "forever")


def row(scope: str, state: str = "live") -> Any:
    return {"name": "a", "scope": scope, "state": state}


@pytest.mark.parametrize(
    ("rows", "scope", "loopback_open", "wrong"),
    [
        ([], "admin", False, ""),
        ([], "use", False, "make one with the scope admin first"),
        ([], "use", True, ""),
        ([row("admin")], "use", False, ""),
        ([row("manage"), row("admin", "revoked")], "manage", False, "make one with the scope admin first"),
        ([row("admin")], "root", False, "'root' is no scope; choose one of use, manage, admin"),
    ],
)
def test_nobody_locks_themselves_out(rows: list[Any], scope: str, loopback_open: bool, wrong: str) -> None:
    if not wrong:
        check_first(rows, scope, loopback_open)
        return
    with pytest.raises(KeysError, match=wrong):
        check_first(rows, scope, loopback_open)


async def test_from_the_first_key_on_the_page_needs_one(settings: Settings) -> None:
    async with gateway(settings) as client:
        assert "No key is in use" in (await client.get("/ui/keys", headers=HTML)).text
        refused = await new_key(client, name="editor")
        assert refused.status_code == 422
        assert "Make one with the scope admin first" in refused.text
        answer = await new_key(client, name="me", scope="admin")
        [secret] = set(SECRET.findall(answer.text))
        assert answer.headers["cache-control"] == "no-store"
        assert "From now on this gateway wants a key" in answer.text
        shown = await client.get("/ui/keys", headers=HTML)
        assert (shown.status_code, "(yours)" in shown.text) == (200, True), "its maker is signed in with it"
        assert not SECRET.search(shown.text), "it is shown once"
        client.cookies.clear()
        assert (await client.get("/ui/keys")).status_code == 401
        assert (await client.get("/ui/keys", headers=bearer(secret))).status_code == 200


async def test_only_an_admin_sees_and_changes_keys(settings: Settings) -> None:
    admin = made(settings, "boss", Scope.ADMIN)
    others = [made(settings, scope, scope) for scope in (Scope.USE, Scope.MANAGE)]
    before = read_keys(settings.keys_path)
    async with gateway(settings) as client:
        assert 'href="/ui/keys"' in (await client.get("/ui/keys", headers=admin)).text
        for headers in others:
            for lie in ({}, {"X-Sluice-Scope": "admin", "X-Sluice-Actor": "boss"}):
                asked = headers | lie
                page = await client.get("/ui/keys", headers=asked)
                assert page.status_code == 403
                assert "boss" not in page.text
                assert 'href="/ui/keys"' not in page.text
                assert (await new_key(client, asked, name="x", scope="admin")).status_code == 403
                for change in ("rotate", "revoke"):
                    assert (await client.post(f"/ui/keys/boss/{change}", headers=asked)).status_code == 403
        foreign = admin | {"Origin": "http://elsewhere.example"}
        assert (await client.post("/ui/keys/boss/revoke", headers=foreign)).status_code == 403
    assert read_keys(settings.keys_path) == before


async def test_keys_are_made_renewed_and_revoked(settings: Settings) -> None:
    admin = made(settings, "boss", Scope.ADMIN)
    async with gateway(settings) as client:
        [first] = set(SECRET.findall((await new_key(client, admin, name="editor", lifetime="30d")).text))
        assert (await client.get("/ui/keys", headers=bearer(first))).status_code == 403, "a key, but not enough of one"
        again = await new_key(client, admin, name="editor")
        assert again.status_code == 422
        assert "There is a key &#39;editor&#39; already" in again.text
        [second] = set(SECRET.findall((await client.post("/ui/keys/editor/rotate", headers=admin)).text))
        assert (await client.get("/v1/models", headers=bearer(first))).status_code == 401
        assert (await client.get("/v1/models", headers=bearer(second))).status_code != 401
        done = await client.post("/ui/keys/editor/revoke", headers=admin)
        assert (done.status_code, done.headers["location"]) == (303, "/ui/keys")
        page = (await client.get("/ui/keys", headers=admin)).text
        assert 'action="/ui/keys/editor/revoke"' not in page
        assert 'action="/ui/keys/boss/revoke"' in page
        assert "It is the last key with the scope admin" in page
    states = {one["name"]: one["state"] for one in keyring.rows(settings.keys_path, now())}
    assert states == {"boss": "live", "editor": "revoked"}


async def test_keys_of_the_environment_are_listed_and_stay(settings: Settings) -> None:
    with_key = settings.model_copy(update={"api_key": SecretStr("from-the-environment")})
    async with gateway(with_key) as client:
        page = await client.get("/ui/keys", headers=bearer("from-the-environment"))
        assert "GATEWAY_API_KEY" in page.text
        assert "set by its variable" in page.text
        assert "from-the-environment" not in page.text
        gone = await client.post("/ui/keys/GATEWAY_API_KEY/revoke", headers=bearer("from-the-environment"))
        assert gone.status_code == 422
        assert "There is no key &#39;GATEWAY_API_KEY&#39;" in gone.text


async def test_a_file_of_keys_that_cannot_be_read_is_said(settings: Settings) -> None:
    settings.keys_path.write_text("{")
    settings.keys_path.chmod(0o600)
    async with gateway(settings.model_copy(update={"api_key": SecretStr("k")})) as client:
        page = await client.get("/ui/keys", headers=bearer("k"))
        assert page.status_code == 200
        assert "holds no keys that can be read" in page.text
        assert (await new_key(client, bearer("k"), name="x")).status_code == 422

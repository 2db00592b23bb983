"""Names by which a proxy in front of the gateway brings requests: whose may come in, and with what."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.settings import Settings, SettingsError, is_public, read_settings
from orchestrator.keys import Key, Scope, changing, hash_of, new_secret, now
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, served_orchestrator, short_folder

NAME = "spark.tail1234.ts.net"


def put(path: Path, name: str, scope: Scope) -> str:
    """The secret of a key that is made."""
    secret = new_secret()
    with changing(path) as keys:
        keys.append(Key(name, scope, hash_of(secret.encode()), now()))
    return secret


@pytest.mark.parametrize(
    ("name", "public"),
    [
        (NAME, True),
        ("llm.example.org", True),
        ("100.64.0.7", True),
        ("2001:db8::1", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("host.docker.internal", False),
        ("HOST.containers.Internal", False),
        ("spark.local", False),
        ("spark", False),
        ("evil.localhost", False),
    ],
)
def test_which_names_others_can_know(name: str, public: bool) -> None:
    assert is_public(name) is public


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ({"GATEWAY_ALLOWED_HOSTS": NAME}, None, "there is no key, and each"),
        ({"GATEWAY_ALLOWED_HOSTS": f"host.docker.internal, {NAME}"}, None, NAME),
        ({"GATEWAY_ALLOWED_HOSTS": NAME, "GATEWAY_LOOPBACK_OPEN": "true"}, "use", "Unset one of the two"),
        ({"GATEWAY_ALLOWED_HOSTS": NAME, "GATEWAY_LOOPBACK_OPEN": "true"}, None, "Unset one of the two"),
        ({"GATEWAY_ALLOWED_HOSTS": NAME}, "use", None),
        ({"GATEWAY_ALLOWED_HOSTS": NAME, "GATEWAY_API_KEY": "s3cret"}, None, None),
        ({"GATEWAY_ALLOWED_HOSTS": "host.docker.internal"}, None, None),
        ({"GATEWAY_ALLOWED_HOSTS": "host.docker.internal", "GATEWAY_LOOPBACK_OPEN": "true"}, None, None),
    ],
)
def test_a_name_that_others_know_wants_a_key(
    more: dict[str, str], key: str | None, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    if key is not None:
        put(file, "laptop", Scope(key))
    monkeypatch.setenv("GATEWAY_KEYS_FILE", str(file))
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    if words is None:
        assert read_settings().allowed_hosts
        return
    with pytest.raises(SettingsError, match=words):
        read_settings()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def secret(folder: Path) -> str:
    return put(folder / "keys.json", "cursor", Scope.USE)


@pytest.fixture(scope="module")
async def client(folder: Path, secret: str) -> AsyncIterator[httpx2.AsyncClient]:
    settings = Settings(
        local_socket=folder / "o.sock", keys_file=folder / "keys.json", allowed_hosts=["Spark.Tail1234.ts.net"]
    )
    async with served_orchestrator(FakeOrchestrator(), folder / "o.sock"), gateway(settings) as client:
        yield client


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("host", "origin", "with_key", "status"),
    [
        (NAME, None, True, 200),
        (f"{NAME}:443", None, True, 200),
        (NAME.upper(), None, True, 200),
        (NAME, f"https://{NAME}", True, 200),
        (NAME, None, False, 401),
        ("localhost:8001", None, False, 401),  # a name that a client of the proxy can send as well
        ("localhost:8001", None, True, 200),
        ("evil.example", None, True, 403),
        (f"evil.{NAME}", None, True, 403),
        (f"{NAME}.evil.example", None, True, 403),
        (f"{NAME}@evil.example", None, True, 403),
        (NAME, "https://evil.example", True, 403),
        (NAME, "null", True, 403),
    ],
)
async def test_the_proxys_name_and_no_other(
    client: httpx2.AsyncClient, secret: str, host: str, origin: str | None, with_key: bool, status: int
) -> None:
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    headers |= {"Authorization": f"Bearer {secret}"} if with_key else {}
    answer = await client.get("/api/v1/echo", headers=headers)
    assert answer.status_code == status, answer.text

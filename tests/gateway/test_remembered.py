"""Which models there were: answered by the gateway while the orchestrator is away."""

import json
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from gateway.link import LinkState, LinkStatus
from gateway.remembered import Remembered, _is_due
from gateway.settings import Settings
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, muxed, served_orchestrator, settings_through, until
from tests.gateway.sshd import Sshd, free_port

pytestmark = pytest.mark.anyio

CARD = {"id": "org/model", "object": "model", "owned_by": "vllm", "max_model_len": 512}
MODELS = {"object": "list", "data": [CARD, {"id": "plain"}]}
SINCE = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(local_socket=folder / "o.sock", models_file=folder / "kept" / "models.json", hold_seconds=5)


def kept(settings: Settings) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return settings.models_path.exists()

    return there


async def check_memory(client: httpx2.AsyncClient, oldest: int) -> None:
    for path, expected in (
        ("/v1/models", MODELS),
        ("/v1/models/org/model", CARD),
        ("/v1/models/org%2Fmodel", CARD),
        ("/v1/models/plain", {"id": "plain"}),
    ):
        answer = await client.get(path, extensions={"target": path.encode()})
        assert (answer.status_code, answer.json()) == (200, expected), path
        assert 0 <= int(answer.headers["x-sluice-stale"]) <= oldest, path
        head = await client.head(path, extensions={"target": path.encode()})
        assert (head.status_code, head.content, "x-sluice-stale" in head.headers) == (200, b"", True)
    unknown = await client.get("/v1/models/other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "service_unavailable")
    assert int(unknown.headers["retry-after"]) > 0


async def test_they_are_known_without_a_client_s_asking_and_from_run_to_run(
    settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    orchestrator.models = MODELS
    async with gateway(settings) as client:
        async with served_orchestrator(orchestrator, folder / "o.sock", muxed()):
            # The link is asked for its models when it comes up; here it is up before the orchestrator listens.
            assert (await client.get("/v1/models")).json() == MODELS
        await check_memory(client, 20)
    async with gateway(settings) as client:
        await check_memory(client, 20)
    assert stat.S_IMODE(settings.models_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.models_path.parent.stat().st_mode) == 0o700
    content = json.loads(settings.models_path.read_text())
    settings.models_path.write_text(json.dumps(content | {"at": content["at"] - 5000}))
    async with gateway(settings) as client:
        answer = await client.get("/v1/models/plain")
        assert 5000 <= int(answer.headers["x-sluice-stale"]) < 5100


async def test_they_are_asked_for_when_the_link_comes_up(
    settings: Settings, orchestrator: FakeOrchestrator, folder: Path
) -> None:
    orchestrator.models = MODELS
    async with served_orchestrator(orchestrator, folder / "o.sock", muxed()):
        async with gateway(settings):
            await until(kept(settings))
            assert orchestrator.listed == 1
        orchestrator.models = {"object": "list", "data": []}
        async with gateway(settings) as client:
            fresh = await client.get("/v1/models")
            assert (fresh.json(), "x-sluice-stale" in fresh.headers) == (orchestrator.models, False)
            missing = await client.get("/v1/models/org/model")
            assert missing.status_code == 404, "the orchestrator's word counts more than what is remembered"
            assert orchestrator.seen == [("GET", "/v1/models/org/model")]
    async with gateway(settings) as client:
        assert (await client.get("/v1/models")).json() == {"object": "list", "data": []}


async def test_while_ssh_does_not_come_up_nobody_waits_for_it(sshd: Sshd, folder: Path) -> None:
    settings = settings_through(sshd, folder)
    text = (folder / "ssh_config").read_text()
    (folder / "ssh_config").write_text(text.replace("Port ", f"Port {free_port()} #"))
    Remembered(settings.models_path, lambda: SINCE.timestamp()).take(json.dumps(MODELS).encode())
    async with gateway(settings) as client:
        answer = await client.get("/v1/models/org/model", timeout=8)  # hold_seconds are 30
        assert (answer.json(), int(answer.headers["x-sluice-stale"]) > 0) == (CARD, True)


@pytest.mark.parametrize(
    ("state", "asked", "seconds", "due"),
    [
        (LinkState.UP, None, 0, True),
        (LinkState.UP, SINCE, 29, False),
        (LinkState.UP, SINCE, 30, True),
        (LinkState.UP, SINCE - timedelta(seconds=1), 0, True),
        (LinkState.DOWN, None, 99, False),
        (LinkState.CONNECTING, SINCE, 99, False),
    ],
)
def test_when_they_are_asked_for(state: LinkState, asked: datetime | None, seconds: float, due: bool) -> None:
    status = LinkStatus(state, "there", SINCE)
    before = None if asked is None else (replace(status, since=asked), 1000.0)
    assert _is_due(status, before, 1000.0 + seconds) is due


GOOD = {"version": 1, "at": SINCE.timestamp(), "models": MODELS}


WRONG: list[dict[str, object]] = [
    {"version": 2}, {"at": None}, {"at": "x"}, {"models": []}, {"models": {"data": {}}}, {"models": None},
]  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 99999, *(json.dumps(GOOD | wrong) for wrong in WRONG)])
def test_a_file_that_is_none_is_passed_over_and_replaced(tmp_path: Path, text: str) -> None:
    file = tmp_path / "models.json"
    file.write_text(text)
    remembered = Remembered(file, lambda: SINCE.timestamp())
    assert remembered.find() is None
    remembered.take(json.dumps(MODELS).encode())
    again = Remembered(file, lambda: SINCE.timestamp() + 7)
    assert (again.find(), again.find("org/model"), again.find("x"), again.age) == (MODELS, CARD, None, 7)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": 7}', b"\xff", b"[" * 99999])
def test_an_answer_that_is_no_list_is_not_remembered(tmp_path: Path, body: bytes) -> None:
    remembered = Remembered(tmp_path / "models.json", lambda: SINCE.timestamp())
    remembered.take(json.dumps(MODELS).encode())
    remembered.take(body)
    assert remembered.find() == MODELS


def test_a_link_or_an_unwritable_place_does_no_harm(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text(json.dumps(GOOD))
    (tmp_path / "models.json").symlink_to(victim)
    remembered = Remembered(tmp_path / "models.json", lambda: SINCE.timestamp())
    assert remembered.find() is None
    remembered.take(b'{"data": []}')
    assert json.loads(victim.read_text()) == GOOD
    nowhere = Remembered(victim / "models.json", lambda: SINCE.timestamp())
    nowhere.take(json.dumps(MODELS).encode())
    assert nowhere.find() == MODELS


def test_each_orchestrator_has_a_memory_of_its_own(tmp_path: Path) -> None:
    ways = [
        Settings(cluster="a"), Settings(cluster="b"), Settings(cluster="a", remote_socket="x"),
        Settings(local_socket=tmp_path / "a"), Settings(local_socket=tmp_path / "b"),
    ]  # fmt: skip
    assert len({settings.models_path for settings in ways}) == len(ways)

"""The API for the rented GPU: every route, field, status word, error and audit word of its document.

First the application alone with a fake vast.ai, then both processes as a user sees them.
"""

import contextlib
import json
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from gateway.child import Child, end_all_in
from gateway.settings import environment_of_a_child
from orchestrator.app import create_app
from orchestrator.schedulers.local import Local
from orchestrator.settings import Settings, Vast
from tests.clients.place import wait
from tests.fake_vast import ID, KEY, FakeVast, Mood, Step, fake_vast
from tests.gateway.serving import short_folder
from tests.orchestrating import Clock
from tests.renting import CONTROL, ENGINE_KEY, MODEL, engine, rented_in_the_environment, settings_for

JSON = dict[str, Any]
ALLOWED = {"X-API-Key": CONTROL}
ROUTES = [
    ("GET", "/status"), ("POST", "/power/on"), ("POST", "/power/off"), ("POST", "/activity"), ("GET", "/costs"),
    ("GET", "/audit"),
]  # fmt: skip
FIELDS = {
    "/status": {
        "instance_id", "status", "gpu_name", "dph_total", "endpoint_base_url", "last_activity",
        "auto_shutdown_in_minutes", "total_runtime_hours", "total_cost_usd", "message",
    },
    "/power/on": {"status", "instance_id", "endpoint_base_url", "health_url", "message"},
    "/power/off": {"status", "session_runtime_minutes", "session_cost_usd", "message"},
    "/activity": {"status", "last_activity"},
    "/costs": {"total_runtime_hours", "total_cost_usd", "sessions_count", "avg_session_minutes"},
    "/audit": {"ts", "event", "actor", "meta"},
}  # fmt: skip


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of the engine on the rented machine."""
    with engine() as port:
        yield port


class Api:
    """An orchestrator that rents `vast`, as a holder of the control key sees it."""

    def __init__(self, http: TestClient, vast: FakeVast, clock: Clock) -> None:
        self.http, self.vast, self.clock = http, vast, clock

    def ask(self, method: str, path: str, body: JSON | None = None, **headers: str) -> httpx2.Response:
        return self.http.request(method, f"/infra/vast{path}", json=body, headers=ALLOWED | headers)

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: JSON | None = None) -> Any:
        answer = self.ask("POST", path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def turn(self) -> None:
        portal, keeper = self.http.portal, self.http.app.state.orchestrator.keeper  # type: ignore[attr-defined]
        assert portal is not None
        portal.call(keeper.turn)

    def audit(self) -> list[str]:
        return [line["event"] for line in self.get("/audit")][::-1]


@contextlib.contextmanager
def application(home: Path, vast: Vast, clock: Clock | None = None) -> Iterator[TestClient]:
    settings = Settings(home=home, scheduler="local", vast=vast, probe_seconds=0.05)
    home.mkdir(mode=0o700, exist_ok=True)
    app = create_app(settings, Local(home), clock=clock or Clock())
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as http:
        yield http


@pytest.fixture
def api(port: int, tmp_path: Path) -> Iterator[Api]:
    clock = Clock()
    with fake_vast(ports={8001: port}) as vast:
        settings = settings_for(vast, wait_timeout_s=5, check_seconds=600)
        with application(tmp_path / "o", settings, clock) as http:
            keeper = http.app.state.orchestrator.keeper  # type: ignore[attr-defined]
            keeper.sight.api.pause, keeper.sight.api.seconds = 0.01, 1.0
            yield Api(http, vast, clock)


def test_every_route_has_the_fields_of_the_document(api: Api) -> None:
    for method, path in [ROUTES[1], ROUTES[0], ROUTES[3], ROUTES[4], ROUTES[5], ROUTES[2]]:
        answer = api.ask(method, path, {} if method == "POST" and path != "/activity" else None)
        assert answer.status_code == 200, (path, answer.text)
        content = answer.json()
        assert set(content[0] if isinstance(content, list) else content) == FIELDS[path]


def test_a_day_of_a_rented_machine(api: Api) -> None:
    api.vast.price = 0.48
    off = api.get("/status")
    assert (off["status"], off["endpoint_base_url"], off["auto_shutdown_in_minutes"]) == ("stopped", None, None)
    base = f"http://127.0.0.1:{api.vast.ports[8001]}"
    asked = {"wait_for_health": True, "health_path": "/health", "health_port": 8001}
    assert api.post("/power/on", asked) == {
        "status": "running", "instance_id": ID, "endpoint_base_url": base, "health_url": f"{base}/health",
        "message": "Instance running and healthy",
    }  # fmt: skip
    api.clock.advance(5 * 60)
    on = api.get("/status")
    assert on == {
        "instance_id": ID, "status": "running", "gpu_name": "RTX 3090", "dph_total": 0.48, "endpoint_base_url": base,
        "last_activity": "2026-11-21T12:00:00Z", "auto_shutdown_in_minutes": 25, "total_runtime_hours": 0.0833,
        "total_cost_usd": 0.04, "message": None,
    }  # fmt: skip
    assert api.post("/activity") == {"status": "recorded", "last_activity": "2026-11-21T12:05:00Z"}
    assert api.get("/status")["auto_shutdown_in_minutes"] == 30
    api.clock.advance(40.5 * 60)
    assert api.post("/power/off", {}) == {
        "status": "stopped", "session_runtime_minutes": 45.5, "session_cost_usd": 0.364,
        "message": "Instance stopped. Session: 45.5 min, $0.364",
    }  # fmt: skip
    assert api.get("/costs") == {
        "total_runtime_hours": 0.7583, "total_cost_usd": 0.364, "sessions_count": 1, "avg_session_minutes": 45.5,
    }  # fmt: skip
    lines = api.get("/audit")
    assert [(line["event"], line["actor"]) for line in lines] == [
        ("power_off_complete", "system"), ("power_off_requested", "user"), ("power_on_complete", "system"),
        ("power_on_requested", "user"),
    ]  # fmt: skip
    assert lines[2] == {
        "ts": "2026-11-21T12:00:00Z", "event": "power_on_complete", "actor": "system",
        "meta": {"instance_id": ID, "endpoint": base},
    }  # fmt: skip
    assert [line["event"] for line in api.http.get("/infra/vast/audit?limit=1", headers=ALLOWED).json()] == [
        "power_off_complete"
    ]


def test_without_a_body_power_on_waits_for_the_configured_health_check(api: Api) -> None:
    assert api.post("/power/on")["message"] == "Instance running and healthy"
    assert api.post("/power/off")["status"] == "stopped"


def test_idle_it_is_stopped(api: Api) -> None:
    api.post("/power/on")
    api.clock.advance(30.5 * 60)
    api.turn()
    assert api.audit() == ["power_on_requested", "power_on_complete", "auto_shutdown", "auto_shutdown_complete"]
    assert api.get("/audit")[1]["meta"] == {"inactive_minutes": 30.5}
    assert api.get("/status")["status"] == "stopped"


STATES: list[tuple[str, Step, str, str]] = [
    ("running", ("running", "running"), "running", ""),
    ("stopped", ("exited", "stopped"), "stopped", ""),
    ("exited", ("exited", "running"), "running", "ended by itself"),
    ("exited", ("offline", "running"), "running", "(offline)"),
    ("exited", ("unknown", "running"), "running", "(unknown)"),
    ("loading", ("loading", "running"), "running", ""),
    ("scheduling", ("exited", "stopped"), "running", "waits for its GPU"),
    ("creating", (None, "running"), "running", ""),
]


@pytest.mark.parametrize(("word", "step", "intended", "message"), STATES)
def test_every_status_word(api: Api, word: str, step: Step, intended: str, message: str) -> None:
    api.vast.steps, api.vast.intended = [step], intended
    api.clock.advance(60)
    status = api.get("/status")
    assert status["status"] == word
    assert message in (status["message"] or "")


def test_an_instance_that_is_not_there(api: Api) -> None:
    api.vast.becomes("forgets")
    api.clock.advance(60)
    assert api.get("/status")["status"] == "not_found"
    refused = api.ask("POST", "/power/on")
    assert (refused.status_code, "VAST_INSTANCE_ID" in refused.json()["detail"]) == (502, True)


@pytest.mark.parametrize(
    ("mood", "status", "words"),
    [
        ("busy", 502, "429: too_many_requests"), ("broken", 502, "500: internal: our database is away"),
        ("hangs", 504, "did not answer"), ("login page", 502, "vast.ai"), ("refuses", 502, "insufficient_credit"),
    ],
)  # fmt: skip
def test_errors_of_vast_ai(api: Api, mood: Mood, status: int, words: str) -> None:
    api.clock.advance(60)
    api.vast.becomes(mood)
    for path in ("/power/on", "/power/off"):
        answer = api.ask("POST", path, {})
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert KEY not in answer.text
    if mood == "busy":
        assert int(answer.headers["retry-after"]) >= 1


def test_a_health_check_that_times_out_is_a_504(api: Api) -> None:
    api.vast.starting = (("running", "running"),)
    answer = api.ask("POST", "/power/on", {"health_path": "/nothing"})
    assert (answer.status_code, "Health check timeout" in answer.json()["detail"]) == (504, True)
    assert api.audit() == ["power_on_requested", "power_on_health_timeout"]


def test_twenty_at_once_start_it_once(api: Api) -> None:
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: api.ask("POST", "/power/on", {}), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert api.vast.wishes == ["running"]
    assert api.get("/costs")["sessions_count"] == 1


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("given", [None, "", "wrong", CONTROL.upper(), CONTROL + "x", "\xff"])
def test_a_wrong_key_is_a_401(api: Api, method: str, path: str, given: str | None) -> None:
    headers = {} if given is None else {"X-API-Key": given.encode("latin-1")}
    answer = api.http.request(method, f"/infra/vast{path}", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert CONTROL not in answer.text
    assert api.vast.wishes == []


@pytest.mark.parametrize(
    "body",
    [
        {"health_port": 0}, {"health_port": 65536}, {"health_port": "8001"}, {"health_path": "health"},
        {"health_path": "/a b"}, {"health_path": "/a#b"}, {"wait_for_health": "yes"}, {"more": 1},
    ],
)  # fmt: skip
def test_what_is_no_health_check_is_a_422(api: Api, body: JSON) -> None:
    assert api.ask("POST", "/power/on", body).status_code == 422
    assert api.vast.wishes == []


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ["VAST_API_KEY", "VAST_INSTANCE_ID", "CONTROL_API_KEY"]),
        ({"control_api_key": CONTROL}, ["VAST_API_KEY", "VAST_INSTANCE_ID"]),
        ({"control_api_key": CONTROL, "api_key": KEY}, ["VAST_INSTANCE_ID"]),
        ({"control_api_key": CONTROL, "instance_id": ID}, ["VAST_API_KEY"]),
        ({"api_key": KEY, "instance_id": ID, "api_url": "http://127.0.0.1:9"}, ["CONTROL_API_KEY"]),
    ],
)
def test_what_is_not_configured_is_named(given: JSON, missing: list[str], tmp_path: Path) -> None:
    with application(tmp_path / "o", Vast(**given)) as http:
        status = http.get("/infra/vast/status", headers=ALLOWED)
        assert (status.status_code, status.json()["status"]) == (200, "unconfigured")
        assert set(status.json()) == FIELDS["/status"]
        for method, path in ROUTES[1:]:
            refused = http.request(method, f"/infra/vast{path}", headers=ALLOWED)
            assert refused.status_code == 500
            assert f"{' and '.join(missing)} not configured" in refused.json()["detail"]
        if "control_api_key" in given:
            assert http.get("/infra/vast/status").status_code == 401


# Both processes


@contextlib.contextmanager
def both(home: Path, vast: FakeVast, **more: str) -> Iterator[httpx2.Client]:
    """A client of a gateway with a key of its own, before an orchestrator that rents a machine; without any key."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = environment_of_a_child(
        ORCHESTRATOR_HOME=str(home / "o"),
        ORCHESTRATOR_SCHEDULER="local",
        ORCHESTRATOR_SOCKET=str(home / "o.sock"),
        ORCHESTRATOR_PROBE_SECONDS="0.1",
        GATEWAY_PORT=str(port),
        GATEWAY_LOCAL_SOCKET=str(home / "o.sock"),
        GATEWAY_API_KEY="gateway-admin-0123456789",
        XDG_CONFIG_HOME=str(home / "config"),
        VAST_ENGINE_KEY=ENGINE_KEY,
        VAST_CHECK_SECONDS="0.3",
        **rented_in_the_environment(vast, CONTROL),
        **more,
    )
    with contextlib.ExitStack() as opened:
        opened.callback(end_all_in, home)
        for half in ("orchestrator", "gateway"):
            opened.enter_context(Child(half, environment, home / f"{half}.log"))
        client = opened.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60))
        wait(lambda: _ready(client))
        yield client


def _ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


ADMIN = {"Authorization": "Bearer gateway-admin-0123456789"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}]}


@pytest.mark.system
def test_on_healthy_asked_idle_off(port: int, tmp_path: Path) -> None:
    """With minutes of three seconds' length, so that idle is soon."""
    audit = tmp_path / "audit.log"
    with (
        short_folder() as home,
        fake_vast(ports={8001: port}) as vast,
        both(home, vast, VAST_AUTO_SHUTDOWN_MINUTES="0.05", VAST_AUDIT_PATH=str(audit)) as http,
    ):
        assert http.post("/v1/chat/completions", json=CHAT, headers=ADMIN).status_code == 404
        started = http.post("/infra/vast/power/on", json={}, headers=ALLOWED)
        assert started.json()["message"] == "Instance running and healthy", started.text
        assert [card["id"] for card in http.get("/v1/models", headers=ADMIN).json()["data"]] == [MODEL]
        # For longer than it may be idle: a request that is under way keeps it.
        slow = CHAT | {"messages": [{"role": "user", "content": "sleep 4"}], "stream": True}
        answer = http.post("/v1/chat/completions", json=slow, headers=ADMIN)
        assert answer.status_code == 200 and answer.text.rstrip().endswith("[DONE]"), answer.text
        assert vast.wishes == ["running"]
        assert http.post("/v1/chat/completions", json=CHAT, headers=ADMIN).json()["model"] == MODEL
        wait(lambda: http.get("/infra/vast/status", headers=ALLOWED).json()["status"] == "stopped", 30)
        assert vast.wishes == ["running", "stopped"]
        wait(lambda: http.get("/v1/models", headers=ADMIN).json()["data"] == [])
        lines = [line["event"] for line in http.get("/infra/vast/audit", headers=ALLOWED).json()][::-1]
        assert lines == ["power_on_requested", "power_on_complete", "auto_shutdown", "auto_shutdown_complete"]
        costs = http.get("/infra/vast/costs", headers=ALLOWED).json()
        assert costs["sessions_count"] == 1 and costs["total_cost_usd"] > 0
        secrets = (KEY, CONTROL, ENGINE_KEY)
        written = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
        assert [secret for secret in secrets if secret.encode() in written] == []
    assert [json.loads(line)["event"] for line in audit.read_text().splitlines()] == lines
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


@pytest.mark.system
def test_who_may_through_a_gateway_that_has_keys(port: int, tmp_path: Path) -> None:
    path = "/infra/vast/status"
    with short_folder() as home, fake_vast(ports={8001: port}) as vast, both(home, vast) as http:
        for headers, status in [
            (ALLOWED, 200),
            (ADMIN, 200),
            (ADMIN | {"X-API-Key": "wrong"}, 200),
            ({}, 401),
            ({"X-API-Key": "wrong"}, 401),
            ({"Authorization": f"Bearer {CONTROL}"}, 401),
            ({"X-Sluice-Scope": "admin"}, 401),
            ({"X-Sluice-Scope": "admin", "X-API-Key": "wrong"}, 401),
            ({"X-Sluice-Control": CONTROL}, 401),
            ({"X-Sluice-Control": CONTROL, "X-API-Key": "wrong"}, 401),
        ]:
            answer = http.get(path, headers=headers)
            assert answer.status_code == status, (headers, answer.text)
        # The control key opens nothing else.
        for other in ("/api/v1/services", "/v1/models", "/infra/vastly", "/api/v1/keys"):
            assert http.get(other, headers=ALLOWED).status_code in (401, 404), other
        assert http.post("/infra/vast/activity", headers=ADMIN).status_code == 200
        http.post("/infra/vast/power/on", json={"wait_for_health": False}, headers=ADMIN)
        assert http.get("/infra/vast/audit", headers=ALLOWED).json()[-1]["actor"] == "GATEWAY_API_KEY"

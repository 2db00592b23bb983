"""Activity, costs, budgets and the audit by HTTP: real app, real scheduler `local` or a fake Slurm."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.schedulers.local import Local
from orchestrator.settings import Budget, Prices
from orchestrator.watcher import Watcher
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import until
from tests.test_app import JSON, Client, serving

pytestmark = pytest.mark.system

PRICES = Prices(currency="EUR", gpu_hour=2, core_hour=0.5)
START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
JOBS = (  # GPUs, cores, seconds after START, seconds of its run
    (2, 4, 0, 3661),
    (None, 4, 1800, 1800),
)
COST = 3661 / 3600 * (2 * 2 + 4 * 0.5)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> FakeSlurm:
    return FakeSlurm(tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="module")
def client(slurm: FakeSlurm) -> Iterator[Client]:
    """Two services whose jobs ran at known times, started by two people; it looks when it is told to."""
    with serving(slurm.home / "o", slurm.scheduler(), poll_seconds=3600, prices=PRICES) as client:
        for number, (gpu, cores, after, seconds) in enumerate(JOBS):
            body = {"recipe_name": "vllm-single-node", "config": {"gpu": gpu, "cpu": cores}}
            headers = {"X-Sluice-Actor": ("ana", "bo")[number]}
            assert client.http.post("/api/services/start", json=body, headers=headers).status_code == 200
            begin = int(START.timestamp()) + after
            times = {"starttime": str(begin), "endtime": str(begin + seconds)}
            slurm.change(str(100 + number), state="COMPLETED", nodelist="node1", **times)
        client.call(look, client)
        yield client


async def look(client: Client) -> None:
    watcher: Watcher = client.app.state.orchestrator.watcher
    await watcher.look()


@pytest.mark.parametrize("prefix", ["/api", "/api/v1"])
def test_the_costs_of_a_known_schedule(client: Client, prefix: str) -> None:
    costs = client.get(f"{prefix}/services/100/costs")
    assert costs == {
        "service_id": "100",
        "total_runtime_hours": pytest.approx(3661 / 3600, abs=1e-6),
        "gpu_hours": pytest.approx(2 * 3661 / 3600, abs=1e-6),
        "cpu_hours": pytest.approx(4 * 3661 / 3600, abs=1e-6),
        "total_cost": pytest.approx(COST, abs=1e-6),
        "currency": "EUR",
        "sessions_count": 1,
        "avg_session_minutes": pytest.approx(3661 / 60, abs=1e-4),
        "jobs": [
            {
                "job_id": "100",
                "started_at": "2026-11-20T08:00:00Z",
                "ended_at": "2026-11-20T09:01:01Z",
                "runtime_seconds": 3661,
                "gpus": 2,
                "cores": 4,
                "gpu_hours": pytest.approx(2 * 3661 / 3600, abs=1e-6),
                "cpu_hours": pytest.approx(4 * 3661 / 3600, abs=1e-6),
                "cost": pytest.approx(COST, abs=1e-6),
            }
        ],
    }


@pytest.mark.parametrize(
    ("query", "seconds", "groups"),
    [
        ({}, 5461, {"100": 3661, "101": 1800}),
        ({"group_by": "user"}, 5461, {"ana": 3661, "bo": 1800}),
        ({"group_by": "key"}, 5461, {"ana": 3661, "bo": 1800}),
        ({"group_by": "model"}, 5461, {"Qwen/Qwen2.5-0.5B-Instruct": 5461}),
        ({"group_by": "recipe"}, 5461, {"inference/vllm-single-node": 5461}),
        ({"since": "2026-11-20T09:00:00Z"}, 61, {"100": 61}),
        ({"since": "2026-11-20T09:00:00"}, 61, {"100": 61}),
        ({"since": "2026-11-20T10:00:00+01:00"}, 61, {"100": 61}),
        ({"until": "2026-11-20T08:30:10Z"}, 1820, {"100": 1810, "101": 10}),
        ({"since": "2026-11-20T08:30:00Z", "until": "2026-11-20T08:31:00Z"}, 120, {"100": 60, "101": 60}),
        ({"since": "2026-11-20T09:01:01Z"}, 0, {}),
    ],
)
def test_the_costs_of_all(client: Client, query: JSON, seconds: int, groups: dict[str, int]) -> None:
    costs = client.get("/api/costs", **query)
    assert costs["total_runtime_hours"] == pytest.approx(seconds / 3600, abs=1e-6)
    assert {one["key"]: round(one["total_runtime_hours"] * 3600) for one in costs["groups"]} == groups
    assert (costs["currency"], costs["group_by"]) == ("EUR", query.get("group_by", "service"))
    assert costs["total_cost"] == pytest.approx(sum(one["total_cost"] for one in costs["groups"]), abs=1e-5)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"since": "2026-11-20T09:00:00Z", "until": "2026-11-20T09:00:00Z"}, "must be before until"),
        ({"since": "yesterday"}, "write it like 2026-11-01T00:00:00Z"),
        ({"since": "1795000000"}, "write it like 2026-11-01T00:00:00Z"),
        ({"since": "2026-11-31T00:00:00Z"}, "since"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "within the years"),
        ({"group_by": "colour"}, "group_by"),
        ({"groupby": "user"}, "Do you mean 'group_by'"),
    ],
)
def test_costs_of_what_cannot_be_meant(client: Client, query: JSON, why: str) -> None:
    answer = client.http.get("/api/costs", params=query)
    assert answer.status_code == 422 and why in answer.text


def test_the_audit_is_newest_first_and_has_its_filters(client: Client) -> None:
    every = client.get("/api/audit")
    assert [entry["ts"] for entry in every] == sorted((entry["ts"] for entry in every), reverse=True)
    assert every[-1].keys() == {"ts", "event", "actor", "subject", "service_id", "meta"}
    created = client.get("/api/v1/audit", event="service.created")
    assert [(e["actor"], e["service_id"]) for e in created] == [("bo", "101"), ("ana", "100")]
    assert created[1]["meta"]["config"] == {"gpu": 2, "cpu": 4}
    of_one = client.get("/api/audit", subject="100")
    assert of_one and {entry["service_id"] for entry in of_one} == {"100"}
    assert (
        client.get("/api/audit", subject=of_one[0]["subject"]) == of_one == client.get("/api/audit", subject="sg-100")
    )
    assert {entry["actor"] for entry in client.get("/api/audit", actor="ana")} == {"ana"}
    assert client.get("/api/audit", actor="nobody") == client.get("/api/audit", subject="999") == []
    middle = every[2]["ts"]
    since, until = client.get("/api/audit", since=middle), client.get("/api/audit", until=middle)
    assert [*since, *until] == every and all(entry["ts"] >= middle for entry in since) and until


def test_the_audit_has_pages(client: Client) -> None:
    every = client.get("/api/audit")
    answer = client.http.get("/api/audit", params={"limit": 2, "offset": 1})
    assert answer.json() == every[1:3]
    assert answer.headers["X-Total-Count"] == str(len(every)) and "offset=3" in answer.headers["Link"]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"offset": -1}):
        assert client.http.get("/api/audit", params=wrong).status_code == 422


def test_a_secret_is_not_in_the_audit(client: Client) -> None:
    client.http.post(
        "/api/services/start",
        json={"recipe_name": "vllm-single-node", "config": {"environment": {"MY_TOKEN": "planted"}}},
    )
    told = client.http.get("/api/audit", params={"event": "service.created", "limit": 1}).text
    assert "MY_TOKEN" in told and "planted" not in told


def test_activity_of_what_is_not_there_or_has_ended(client: Client) -> None:
    assert client.post("/api/services/999/activity", None)[0] == 404
    status, body = client.post("/api/services/100/activity", None)
    assert status == 409 and "has ended (completed)" in body["detail"]


def test_a_service_that_would_overspend_is_a_409(tmp_path: Path) -> None:
    budget = Budget(name="none", period="total", gpu_hours=0)
    with serving(tmp_path / "o", FakeSlurm(tmp_path).scheduler(), poll_seconds=3600, budgets=[budget]) as client:
        wanted = {"recipe_name": "vllm-single-node", "config": {"gpu": 1}}
        status, body = client.post("/api/services/start", wanted)
        assert status == 409
        assert "the budget 'none' (all) is spent: 0.00 of 0.00 GPU hours in all; it does not reset" in body["detail"]
        assert client.post("/api/services/start", wanted | {"config": {"gpu": None}})[0] == 200


def test_an_idle_service_ends_but_not_within_a_stream(tmp_path: Path) -> None:
    """In real time: a timeout of six seconds, and a stream that is longer."""
    home = tmp_path / "home"
    with serving(home, Local(home), poll_seconds=0.1) as client:
        service_id = client.running({"idle_timeout": "0.1"})
        status, recorded = client.post(f"/api/v1/services/{service_id}/activity", None)
        assert (status, recorded["status"]) == (200, "recorded")
        shown = client.get(f"/api/services/{service_id}")
        assert (shown["idle_timeout"], shown["last_activity"]) == (0.1, recorded["last_activity"])
        end = datetime.fromisoformat(recorded["last_activity"]) + timedelta(seconds=6)
        assert datetime.fromisoformat(shown["idle_shutdown_at"]) == end
        asked = {"prompt": "delay 1 one two three four five six seven eight", "stream": True, "max_tokens": 9}
        answer = client.http.post(f"/api/services/vllm/{service_id}/prompt", json=asked)
        answered_at = datetime.now(UTC)
        assert answer.status_code == 200 and "data: [DONE]" in answer.text
        assert client.status(service_id) == "running"
        asyncio.run(until(lambda: client.status(service_id) == "cancelled"))
        audit = partial(client.get, "/api/audit", subject=service_id, actor="idle")
        asyncio.run(until(lambda: len(audit()) == 3))  # the scheduler is told first
        events = audit()
        assert [e["event"] for e in events] == ["service.cancelled", "service.idle_shutdown", "service.idle_warning"]
        idle = (datetime.fromisoformat(events[1]["ts"]) - answered_at).total_seconds()
        assert 5.5 < idle < 9, idle
        assert answered_at - datetime.fromisoformat(recorded["last_activity"]) > timedelta(seconds=7)
        assert json.loads(json.dumps(events[1]["meta"]))["idle_timeout"] == 0.1


def test_what_clients_poll_is_no_use(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home, Local(home), poll_seconds=0.1) as client:
        service_id = client.running({"idle_timeout": 60})
        for path in ("", "/status", "/metrics", "/logs", "/costs"):
            assert client.http.get(f"/api/services/{service_id}{path}").status_code == 200
        client.get(f"/api/services/vllm/{service_id}/models")
        assert client.http.get(f"/api/services/vllm/{service_id}/metrics").status_code == 200
        shown: dict[str, Any] = client.get(f"/api/services/{service_id}")
        assert shown["last_activity"] is None and shown["idle_shutdown_at"] is not None
        assert client.prompt(service_id, "say hello")[0] == 200
        assert client.get(f"/api/services/{service_id}")["last_activity"] is not None

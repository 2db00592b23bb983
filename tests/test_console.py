"""What the commands say, as functions: configs from options, words of a progress, cells, exit statuses."""

from typing import Any

import pytest

from gateway.client import ApiError, BrokenAnswer, NotReachable
from gateway.console.desk import status_of
from gateway.console.fetching import told as told_of_a_pull
from gateway.console.progress import Story, about, amount, length, told
from gateway.console.tables import Column, pairs, plain, said, tabbed
from gateway.console.wanted import Options, UsageError, config_of
from gateway.settings import SettingsError, address


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (Options(), {}),
        (Options(gpus=2, nodes=1, minutes=90), {"gpu": 2, "nodes": 1, "time_limit": 90}),
        (Options(gpus=0), {"gpu": None}),
        (Options(name="mine"), {"aliases": ["mine"]}),
        (
            Options(settings=["max_model_len=8192", "keep_alive=true", "model=gpt2", "x=a=b"]),
            {"max_model_len": 8192, "keep_alive": True, "model": "gpt2", "x": "a=b"},
        ),
        (
            Options(settings=["VLLM_PORT=8002", "environment.A=1", "resources.memory=8G", "resources.cpu=2"]),
            {"environment": {"VLLM_PORT": "8002", "A": "1"}, "resources": {"memory": "8G", "cpu": 2}},
        ),
        (Options(gpus=1, settings=["gpu=4"]), {"gpu": 1}),
    ],
)
def test_config(options: Options, config: Any) -> None:
    assert config_of(options) == config


@pytest.mark.parametrize("setting", ["gpu", "=1", "resources.=1"])
def test_a_setting_that_is_none(setting: str) -> None:
    with pytest.raises(UsageError, match="write KEY=VALUE"):
        config_of(Options(settings=[setting]))


def test_a_setting_within_a_value() -> None:
    with pytest.raises(UsageError, match="resources has been set"):
        config_of(Options(settings=["resources=1", "resources.cpu=2"]))


def service(status: str, state: str = "PENDING", **more: Any) -> Any:
    about: dict[str, Any] = {"reason": "", "nodes": [], "endpoint": None, "stale_since": None, "estimated_start": None}
    return {"status": status, "job": {"state": state}} | about | more


QUEUED = service("pending", reason="Priority", estimated_start="2026-11-21T12:10:00Z")
STARTING = service("configuring", "CONFIGURING", nodes=["node1"])
LOADING = service("configuring", "RUNNING", nodes=["node1"], reason="it loads")
HALF = LOADING | {
    "progress": {"phase": "loading", "percent": 50.0, "text": "Loading safetensors checkpoint shards 2/4"}
}
COMPILING = LOADING | {
    "progress": {"phase": "compiling", "percent": None, "text": "Dynamo bytecode transform time: 6.31 s"}
}
READY = service("running", "RUNNING", nodes=["node1"], endpoint="http://node1:8001")


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (QUEUED, "queued: Priority; expected to start at 2026-11-21 12:10:00 UTC"),
        (service("pending"), "queued"),
        (
            service("pending", stale_since="2026-11-21T12:10:00Z"),
            "queued (the scheduler has not answered since 2026-11-21 12:10:00 UTC)",
        ),
        (service("suspended", reason="suspended by an operator"), "suspended: suspended by an operator"),
        (service("pending", reason="Priority", queue_position=3), "queued: Priority; position 3 in the queue"),
        (STARTING, "allocated on node1"),
        (LOADING, "loading on node1: it loads"),
        (HALF, "loading on node1: Loading safetensors checkpoint shards 2/4, 50 %"),
        (COMPILING, "compiling on node1: Dynamo bytecode transform time: 6.31 s"),
        (READY | {"progress": None}, "ready at http://node1:8001"),
        (READY, "ready at http://node1:8001"),
        (service("failed", "FAILED", reason="exit code 9"), "failed: exit code 9"),
    ],
)
def test_progress(look: Any, words: str) -> None:
    assert told(look) == words


def test_a_story_has_the_length_of_each_phase() -> None:
    story = Story()
    looks = [(QUEUED, 0), (QUEUED, 30), (LOADING, 61), (QUEUED, 65), (LOADING, 70), (READY, 100)]
    passed = [story.look(look, at) for look, at in looks]
    assert passed == [None, None, "queued: 1 min 1 s", "loading: 4 s", "queued: 5 s", "loading: 30 s"]
    assert story.told() == " (queued 1 min 6 s, loading 34 s)"
    assert Story().told() == ""
    assert about(LOADING) == "loading: it loads" and about(HALF) == about(LOADING)
    assert [amount(size) for size in (15_231_271_888, 4_000_000, 999)] == ["15.2 GB", "4.0 MB", "1.0 kB"]
    assert [length(seconds) for seconds in (0.4, 59.4, 3599, 7300)] == ["0 s", "59 s", "59 min 59 s", "2 h 1 min"]


PULL: Any = {
    "status": "running", "bytes_done": 412_000_000, "bytes_total": 1_000_000_000, "percent": 41.2,
    "bytes_per_second": 82e6, "eta_seconds": 7.2, "text": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "412.0 MB of 1.0 GB (41 %), 82.0 MB/s, 7 s left"),
        ({"bytes_per_second": 0.0, "eta_seconds": None}, "412.0 MB of 1.0 GB (41 %)"),
        ({"bytes_total": None, "eta_seconds": None, "text": "Creating SIF"}, "412.0 MB, 82.0 MB/s: Creating SIF"),
        ({"status": "queued"}, "queued behind other downloads"),
        ({"status": "done", "bytes_done": 10**9, "percent": 100.0}, "1.0 GB of 1.0 GB (100 %)"),
    ],
)
def test_a_download(changes: Any, words: str) -> None:
    assert told_of_a_pull(PULL | changes) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (0, "0"),
        (True, "yes"),
        (0.5, "0.5"),
        (2.0, "2"),
        ("2026-11-21T12:10:00.123456Z", "2026-11-21 12:10:00"),
        (["a", 1], "a, 1"),
        ([], "-"),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_cells(value: Any, text: str) -> None:
    assert said(value) == text


def test_a_line_is_one_line_and_moves_no_cursor() -> None:
    columns = [Column("a", "a"), Column("b", lambda row: row["b"] * 2)]
    assert tabbed(columns, [{"a": "x\ty\n\x1b[31mz", "b": "1"}, {"b": "2"}]) == "x y �[31mz\t11\n-\t22\n"
    assert plain("a\nb\x9b") == "a\nb�"
    assert pairs({"a": 1, "b": None, "c": []}, ("a", "b", "c", "d")) == [{"field": "a", "value": 1}]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ApiError(422, "no"), 1),
        (ApiError(401, "no"), 5),
        (ApiError(403, "no"), 5),
        (ApiError(404, "no"), 4),
        (ApiError(503, "no"), 3),
        (NotReachable("http://x", "refused"), 3),
        (BrokenAnswer("cut"), 1),
        (SettingsError("no"), 2),
    ],
)
def test_exit_statuses(failure: Any, status: int) -> None:
    assert status_of(failure) == status


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, ("http://127.0.0.1:8001", None)),
        ({"GATEWAY_PORT": "9000", "GATEWAY_HOST": "0.0.0.0"}, ("http://127.0.0.1:9000", None)),
        ({"GATEWAY_HOST": "::1"}, ("http://[::1]:8001", None)),
        ({"GATEWAY_URL": "https://gateway.example", "GATEWAY_API_KEY": "k"}, ("https://gateway.example", "k")),
        ({"GATEWAY_ADMIN_API_KEY": "a"}, ("http://127.0.0.1:8001", "a")),
    ],
)
def test_where_the_gateway_is(
    variables: dict[str, str], found: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert address() == found


def test_a_url_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_URL", "localhost:8001")
    with pytest.raises(SettingsError, match=r"url: .*begins with http"):
        address()

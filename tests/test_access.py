"""Who may ask for what: the tables, and the handler in front of another one."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.access import (
    BETWEEN_US,
    Admission,
    Caller,
    Headers,
    Refusal,
    acting,
    caller_of,
    controlling,
    doubled,
    foreign,
    judge,
    needed,
)
from orchestrator.app import refused
from orchestrator.keys import Key, Keys, Scope, changing, hash_of
from orchestrator.wire.http1 import Heads
from tests.orchestrating import START, Clock
from tests.wire.parts import Handler, Taken, echo

USE, MANAGE, ADMIN = Scope

READ = (
    "/", "/metrics", "/docs", "/v1/models", "/v1/models/a/b", "/version", "/api/v1/services", "/api/services/targets",
    "/api/v1/services/1/logs", "/api/v1/services/1/status", "/api/v1/services/1/metrics", "/api/v1/recipes",
    "/api/v1/service-groups/1", "/api/v1/vllm/services", "/api/v1/vector-db/1/collections", "/jobs", "/nothing",
    "/api/v1/orchestrator/metrics", "/api/v1/orchestrator/status", "/api/v1/vector-db/1/qdrant/collections/b/snapshots",
)  # fmt: skip
ASK = (
    "/v1/chat/completions", "/v1/embeddings", "/v2/rerank", "/tokenize", "/classify", "/api/v1/vllm/1/prompt",
    "/api/services/1/activity", "/api/v1/services/sg-1/activity",
    "/api/services/vllm/1/prompt", "/api/v1/services/1/v1/chat/completions", "/api/services/1:8001/v1/completions",
    "/api/v1/services/1/tokenize", "/api/v1/vector-db/1/collections/b", "/api/v1/vector-db/1/collections/b/points",
    "/api/services/vector-db/1/collections/b/search", "/api/v1/vector-db/1/qdrant/collections/b/points",
    "/jobs/job_1/cancel", "/api/jobs/job_1/cancel", "/api/v1/jobs/job_1/cancel", "/v1/files", "/v1/files/file-1",
    "/v1/batches", "/v1/batches/batch_1/cancel",
)  # fmt: skip
START_AND_END = (
    "/api/v1/services", "/api/services", "/api/services/start", "/api/services/stop/1", "/api/v1/services/1",
    "/api/v1/services/1/status", "/api/v1/service-groups/1", "/api/service-groups/1/status", "/jobs",
    "/api/v1/render", "/api/render", "/api/v1/services/1/retry",
    "/jobs/job_1/result", "/api/v1/jobs", "/jobs/job_1/cancel/more",
    "/api/v1/vector-db/1/qdrant/collections/b/snapshots", "/api/v1/vector-db/1/qdrant/snapshots",
    "/api/v1/vector-db/1/qdrant/collections/b/snapshots/recover", "/api/services/vector-db/1/qdrant/cluster/recover",
)  # fmt: skip
RULE = (
    "/api/v1/orchestrator/start", "/api/v1/orchestrator/stop", "/infra/vast/start", "/nothing", "/", "/api/v1",
    "/api/v1/vllm", "/api/v1/vllm/1", "/api/v1/vllm/1/prompt/x", "/metrics",
)  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_looking_needs_the_least(method: str) -> None:
    assert {path: needed(method, path) for path in READ} == dict.fromkeys(READ, USE)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_what_changes_something(method: str) -> None:
    for paths, scope in ((ASK, USE), (START_AND_END, MANAGE), (RULE, ADMIN)):
        assert {path: needed(method, path) for path in paths} == dict.fromkeys(paths, scope)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/infra/vast",
        "/infra/vast/status",
        "/infra/v%61st/costs",
        "/api/v1/keys",
        "/api/keys/ci",
        "/api/v1/audit",
        "/api/audit/1/2",
        "/api/v1/%6beys",
        "/queue",
        "/status",
        "/api/queue",
        "/api/v1/status",
        "/%71ueue",
    ],
)
def test_keys_and_the_record_need_the_most(method: str, path: str) -> None:
    assert needed(method, path) is ADMIN


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/api/v1/serv%69ces", MANAGE),
        ("/api/v1/services/start%2F", MANAGE),
        ("/api/v1/services/1%2Fv1/x", USE),  # the routes see a slash there, too
        ("/api/v1/vector-db/1/qdrant/collections/b/%73napshots/recover", MANAGE),
        ("/api/v1/vllm/a%2Fb/prompt", ADMIN),
        ("/API/v1/services", ADMIN),
        ("/api/v1/vector-db/1/x\n", ADMIN),
        ("//v1/chat/completions", ADMIN),
        ("/api/v2/services", ADMIN),
    ],
)
def test_no_spelling_of_a_path_asks_for_less(path: str, scope: Scope) -> None:
    assert needed("POST", path) is scope


def key(name: str, scope: Scope = USE, **more: Any) -> Key:
    return Key(name, scope, hash_of(name.encode()), START, **more)


def table() -> Keys:
    """The secret of each is its name."""
    keys = [key("use"), key("manage", MANAGE), key("admin", ADMIN), key("old", ADMIN, expires=START)]
    return Keys(None, [*keys, key("gone", ADMIN, revoked=START)], Clock())


POST = "POST", "/api/v1/services"
ASKING = "POST", "/v1/chat/completions"


@pytest.mark.parametrize(
    ("asked", "headers", "name"),
    [
        (ASKING, [(b"authorization", b"Bearer use")], "use"),
        (ASKING, [(b"authorization", b"bearer  use ")], "use"),
        (ASKING, [(b"x-api-key", b"use")], "use"),
        (ASKING, [(b"api-key", b"manage")], "manage"),
        (POST, [(b"api-key", b"manage")], "manage"),
        (POST, [(b"authorization", b"Bearer none"), (b"x-api-key", b"admin")], "admin"),
        (POST, [(b"authorization", b"Bearer use"), (b"x-api-key", b"manage")], "manage"),
        (ASKING, [(b"authorization", b"Bearer old"), (b"x-api-key", b"use")], "use"),
        (("GET", "/api/v1/keys"), [(b"x-api-key", b"admin")], "admin"),
    ],
)
def test_a_key_that_is_enough(asked: tuple[str, str], headers: Headers, name: str) -> None:
    judged = judge(table(), *asked, headers, "gateway")
    assert isinstance(judged, Key)
    assert judged.name == name


@pytest.mark.parametrize(
    ("asked", "headers", "status", "words"),
    [
        (ASKING, [], 401, ["wants an API key", "X-API-Key"]),
        (ASKING, [(b"authorization", b"Bearer")], 401, ["wants an API key"]),
        (ASKING, [(b"authorization", b"Basic use")], 401, ["wants an API key"]),
        (ASKING, [(b"authorization", b"use")], 401, ["wants an API key"]),
        (ASKING, [(b"cookie", b"use")], 401, ["wants an API key"]),
        (ASKING, [(b"x-api-key", b"wrong")], 401, ["this gateway does not know the key that was given"]),
        (ASKING, [(b"x-api-key", b"old")], 401, ["'old' has expired since 2026-11-21T12:00:00Z", "rotate old"]),
        (ASKING, [(b"x-api-key", b"gone")], 401, ["'gone' was revoked at 2026-11-21T12:00:00Z"]),
        (POST, [(b"x-api-key", b"use")], 403, ["'use' has the scope use", "POST /api/v1/services needs manage"]),
        (("GET", "/api/v1/keys"), [(b"x-api-key", b"manage")], 403, ["'manage' has the scope manage", "needs admin"]),
        (("GET", "/health/"), [], 401, ["wants an API key"]),
    ],
)
def test_why_not(asked: tuple[str, str], headers: Headers, status: int, words: list[str]) -> None:
    judged = judge(table(), *asked, headers, "gateway")
    assert isinstance(judged, Refusal)
    assert judged.status == status
    assert [word for word in words if word not in judged.text] == []


def test_an_unknown_key_is_told_nothing() -> None:
    """Whatever it looks like, and whatever it is asked for."""
    answers = {
        judge(table(), *asked, [(b"x-api-key", given)], "gateway")
        for asked in (ASKING, POST, ("GET", "/api/v1/keys"))
        for given in (b"wrong", b"\xff", hash_of(b"admin").encode(), b"ADMIN", b"admin\x00", b"x" * 10_000)
    }
    assert answers == {Refusal(401, "this gateway does not know the key that was given")}


def test_health_checks_need_no_key() -> None:
    assert [judge(table(), "GET", path, [], "gateway") for path in ("/health", "/ready")] == [None, None]


def test_a_file_that_cannot_be_trusted_is_not_the_client_s_fault_but_no_way_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.touch(0o666)
    path.chmod(0o666)
    judged = judge(Keys(path), *ASKING, [(b"x-api-key", b"s")], "gateway")
    assert isinstance(judged, Refusal)
    assert (judged.status, "its log says why" in judged.text, str(tmp_path) in judged.text) == (401, True, False)


@pytest.mark.parametrize(
    ("host", "origin", "welcome"),
    [
        (b"login:8010", None, True), (b"login:8010", b"http://login:8010", True),
        (b"login:8010", b"https://LOGIN:8010", True), (b"login:8010", b"http://evil.example", False),
        (b"login:8010", b"http://login", False), (b"login:8010", b"null", False), (b"login:8010", b"", False),
    ],
)  # fmt: skip
def test_pages_of_others_are_refused(host: bytes, origin: bytes | None, welcome: bool) -> None:
    headers = [(b"host", host)] + ([(b"origin", origin)] if origin is not None else [])
    assert (foreign(headers, "orchestrator") is None) is welcome
    assert doubled(headers) is None
    assert doubled([*headers, (b"host", host)]) == Refusal(400, "the request has more than one Host header; send one")


VAST = ("POST", "/infra/vast/power/on")


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ([(b"x-api-key", b"control")], None),
        ([(b"authorization", b"Bearer use"), (b"x-api-key", b"control")], None),
        ([(b"x-api-key", b"admin")], "admin"),
        ([(b"authorization", b"Bearer admin"), (b"x-api-key", b"control")], "admin"),
        ([(b"x-api-key", b"manage")], 403),
        ([(b"x-api-key", b"old")], 401),
        ([(b"authorization", b"Bearer control")], 401),
        ([(b"api-key", b"control")], 401),
        ([(b"x-api-key", b"  ")], 401),
        ([], 401),
    ],
)
def test_what_asks_for_a_key_itself_gets_those_that_are_not_ours(headers: Headers, answer: str | int | None) -> None:
    judged = judge(table(), *VAST, headers, "gateway")
    assert (judged.status if isinstance(judged, Refusal) else judged and judged.name) == answer
    elsewhere = judge(table(), *POST, [(b"x-api-key", b"control")], "gateway")
    assert isinstance(elsewhere, Refusal) and elsewhere.status == 401


def test_a_key_is_told_only_where_one_is_asked_for() -> None:
    headers = [(b"x-api-key", b"control"), (b"authorization", b"Bearer s"), (b"x-sluice-control", b"x")]
    told = [(b"x-sluice-control", b"control")]
    assert controlling("/infra/vast/status", headers) == told
    for path in ("/infra/vastly", "/infra", "/v1/chat/completions", "/api/v1/infra/vast", "/x/infra/vast"):
        assert controlling(path, headers) == []
    assert {name for name, _ in told} <= BETWEEN_US


def test_nobody_says_who_he_is() -> None:
    headers = [(b"x-sluice-actor", b"root"), (b"x-other", b"1"), (b"x-sluice-actor", b"god")]
    headers += [(b"x-sluice-scope", b"admin"), (b"x-sluice-control", b"1")]
    assert acting(headers, None) == [(b"x-other", b"1")]
    assert acting(headers, key("ci")) == [(b"x-other", b"1"), (b"x-sluice-actor", b"ci"), (b"x-sluice-scope", b"use")]


@pytest.mark.parametrize(
    ("headers", "caller"),
    [
        ([], Caller("user", True)),
        ([(b"x-sluice-actor", b"ci"), (b"x-sluice-scope", b"use")], Caller("ci", False)),
        ([(b"x-sluice-actor", b"ci"), (b"x-sluice-scope", b"manage")], Caller("ci", True)),
        ([(b"x-sluice-actor", b"me"), (b"x-sluice-scope", b"admin")], Caller("me", True)),
        # Of a gateway of the former release, which says no scope: the least.
        ([(b"x-sluice-actor", b"me")], Caller("me", False)),
        ([(b"x-sluice-scope", b"rule")], Caller("user", False)),
        ([(b"x-sluice-actor", b"a" * 200), (b"x-sluice-scope", b"")], Caller("a" * 100, False)),
    ],
)
def test_what_a_caller_sees(headers: Headers, caller: Caller) -> None:
    assert caller_of(headers) == caller


class Asked:
    """Requests to an Admission with a file of keys, whose heads are kept as a server keeps them."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock, self.handler, self.heads = path, Clock(), Handler(echo), Heads()
        self.keys = Keys(path, (), self.clock)
        self.admission = Admission(self.keys, self.handler, refused, "orchestrator")

    def put(self, *keys: Key) -> None:
        with changing(self.path) as there:
            there[:] = keys
        self.keys.tick()

    def ask(self, line: str = "GET /v1/models", headers: str = "X-API-Key: ci\r\n") -> tuple[int, Any]:
        reply = Taken()
        request = self.heads.request(f"{line} HTTP/1.1\r\nHost: login\r\n{headers}\r\n".encode())
        self.admission(request, reply).end()
        head, _, body = bytes(reply.data).partition(b"\r\n\r\n")
        return int(head[9:12]), json.loads(body)


def test_a_head_that_was_let_in_is_judged_again_when_the_keys_change(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "keys.json")
    asked.put(key("ci", expires=Clock().now.replace(hour=13)))
    assert [asked.ask()[0] for _ in range(3)] == [200] * 3
    asked.put(key("ci", revoked=START))
    status, told = asked.ask()
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")
    assert "'ci' was revoked" in told["error"]["message"]
    asked.put(key("ci", expires=Clock().now.replace(hour=13)))
    assert asked.ask()[0] == 200
    asked.clock.advance(3600)
    assert asked.ask()[0] == 200, "noticed by the next tick, within a second"
    asked.keys.tick()
    assert asked.ask()[0] == 401
    assert "expired since 2026-11-21T13:00:00Z" in asked.ask()[1]["error"]["message"]


def test_what_it_lets_through_has_the_key_s_name(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "keys.json")
    asked.put(key("ci"))
    for _ in range(2):
        assert asked.ask(headers="X-API-Key: ci\r\nX-Sluice-Actor: root\r\n")[0] == 200
        assert [v for n, v in asked.handler.noted[-1].request.headers if n == b"x-sluice-actor"] == [b"ci"]
        asked.keys.generation += 1
    before = len(asked.handler.noted)
    status, told = asked.ask("POST /api/services/start")
    assert (status, told) == (403, {"detail": told["detail"]})
    assert asked.ask("POST /v1/chat/completions", "")[0] == 401
    assert asked.ask(headers="X-API-Key: ci\r\nOrigin: http://evil.example\r\n")[0] == 403
    assert len(asked.handler.noted) == before


def test_a_head_that_was_let_in_costs_next_to_nothing(tmp_path: Path) -> None:
    """The best of many, which is what it takes where nothing else runs: well below a microsecond."""
    asked = Asked(tmp_path / "keys.json")
    asked.put(key("ci"))
    assert asked.ask()[0] == 200
    request = asked.heads.request(b"GET /v1/models HTTP/1.1\r\nHost: login\r\nX-API-Key: ci\r\n\r\n")
    reply, answered = Taken(), Handler(echo)(request, Taken())

    def nothing(request: Any, reply: Any) -> Any:
        return answered

    through = Admission(asked.keys, nothing, refused, "orchestrator")
    assert best(lambda: through(request, reply)) - best(lambda: nothing(request, reply)) < 1e-6


def best(work: Any, times: int = 1000) -> float:
    """Seconds of one call, of the fastest thousand."""

    def thousand() -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        return time.perf_counter() - began

    return min(thousand() for _ in range(30)) / times

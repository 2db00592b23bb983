"""Engines that misbehave, seen by unmodified clients through gateway, SSH and orchestrator.

Where something went wrong a client sees an error, never less text that looks complete; what is only unusual harms
nobody.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.clients import environments
from tests.clients.place import Place, place
from tests.gateway.sshd import BINARY
from tests.quirks_engine import BROKEN, HARMLESS, HUGE, TEXT

pytestmark = [pytest.mark.system, pytest.mark.beside, pytest.mark.timeout(180)]

MODEL = "org/quirks"
STATUSES = {"html": 500, "too_many": 429, "unavailable": 503, "overloaded": 529, "flat": 400,
            "compressed_refusal": 400, "chunked_refusal": 400, "break_before_head": 502, "break_in_head": 502,
            "no_http": 502, "empty": 502, "empty_chunked": 502, "break_after_head": 502}  # fmt: skip
WORDS = {"html": "it crashed", "too_many": "slow down", "unavailable": "loading still", "flat": "the flat form says no",
         "overloaded": "without a name", "compressed_refusal": "the flat form says no",
         "chunked_refusal": "the flat form says no", "empty": "answered with nothing"}  # fmt: skip
SHORT = 3.0  # seconds that a client waits for one that stalls
QUICK = [*HARMLESS, *BROKEN, "stall", "stall_before_head"]


@pytest.fixture(scope="module")
def there() -> Iterator[Place]:
    if BINARY is None:
        absent("NO SSHD, so no client is tested: apt-get install openssh-server")
    with place("quirks_engine.py") as one:
        one.start(MODEL)
        yield one


def absent(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module", params=environments.ALL)
def seen(request: pytest.FixtureRequest, there: Place) -> dict[str, Any]:
    """What one client sees of all quirks, streamed and not."""
    if reason := environments.missing(request.param):
        absent(reason)
    found = environments.run(request.param, f"{there.url}/v1", [case(q, s) for q in QUICK for s in (True, False)])
    return {"client": request.param} | found


def case(quirk: str, stream: bool) -> dict[str, Any]:
    timeout = SHORT if quirk.startswith("stall") else 60
    name = f"{quirk} {stream}"
    return {"name": name, "do": "chat", "model": MODEL, "prompt": f"now {quirk}", "stream": stream, "timeout": timeout}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("quirk", HARMLESS)
def test_what_is_only_unusual_harms_no_client(seen: dict[str, Any], quirk: str, stream: bool) -> None:
    text = "x" * HUGE if quirk == "huge" else TEXT
    found = seen[f"{quirk} {stream}"]
    assert "error" not in found, found
    assert found["text"] == text


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("quirk", [*BROKEN, "stall", "stall_before_head"])
def test_what_went_wrong_is_an_error_for_every_client(seen: dict[str, Any], quirk: str, stream: bool) -> None:
    found = seen[f"{quirk} {stream}"]
    assert "error" in found, f"{seen['client']} takes this for an answer: {found}"
    status = STATUSES.get(quirk)
    if status is not None and not (quirk == "break_after_head" and not stream):
        assert found["error"]["status"] in (status, *unnamed(seen["client"])), found
        assert WORDS.get(quirk, "") in found["error"]["text"], found


def unnamed(client: str) -> tuple[int | None, ...]:
    """litellm has statuses of its own for some errors."""
    return (500, None) if client == "litellm" else ()


def test_the_engines_words_and_headers_arrive(there: Place) -> None:
    def ask(quirk: str) -> Any:
        body = {"model": MODEL, "messages": [{"role": "user", "content": quirk}]}
        return there.http.post("/v1/chat/completions", json=body)

    assert ask("too_many").headers["retry-after"] == "7"
    assert ask("unavailable").headers["retry-after"] == "8"
    assert ask("overloaded").status_code == 529
    assert ask("flat").json()["error"] == {
        "message": "the flat form says no", "type": "invalid_request_error", "param": None, "code": None,
    }  # fmt: skip


def test_a_stream_that_is_silent_for_long_gets_comments_where_they_do_no_harm(there: Place) -> None:
    def ask(quirk: str) -> Any:
        body = {"model": MODEL, "messages": [{"role": "user", "content": quirk}], "stream": True}
        answer = there.http.post("/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-request-id"]
        return answer.text

    with ThreadPoolExecutor() as threads:
        refused, late_half, late_done = threads.map(ask, ["slow_refusal", "late_half", "late_done"])
    comment, event, rest = refused.split("\n\n")
    assert (comment, rest) == (": keep-alive", "")
    assert json.loads(event.removeprefix("data: "))["error"]["message"] == "late words"
    assert ": keep-alive" not in late_half and late_half.endswith("data: [DONE]\n\n")
    assert late_done.endswith("\n\n: keep-alive\n\ndata: [DONE]\n\n")
    for text in (late_half, late_done):
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == TEXT


def test_a_stream_of_an_engine_that_has_stopped_ends_with_an_error(there: Place) -> None:
    """Its health check does not answer either, and its connection stays open, as with a process that was stopped."""
    there.start("frozen", replica_port=18100)
    asked = {"name": "one", "do": "chat", "model": "frozen", "prompt": "now freeze", "stream": True, "timeout": 60}
    found = environments.run("openai3", f"{there.url}/v1", [asked])["one"]
    assert "stopped answering" in found["error"]["text"], found


def test_another_replica_answers_when_one_has_an_error_of_its_own(there: Place) -> None:
    """Of two, one answers 500 to everything: each request is answered all the same."""
    resources = {"gpu": 2, "cpu": 2, "memory": "2G"}
    there.start("pair", "vllm-replicas", replica_port=18200, resources=resources)
    body = {"model": "pair", "messages": [{"role": "user", "content": "odd_ports_fail"}]}
    answers = [there.http.post("/v1/chat/completions", json=body) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4, answers[0].text


@pytest.mark.parametrize("client", ["openai2", "openai3"])
def test_a_response_that_is_cut_never_looks_complete(there: Place, client: str) -> None:
    """Its last event is longer than what is kept of a stream."""
    if reason := environments.missing(client):
        absent(reason)
    whole = ("plain", "crlf", "tiny_chunks", "tiny_writes", "split_events", "http10", "done_then_close")
    cut = ("break_between", "break_in_chunk", "break_in_event", "reset", "no_done", "http10_short", "bad_chunk")
    asked = [case(quirk, True) | {"name": quirk, "do": "response"} for quirk in (*whole, *cut)]
    found = environments.run(client, f"{there.url}/v1", asked)
    for quirk in whole:
        assert found[quirk] == {"text": TEXT, "last": "response.completed"}, quirk
    assert {quirk for quirk in cut if "error" not in found[quirk]} == set(), found
    assert "without its last event" in found["no_done"]["error"]["text"]


@pytest.mark.parametrize("quirk", ["break_between", "no_done"])
def test_anthropics_clients_are_told_in_their_own_form(there: Place, quirk: str) -> None:
    """They take no notice of events without a name."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": quirk}], "stream": True}
    text = there.http.post("/v1/messages", json=body).text
    assert text.split("\n\n")[-2].startswith('event: error\ndata: {"type": "error", "error": {"message": ')


def test_a_requests_id_comes_back_and_reaches_the_engine(there: Place) -> None:
    def ask(quirk: str, headers: dict[str, str] | None = None, through: Any = there.http) -> str:
        body = {"model": MODEL, "messages": [{"role": "user", "content": quirk}]}
        answer = through.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
        return str(answer.headers["x-request-id"])

    service = there.http.get("/api/v1/services").json()[-1]["id"]
    for through in (there.http, there.direct):
        for quirk in ("plain", "flat", "html", "sized"):
            assert ask(quirk, {"X-Request-Id": f"mine-{quirk}"}, through) == f"mine-{quirk}"
            made = ask(quirk, None, through)
            assert made and made != ask(quirk, None, through)
            assert f"{quirk} {made}\n" in there.logs(service)
            assert f"{quirk} mine-{quirk}\n" in there.logs(service)

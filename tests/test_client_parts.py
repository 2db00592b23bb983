"""What both clients share: requests, answers, streams and the order of things, without a socket."""

import json
from typing import Any

import pytest

from gateway.client import ApiError, AsyncClient, BrokenAnswer, Client, Ended, TookTooLong, calls
from gateway.client.call import Call, read
from gateway.client.operations import Operation, Operations, Streamed
from gateway.client.streams import Chunks, Text, Words
from gateway.client.watching import Look, Pause, Steps, answering, watching

JSON = dict[str, Any]
CALL: Call[Any] = Call("GET", "/x")


def service(status: str, **more: Any) -> Any:
    return {"id": "7", "status": status, "reason": "", "endpoint": None, "diagnosis": None} | more


@pytest.mark.parametrize(
    ("call", "line", "body"),
    [
        (calls.services(status="running", limit=3), "GET /api/v1/services {'status': 'running', 'limit': 3}", None),
        (calls.service("7:8002"), "GET /api/v1/services/7:8002 {}", None),
        (calls.service("../x?y"), "GET /api/v1/services/..%2Fx%3Fy {}", None),
        (calls.logs("7", tail=0), "GET /api/v1/services/7/logs {'tail': 0}", None),
        (calls.follow("7").call, "GET /api/v1/services/7/logs {'follow': 1}", None),
        (calls.cancel("7"), "POST /api/v1/services/7/status {}", {"status": "cancelled"}),
        (calls.prompt("7", "Hi", max_tokens=3), "POST /api/v1/vllm/7/prompt {}", {"prompt": "Hi", "max_tokens": 3}),
        (calls.preflight("m"), "POST /api/v1/preflight {}", {"model": "m", "config": {}}),
        (calls.switch_slot("main", None), "POST /slots/main/switch {}", {"model": None}),
        (
            calls.chat("m", [{"role": "user", "content": "Hi"}]).call,
            "POST /v1/chat/completions {}",
            {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True},
        ),
        (
            calls.search("7", "books", [0.5]),
            "POST /api/v1/vector-db/7/collections/books/points/search {}",
            {"query_vector": [0.5], "limit": 10},
        ),
    ],
)
def test_requests(call: Call[Any], line: str, body: Any) -> None:
    assert f"{call.method} {call.path} {call.params}" == line
    assert call.body == body


def test_a_start_may_be_sent_twice() -> None:
    first, second = calls.start("vllm", {"gpu": 1}), calls.start("vllm", {"gpu": 1})
    assert first.repeatable
    assert first.body == {"recipe_name": "vllm", "config": {"gpu": 1}}
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]
    assert calls.start("vllm", idempotency_key="mine").headers == {"Idempotency-Key": "mine"}
    assert not calls.prompt("7", "Hi").repeatable


def test_both_clients_have_every_operation() -> None:
    makers = {name for name, made in vars(calls).items() if callable(made) and made.__module__ == calls.__name__}
    public = {name for name in makers if not name.startswith("_")}
    assert {name for name, made in vars(Operations).items() if isinstance(made, Operation | Streamed)} == public
    for each in (Client, AsyncClient):
        assert callable(each.watch) and callable(each.wait)


def test_an_answer() -> None:
    assert read(CALL, 200, {}, b'{"a": 1}') == {"a": 1}
    with pytest.raises(BrokenAnswer, match=r"GET /x: the answer \(status 200\) is not JSON"):
        read(CALL, 200, {}, b"<html>")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"detail": "no such service"}, "no such service"),
        ({"detail": [{"loc": ["body", "config", "gpu"], "msg": "too many"}]}, "config.gpu: too many"),
        ({"error": {"message": "no model", "code": 404}}, "no model"),
        ({"success": False, "error": "not yet"}, "not yet"),
        ({}, "{}"),
    ],
)
def test_a_refusal(body: JSON, detail: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(CALL, 503, {"retry-after": "5"}, json.dumps(body).encode())
    assert (refused.value.status, refused.value.detail, refused.value.retry_after) == (503, detail, 5)
    assert refused.value.body == body


def test_a_refusal_of_something_else_than_a_gateway() -> None:
    with pytest.raises(ApiError, match="Bad Gateway") as refused:
        read(CALL, 502, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"Bad Gateway")
    assert refused.value.retry_after is None


def event(content: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": content}}]}).encode() + b"\n\n"


STREAM = b": waiting\n\n" + event("Sch") + event("ön") + b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_words_of_a_chat_however_they_are_cut(size: int) -> None:
    decoder = Words()
    parts = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [word for part in parts for word in decoder.feed(part)] + decoder.end() == ["Sch", "ön"]


def test_a_chat_that_breaks_off() -> None:
    decoder = Chunks()
    assert len(decoder.feed(event("a") + b"data: [DO")) == 1
    with pytest.raises(BrokenAnswer, match="broke off"):
        decoder.end()


def test_a_chat_with_an_error_in_it() -> None:
    with pytest.raises(ApiError, match="the engine died") as failed:
        Words().feed(b'data: {"error": {"message": "the engine died", "code": 502}}\n\n')
    assert failed.value.status == 502
    for wrong in (b"data: {\n", b"data: 7\n"):
        with pytest.raises(BrokenAnswer):
            Chunks().feed(wrong)


def test_text_with_a_character_that_was_cut() -> None:
    decoder = Text()
    assert decoder.feed(b"sch\xc3") + decoder.feed(b"\xb6n") + decoder.end() == ["sch", "ön"]
    assert decoder.feed(b"\xc3") + decoder.end() == ["�"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(clock: Clock, timeout: float | None = None) -> Steps:
    return watching("7", every=1, timeout=timeout, clock=clock)


def test_watching_until_it_answers() -> None:
    watched = steps(Clock())
    assert next(watched) == calls.service("7")
    assert watched.send(service("pending")) == Look(service("pending"))
    assert next(watched) == Pause(1)
    assert next(watched) == calls.service("7")
    assert watched.send(service("running")) == Look(service("running"))
    with pytest.raises(StopIteration):
        next(watched)


def test_watching_while_the_link_is_down() -> None:
    watched = steps(Clock())
    next(watched)
    assert watched.throw(ApiError(503, "down", 4)) == Pause(4)
    assert next(watched) == calls.service("7")
    with pytest.raises(ApiError, match="gone"):
        watched.throw(ApiError(404, "gone"))


def test_watching_for_too_long() -> None:
    clock = Clock()
    watched = steps(clock, timeout=10)
    next(watched)
    clock.now = 10
    assert isinstance(watched.send(service("pending", reason="Priority")), Look)
    with pytest.raises(TookTooLong, match="7 is still pending after 10 s: Priority"):
        next(watched)


def test_the_link_is_down_for_too_long() -> None:
    clock = Clock()
    watched = steps(clock, timeout=10)
    next(watched)
    clock.now = 11
    with pytest.raises(ApiError, match="down"):
        watched.throw(ApiError(503, "down", 4))


def test_one_that_has_ended() -> None:
    assert answering(service("running")) == service("running")
    with pytest.raises(Ended, match=r"7 has ended \(failed\): out of memory\. .*sluice logs 7"):
        answering(service("failed", reason="out of memory"))
    found = {"name": "gpu-memory", "sentence": "It was too large.", "advice": "Take less.", "changes": {"gpu": 2}}
    with pytest.raises(Ended, match=r"It was too large\. Take less\. .*: sluice retry 7\. .*sluice logs 7"):
        answering(service("failed", diagnosis=found))

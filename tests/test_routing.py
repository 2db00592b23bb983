"""Which replica a request goes to."""

import json
from collections import Counter
from dataclasses import dataclass

import pytest

from orchestrator.asked import Asked, look, opening, without_async
from orchestrator.errors import BadRequest
from orchestrator.replicas import queue_in
from orchestrator.routing import POLICIES, least_loaded, prefix, round_robin


@dataclass
class Load:
    id: str
    in_flight: int = 0
    queue: int = 0


def loads(*in_flight: int) -> list[Load]:
    return [Load(f"7:{8001 + n}", number) for n, number in enumerate(in_flight)]


def chosen(policy: str, candidates: list[Load], asked: Asked, requests: int = 100) -> Counter[int]:
    """How often each was chosen, when nothing else changes."""
    return Counter(POLICIES[policy].choose(candidates, asked, turn) for turn in range(requests))


ANY = Asked("m")


def test_round_robin_is_fair_whatever_the_load() -> None:
    assert chosen("round-robin", loads(9, 0, 5, 0), ANY) == {0: 25, 1: 25, 2: 25, 3: 25}
    assert [round_robin(loads(0, 0, 0), ANY, turn) for turn in range(4)] == [0, 1, 2, 0]


def test_the_least_loaded_gets_it_and_equals_take_turns() -> None:
    assert chosen("least-loaded", loads(3, 1, 2), ANY) == {1: 100}
    assert chosen("least-loaded", loads(1, 0, 1, 0), ANY) == {1: 50, 3: 50}
    candidates = loads(0, 2)
    candidates[0].queue = 5
    assert least_loaded(candidates, ANY, 0) == 1, "what waits inside an engine counts too"


def test_equal_beginnings_meet_and_different_ones_spread() -> None:
    candidates = loads(0, 0, 0, 0)
    for number in range(50):
        assert len(chosen("prefix", candidates, Asked("m", prefix=b"%d" % number))) == 1
    spread = Counter(prefix(candidates, Asked("m", prefix=b"%d" % number), 0) for number in range(1000))
    assert all(180 < number < 320 for number in spread.values())


def test_a_replica_that_goes_moves_only_its_own_share() -> None:
    before, after = loads(0, 0, 0, 0), loads(0, 0, 0)
    for number in range(200):
        asked = Asked("m", prefix=b"%d" % number)
        was = prefix(before, asked, 0)
        assert was == 3 or prefix(after, asked, 0) == was


def test_a_popular_beginning_does_not_drown_its_replica() -> None:
    candidates = loads(0, 0, 0, 0)
    asked = Asked("m", prefix=b"the same system prompt")
    for turn in range(100):
        candidates[prefix(candidates, asked, turn)].in_flight += 1
    assert sorted(candidate.in_flight for candidate in candidates)[-1] <= 33


def test_a_session_counts_more_than_a_beginning() -> None:
    candidates = loads(0, 0, 0, 0)
    of_one = {prefix(candidates, Asked("m", session=b"anna", prefix=b"%d" % n), n) for n in range(50)}
    assert len(of_one) == 1
    assert chosen("prefix", loads(1, 0), ANY) == {1: 100}, "without either the least loaded"


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"model": "a/b", "stream": true, "messages": [{"role": "user", "content": "hi"}]}',
         Asked("a/b", True, b"", b'[{"role": "user", "content": "hi"}]')),
        (b'{"prompt": "x", "model": "m", "stream": false}', Asked("m", False, b"", b'"x"')),
        (b'{"input": ["x"], "model": "m", "prompt_cache_key": "k"}', Asked("m", False, b"k", b'["x"]')),
        (b'{"instructions": "be brief", "input": "x"}', Asked(None, False, b"", b'"be brief""x"')),
        (b'{"system": [{"text": "s"}], "messages": []}', Asked(None, False, b"", b'[{"text": "s"}][]')),
        (b'{"input": "x", "instructions": "' + b"i" * 3000 + b'"}', Asked(None, False, b"", b'"' + b"i" * 2047)),
        (b'{"messages": 7}', Asked(None, False, b"", b"7")),
        (b'{"model": null, "stream": null}', Asked(None)),
        (b' \n{"model": "\\u00e4", "other": {"model": "inner"}}', Asked("\u00e4")),
        (b'{"model": "m", "async": true}', Asked("m", later=True)),
        (b'{"model": "m", "async": false}', Asked("m", later=False)),
        (b'{"model": "m", "async": null}', Asked("m", later=False)),
        (b'{"model": "m", "x": {"async": true}}', Asked("m")),
    ],
)  # fmt: skip
def test_what_is_looked_at_in_a_body(body: bytes, asked: Asked) -> None:
    assert look(b"application/json", body) == asked


def said(role: str, content: object = "hi") -> dict[str, object]:
    return {"content": content, "role": role}


HISTORY: list[list[dict[str, object]]] = [
    [said("user")],
    [said("system", "be brief"), said("user", 'with "}" and \\"role\\": \\"user\\"}] in it \\')],
    [said("system", [{"type": "text", "text": "a"}]), said("user", [{"type": "text", "text": "b"}, {"x": [{}]}])],
    [said("system", "x" * 1900), said("user", "y" * 300)],
    [said("user", "y" * 3000)],
    [said("developer", "\u00e4" * 100), said("user", "\u00f6")],
]


@pytest.mark.parametrize("field", ["messages", "input"])
@pytest.mark.parametrize("first", HISTORY)
@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_each_turn_of_a_conversation_meets_the_same_replica(
    field: str, first: list[dict[str, object]], separators: tuple[str, str]
) -> None:
    candidates = loads(0, 0, 0, 0, 0, 0, 0, 0)
    history, chosen, keys = list(first), set(), set()
    for turn in range(6):
        body = {"model": "m", "system": "of Anthropic's", field: history}
        asked = look(b"application/json", json.dumps(body, separators=separators).encode())
        chosen.add(prefix(candidates, asked, turn))
        keys.add(opening(asked.prefix))
        history += [said("assistant", f"answer {turn}"), said("user", f"and {turn}?")]
    assert (len(chosen), len(keys)) == (1, 1)
    other = look(b"application/json", json.dumps({field: [said("user", "something else")]}).encode())
    assert opening(other.prefix) not in keys


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        (b"", b""),
        (b'"a text with [{\\"role\\": \\"user\\"}]"', b'"a text with [{\\"role\\": \\"user\\"}]"'),
        (b'[{"role":"system","content":"a"}]', b'[{"role":"system","content":"a"}]'),
        (b'[{"role":"user","content":"a"},{"role"', b'[{"role":"user","content":"a"}'),
        (b'"be brief"[{"role":"user"}]', b'"be brief"[{"role":"user"}'),
        (b'[{"role":"user","content":"cut off }]', b'[{"role":"user","content":"cut off }]'),
        (b"]]}}[{", b"]]}}[{"),
        (b"[1, 2, [3, 4]]", b"[1, 2, [3, 4]]"),
    ],
)
def test_a_conversation_begins_with_the_user_s_first_message(begin: bytes, expected: bytes) -> None:
    assert opening(begin) == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"model": 7}', b'{"model": "a", "stream": "yes"}', b'{"async": 1}', b"\xff", b"[" * 99999],
)
def test_a_body_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        look(b"application/json", body)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b'{"async": true, "model": "m"}', b'{"model":"m"}'),
        (b'{"model": "m", "n": 1.50e3, "async": false, "x": [ 1, 2 ], "y": "\\u00e4"}',
         b'{"model":"m","n":1.50e3,"x":[ 1, 2 ],"y":"\\u00e4"}'),
        (b'{"x": {"async": true}, "\\u0061sync": true}', b'{"x":{"async": true}}'),
    ],
)  # fmt: skip
def test_async_is_taken_out_and_the_rest_stays_as_it_was_written(body: bytes, left: bytes) -> None:
    assert without_async(body) == left


def test_a_body_whose_names_cannot_be_read_is_refused() -> None:
    body = b'{"async": true, "\\ud800": 1}'
    with pytest.raises(BadRequest):
        without_async(body)


def test_a_form_is_searched_for_its_model() -> None:
    kind = "Content-Disposition: form-data; name="
    lines = ["--x", f'{kind}"file"; filename="a.wav"', "Content-Type: audio/wav", "", "RIFF"]
    lines += ["--x", f'{kind}"model"', ""]
    lines += ["whisper", "--x", f'{kind}"stream"', "", "true", "--x--", ""]
    assert look(b"multipart/form-data; boundary=x", "\r\n".join(lines).encode()) == Asked("whisper", True)
    assert look(b"multipart/form-data; boundary=x", b"--x--\r\n") == Asked(None)


def test_what_waits_in_an_engine_is_read_from_its_metrics() -> None:
    assert queue_in('vllm:num_requests_waiting{engine="0",model_name="m"} 3.0\nvllm:num_requests_running 9.0\n') == 3
    assert queue_in('vllm:num_requests_waiting{engine="0"} 1.0\nvllm:num_requests_waiting{engine="1"} 2.0\n') == 3
    assert queue_in("llamacpp:requests_deferred 4\n") == 4
    assert queue_in("# nothing\n") == 0

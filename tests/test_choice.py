"""What a service's config says of its replicas and names, followed to the replica that answers; and what is refused
when all have enough to do, or the service is about to end. Through gateway, SSH and orchestrator."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.clients.place import Place, place, wait
from tests.gateway.sshd import BINARY
from tests.test_quirks import absent

pytestmark = [pytest.mark.system, pytest.mark.beside, pytest.mark.timeout(120)]

PAIR = {"gpu": 2, "cpu": 2, "memory": "2G"}


@pytest.fixture(scope="module")
def there() -> Iterator[Place]:
    if BINARY is None:
        absent("NO SSHD, so no choice is tested: apt-get install openssh-server")
    with place("fake_engine.py") as one:
        yield one


def pair(there: Place, name: str, **config: Any) -> str:
    """A service of two replicas, both of which answer."""
    service = there.start(name, "vllm-replicas", resources=PAIR, **config)
    path = f"/api/v1/service-groups/{service}/status"
    wait(lambda: bool(there.http.get(path).json()["healthy_replicas"] == 2))
    return service


def body(model: str, prompt: str, *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream}


def port(there: Place, model: str, prompt: str = "hello", base: str = "/v1", **headers: str) -> int:
    """Of the replica that answers."""
    answer = there.http.post(f"{base}/chat/completions", json=body(model, prompt), headers=headers)
    assert answer.status_code == 200, answer.text
    found = re.search(r"port=(\d+)", answer.json()["choices"][0]["message"]["content"])
    assert found is not None
    return int(found[1])


def words(line: str) -> str:
    """What an event of a chat says."""
    return str(json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", ""))


def test_in_turn_is_the_rule_also_when_two_services_are_asked_by_turns(there: Place) -> None:
    for name in ("turn-a", "turn-b"):
        pair(there, name)
    found: dict[str, Counter[int]] = {"turn-a": Counter(), "turn-b": Counter()}
    for _ in range(6):
        for name, ports in found.items():
            ports[port(there, name)] += 1
    assert [sorted(ports.values()) for ports in found.values()] == [[3, 3], [3, 3]]


def test_the_least_loaded_replica_is_asked(there: Place, tmp_path: Path) -> None:
    """One has a stream of ours under way; then the other has requests waiting inside, as its own metrics say."""
    service = pair(there, "least", routing="least-loaded", environment={"FAKE_METRICS": str(tmp_path)})
    with there.http.stream("POST", "/v1/chat/completions", json=body("least", "delay 0.4 a b c", stream=True)) as busy:
        lines = (line for line in busy.iter_lines() if line.startswith("data: {"))
        next(lines)
        idle = {port(there, "least") for _ in range(5)}
        assert len(idle) == 1
        text = "".join(words(line) for line in lines)
    occupied = re.search(r"port=(\d+)", text)
    assert occupied is not None and {int(occupied[1])} != idle
    (crowded,) = idle
    (tmp_path / str(crowded)).write_text('vllm:num_requests_waiting{engine="0"} 7.0\n')
    # Without the metrics equals would take turns; they are read with each health check.
    base = f"/api/v1/services/{service}/v1"
    wait(lambda: crowded not in {port(there, "least", base=base) for _ in range(4)})
    assert {port(there, "least") for _ in range(6)} == {int(occupied[1])}


def test_what_begins_alike_and_what_is_of_one_session_meets(there: Place) -> None:
    pair(there, "alike", routing="prefix")
    for number in range(6):
        beginning = f"conversation {number} " + "x " * 20
        assert len({port(there, "alike", beginning) for _ in range(3)}) == 1
    assert len({port(there, "alike", f"conversation {number}") for number in range(30)}) == 2
    for number in range(6):
        session = f"user-{number}"
        assert len({port(there, "alike", f"other {n} words", session=session) for n in range(4)}) == 1
    assert len({port(there, "alike", "the same words", session=f"user-{number}") for number in range(30)}) == 2


def test_a_model_answers_to_the_names_that_its_service_gives_it_and_no_others(there: Place) -> None:
    service = there.start("org/own-name", aliases=["short", "gpt-4o"])
    listed = [model["id"] for model in there.http.get("/v1/models").json()["data"]]
    for name in ("org/own-name", "short", "gpt-4o"):
        assert name in listed
        assert there.http.get(f"/v1/models/{name}").json()["id"] == name
        assert port(there, name) == port(there, name, base=f"/api/v1/services/{service}/v1")
    original = there.http.get(f"/api/v1/services/{service}").json()["config"].get("model", "Qwen/Qwen2.5-0.5B-Instruct")
    assert there.http.post("/v1/chat/completions", json=body(original, "hi")).status_code == 404


def test_a_cancelled_service_goes_on_with_its_stream_and_begins_none(there: Place) -> None:
    service = there.start("leaving")
    asked = body("leaving", "delay 0.3 a b c d", stream=True)
    with there.http.stream("POST", "/v1/chat/completions", json=asked) as stream:
        lines = stream.iter_lines()
        next(lines)
        cancelled = there.http.post(f"/api/v1/services/{service}/status", json={"status": "cancelled"})
        assert (cancelled.status_code, there.status(service)) == (200, "cancelled")
        by_model = there.http.post("/v1/chat/completions", json=body("leaving", "hi"))
        by_service = there.http.post(f"/api/v1/services/{service}/v1/chat/completions", json=body("leaving", "hi"))
        rest = "\n".join(lines)
    assert rest.rstrip().endswith("data: [DONE]")
    assert "port=" in rest and "error" not in rest
    assert (by_model.status_code, by_service.status_code) == (404, 409), (by_model.text, by_service.text)
    wait(lambda: bool(there.http.get(f"/api/v1/services/{service}").json()["job"]["state"] == "CANCELLED"))


def under_way(client: httpx2.Client) -> int:
    """Requests that the orchestrator is answering, by its metrics: this one, too."""
    found = re.search(r"^sluice_requests_in_flight (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def test_what_a_model_is_answering_shows_in_the_metrics(there: Place) -> None:
    there.start("counted")
    wait(lambda: under_way(there.direct) == 1)
    asked = body("counted", "delay 0.5", stream=True)
    with (
        there.http.stream("POST", "/v1/chat/completions", json=asked) as through,
        there.direct.stream("POST", "/v1/chat/completions", json=asked) as direct,
    ):
        assert (through.status_code, direct.status_code) == (200, 200)
        wait(lambda: under_way(there.direct) == 3)
    wait(lambda: under_way(there.direct) == 1)


@pytest.fixture(scope="module")
def narrow() -> Iterator[Place]:
    """Where each replica gets one request at a time."""
    if BINARY is None:
        absent("NO SSHD, so no limit is tested: apt-get install openssh-server")
    with place("fake_engine.py", ORCHESTRATOR_MAX_IN_FLIGHT="1") as one:
        yield one


def test_more_than_a_replica_may_have_is_told_to_come_back(narrow: Place) -> None:
    narrow.start("one")

    def ask(client: httpx2.Client) -> httpx2.Response:
        return client.post("/v1/chat/completions", json=body("one", "hi"))

    with narrow.http.stream("POST", "/v1/chat/completions", json=body("one", "delay 0.5", stream=True)) as first:
        lines = first.iter_lines()
        next(lines)
        for client in (narrow.http, narrow.direct):
            refused = ask(client)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1"), refused.text
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert "1 requests under way" in refused.json()["error"]["message"]
        assert "".join(lines).endswith("data: [DONE]")
    assert ask(narrow.http).status_code == 200


def test_a_second_replica_takes_what_the_first_may_not(narrow: Place) -> None:
    pair(narrow, "two")
    with narrow.http.stream("POST", "/v1/chat/completions", json=body("two", "delay 0.5", stream=True)) as first:
        lines = (line for line in first.iter_lines() if line.startswith("data: {"))
        next(lines)
        ports = {port(narrow, "two") for _ in range(4)}
        assert len(ports) == 1
        assert f"port={ports.pop()}" not in "".join(words(line) for line in lines)

"""Models that sleep until they are asked for, and slots that have one at a time: real processes and plain HTTP."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.test_process import Home, a_home, until

pytestmark = pytest.mark.system

JSON = dict[str, Any]
SMALL = {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}}


def model(home: Home, name: str, **more: Any) -> JSON:
    """An entry whose weights tell its engine from those of other tests."""
    config = SMALL | {"environment": {"FAKE_LOAD_SECONDS": "0.3"} | more.pop("environment", {})}
    return {"source": {"type": "local_path", "value": f"{home.path}/weights/{name}"}, "config": config, **more}


def engines(home: Home) -> list[str]:
    """The models whose engines are alive: listening or not, a process has its memory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        weights = [word.decode() for word in words if word.startswith(f"{home.path}/weights/".encode())]
        if weights and any(word.endswith(b"fake_engine.py") for word in words):
            found.append(weights[0].rpartition("/")[2])
    return found


@dataclass
class Samples:
    """Which engines were alive together, looked at every 50 ms."""

    home: Home
    most: int = 0
    together: list[list[str]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.stopped.wait(0.05):
            alive = engines(self.home)
            self.most = max(self.most, len(alive))
            if len(alive) > 1:
                self.together.append(alive)
            if len(alive) == 1 and self.changes[-1:] != alive:
                self.changes += alive


@contextmanager
def sampled(home: Home) -> Iterator[Samples]:
    samples = Samples(home)
    thread = threading.Thread(target=samples.watch)
    thread.start()
    try:
        yield samples
    finally:
        samples.stopped.set()
        thread.join(10)


Serve = Callable[..., Home]


@pytest.fixture(name="home")
def _home() -> Iterator[Home]:
    yield from a_home()


@pytest.fixture
def serve(home: Home) -> Serve:
    """Start an orchestrator with a model list."""

    def start(listed: JSON, **variables: str) -> Home:
        path = home.folder / "models.yaml"
        path.write_text(json.dumps(listed))
        home.variables |= {
            "ORCHESTRATOR_MODELS": str(path), "ORCHESTRATOR_POLL_SECONDS": "0.2", "ORCHESTRATOR_DRAIN_SECONDS": "5",
            "ORCHESTRATOR_GRACE_SECONDS": "2",  # a kill may come between the record of a job and its submission
            **variables,
        }  # fmt: skip
        home.serve()
        return home

    return start


def client(home: Home) -> httpx2.Client:
    return httpx2.Client(
        transport=httpx2.HTTPTransport(uds=str(home.socket)), base_url="http://orchestrator", timeout=60
    )


def chat(name: str, prompt: str = "hello", **more: Any) -> JSON:
    return {"model": name, "messages": [{"role": "user", "content": prompt}], **more}


def said(answer: httpx2.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def slot(home: Home) -> JSON:
    return dict(home.ask("GET", "/slots/main"))


@pytest.mark.timeout(120)
def test_sixty_requests_for_three_models_of_one_slot(home: Home, serve: Serve) -> None:
    names = ["a", "b", "c"]
    serve({"models": {name: model(home, name, slot="main") for name in names}}, ORCHESTRATOR_WAKE_HOLD_SECONDS="60")
    longest = 0.0

    async def ask(http: httpx2.AsyncClient, name: str, after: float) -> str:
        nonlocal longest
        await asyncio.sleep(after)  # six clients, of which each goes on to the next model while it waits
        began = time.monotonic()
        answer = await http.post("/v1/chat/completions", json=chat(name, f"for {name}"))
        longest = max(longest, time.monotonic() - began)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["model"])

    async def all_of_them() -> list[str]:
        transport = httpx2.AsyncHTTPTransport(uds=str(home.socket))
        async with httpx2.AsyncClient(transport=transport, base_url="http://orchestrator", timeout=90) as http:
            asked = [names[(who + turn) % 3] for turn in range(10) for who in range(6)]
            answers = await asyncio.gather(*(ask(http, name, 0.02 * n) for n, name in enumerate(asked)))
            assert list(answers) == asked
            return asked

    with sampled(home) as samples:
        assert len(asyncio.run(all_of_them())) == 60
    assert samples.together == [], "two engines at once"
    assert (samples.most, set(samples.changes)) == (1, set(names))
    assert slot(home)["switches"] == len(samples.changes) <= 6
    print(f"switches {len(samples.changes)}, longest wait {longest:.1f} s")


@pytest.mark.timeout(120)
def test_a_sleeping_model_is_started_by_a_stream_and_its_waiting_is_told(home: Home, serve: Serve) -> None:
    serve({"models": {"m": model(home, "m", environment={"FAKE_LOAD_SECONDS": "17"}, aliases=["owner/M"])}})
    cards = {card["id"]: card for card in home.ask("GET", "/v1/models")["data"]}
    assert (cards["m"]["state"], engines(home)) == ("sleeping", [])
    with client(home) as http, http.stream("POST", "/v1/chat/completions", json=chat("owner/M", stream=True)) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    told = [line for line in lines if line.startswith(": ")]
    assert "the model 'm' is being loaded: job " in told[0]
    assert "RUNNING" in told[0]
    assert lines[-1] == "data: [DONE]"
    assert home.ask("GET", "/v1/models/m")["state"] == "running"


@pytest.mark.timeout(120)
def test_a_client_in_a_hurry_is_told_to_come_back_and_then_served(home: Home, serve: Serve) -> None:
    serve({"models": {"m": model(home, "m")}}, ORCHESTRATOR_WAKE_HOLD_SECONDS="0.1")
    with client(home) as http:
        refused = http.post("/v1/chat/completions", json=chat("m"))
        assert refused.status_code == 503
        assert 2 <= int(refused.headers["retry-after"]) <= 60
        assert "being loaded" in refused.json()["error"]["message"]
        until(lambda: home.ask("GET", "/v1/models/m")["state"] == "running")
        assert said(http.post("/v1/chat/completions", json=chat("m", "again"))) != ""
        unknown = http.post("/v1/chat/completions", json=chat("n"))
        assert (unknown.status_code, "m" in unknown.json()["error"]["message"]) == (404, True)


@pytest.mark.timeout(120)
def test_a_slots_url_stays_whatever_is_loaded(home: Home, serve: Serve) -> None:
    serve(
        {"models": {n: model(home, n, slot="main") for n in "ab"}, "slots": {"main": {"default": "b"}}},
        ORCHESTRATOR_WAKE_HOLD_SECONDS="30",
    )
    with client(home) as http, sampled(home) as samples:

        def asked(name: str, path: str = "/slots/main/v1") -> str:
            answer = http.post(f"{path}/chat/completions", json=chat(name))
            assert answer.status_code == 200, answer.text
            return slot(home)["loaded"] or ""

        assert asked("main") == "b", "the default is loaded"
        assert asked("a") == "a", "a model of the slot is loaded at its URL too"
        assert asked("main") == asked("main", "/v1") == "a", "and stays"
        switched = http.post("/slots/main/switch", json={"model": "b"})
        assert (switched.status_code, switched.json()["loaded"]) == (202, "a")
        until(lambda: (slot(home)["loaded"], slot(home)["phase"]) == ("b", "serving"))
        assert asked("main") == "b"
        listed = {card["id"]: card["state"] for card in http.get("/slots/main/v1/models").json()["data"]}
        assert listed == {"a": "sleeping", "b": "running", "main": "running"}
        assert http.post("/api/v1/slots/main/switch", json={"model": None}).status_code == 202
        until(lambda: slot(home)["phase"] == "empty")
        until(lambda: engines(home) == [])
        wrong = http.post("/slots/main/switch", json={"model": "c"})
        assert (wrong.status_code, "There is a, b." in wrong.json()["detail"]) == (404, True)
        assert http.post("/slots/other/v1/chat/completions", json=chat("a")).status_code == 404
    assert samples.together == []


@pytest.mark.timeout(120)
def test_requests_under_way_are_answered_before_a_switch(home: Home, serve: Serve) -> None:
    serve({"models": {n: model(home, n, slot="main") for n in "ab"}}, ORCHESTRATOR_WAKE_HOLD_SECONDS="30")
    with client(home) as http, ThreadPoolExecutor() as pool, sampled(home) as samples:
        assert http.post("/v1/chat/completions", json=chat("a")).status_code == 200
        words = "delay 0.3 one two three four five six"
        slow = pool.submit(http.post, "/v1/chat/completions", json=chat("a", words, max_tokens=10))
        until(lambda: "a" in engines(home) and home.ask("GET", "/slots/main")["phase"] == "serving")
        other = pool.submit(http.post, "/v1/chat/completions", json=chat("b"))
        assert said(slow.result(60)).startswith("delay 0.3 one two three")
        assert other.result(60).json()["model"] == "b"
    assert samples.together == []
    assert samples.changes == ["a", "b"]


@pytest.mark.timeout(120)
def test_a_model_that_does_not_load_is_told_and_the_one_before_comes_back(home: Home, serve: Serve) -> None:
    bad = model(home, "bad", slot="main", environment={"FAKE_EXIT_AFTER": "0", "FAKE_EXIT_CODE": "7"})
    serve({"models": {"good": model(home, "good", slot="main"), "bad": bad}}, ORCHESTRATOR_WAKE_HOLD_SECONDS="60")
    with client(home) as http, sampled(home) as samples:
        assert http.post("/v1/chat/completions", json=chat("good")).status_code == 200
        refused = http.post("/v1/chat/completions", json=chat("bad"))
        assert refused.status_code == 502
        assert "the model 'bad' did not load: job " in refused.json()["error"]["message"]
        began = time.monotonic()
        again = http.post("/v1/chat/completions", json=chat("bad"))
        assert (again.status_code, time.monotonic() - began < 5) == (502, True), "it is not tried again at once"
        until(lambda: (slot(home)["loaded"], slot(home)["phase"]) == ("good", "serving"))
        states = {card["id"]: card["state"] for card in http.get("/v1/models").json()["data"]}
        assert (states["good"], states["bad"]) == ("running", "failed")
    assert samples.together == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("phase", ["leaving", "loading"])
def test_kill_9_during_a_switch(home: Home, serve: Serve, phase: str) -> None:
    listed = {n: model(home, n, slot="main", environment={"FAKE_LOAD_SECONDS": "1.5"}) for n in "ab"}
    serve({"models": listed}, ORCHESTRATOR_WAKE_HOLD_SECONDS="60")
    with client(home) as http, sampled(home) as samples:
        assert http.post("/v1/chat/completions", json=chat("a")).status_code == 200
        assert http.post("/slots/main/switch", json={"model": "b"}).status_code == 202
        until(lambda: (now := slot(home))["phase"] == phase and (phase == "leaving" or now["loaded"] == "b"))
        home.end(signal.SIGKILL)
        home.serve()
    with client(home) as http:
        for name in "ba":
            answer = http.post("/v1/chat/completions", json=chat(name))
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == name
    assert samples.together == []
    services = home.ask("GET", "/api/services", params={"status": "running"})
    assert len(services) == 1, "one model is loaded, and nothing else was left"
    assert len(engines(home)) == 1


def test_a_queued_request_wakes_its_model(home: Home, serve: Serve) -> None:
    """And one for the other model of the slot has its turn, too."""
    listed = {"slots": {"gpu": {}}, "models": {name: model(home, name, slot="gpu") for name in ("a", "b")}}
    serve(listed, ORCHESTRATOR_WAKE_HOLD_SECONDS="1")
    with client(home) as http:
        jobs = [http.post("/v1/chat/completions", json=chat(name) | {"async": True}).json() for name in "aabb"]
        assert [job["status"] for job in jobs] == ["queued"] * 4
        until(lambda: all(http.get(job["status_url"]).json()["status"] == "done" for job in jobs))
        answers = [http.get(job["result_url"]).json() for job in jobs]
        assert [answer["model"] for answer in answers] == list("aabb")
        unknown = http.post("/v1/chat/completions", json=chat("c") | {"async": True})
        assert unknown.status_code == 404

"""Clients that go on asking while something is broken, and what became of each of their requests."""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import httpx2

from tests.e2e.deployment import laptop_api, wait_for

# "shown": a stream that ended with an error event; "truncated": one that ended as if it were complete, and was not.
Word = Literal["ok", "refused", "broken", "shown", "truncated"]
ENDS: tuple[Word, ...] = ("ok", "refused", "broken", "shown", "truncated")


@dataclass(frozen=True)
class Outcome:
    """One request: when it began, how long it took, its status (0 for none), and the answer or what broke."""

    began: float
    seconds: float
    word: Word
    status: int
    text: str
    retry_after: str | None = None


Ask = Callable[[httpx2.Client], Outcome]


def getting(path: str) -> Ask:
    return lambda http: _asked(http, "GET", path, None)


def prompting(service: str, prompt: str = "hello") -> Ask:
    """A prompt to one service."""
    return prompting_at(f"/api/v1/services/{service}/v1/chat/completions", prompt)


def prompting_at(path: str, prompt: str = "hello", **fields: object) -> Ask:
    return lambda http: _asked(http, "POST", path, {"messages": [{"role": "user", "content": prompt}], **fields})


def streaming(service: str, prompt: str = "delay 0.2 one two three four five six seven eight") -> Ask:
    path = f"/api/v1/services/{service}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True}
    return lambda http: _streamed(http, path, body)


def _asked(http: httpx2.Client, method: str, path: str, body: object) -> Outcome:
    began = time.monotonic()
    try:
        response = http.request(method, path, json=body)
    except httpx2.TransportError as exc:
        return Outcome(began, time.monotonic() - began, "broken", 0, f"{type(exc).__name__}: {exc}")
    word: Word = "ok" if response.status_code == 200 else "refused"
    took = time.monotonic() - began
    return Outcome(began, took, word, response.status_code, response.text, response.headers.get("retry-after"))


def _streamed(http: httpx2.Client, path: str, body: object) -> Outcome:
    began, status, told, retry_after, text = time.monotonic(), 0, "", None, b""
    try:
        with http.stream("POST", path, json=body) as response:
            status, retry_after = response.status_code, response.headers.get("retry-after")
            for data in response.iter_bytes():
                text += data
    except httpx2.TransportError as exc:
        told = f"{type(exc).__name__}: {exc}"
    took = time.monotonic() - began
    return Outcome(began, took, _ended(status, told, text), status, told or text.decode(), retry_after)


def _ended(status: int, told: str, text: bytes) -> Word:
    if told:
        return "broken"
    if status != 200:
        return "refused"
    events = [line.removeprefix("data: ") for line in text.decode().splitlines() if line.startswith("data: ")]
    if events and events[-1] == "[DONE]":
        return "ok"
    return "shown" if events and "error" in json.loads(events[-1]) else "truncated"


class Traffic:
    """The outcomes of clients that are still asking, or have asked."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._stop = threading.Event()

    def words(self) -> dict[str, int]:
        counted = Counter(outcome.word for outcome in self.outcomes)
        return {word: counted[word] for word in ENDS if counted[word]}

    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.word != "ok"]

    def worst(self) -> float:
        return max(outcome.seconds for outcome in self.outcomes)

    def ok_since(self, moment: float) -> int:
        """How many requests that began after a moment have been answered well."""
        return sum(outcome.word == "ok" and outcome.began > moment for outcome in self.outcomes)

    def more(self, number: int) -> None:
        """Wait for so many further outcomes."""
        enough = len(self.outcomes) + number
        wait_for(lambda: len(self.outcomes) >= enough, f"{number} more requests are over", 60)

    def go_on(self, asks: Sequence[Ask], pause: float, port: int) -> None:
        """One client: each question in turn, until `stop`."""
        with laptop_api(port) as api:
            while not self._stop.is_set():
                for ask in asks:
                    self.outcomes.append(ask(api.http))
                    self._stop.wait(pause)

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def traffic(*asks: Ask, clients: int = 2, pause: float = 0.05, port: int = 8001) -> Iterator[Traffic]:
    """Clients on the network of the calling thread, which ask one question after the other; all have an answer at the
    end."""
    one = Traffic()
    threads = [threading.Thread(target=one.go_on, args=(asks, pause, port)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield one
    finally:
        one.stop()
        for thread in threads:
            thread.join(90)
    assert not any(thread.is_alive() for thread in threads), "a request hangs"


def p99(outcomes: Sequence[Outcome]) -> float:
    """Within how many seconds 99 of 100 were over."""
    return sorted(outcome.seconds for outcome in outcomes)[math.ceil(len(outcomes) * 0.99) - 1]


def holds(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Watch for so long that a condition goes on holding."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition(), f"not for {seconds:g} s: {what}"
        time.sleep(0.1)

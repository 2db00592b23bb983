"""One chain, measured: figures by name. What the names mean is said in docs/performance.md."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import native
from bench.chains import Chain, first_answer
from bench.parts import MODEL, Place
from bench.processes import BESIDE, busy_seconds, of_program, on_core, resident_megabytes, run_seconds, tree

Figures = dict[str, float]
_WARM_SECONDS = 0.3
_STREAMS = 64
_SLOW_EVENTS = 150
_RECONNECTS = 3


class WrongAnswers(Exception):
    """Some answers were not what the replicas had sent; no figure is made of such a run."""


@dataclass(frozen=True)
class Length:
    """How long each measurement takes, in seconds; `firsts` is a number of requests."""

    alone: float
    together: float
    firsts: int
    streamed: float
    beside: float


FULL = Length(alone=2, together=3, firsts=200, streamed=4, beside=1)
QUICK = Length(alone=0.7, together=1, firsts=60, streamed=1.5, beside=0.4)


@dataclass(frozen=True)
class Meter:
    """Runs the driver against a chain and looks at the clocks of its processes when the driver says so."""

    folder: Path
    chain: Chain

    def run(self, kind: str, prompt: str, *, stream: bool = False, **options: float) -> tuple[dict[str, Any], Figures]:
        """The driver's report, and the seconds that each part ran in the window. Raises WrongAnswers."""
        body = self.folder / "question.json"
        question = {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": prompt}]}
        body.write_text(json.dumps(question))
        words = [word for name, value in options.items() for word in (f"--{name}", f"{value:g}")]
        words += [word for line in self.chain.headers for word in ("--header", line)]
        words += ["--loose"] if self.chain.loose else []
        command: list[str | Path] = [native.driver(), kind, "--to", self.chain.to, "--body", body, *words]
        with on_core(BESIDE):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        report, used = self._follow(process)
        if report["errors"]:
            raise WrongAnswers(f"{kind} {options}: {report['errors']} wrong, first: {report['first_error']}")
        return report, used

    def _follow(self, process: "subprocess.Popen[str]") -> tuple[dict[str, Any], Figures]:
        assert process.stdout is not None
        seen: list[tuple[Figures, float, float]] = []
        report: dict[str, Any] = {}
        with process:
            for line in process.stdout:
                if line.startswith("{"):
                    report = json.loads(line)
                else:
                    seen.append((self._clocks(), busy_seconds(), _own_seconds()))
        if not report or len(seen) != 2:
            raise WrongAnswers(f"the driver ended with status {process.returncode} and without a report")
        (before, busy, own), (after, busy_after, own_after) = seen
        report["resident"] = {part: resident_megabytes(pids()) for part, pids in self.chain.parts.items()}
        report["foreign_cores"] = max(0.0, busy_after - busy - (own_after - own)) / report["seconds"]
        return report, {part: after[part] - before[part] for part in after}

    def _clocks(self) -> Figures:
        return {part: run_seconds(pids()) for part, pids in self.chain.parts.items()}

    def resident(self, when: str) -> Figures:
        return {f"rss_{when}/{part}": resident_megabytes(pids()) for part, pids in self.chain.parts.items()}


def _own_seconds() -> float:
    """Of all that belongs to this run, engines too that are an orchestrator's jobs and so nobody's children."""
    return run_seconds({*tree(os.getpid()), *of_program(native.replica().resolve())})


def measured(chain: Chain, place: Place, direct: Chain, length: Length) -> Figures:
    """All figures of one chain, with those of the direct path beside it. Raises WrongAnswers."""
    meter = Meter(place.folder, chain)
    figures: Figures = {"start_s": chain.started}
    figures |= meter.resident("idle")
    figures |= {f"direct_{name}": value for name, value in beside(Meter(place.folder, direct), length).items()}
    figures |= plain(meter, length) | streamed(meter, length)
    figures |= meter.resident("after")
    if chain.through_ssh:
        figures["reconnect_ms"] = statistics.median(reconnect(chain, place) for _ in range(_RECONNECTS))
    for name in ("c1_p50", "c1_p99", "c32_p50", "c32_p99", "first_p50"):
        figures[f"added_{name}"] = figures[name] - figures[f"direct_{name}"]
    return figures


def beside(meter: Meter, length: Length) -> Figures:
    return plain(meter, Length(length.beside, length.beside, 0, 0, 0)) | first(meter, length.firsts)


def plain(meter: Meter, length: Length) -> Figures:
    figures: Figures = {}
    for connections, seconds in ((1, length.alone), (32, length.together)):
        report, used = meter.run(
            "plain", "Tell me of the sea.", connections=connections, warm=_WARM_SECONDS, seconds=seconds
        )
        name = f"c{connections}"
        figures |= _latency(name, report) | _cpu(name, used, report["window_answers"])
        figures[f"{name}_rate"] = report["window_answers"] / report["seconds"]
        figures[f"{name}_foreign"] = report["foreign_cores"]
    return figures


def first(meter: Meter, requests: int) -> Figures:
    report, _ = meter.run("stream", "rate 0 count 1", stream=True, requests=requests, count=1)
    return {"first_p50": report["first"]["p50"], "first_p99": report["first"]["p99"]}


def streamed(meter: Meter, length: Length) -> Figures:
    figures = first(meter, length.firsts)
    for rate in (25, 100):
        count = int((_WARM_SECONDS + length.streamed) * rate) + 10
        report, used = meter.run(
            "stream", f"rate {rate} count {count}", stream=True,
            connections=_STREAMS, count=count, warm=_WARM_SECONDS, seconds=length.streamed,
        )  # fmt: skip
        figures |= _latency(f"s{rate}", report) | _cpu(f"s{rate}", used, report["window_events"])
    report, _ = meter.run("stream", f"rate 50 count {_SLOW_EVENTS}", stream=True, count=_SLOW_EVENTS)
    return figures | {"slowest_ms": report["latency"]["max"] / 1000}


def reconnect(chain: Chain, place: Place) -> float:
    """Milliseconds from the death of sshd's session to the next answer."""
    began = time.monotonic()
    place.sshd.kill_sessions()
    return (first_answer(chain) - began) * 1000


def _latency(name: str, report: Mapping[str, Any]) -> Figures:
    return {f"{name}_p50": report["latency"]["p50"], f"{name}_p99": report["latency"]["p99"]}


def _cpu(name: str, used: Mapping[str, float], number: int) -> Figures:
    """Microseconds for each answer or event: of all parts together, and of each."""
    each = {f"{name}_cpu/{part}": seconds / number * 1e6 for part, seconds in used.items()}
    return {f"{name}_cpu": sum(each.values()), **each}


def medians(runs: Sequence[Figures]) -> Figures:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]} if runs else {}

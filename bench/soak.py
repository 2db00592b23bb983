"""`make soak`: load of every kind through the whole chain, with clients that leave and engines that die.

At the end both processes must hold what they held before: tasks, files, memory.
"""

import asyncio
import json
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx2

from bench import native, parts
from bench.chains import ASYNCSSH, CONTESTANTS, Chain
from bench.client import Broken, Client, Wrong, chosen
from bench.measure import Figures, Meter
from bench.parts import Place
from bench.processes import end_well_when_told, open_files, resident_megabytes

SECONDS = 1800.0
STREAMS = 1100  # more than a login's limit of open files
_CLIENTS = 24
_KILLS = 7  # an engine that dies again and again is started after 1, 2, 4, 8 s: more would be waiting
_WARM_SECONDS = 3.0
_SETTLED_SECONDS = 2.5
_QUIET_SECONDS = 60.0
_ENGINE_OPTIONS = ("--idle", "5")  # engines close idle connections, as vLLM does
# What may be more at the end: connections of the health checks come and go; so do caches and counters of new labels.
_MORE_FILES, _MORE_OBJECTS, _MORE_MEGABYTES = 2, 4000, 12.0


@dataclass(frozen=True)
class Held:
    """What a process of ours has at one moment."""

    tasks: int
    files: int
    objects: int
    megabytes: float

    def leaks(self, now: "Held", name: str) -> list[str]:
        """What is more now than it may be."""
        most = Held(
            self.tasks, self.files + _MORE_FILES, self.objects + _MORE_OBJECTS, self.megabytes + _MORE_MEGABYTES
        )
        grown = [key for key, value in vars(now).items() if value > vars(most)[key]]
        return [f"{name}: {key} went from {vars(self)[key]:g} to {vars(now)[key]:g}" for key in grown]


@dataclass
class Outcome:
    """What became of the requests. `problems` is empty when all is well."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    before: dict[str, Held] = field(default_factory=dict)
    after: dict[str, Held] = field(default_factory=dict)


class Soak:
    """One run on a chain that is up. `home` is the folder below which the engines run."""

    def __init__(self, chain: Chain, place: Place, seconds: float) -> None:
        self._chain, self._place, self._seconds = chain, place, seconds
        self._pids = {name: chain.parts[name]()[0] for name in ("gateway", "orchestrator")}
        self._kills: list[float] = []
        self.outcome = Outcome()

    def run(self) -> Outcome:
        fresh = self._held()
        asyncio.run(self._load(_WARM_SECONDS))
        # The gateway asks for it now and then; the first question to any route makes all of them.
        self._asked("/api/usage")
        self._wait(lambda: self._is_quiet(fresh), "quiet after warming up")
        self.outcome.before = self._held()
        asyncio.run(self._load_and_kill())
        self._wait(lambda: self._is_quiet(self.outcome.before), "quiet after the load")
        self.outcome.after = self._held()
        if self.outcome.problems:
            logs = (self._place.folder / f"{name}.log" for name in self._pids)
            self.outcome.problems += [f"{log.name} ends with:\n{log.read_text()[-3000:]}" for log in logs]
        for name, before in self.outcome.before.items():
            self.outcome.problems += before.leaks(self.outcome.after[name], name)
        return self.outcome

    # Load

    async def _load_and_kill(self) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(self._load(self._seconds))
            both.create_task(self._kill())

    async def _load(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as clients:
            for number in range(_CLIENTS):
                clients.create_task(self._work(Random(number), until))

    async def _work(self, random: Random, until: float) -> None:
        host, _, port = self._chain.to.rpartition(":")
        client = Client(host, int(port))
        while time.monotonic() < until:
            question, began = chosen(random), time.monotonic()
            try:
                whole = await client.ask(question)
            except TimeoutError:
                self._problem(f"{question.kind} hung")
                client.close()
            except Wrong as exc:
                self._problem(str(exc))
            except Broken as exc:
                self._broken(question.begins, began, f"{question.kind} broke off: {exc}")
            else:
                self.outcome.counts[f"{question.kind}, {'whole' if whole else 'left'}"] += 1
        client.close()

    def _broken(self, begins: bool, began: float, text: str) -> None:
        """Allowed only to an answer that was on its way from an engine when that was killed."""
        if begins and any(began <= kill <= time.monotonic() for kill in self._kills):
            self.outcome.counts["cut by a kill"] += 1
        else:
            self._problem(text)

    def _problem(self, text: str) -> None:
        self.outcome.counts["problems"] += 1
        if len(self.outcome.problems) < 20:
            self.outcome.problems.append(text)

    async def _kill(self) -> None:
        """Engines in turn, each only while both answer."""
        for number in range(_KILLS):
            await asyncio.sleep(self._seconds / (_KILLS + 1))
            await asyncio.to_thread(self._wait, self._both_ready(), "two engines ready")
            self._kills.append(time.monotonic())
            os.kill(engines(self._place.folder)[number % 2], signal.SIGKILL)
            self.outcome.counts["engines killed"] += 1

    def _both_ready(self) -> Callable[[], bool]:
        """Whether both have answered for a while: one that has just come back is looked at once more as a new one."""
        since: float | None = None

        def ready() -> bool:
            nonlocal since
            if self._told("sluice_replicas_ready") != 2:
                since = None
            elif since is None:
                since = time.monotonic()
            return since is not None and time.monotonic() - since > _SETTLED_SECONDS

        return ready

    # Looking

    def _held(self) -> dict[str, Held]:
        return {name: self._ask(pid) for name, pid in self._pids.items()}

    def _ask(self, pid: int) -> Held:
        path = self._place.folder / f"{pid}.json"
        path.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR1)
        self._wait(path.exists, f"a word of process {pid}")
        told = json.loads(path.read_text())
        return Held(told["tasks"], open_files(pid), told["objects"], resident_megabytes([pid]))

    def _is_quiet(self, before: dict[str, Held]) -> bool:
        """No request is under way, and what was open for them is closed."""
        if self._told("sluice_service_requests_in_flight") or self._told("sluice_replicas_ready") != 2:
            return False
        now = self._held()
        return all(now[n].tasks <= b.tasks and now[n].files <= b.files + _MORE_FILES for n, b in before.items())

    def _told(self, name: str) -> float:
        """The sum of a family of the orchestrator's metrics."""
        text = self._asked("/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def _asked(self, path: str) -> str:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self._place.folder / "o.sock"))) as client:
            return client.get(f"http://orchestrator{path}").raise_for_status().text

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _QUIET_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                told = {name: vars(held) for name, held in self._held().items()} if "word" not in what else {}
                raise parts.NotStarted(f"not {what} within {_QUIET_SECONDS:g} s: {told}")
            time.sleep(0.05)


def engines(folder: Path) -> list[int]:
    """The engines that run below `folder`, by their ports."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "exe").readlink() == native.replica() and (entry / "cwd").readlink().is_relative_to(folder):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found[int(words[words.index(b"--port") + 1])] = int(entry.name)
    return [found[port] for port in sorted(found)]


@contextmanager
def chain_up() -> Iterator[tuple[Chain, Place]]:
    """Ours through SSH, whose processes tell what they hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    del soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ours = next(contestant for contestant in CONTESTANTS if contestant.name == ASYNCSSH)
    counting = (*parts.PYTHON, "bench.counting")
    with parts.placed(python=counting, engine_options=_ENGINE_OPTIONS) as place, ours.put(place) as chain:
        yield chain, place


def many_streams(chain: Chain, place: Place, count: int) -> Figures:
    """So many streams at once, 5 events a second in each, none lost and none cut; MB of each process meanwhile.

    Raises WrongAnswers.
    """
    meter = Meter(place.folder, chain)
    report, _ = meter.run(
        "stream", "rate 5 count 30", stream=True, connections=count, count=30, warm=3, seconds=2, limit=50
    )
    resident: Figures = report["resident"]
    return resident


def table_of(outcome: Outcome, streams: Figures) -> str:
    """What both processes held before and after, for docs/performance.md. `streams`: MB with so many open at once."""
    lines = [
        f"| process | tasks | open files | Python objects | MB | MB with {STREAMS:,} streams |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, before in outcome.before.items():
        after = outcome.after[name]
        pairs = [(vars(before)[key], vars(after)[key]) for key in ("tasks", "files", "objects", "megabytes")]
        cells = [f"{was:,.0f} → {now:,.0f}" for was, now in pairs]
        lines.append(f"| {name} | {' | '.join(cells)} | {streams[name]:,.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    seconds = float(arguments[0]) if arguments else SECONDS
    end_well_when_told()
    with chain_up() as (chain, place):
        outcome = Soak(chain, place, seconds).run()
    with chain_up() as (chain, place):  # one whose engines have not been killed
        streams = many_streams(chain, place, STREAMS)
    for what, number in sorted(outcome.counts.items()):
        print(f"{number:>9} {what}")
    print(f"\nBefore → after {seconds:g} s of load:\n\n{table_of(outcome, streams)}\n")
    for problem in outcome.problems:
        print(f"PROBLEM: {problem}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

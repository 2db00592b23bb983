"""`make bench`: everything side by side; the table goes into docs/performance.md, all numbers into bench/results."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import native, parts, table
from bench.chains import CONTESTANTS, Chain, Contestant
from bench.measure import FULL, QUICK, Figures, Length, WrongAnswers, measured, medians
from bench.processes import end_well_when_told
from tests.gateway.sshd import BINARY

_ROOT = Path(__file__).parents[1]


def main() -> int:
    options = _options()
    end_well_when_told()
    lacking = _lacking()
    if lacking:
        say(lacking)
        return 1
    chosen = _chosen(options.only)
    if not chosen:
        return 1
    length = QUICK if options.quick else FULL
    runs, failures = _repeat(chosen, options.repetitions or (1 if options.quick else 5), length)
    result = {
        "machine": table.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "length": asdict(length),
        "left_out": {c.name: c.why_not() for c in CONTESTANTS if c.why_not()},
        "failures": failures,
        "runs": runs,
    }
    path = _keep(result, options.into / "bench" / "results")
    text = table.rendered(result, {name: medians(figures) for name, figures in runs.items()})
    print(text)
    document = options.into / "docs" / "performance.md"
    if options.write:
        table.put_into(document, text)
    say(f"all numbers are in {path}" + (f", the table is in {document}" if options.write else ""))
    return 1 if failures else 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short repetition, for development")
    parser.add_argument("--repetitions", type=int, help="5, with --quick 1")
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="only what has one of these, comma-separated, in its name"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--into", type=Path, default=_ROOT, metavar="FOLDER", help="the project that gets the results")
    return parser.parse_args()


def _lacking() -> str:
    """What no run can do without, "" when it is there."""
    try:
        native.driver()
        native.replica()
    except native.NoCompiler as exc:
        return str(exc)
    if BINARY is None:
        return "NO SSHD: apt-get install openssh-server"
    if len(os.sched_getaffinity(0)) < 2:
        return "NO SECOND CORE: what is measured and who measures need one each"
    return ""


def _chosen(words: str) -> list[Contestant]:
    chosen = []
    for contestant in CONTESTANTS:
        if words and not any(word in contestant.name for word in words.split(",")):
            continue
        if why := contestant.why_not():
            say(f"LEFT OUT: {contestant.name}: {why}")
        else:
            chosen.append(contestant)
    if not chosen:
        say(f"nothing is measured: no name has any of {words!r}; the names: {', '.join(c.name for c in CONTESTANTS)}")
    return chosen


def _repeat(
    chosen: Sequence[Contestant], repetitions: int, length: Length
) -> tuple[dict[str, list[Figures]], list[str]]:
    """The figures of each, one after the other, in the other order every second time; and what went wrong."""
    runs: dict[str, list[Figures]] = {contestant.name: [] for contestant in chosen}
    failures: list[str] = []
    for repetition in range(repetitions):
        for contestant in chosen if repetition % 2 == 0 else reversed(chosen):
            began = time.monotonic()
            try:
                runs[contestant.name].append(_one(contestant, length))
                told = "done"
            except (WrongAnswers, parts.NotStarted) as exc:
                failures.append(f"{contestant.name}, repetition {repetition + 1}: {exc}")
                told = f"FAILED: {exc}"
            say(f"{repetition + 1}/{repetitions} {contestant.name}: {told} ({time.monotonic() - began:.0f} s)")
    return runs, failures


def _one(contestant: Contestant, length: Length) -> Figures:
    with parts.placed() as place, contestant.put(place) as chain:
        return measured(chain, place, Chain(place.replicas[0], {}), length)


def _keep(result: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())

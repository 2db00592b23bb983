"""Figures as Markdown. Pure but for `machine` and `put_into`."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measure import Figures
from bench.peers import ALL
from bench.targets import TARGETS
from orchestrator.wire import mux

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NOTHING = "\N{EN DASH}"
MOST_FOREIGN = 0.2  # cores; above, latencies say more of the others on the machine than of us

Columns = Sequence[tuple[str, str]]
_PLAIN: Columns = (
    ("requests/s, 32 connections", "c32_rate"),
    ("CPU µs a request", "c32_cpu"),
    ("added p50 µs, 1 connection", "added_c1_p50"),
    ("its p99", "added_c1_p99"),
    ("added p50 µs, 32 connections", "added_c32_p50"),
    ("its p99", "added_c32_p99"),
)
_STREAMED: Columns = (
    ("added to first chunk µs", "added_first_p50"),
    ("CPU µs a chunk, 64 at 25/s", "s25_cpu"),
    ("chunk p50 µs", "s25_p50"),
    ("p99", "s25_p99"),
    ("CPU µs a chunk, 64 at 100/s", "s100_cpu"),
    ("chunk p50 µs", "s100_p50"),
    ("p99", "s100_p99"),
    ("slowest of 150 ms", "slowest_ms"),
)
_PARTS = ("c32_cpu", "s25_cpu", "s100_cpu", "rss_idle", "rss_after")


def machine() -> dict[str, Any]:
    told = Path("/proc/cpuinfo").read_text().splitlines()
    cpus = [line.partition(":")[2].strip() for line in told if line.startswith("model name")] or [platform.machine()]
    versions = {peer.name: peer.version() for peer in ALL if peer.found()}
    return {
        "processor": cpus[0],
        "cores": len(cpus),
        "Linux": platform.release(),
        "Python": platform.python_version(),
        "our data path": "as Python" if mux.__file__.endswith(".py") else "compiled",
    } | (versions)


def rendered(result: Mapping[str, Any], figures: Mapping[str, Figures]) -> str:
    """`figures`: the medians of each contestant that gave any."""
    measured = {name: of for name, of in figures.items() if of}
    sections = [
        _conditions(result, measured),
        "### Targets",
        _targets(measured),
        "### Plain answers",
        _columns(_PLAIN, measured),
        "### Streams",
        _columns(_STREAMED, measured),
        "### Starting, and connecting again",
        _columns((("start to first answer s", "start_s"), ("reconnect ms", "reconnect_ms")), measured),
        "### Each process",
        _parts(measured),
        *_remarks(result),
    ]
    return "\n\n".join(sections)


def _conditions(result: Mapping[str, Any], figures: Mapping[str, Figures]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    runs = max((len(of) for of in result["runs"].values()), default=0)
    foreign = max((of["c32_foreign"] for of in figures.values()), default=0.0)
    judged = "" if foreign <= MOST_FOREIGN else " **That is too much: latencies and requests/s are not to be judged.**"
    others = f"Others on the machine used at most {foreign:.2f} cores in the median of any contestant.{judged}"
    return f"Measured {result['date']}; {told}. Medians of {runs}. {others}"


def _targets(figures: Mapping[str, Figures]) -> str:
    rows = []
    for target in TARGETS:
        reached = target.reached(figures)
        met = NOTHING if reached is None else "met" if target.is_met(reached) else "**missed**"
        rows.append([target.words, target.ours, target.against or NOTHING, target.wanted, number(reached), met])
    return _table(["figure", "ours", "against", "wanted", "reached", ""], rows)


def _columns(columns: Columns, figures: Mapping[str, Figures]) -> str:
    rows = [[name, *(number(of.get(key)) for _, key in columns)] for name, of in figures.items()]
    return _table(["", *(name for name, _ in columns)], rows)


def _parts(figures: Mapping[str, Figures]) -> str:
    head = ["", "process", "CPU µs a request", "a chunk at 25/s", "a chunk at 100/s", "MB idle", "MB after"]
    rows = []
    for name, of in figures.items():
        parts = [key.partition("/")[2] for key in of if key.startswith("rss_idle/")]
        rows += [[name, part, *(number(of.get(f"{key}/{part}")) for key in _PARTS)] for part in parts]
    return _table(head, rows)


def _remarks(result: Mapping[str, Any]) -> list[str]:
    left_out = [f"- left out: {name}: {why}" for name, why in result["left_out"].items()]
    failures = [f"- **failed**: {failure}" for failure in result["failures"]]
    return ["\n".join(left_out + failures)] if left_out or failures else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    number_columns = "|".join("---" if _is_text(column, rows) else "---:" for column in range(len(head)))
    lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], f"|{number_columns}|", *lines[1:]])


def _is_text(column: int, rows: Sequence[Sequence[str]]) -> bool:
    cells = [row[column] for row in rows if row[column] != NOTHING]
    return not cells or not all(cell[:1].isdigit() or cell[:1] == "-" for cell in cells)


def number(value: float | None) -> str:
    """With three digits that count."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def put_into(document: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Between the two marks; everything else in the document stays."""
    before = document.read_text()
    head, begun, rest = before.partition(begin)
    _, ended, tail = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"{document} has no lines {begin} and {end}: put them where the table belongs")
    document.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")

"""Answers as tables for a terminal and as lines with tabs for other programs: pure."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the dashboard needs the words alone, and rich costs it 2 MB
    from rich.table import Table

# What could move the cursor or colour the screen; a line break and a tab are harmless in running text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COLOURS = {
    "running": "green", "healthy": "green", "ok": "green", "done": "green", "configuring": "yellow",
    "loading": "yellow", "pending": "yellow", "warning": "yellow", "failed": "red", "error": "red", "lost": "red",
    "timeout": "red", "node_fail": "red", "out_of_memory": "red",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """`of`: a field's name, or what makes the cell of a row."""

    title: str
    of: str | Callable[[Any], Any]

    def cell(self, row: Mapping[str, Any]) -> str:
        value = row.get(self.of) if isinstance(self.of, str) else self.of(row)
        return " ".join(plain(said(value)).split())


def said(value: Any) -> str:
    """One value for a person. A time loses its fractions: 2026-11-21T12:10:00.123Z → 2026-11-21 12:10:00."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    if isinstance(value, str):
        moment = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(Z|\+00:00)", value)
        return f"{moment[1]} {moment[2]}" if moment else value
    if isinstance(value, Sequence):
        return ", ".join(said(item) for item in value) or "-"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)


def plain(text: str) -> str:
    """Without control characters: names and reasons come from elsewhere."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def tabbed(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> str:
    """A line for each row, without titles."""
    return "".join("\t".join(column.cell(row) for column in columns) + "\n" for row in rows)


def table(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column.title.upper(), overflow="fold")
    for row in rows:
        cells = (column.cell(row) for column in columns)
        shown.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in cells))
    return shown


def pairs(answer: Mapping[str, Any], names: Iterable[str]) -> list[dict[str, Any]]:
    """Some fields of one answer as rows of `FIELDS`; those without a value are left out."""
    return [{"field": name, "value": answer[name]} for name in names if answer.get(name) not in (None, "", [], {})]


FIELDS = (Column("field", "field"), Column("value", "value"))

"""Values in words, for templates: pure."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from gateway.console.progress import length


def read(moment: str) -> datetime:
    """ISO 8601; without a zone it is UTC."""
    found = datetime.fromisoformat(moment)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def moment(text: str | None, none: str = "—") -> Markup | str:
    """A time as an element that the page's script puts into words ("3 min ago"), which do not make a piece another."""
    if not text:
        return none
    at = read(text).astimezone(UTC)
    shown = at.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at.isoformat(), shown, shown)


def seconds_between(since: str | None, until: str | None) -> float | None:
    """None where one is not known. Not below 0: one of the two may be in whole seconds, as Slurm's times are."""
    return None if not since or not until else max(0.0, (read(until) - read(since)).total_seconds())


def minutes(count: float | None) -> str:
    """90 → "1 h 30 min", 60 → "1 h"."""
    if count is None:
        return "—"
    hours, rest = divmod(round(count), 60)
    return " ".join(
        part for part in (f"{hours} h" if hours else "", f"{rest} min" if rest or not hours else "") if part
    )


def count(number: int, noun: str) -> str:
    """1, "replica" → "1 replica"; 2 → "2 replicas"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def bytes_(number: float | None) -> str:
    """In powers of 1024: 15231271888 → "14.2 GiB"."""
    if number is None:
        return "—"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "moment": moment,
    "minutes": minutes,
    "duration": length,
    "count": count,
    "bytes": bytes_,
}

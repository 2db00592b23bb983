"""Reading what the API has answered, which is JSON of another version perhaps. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def mapping(value: Any) -> Mapping[str, Any]:
    """{} for anything else."""
    return value if isinstance(value, Mapping) else {}


def moment(value: Any) -> datetime | None:
    """Of ISO 8601; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def age(value: Any, now: float) -> float | None:
    """Seconds since a time of the API's."""
    found = moment(value)
    return None if found is None else now - found.timestamp()


def said_time(value: Any) -> str:
    found = moment(value)
    return "its start" if found is None else f"{found.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def dotted(numbers: tuple[int, ...]) -> str:
    """A version; of Slurm's the second part has two digits."""
    return ".".join(f"{one:02d}" if place == 1 and numbers[0] > 19 else str(one) for place, one in enumerate(numbers))

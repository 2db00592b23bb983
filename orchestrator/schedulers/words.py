"""Slurm's words for states, times and numbers, read: pure."""

import re
from datetime import UTC, datetime, timedelta

from orchestrator.models import JobState

REASONLESS = frozenset({"", "None", "(null)"})


def number(text: str, digits: int) -> int | None:
    return int(text) if len(text) <= digits and text.isascii() and text.isdigit() else None


def parse_time(text: str) -> datetime | None:
    """An epoch second as UTC; None for `N/A`, `NONE`, `Unknown` and for 0."""
    seconds = number(text, 11)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def parse_state(text: str) -> JobState:
    """Slurm's word, `CANCELLED by 1000` included. UNKNOWN for a word that no release known here has."""
    word = text.split()[0].rstrip("+") if text.split() else ""
    ours = (JobState.SUBMITTING, JobState.LOST)
    return JobState(word) if word in JobState.__members__ and word not in ours else JobState.UNKNOWN


def parse_limit(text: str) -> timedelta | None:
    """`30:00`, `2:00:00` or `1-00:00:00`; None for `infinite`, `UNLIMITED` and what is not understood."""
    match = re.fullmatch(r"(?:(\d{1,5})-)?(?:(\d{1,5}):)?(\d{1,5}):(\d{1,2})", text, re.ASCII)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)

"""When a service that nobody uses is ended. Pure.

    last use      noted by a turn                 warning        end
       ├──────────────┼── … ──────────────────────────┼────────────┤
       idle_since                                     20 % of the timeout, at most 5 minutes

Idleness counts from the last request, from the first answer, or from `POST …/activity`, whichever was last, and never
while a request is open. What counts is time in which the service could be asked: it was on (its job runs and has
answered), and an orchestrator was there. Other time moves `idle_since` on. But of each gap between two turns `UNSEEN`
counts as idleness, so that also an orchestrator that is restarted again and again ends what nobody uses. The same rule
makes up for a clock that is set.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

UNSEEN = timedelta(seconds=30)  # of each gap between two turns that counts as idle; turns are noted every 15 s
MOST_WARNING = timedelta(minutes=5)


@dataclass(frozen=True)
class Idleness:
    """What is known of one service's idleness; all of it None before it first answered.

    `last_activity`: when it was last used, for people. `since`: from when its idleness counts. `looked_at`: the last
    turn that counted it. `stamp`: the last use that has been taken into account, as the request's clock told it.
    """

    last_activity: datetime | None = None
    since: datetime | None = None
    looked_at: datetime | None = None
    stamp: datetime | None = None


class Act(StrEnum):
    NOTHING = "nothing"
    WARN = "warn"
    END = "end"


def seen(
    idle: Idleness, *, ready_at: datetime | None, used: datetime | None, busy: bool, on: bool, now: datetime
) -> Idleness:
    """What a turn makes of it. `used`: the last use that this process knows of; `busy`: a request is open now."""
    if on or idle.looked_at is not None:
        idle = replace(idle, since=_since(idle, ready_at, on, now), looked_at=now)
    if used is not None and used != idle.stamp:
        used_at = min(used, now)  # the clock may have been set back since
        idle = replace(idle, last_activity=used_at, since=used_at, stamp=used)
    return replace(idle, since=now) if busy else idle


def _since(idle: Idleness, ready_at: datetime | None, on: bool, now: datetime) -> datetime:
    """From when idleness counts, without what has passed since the last turn and was none."""
    if idle.looked_at is None:  # its first answer
        return min(max(idle.since or ready_at or now, ready_at or now), now)
    since, gap = idle.since or now, now - idle.looked_at
    if not on or gap < timedelta(0):
        since += gap
    elif gap > UNSEEN:
        since += gap - UNSEEN
    return min(since, now)


def ends_at(since: datetime | None, timeout: float | None) -> datetime | None:
    """When a service that stays idle is ended; None for never. `timeout`: minutes."""
    return None if since is None or timeout is None else since + timedelta(minutes=timeout)


def warned_from(end: datetime, timeout: float) -> datetime:
    return end - min(timedelta(minutes=timeout) / 5, MOST_WARNING)


def decide(idle: Idleness, *, timeout: float | None, busy: bool, on: bool, now: datetime) -> Act:
    """What is to be done now. `timeout`: minutes, None for never."""
    end = ends_at(idle.since, timeout)
    if end is None or timeout is None or busy or not on:
        return Act.NOTHING
    if now >= end:
        return Act.END
    return Act.WARN if now >= warned_from(end, timeout) else Act.NOTHING

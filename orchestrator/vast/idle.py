"""When a rented machine is stopped because nobody uses it. Pure."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from orchestrator.replicas import Replica
from orchestrator.settings import Vast


def last_use(told: datetime | None, replicas: Sequence[Replica], now: datetime) -> datetime | None:
    """When it was last used, None when that was never. `told`: what we were told. A request under way uses it now."""
    if any(replica.in_flight for replica in replicas):
        return now
    return max((at for at in (told, *(r.last_used for r in replicas)) if at is not None), default=None)


def idle_minutes(used_at: datetime, now: datetime) -> float:
    return max(0.0, (now - used_at) / timedelta(minutes=1))


def is_due(settings: Vast, used_at: datetime, now: datetime) -> bool:
    return settings.auto_shutdown and idle_minutes(used_at, now) >= settings.auto_shutdown_minutes


def minutes_left(settings: Vast, used_at: datetime, now: datetime) -> int | None:
    """Until it is stopped, rounded up; None where that is never done."""
    if not settings.auto_shutdown:
        return None
    return max(0, math.ceil(settings.auto_shutdown_minutes - idle_minutes(used_at, now)))

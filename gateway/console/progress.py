"""What a service is doing, in words, from `GET /services/{id}`: pure."""

from dataclasses import dataclass, field

from gateway.client.shapes import ServiceDetail
from gateway.console.tables import said


def phase(service: ServiceDetail) -> str:
    """queued, starting (it has its node), loading (its job runs), ready or ended; suspended is the scheduler's."""
    status = service["status"]
    if status == "configuring":
        return "loading" if service["job"]["state"] == "RUNNING" else "starting"
    return {"pending": "queued", "running": "ready", "suspended": "suspended"}.get(status, "ended")


def told(service: ServiceDetail) -> str:
    """One line: the phase, where, and why it is not further yet."""
    now, where, why = phase(service), ", ".join(service["nodes"]), service["reason"]
    if now == "queued":
        expected = service["estimated_start"]
        start = f"; expected to start at {said(expected)} UTC" if expected else ""
        return f"queued{f': {why}' if why else ''}{start}{_stale(service)}"
    if now == "ready":
        return f"ready at {service['endpoint']}"
    if now == "ended":
        return f"{service['status']}{f': {why}' if why else ''}"
    return f"{now}{f' on {where}' if where else ''}{f': {why}' if why else ''}{_stale(service)}"


def _stale(service: ServiceDetail) -> str:
    return (
        f" (the scheduler has not answered since {said(service['stale_since'])} UTC)" if service["stale_since"] else ""
    )


@dataclass
class Story:
    """Which phases a service went through, and for how long. `seconds` are those of a clock that starts at 0."""

    now: str | None = None
    since: float = 0
    passed: list[tuple[str, float]] = field(default_factory=list)

    def look(self, service: ServiceDetail, seconds: float) -> str | None:
        """The phase that is over now, with its length, or None."""
        found = phase(service)
        if found == self.now:
            return None
        over = None
        if self.now is not None:
            self.passed.append((self.now, seconds - self.since))
            over = f"{self.now}: {length(seconds - self.since)}"
        self.now, self.since = found, seconds
        return over


def length(seconds: float) -> str:
    """42 → "42 s", 125 → "2 min 5 s", 7300 → "2 h 1 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

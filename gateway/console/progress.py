"""What a service is doing, in words, from `GET /services/{id}`: pure."""

from dataclasses import dataclass, field

from gateway.console.tables import said
from gateway.shapes import ServiceDetail


def phase(service: ServiceDetail) -> str:
    """queued, allocated (it has its node), ready or ended; suspended is the scheduler's. While its job runs what its
    engine says it does: starting, downloading, loading, compiling, warming up, serving."""
    status = service["status"]
    if status == "configuring":
        if service["job"]["state"] != "RUNNING":
            return "allocated"
        progress = service.get("progress")
        return progress["phase"] if progress else "loading"
    return {"pending": "queued", "running": "ready", "suspended": "suspended"}.get(status, "ended")


def told(service: ServiceDetail) -> str:
    """One line: the phase, where, and why it is not further yet."""
    now, where, why = phase(service), ", ".join(service["nodes"]), service["reason"]
    if now == "queued":
        expected = service["estimated_start"]
        start = f"; expected to start at {said(expected)} UTC" if expected else ""
        ahead = service.get("queue_position")
        place = f"; position {ahead} in the queue" if ahead is not None else ""
        return f"queued{f': {why}' if why else ''}{place}{start}{_stale(service)}"
    if now == "ready":
        return f"ready at {service['endpoint']}"
    if now == "ended":
        return f"{service['status']}{f': {why}' if why else ''}"
    doing = _doing(service) or why
    return f"{now}{f' on {where}' if where else ''}{f': {doing}' if doing else ''}{_stale(service)}"


def about(service: ServiceDetail) -> str:
    """What a line tells of, but for numbers that run: the phase, and what it waits for."""
    return f"{phase(service)}: {service['reason']}"


def _doing(service: ServiceDetail) -> str:
    """The engine's own words on its loading, with its own percentage."""
    progress = service.get("progress")
    if service["status"] != "configuring" or not progress:
        return ""
    percent = progress["percent"]
    return progress["text"] + ("" if percent is None else f", {percent:.0f} %")


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

    def told(self) -> str:
        """ " (queued 1 min 1 s, loading 30 s)": all phases that are over, each in the order of its beginning."""
        took: dict[str, float] = {}
        for name, seconds in self.passed:
            took[name] = took.get(name, 0) + seconds
        return f" ({', '.join(f'{name} {length(seconds)}' for name, seconds in took.items())})" if took else ""

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


def amount(size: float) -> str:
    """15_231_271_888 → "15.2 GB", 412_000_000 → "412.0 MB", 999 → "1.0 kB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def length(seconds: float) -> str:
    """42 → "42 s", 125 → "2 min 5 s", 7300 → "2 h 1 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

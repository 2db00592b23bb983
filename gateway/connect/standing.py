"""What stands where the orchestrator is, as `manage.sh` tells it. Text in, facts out."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Literal, get_args

SCRIPT = files("gateway.connect").joinpath("manage.sh").read_text(encoding="utf-8")

_MARK = "sluice:"
Running = Literal["yes", "no", "queued", "elsewhere"]


@dataclass(frozen=True)
class Told:
    """What the script has told: name → values, in their order."""

    values: dict[str, list[str]]

    def last(self, name: str) -> str:
        """ "" when it was not told."""
        return self.values.get(name, [""])[-1]

    def all(self, name: str) -> list[str]:
        return self.values.get(name, [])

    @property
    def trouble(self) -> str:
        """What went wrong and the last words of what did, "" for nothing."""
        words = "".join(f"\n  {line}" for line in self.all("words"))
        return self.last("error") + words if self.last("error") else ""


def told(output: str) -> Told:
    """Read what the script has printed; a login shell's own words are passed over."""
    values: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(_MARK):
            name, _, value = line.removeprefix(_MARK).partition("=")
            values.setdefault(name, []).append(value)
    return Told(values)


@dataclass(frozen=True)
class Standing:
    """`installed`: the name of the current version, `version` its number, "" where it tells none.

    `running`: on this `host`, not at all, or `elsewhere`: then `where` is the other one. `runs`: the name of the
    version that runs and `how` it was started, both "" for one that somebody started by hand. `job`: the Slurm job that
    it is in, then `where` is a compute node; while that is `queued`, `waits` says for what. `before`: "job" for one
    that does not run because its job has ended by itself.
    """

    state: str = ""
    host: str = ""
    installed: str = ""
    version: str = ""
    present: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ()  # of our own
    has_site: bool = False
    socket: str = ""
    running: Running = "no"
    where: str = ""
    pid: int | None = None
    runs: str = ""
    how: str = ""
    since: datetime | None = None
    job: str = ""
    waits: str = ""
    before: str = ""


def standing(output: str) -> Standing:
    """What `status` has printed."""
    said = told(output)
    running: Running = next((one for one in get_args(Running) if one == said.last("running")), "no")
    name, _, how = said.last("mark").partition(" ")
    return Standing(
        state=said.last("state"),
        host=said.last("host"),
        installed=said.last("installed"),
        version=said.last("version"),
        present=tuple(said.all("present")),
        packages=tuple(said.all("packages")),
        pythons=tuple(said.all("python")),
        has_site=said.last("site") == "yes",
        socket=said.last("socket"),
        running=running,
        where=said.last("where"),
        pid=_number(said.last("pid")),
        runs=name,
        how=how,
        since=_time(said.last("since")),
        job=said.last("job"),
        waits=said.last("waits"),
        before=said.last("before"),
    )


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _time(text: str) -> datetime | None:
    seconds = _number(text)
    return None if seconds is None or seconds > 1 << 40 else datetime.fromtimestamp(seconds, UTC)


def names(versions: Iterable[str]) -> str:
    return ", ".join(versions) or "none"

"""What the doctor has seen, stage after stage. None: not looked at, or nothing to be seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gateway.link import LinkState, Rung
from gateway.settings import Settings
from gateway.survey.facts import Survey


@dataclass(frozen=True)
class Here:
    """This machine's settings. `trouble`: why they cannot be used; then they are None. `files`: those that are read."""

    settings: Settings | None
    trouble: str = ""
    files: Sequence[Path] = ()
    url: str = "http://127.0.0.1:8001"
    version: str = ""  # of this `sluice`


@dataclass(frozen=True)
class Door:
    """What answers where the gateway should be. `listens`: "other" is something that is no gateway.

    `access`: the status with which a request that needs a key was answered; None: none was.
    """

    listens: Literal["gateway", "other", "nothing", "silent"]
    words: str = ""
    health: Mapping[str, Any] = field(default_factory=dict)
    access: int | None = None
    access_words: str = ""


@dataclass(frozen=True)
class Way:
    """From the SSH configuration to a port that answers. `first`: where the way begins: a host to jump over, or the
    login node itself; "" with a ProxyCommand. `trouble`: the configuration cannot be read."""

    host: str = ""
    port: int = 22
    user: str = ""
    first: str = ""
    first_port: int = 22
    by_command: bool = False
    named: bool = True  # the configuration or the network knows the name: it is more than the alias itself
    trouble: str = ""
    addresses: Sequence[str] = ()
    no_address: str = ""
    milliseconds: float | None = None  # until the port took a connection
    closed: str = ""  # why it took none


@dataclass(frozen=True)
class Login:
    """A login of our own. `not_tried`: why there was none. `by_question`: it was refused for want of an answer that
    only a person has. `clock`: how far the login node's clock is ahead, in seconds."""

    not_tried: str = ""
    state: LinkState | None = None
    error: str = ""
    by_question: bool = False
    via: Rung | None = None
    survey: Survey | None = None
    no_survey: str = ""
    clock: float | None = None


@dataclass(frozen=True)
class Answers:
    """What the orchestrator has answered. `health` is None when it has not; `error`: why.

    `rehearsal`: the verdicts of a preflight; `services`: the newest, those that failed or load in detail.
    """

    health: Mapping[str, Any] | None = None
    by: Literal["gateway", "own login", "nobody"] = "nobody"
    error: str = ""
    services: Sequence[Mapping[str, Any]] | None = None
    services_error: str = ""
    rehearsal: Sequence[Mapping[str, Any]] | None = None
    rehearsal_error: str = ""
    clock: float | None = None  # how far the orchestrator's clock is ahead, at least; in seconds


@dataclass(frozen=True)
class Seen:
    """All of it. `alias`: the cluster that is meant, None for an orchestrator of this machine."""

    here: Here
    alias: str | None
    now: float  # seconds since 1970
    asked_login: bool = False  # --login
    door: Door | None = None
    way: Way | None = None
    login: Login | None = None
    answers: Answers | None = None

    @property
    def tunnel(self) -> Mapping[str, Any]:
        """Of the running gateway, where that leads to the cluster that is meant; else {}."""
        tunnel = self.door.health.get("tunnel") if self.door else None
        return tunnel if isinstance(tunnel, Mapping) and self.leads_here else {}

    @property
    def leads_here(self) -> bool:
        return self.leads_to is not None and self.leads_to == (self.alias or "this machine")

    @property
    def leads_to(self) -> str | None:
        """The cluster of the running gateway, or "this machine"; None without one."""
        tunnel = self.door.health.get("tunnel") if self.door else None
        if not isinstance(tunnel, Mapping):
            return None
        return str(tunnel.get("to", "")).rpartition(" on ")[2]

    @property
    def link(self) -> tuple[str, str, str | None]:
        """State, error and rung of the connection to the login node: our own where there was one, else the gateway's.
        "" for neither."""
        if self.login is not None and self.login.state is not None:
            return self.login.state.value, self.login.error, self.login.via
        return str(self.tunnel.get("state", "")), str(self.tunnel.get("error", "")), self.tunnel.get("via")

    @property
    def survey(self) -> Survey | None:
        return self.login.survey if self.login else None

    @property
    def orchestrator(self) -> Mapping[str, Any] | None:
        return self.answers.health if self.answers else None

    @property
    def ssh(self) -> str:
        """What the user would type."""
        return f"ssh {self.alias}"

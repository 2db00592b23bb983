"""A way to reach the orchestrator: connections to its socket, and the state of what lies below them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

from gateway import shell
from gateway.remote import Said


class Unreached(OSError):
    """There is no way to the orchestrator now; nothing was sent. The text says why."""


class Crowded(Unreached):
    """As much waits for the way already as may."""


class Replacing(Unreached):
    """The orchestrator is being replaced by another version."""


class Waiting(Unreached):
    """The orchestrator is a Slurm job of its own, which does not run now."""


class LinkState(StrEnum):
    """What stands between the gateway and the orchestrator's socket. Only `up` lets requests through."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"  # tried again, after 1 s at first, 60 s at last
    AUTH_REQUIRED = "auth_required"  # tried again every 60 s: the user has to act, and sites lock out those who hammer
    HOST_KEY_UNKNOWN = "host_key_unknown"  # tried again every 60 s: the user has to accept the key
    HOST_KEY_CHANGED = "host_key_changed"  # not tried again until the known_hosts file has been changed


class Rung(StrEnum):
    """How the orchestrator's socket is reached through SSH: the rungs of the ladder, from the top."""

    UNIX_SOCKET = "unix-socket"  # SSH forwards connections to it
    BRIDGE = "bridge"  # a command on the login node carries them, where the site forbids forwarding


@dataclass(frozen=True)
class LinkStatus:
    """`where`: the orchestrator's socket, for people. `error`: what went wrong last, "" for nothing since the start;
    while the link is up, why the orchestrator cannot be reached all the same.

    `reconnects`: how often it was up again after the first time. `via`: None before the first use of a connection.
    """

    state: LinkState
    where: str
    since: datetime
    error: str = ""
    reconnects: int = 0
    via: Rung | None = None

    @property
    def promising(self) -> bool:
        """It comes up by itself, so that waiting for it makes sense."""
        return self.state in (LinkState.CONNECTING, LinkState.DOWN)

    @property
    def code(self) -> str:
        """Why no request gets through, for programs."""
        if self.state is LinkState.UP:
            return "service_unavailable"
        return "tunnel_down" if self.promising else self.state.value

    @property
    def retry_after(self) -> int:
        """Seconds after which asking again makes sense."""
        return 5 if self.state is LinkState.UP or self.promising else 60

    @property
    def advice(self) -> str:
        """Why no request gets through and what to do, as sentences for the user."""
        if self.state is LinkState.UP and self.error:
            return f"The orchestrator does not answer at {self.where}: {self.error}."
        if self.state is LinkState.UP:
            return f"The orchestrator does not answer at {self.where}; start it there with `sluice orchestrator`."
        if self.error:
            return f"There is no connection to the orchestrator at {self.where}: {self.error}"
        return f"The connection to the orchestrator at {self.where} is being opened; try again in a moment."


class Link(Protocol):
    """Opened and closed by `async with`."""

    @property
    def status(self) -> LinkStatus: ...

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """A connection to the orchestrator's socket, for the protocol that the factory makes.

        Raises Unreached, at once while the link is not up.
        """

    async def changed(self) -> None:
        """Return at the next change of `status`. Who waits here is a reason to try again soon."""

    def check(self) -> None:
        """Something speaks for a dead connection: find out, and replace it when it does not answer."""

    async def execute(self, command: str, stdin: bytes | Path = b"", seconds: float = 60) -> Said:
        """Run a command where the orchestrator is, in the home there, by whatever shell that has. `stdin`: what it
        reads, or the file that has it.

        Raises Unreached, also after so many seconds.
        """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...


class LocalLink:
    """The orchestrator of this machine, at its UNIX socket. Nothing has to be kept open."""

    def __init__(self, socket: Path) -> None:
        self._since = datetime.now(UTC)
        self._socket = socket

    @property
    def status(self) -> LinkStatus:
        return LinkStatus(LinkState.UP, f"{self._socket} on this machine", self._since)

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(factory, str(self._socket))
        except OSError as exc:
            raise Unreached(f"{self._socket}: {exc.strerror or exc}") from exc

    async def changed(self) -> None:
        await asyncio.get_running_loop().create_future()  # it never does

    def check(self) -> None:
        """There is nothing between."""

    async def execute(self, command: str, stdin: bytes | Path = b"", seconds: float = 60) -> Said:
        try:
            return await shell.run(["/bin/sh", "-c", command], stdin, seconds)
        except (OSError, TimeoutError) as exc:
            raise Unreached(f"this machine's own command failed: {exc or f'no end within {seconds:g} s'}") from exc

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return

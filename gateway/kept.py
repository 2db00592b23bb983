"""Keep one SSH connection to the login node open, whichever program speaks SSH.

The connection is opened at the start and again whenever it ends:
1. it was up and ended: at once, then as in 2;
2. the network or the host failed: after `backoff_min_seconds`, twice as long each time up to `backoff_max_seconds`,
   each delay shortened by up to a half at random, so that many laptops do not return in step;
3. the login was refused, or the host key is unknown: every 60 s, since a person has to act first;
4. the host key is another than the known one: never again in this process. It may be an attack.
"""

import asyncio
import itertools
import logging
import random
import shlex
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Self

from gateway.link import LinkState, LinkStatus
from gateway.settings import Settings

log = logging.getLogger(__name__)

_PERSON_SECONDS = 60.0  # between two tries when a person has to act first
# Both programs would take ChaCha20 first, which costs twice the CPU (asyncssh: 143 against 73 µs a request).
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"


class NotOpened(Exception):
    """No connection came about. `state` is what the link becomes; the text says what to do."""

    def __init__(self, message: str, state: LinkState) -> None:
        super().__init__(message)
        self.state = state


class Kept:
    """A link whose connection is kept open from `async with` on by a task in the background.

    `sleep`, `jitter` (a number in [0, 1)) and `now` are parameters for tests. Derived classes open the connection.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if settings.cluster is None:
            raise ValueError("a tunnel needs a cluster: set GATEWAY_CLUSTER")
        self.cluster = settings.cluster
        self.settings = settings
        self.socket = settings.remote_socket  # absolute, once the remote home is known
        self._sleep = sleep
        self._jitter = jitter
        self._now = now
        self._opened = 0  # how often it was up
        self._status = LinkStatus(LinkState.CONNECTING, self._where(), now())

    @property
    def status(self) -> LinkStatus:
        return self._status

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_open(), name="tunnel")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._keeper.cancel()
        await asyncio.wait({self._keeper})

    async def one_connection(self) -> str:
        """Open, use up and close one connection, calling `up` in between; return why it ended. Raises NotOpened."""
        raise NotImplementedError

    def up(self) -> None:
        """The connection is open."""
        self._opened += 1
        self._become(LinkState.UP)

    async def _keep_open(self) -> None:
        delays = self._delays()
        while True:
            try:
                error = await self.one_connection()
                state, delays = LinkState.DOWN, itertools.chain([0.0], self._delays())
            except NotOpened as exc:
                state, error = exc.state, str(exc)
            except Exception as exc:
                log.exception("the tunnel to %s failed in an unforeseen way", self.cluster)
                state, error = LinkState.DOWN, f"{type(exc).__name__}: {exc}"
            self._become(state, error)
            if state is LinkState.HOST_KEY_CHANGED:
                return
            await self._sleep(next(delays) if state is LinkState.DOWN else _PERSON_SECONDS)
            self._become(LinkState.CONNECTING, error)

    def _become(self, state: LinkState, error: str = "") -> None:
        if (state, error) != (self._status.state, self._status.error):
            log.log(logging.INFO if state in (LinkState.UP, LinkState.CONNECTING) else logging.WARNING,
                    "%s: %s %s", self.cluster, state, error)  # fmt: skip
        self._status = LinkStatus(state, self._where(), self._now(), error, max(self._opened - 1, 0))

    def _where(self) -> str:
        return f"{self.socket} on {self.cluster}"

    def _delays(self) -> Iterator[float]:
        """Seconds to wait before the second, third, … try."""
        delay = self.settings.backoff_min_seconds
        while True:
            yield delay * (1 - self._jitter() / 2)
            delay = min(delay * 2, self.settings.backoff_max_seconds)

    # What both programs do and say

    def greeting(self, then: str = "") -> str:
        """A command for the login node that says where its home is, and whether the orchestrator's socket is there.

        Always run, also for an absolute path: before OpenSSH 10.1 sshd sets TCP_NODELAY only when the first command
        starts on a connection; without one each small packet, so each token, waits up to 40 ms.
        """
        socket = shlex.quote(str(PurePosixPath(self.settings.remote_socket)))
        home = 'printf "sluicegate-home:%s\\n" "$HOME"'
        look = f"cd && test -S {socket} && echo sluicegate-socket; echo sluicegate-end"
        return "sh -c " + shlex.quote(f"{home}; {look}{then}")

    def greeted(self, lines: list[str]) -> None:
        """Note what the greeting has said. Raises NotOpened where the home is needed and was not told."""
        socket = PurePosixPath(self.settings.remote_socket)
        if "sluicegate-socket" not in lines:
            log.warning("no orchestrator's socket at %s on %s yet", socket, self.cluster)
        homes = [line.removeprefix("sluicegate-home:") for line in lines if line.startswith("sluicegate-home:/")]
        if not socket.is_absolute() and not homes:
            raise NotOpened(
                "the login shell did not say where the home folder is; set GATEWAY_REMOTE_SOCKET to an absolute path "
                f"(it is {str(socket)!r})",
                LinkState.DOWN,
            )
        self.socket = str(socket if socket.is_absolute() else PurePosixPath(homes[-1]) / socket)

    def refused(self, words: str) -> NotOpened:
        return NotOpened(
            f"the login was refused ({words}). Make `ssh {self.cluster}` work without a question, for example by "
            f"`ssh-add` of your key or a new certificate; it is tried again every {_PERSON_SECONDS:g} s.",
            LinkState.AUTH_REQUIRED,
        )

    def failed(self, words: str) -> NotOpened:
        return NotOpened(f"{words}. Does `ssh {self.cluster}` work? It is tried again by itself.", LinkState.DOWN)

    def late(self) -> NotOpened:
        return self.failed(f"no answer within {self.settings.connect_seconds:g} s")

    def stranger(self) -> NotOpened:
        return NotOpened(
            f"the host is not in your known_hosts. Run `ssh {self.cluster}` once, compare the fingerprint and accept "
            "it; it is tried again every minute.",
            LinkState.HOST_KEY_UNKNOWN,
        )

    def changed(self, words: str) -> NotOpened:
        return NotOpened(
            f"the host's key is not the one in your known_hosts ({words}): somebody may be listening in. Ask the site "
            f"whether it was changed, correct known_hosts until `ssh {self.cluster}` works, and restart the gateway.",
            LinkState.HOST_KEY_CHANGED,
        )

    def ended(self, words: object) -> str:
        return f"the SSH connection ended ({words or 'closed by the other side'}); it is being opened again."

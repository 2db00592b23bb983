"""Keep one SSH connection to the login node open, and show it as a way to reach the orchestrator.

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
from typing import Self, cast

import asyncssh

from gateway.hostkeys import Client, HostKeyError, HostKeys
from gateway.link import LinkState, LinkStatus, Unreached
from gateway.settings import Settings

log = logging.getLogger(__name__)

_PERSON_SECONDS = 60.0  # between two tries when a person has to act first
# asyncssh would take ChaCha20 first, which costs twice the CPU (measured, 143 against 73 µs a request).
_CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
# OSError: no network, no host. asyncssh.Error: all that SSH says. ValueError: asyncssh's words for an unreadable
# configuration or key file.
_EXPECTED = (OSError, asyncssh.Error, ValueError)


class Tunnel:
    """One SSH connection to `settings.cluster`, kept open from `async with` on by a task in the background.

    `sleep`, `jitter` (a number in [0, 1)) and `now` are parameters for tests.
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
        self._cluster = settings.cluster
        self._settings = settings
        self._sleep = sleep
        self._jitter = jitter
        self._now = now
        self._socket = settings.remote_socket
        self._connection: asyncssh.SSHClientConnection | None = None
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

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """A channel to the orchestrator's socket."""
        if self._connection is None:
            raise Unreached(self._status.advice)
        try:
            await self._connection.create_unix_connection(lambda: _Channel(factory()), self._socket)
        except (asyncssh.Error, OSError) as exc:
            raise Unreached(str(exc)) from exc

    async def _keep_open(self) -> None:
        delays = self._delays()
        while True:
            try:
                error = await self._one_connection()
                state, delays = LinkState.DOWN, itertools.chain([0.0], self._delays())
            except HostKeyError as exc:
                state, error = exc.state, str(exc)
            except _EXPECTED as exc:
                state, error = self._judge(exc)
            except Exception as exc:
                log.exception("the tunnel to %s failed in an unforeseen way", self._cluster)
                state, error = LinkState.DOWN, f"{type(exc).__name__}: {exc}"
            self._become(state, error)
            if state is LinkState.HOST_KEY_CHANGED:
                return
            await self._sleep(next(delays) if state is LinkState.DOWN else _PERSON_SECONDS)
            self._become(LinkState.CONNECTING, error)

    async def _one_connection(self) -> str:
        """Open, use up and close one connection; return why it ended. Raises what kept it from being opened."""
        client, connection = await self._connect()
        try:
            async with asyncio.timeout(self._settings.connect_seconds):
                self._socket = await self._greet(connection)
            self._connection = connection
            self._opened += 1
            self._become(LinkState.UP)
            await connection.wait_closed()
        finally:
            self._connection = None
            await _close(connection)
        return f"the SSH connection ended ({client.loss or 'closed by the other side'}); it is being opened again."

    async def _connect(self) -> tuple[Client, asyncssh.SSHClientConnection]:
        settings = self._settings
        config = [str(settings.ssh_config)] if settings.ssh_config else ()
        options = await asyncssh.SSHClientConnectionOptions.construct(
            config=config,
            host=self._cluster,
            encryption_algs=_CIPHERS,
            keepalive_interval=settings.keepalive_seconds,
            keepalive_count_max=settings.keepalive_count,
            connect_timeout=settings.connect_seconds,
        )
        host_keys = HostKeys(options, self._cluster)
        client = Client(host_keys)
        try:
            connection = await asyncssh.connect(
                self._cluster,
                config=config,
                options=options,
                known_hosts=host_keys.known,
                client_factory=lambda: client,
            )
        except asyncssh.HostKeyNotVerifiable as exc:
            raise host_keys.error(exc) from exc
        return client, connection

    async def _greet(self, connection: asyncssh.SSHClientConnection) -> str:
        """Run one command and return the absolute path of the orchestrator's socket.

        Always run, also for an absolute path: before OpenSSH 10.1 sshd sets TCP_NODELAY only when the first command
        starts on a connection; without one each small packet, so each token, waits up to 40 ms.
        """
        socket = PurePosixPath(self._settings.remote_socket)
        look = f"cd && test -S {shlex.quote(str(socket))} && echo sluicegate-socket"
        script = f'printf "sluicegate-home:%s\\n" "$HOME"; {look}'
        answer = await connection.run(
            f"sh -c {shlex.quote(script)}", encoding=None, stdin=asyncssh.DEVNULL, request_pty=False
        )
        lines = _text(answer.stdout).splitlines()
        if "sluicegate-socket" not in lines:
            log.warning("no orchestrator's socket at %s on %s yet", socket, self._cluster)
        homes = [line.removeprefix("sluicegate-home:") for line in lines if line.startswith("sluicegate-home:/")]
        if socket.is_absolute() or homes:
            return str(socket if socket.is_absolute() else PurePosixPath(homes[-1]) / socket)
        raise ConnectionError(
            f"the login shell did not say where the home folder is; set GATEWAY_REMOTE_SOCKET to an absolute path "
            f"(it is {str(socket)!r})"
        )

    def _become(self, state: LinkState, error: str = "") -> None:
        if (state, error) != (self._status.state, self._status.error):
            log.log(logging.INFO if state in (LinkState.UP, LinkState.CONNECTING) else logging.WARNING,
                    "%s: %s %s", self._cluster, state, error)  # fmt: skip
        self._status = LinkStatus(state, self._where(), self._now(), error, max(self._opened - 1, 0))

    def _where(self) -> str:
        return f"{self._socket} on {self._cluster}"

    def _judge(self, exc: Exception) -> tuple[LinkState, str]:
        words = str(exc) or type(exc).__name__
        if isinstance(exc, asyncssh.PermissionDenied | asyncssh.KeyEncryptionError):
            return LinkState.AUTH_REQUIRED, (
                f"the login was refused ({words}). Make `ssh {self._cluster}` work without a question, for example by "
                f"`ssh-add` of your key or a new certificate; it is tried again every {_PERSON_SECONDS:g} s."
            )
        if isinstance(exc, TimeoutError):
            words = f"no answer within {self._settings.connect_seconds:g} s"
        return LinkState.DOWN, f"{words}. Does `ssh {self._cluster}` work? It is tried again by itself."

    def _delays(self) -> Iterator[float]:
        """Seconds to wait before the second, third, … try."""
        delay = self._settings.backoff_min_seconds
        while True:
            yield delay * (1 - self._jitter() / 2)
            delay = min(delay * 2, self._settings.backoff_max_seconds)


class _Channel(asyncssh.SSHUNIXSession[bytes]):
    """What asyncssh tells of a channel, told to a protocol of asyncio. The channel itself is its transport."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        self._protocol.connection_made(cast(asyncio.BaseTransport, chan))

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool:
        return bool(self._protocol.eof_received())

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    """Take leave of the server if it still listens, and let go of the socket in any case."""
    connection.close()
    closed = asyncio.create_task(connection.wait_closed())
    await asyncio.wait({closed}, timeout=1)
    closed.cancel()
    connection.abort()


def _text(output: bytes | str | None) -> str:
    return output.decode("utf-8", "surrogateescape") if isinstance(output, bytes) else output or ""

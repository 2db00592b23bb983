"""The SSH connection by asyncssh, in this process: the default, which needs no program beside us."""

import asyncio
import logging
from collections.abc import Callable
from typing import cast

import asyncssh

from gateway.hostkeys import Client, HostKeys, TrustsAnybody
from gateway.kept import CIPHERS, Kept, NotOpened
from gateway.link import LinkState, Unreached

log = logging.getLogger(__name__)

# OSError: no network, no host. asyncssh.Error: all that SSH says. ValueError: asyncssh's words for an unreadable
# configuration or key file.
_EXPECTED = (OSError, asyncssh.Error, ValueError)


class Tunnel(Kept):
    _connection: asyncssh.SSHClientConnection | None = None

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """A channel to the orchestrator's socket."""
        if self._connection is None:
            raise Unreached(self.status.advice)
        try:
            await self._connection.create_unix_connection(lambda: _Channel(factory()), self.socket)
        except (asyncssh.Error, OSError) as exc:
            raise Unreached(str(exc)) from exc

    async def one_connection(self) -> str:
        try:
            client, connection = await self._connect()
            try:
                async with asyncio.timeout(self.settings.connect_seconds):
                    self.greeted(await self._greet(connection))
                self._connection = connection
                self.up()
                await connection.wait_closed()
            finally:
                self._connection = None
                await _close(connection)
        except _EXPECTED as exc:
            raise self._judge(exc) from exc
        return self.ended(client.loss)

    async def _connect(self) -> tuple[Client, asyncssh.SSHClientConnection]:
        settings = self.settings
        config = [str(settings.ssh_config)] if settings.ssh_config else ()
        options = await asyncssh.SSHClientConnectionOptions.construct(
            config=config,
            host=self.cluster,
            encryption_algs=CIPHERS,
            keepalive_interval=settings.keepalive_seconds,
            keepalive_count_max=settings.keepalive_count,
            connect_timeout=settings.connect_seconds,
        )
        try:
            host_keys = HostKeys(options)
        except TrustsAnybody as exc:
            raise NotOpened(
                f"UserKnownHostsFile is 'none' for {self.cluster} in your SSH configuration, which would trust any "
                "host. Name a file there and restart the gateway.",
                LinkState.HOST_KEY_CHANGED,
            ) from exc
        client = Client(host_keys)
        try:
            connection = await asyncssh.connect(
                self.cluster,
                config=config,
                options=options,
                known_hosts=host_keys.known,
                client_factory=lambda: client,
            )
        except asyncssh.HostKeyNotVerifiable as exc:
            raise (self.stranger() if host_keys.met_stranger else self.changed(str(exc))) from exc
        return client, connection

    async def _greet(self, connection: asyncssh.SSHClientConnection) -> list[str]:
        answer = await connection.run(self.greeting(), encoding=None, stdin=asyncssh.DEVNULL, request_pty=False)
        output = answer.stdout
        text = output.decode("utf-8", "surrogateescape") if isinstance(output, bytes) else output or ""
        return text.splitlines()

    def _judge(self, exc: Exception) -> NotOpened:
        words = str(exc) or type(exc).__name__
        if isinstance(exc, asyncssh.PermissionDenied | asyncssh.KeyEncryptionError):
            return self.refused(words)
        return self.late() if isinstance(exc, TimeoutError) else self.failed(words)


class _Channel(asyncssh.SSHUNIXSession[bytes]):
    """What asyncssh tells of a channel, told to a protocol of asyncio. The channel itself is its transport."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        self._channel = chan
        self._protocol.connection_made(cast(asyncio.BaseTransport, chan))

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        try:
            self._protocol.data_received(data)
        except Exception:
            # It would go up into asyncssh and end the SSH connection, with all that runs over it.
            log.exception("a channel to the orchestrator failed")
            self._channel.abort()

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

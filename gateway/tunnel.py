"""The SSH connection by asyncssh, in this process: the default, which needs no program beside us."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import asyncssh
from asyncssh.constants import MSG_IGNORE
from asyncssh.packet import SSHPacketLogger

from gateway import remote
from gateway.bridge import MARKER
from gateway.hostkeys import Client, HostKeys, TrustsAnybody
from gateway.kept import CIPHERS, Kept, NotOpened
from gateway.link import LinkState, Unreached, Waiting

log = logging.getLogger(__name__)

_MOST_WORDS = 4000  # of a bridge on standard error, the end of it
_MOST_NOISE = 64 * 1024  # bytes that a login shell may print before the bridge speaks
_SEALED = ("aes128-gcm", "aes256-gcm", "chacha20-poly1305")
# OSError: no network, no host. asyncssh.Error: all that SSH says. ValueError: asyncssh's words for an unreadable
# configuration or key file.
_EXPECTED = (OSError, asyncssh.Error, ValueError)


class Tunnel(Kept):
    _connection: asyncssh.SSHClientConnection | None = None

    async def forward(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """A channel to the orchestrator's socket."""
        connection = self._open_connection()
        try:
            await connection.create_unix_connection(lambda: _Channel(factory()), self.socket)
        except (asyncssh.Error, OSError) as exc:
            raise Unreached(str(exc)) from exc

    async def bridge(self, factory: Callable[[], asyncio.Protocol], *, step: bool = False) -> None:
        connection = self._open_connection()
        pier = _Pier(factory)
        try:
            command = remote.bridge_command(self.socket, step=step)
            await connection.create_session(lambda: pier, command, encoding=None, request_pty=False)
            await pier.joined
        except Unreached:  # in the bridge's own words
            raise
        except (asyncssh.Error, OSError) as exc:
            raise Unreached(str(exc)) from exc
        finally:
            pier.leave_unjoined()

    async def execute(self, command: str, stdin: bytes | Path = b"", seconds: float = 60) -> remote.Said:
        connection = self._open_connection()
        given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": str(stdin)}
        try:
            async with asyncio.timeout(seconds):
                done = await connection.run(command, encoding=None, request_pty=False, **given)
        except TimeoutError as exc:
            raise Unreached(f"a command on {self.cluster} has not ended within {seconds:g} s") from exc
        except (asyncssh.Error, OSError) as exc:
            raise Unreached(f"a command on {self.cluster} broke off: {exc}") from exc
        if done.returncode is None:  # the connection has ended under it
            raise Unreached(f"a command on {self.cluster} broke off")
        return remote.Said(done.returncode, _text(done.stdout), _text(done.stderr))

    def _open_connection(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise Unreached(self.status.advice)
        return self._connection

    async def sign_of_life(self) -> None:
        """A session: sshd itself says that it has begun, so a slow login shell does not matter."""
        if self._connection is not None:
            with contextlib.suppress(asyncssh.Error, OSError):  # a refusal is an answer, and an end is seen elsewhere
                process = await self._connection.create_process("exec true", encoding=None, request_pty=False)
                process.close()

    def abandon(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    async def one_connection(self) -> str:
        try:
            async with self.patience():
                client, connection = await self._connect()
            try:
                async with asyncio.timeout(self.settings.connect_seconds):
                    self.greeted(await self._greet(connection))
                self._connection = connection
                self.up()
                await connection.wait_closed()
                return self.down(client.loss)
            finally:
                self._connection = None
                await _close(connection)
        except _EXPECTED as exc:
            raise self._judge(exc) from exc

    async def _connect(self) -> tuple[Client, asyncssh.SSHClientConnection]:
        config = [str(self.settings.ssh_config)] if self.settings.ssh_config else ()
        options = await self._options(config)
        try:
            host_keys = HostKeys(options)
        except TrustsAnybody as exc:
            raise self._trusting() from exc
        client = Client(host_keys, self.answer, may_ask=self.may_ask)
        try:
            connection = await asyncssh.connect(
                self.cluster,
                config=config,
                options=options,
                known_hosts=host_keys.known,
                client_factory=lambda: client,
            )
        except asyncssh.HostKeyNotVerifiable as exc:
            raise self._unverified(host_keys) from exc
        except asyncssh.PermissionDenied as exc:
            raise self.refused(str(exc), by_question=client.asked) from exc
        if str(connection.get_extra_info("send_cipher")).startswith(_SEALED):
            connection.__class__ = _Terse
        return client, connection

    async def _options(self, config: Sequence[str]) -> asyncssh.SSHClientConnectionOptions:
        options: asyncssh.SSHClientConnectionOptions = await asyncssh.SSHClientConnectionOptions.construct(
            config=config,
            host=self.cluster,
            encryption_algs=CIPHERS,
            keepalive_interval=self.settings.keepalive_seconds,
            keepalive_count_max=self.settings.keepalive_count,
            connect_timeout=None,  # `patience` has the limits, as a person may have to answer first
            login_timeout=0,
        )
        return options

    def _trusting(self) -> NotOpened:
        config = self.settings.ssh_config or Path.home() / ".ssh" / "config"
        return NotOpened(
            f"UserKnownHostsFile is 'none' for {self.cluster} in your SSH configuration, which would trust any "
            f"host. Name a file there; it is tried again when {config} has been changed.",
            LinkState.HOST_KEY_CHANGED,
            [config],
        )

    def _unverified(self, host_keys: HostKeys) -> NotOpened:
        if host_keys.offending:
            return self.changed_key(", ".join(host_keys.offending), host_keys.files)
        if host_keys.met:
            return self.stranger()
        return NotOpened(  # asyncssh tells no more of the hosts on the way
            f"the key of a host that {self.cluster} is reached through (ProxyJump) is not the one in your known_hosts, "
            f"or is not there. See what `ssh {self.cluster}` says; it is tried again every minute.",
            LinkState.HOST_KEY_UNKNOWN,
        )

    async def _greet(self, connection: asyncssh.SSHClientConnection) -> list[str]:
        command = remote.greeting(self.settings.remote_socket)
        answer = await connection.run(command, encoding=None, stdin=asyncssh.DEVNULL, request_pty=False)
        output = answer.stdout
        text = output.decode("utf-8", "surrogateescape") if isinstance(output, bytes) else output or ""
        return text.splitlines()

    def _judge(self, exc: Exception) -> NotOpened:
        words = str(exc) or type(exc).__name__
        if isinstance(exc, asyncssh.PermissionDenied | asyncssh.KeyEncryptionError):
            return self.refused(words)
        return self.late() if isinstance(exc, TimeoutError) else self.failed(words)


class _Terse(asyncssh.SSHClientConnection):
    """Without the empty packet that asyncssh sends ahead of each one, which costs a token 25 µs of its way.

    It hides how a packet in CBC mode begins (RFC 4251, section 9.3.1); where each packet is sealed, nothing is to be
    hidden. asyncssh makes its connections itself, hence as a class that one is given afterwards.
    """

    def send_packet(self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        if pkttype != MSG_IGNORE:
            super().send_packet(pkttype, *args, handler=handler)


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


class _Pier(asyncssh.SSHClientSession[bytes]):
    """The near end of a bridge: a command whose output becomes the protocol's after the bridge's first line."""

    def __init__(self, factory: Callable[[], asyncio.Protocol]) -> None:
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._factory = factory
        self._inner: _Channel | None = None  # from the bridge's first line on
        self._before = b"\n"
        self._words = b""  # on standard error
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    def leave_unjoined(self) -> None:
        """Nobody waits any more."""
        if self._inner is None and self._channel is not None:
            self._channel.abort()

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        if self._inner is not None:
            self._inner.connection_lost(exc)
        elif not self.joined.done():
            if why := remote.refused(self._before):
                self.joined.set_exception(Waiting(why))
                return
            words = self._words.decode(errors="replace").strip().splitlines()
            self.joined.set_exception(Unreached(words[-1] if words else str(exc or "the bridge ended without a word")))

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            self._words = (self._words + data)[-_MOST_WORDS:]
        elif self._inner is not None:
            self._inner.data_received(data, datatype)
        else:
            self._look_for_first_line(data)

    def _look_for_first_line(self, data: bytes) -> None:
        self._before += data
        _, found, rest = self._before.partition(b"\n" + MARKER + b"\n")
        if self.joined.done() or self._channel is None:
            return
        if found:
            self._before = b""
            self._inner = inner = _Channel(self._factory())
            inner.connection_made(cast(asyncssh.SSHUNIXChannel[bytes], self._channel))
            self.joined.set_result(None)
            if rest:
                inner.data_received(rest, None)
        elif len(self._before) > _MOST_NOISE:
            self.joined.set_exception(Unreached(f"the login shell printed more than {_MOST_NOISE} bytes"))

    def eof_received(self) -> bool:
        return self._inner.eof_received() if self._inner is not None else False

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()


def _text(said: bytes | str | None) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else said or ""


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    """Take leave of the server if it still listens, and let go of the socket in any case."""
    connection.close()
    closed = asyncio.create_task(connection.wait_closed())
    await asyncio.wait({closed}, timeout=1)
    closed.cancel()
    connection.abort()

"""HTTP over SSH channels: a transport of httpx2 whose connections are opened by a function given to it."""

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncssh
import httpcore2
import httpx2

from orchestrator.relay import LIFTED

Channel = tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]
OpenChannel = Callable[[], Awaitable[Channel]]
"""Opens a channel to the orchestrator's socket. Raises asyncssh.Error or OSError."""

_ERRORS: dict[type[Exception], type[httpx2.TransportError]] = {
    httpcore2.ConnectTimeout: httpx2.ConnectTimeout,
    httpcore2.ReadTimeout: httpx2.ReadTimeout,
    httpcore2.WriteTimeout: httpx2.WriteTimeout,
    httpcore2.PoolTimeout: httpx2.PoolTimeout,
    httpcore2.ConnectError: httpx2.ConnectError,
    httpcore2.ReadError: httpx2.ReadError,
    httpcore2.WriteError: httpx2.WriteError,
    httpcore2.LocalProtocolError: httpx2.LocalProtocolError,
    httpcore2.RemoteProtocolError: httpx2.RemoteProtocolError,
    httpcore2.UnsupportedProtocol: httpx2.UnsupportedProtocol,
}


class ChannelTransport(httpx2.AsyncBaseTransport):
    """httpx2's own transport has no public parameter for the network below it, hence this one around httpcore2."""

    def __init__(self, open_channel: OpenChannel) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=LIFTED.max_connections,
            max_keepalive_connections=LIFTED.max_keepalive_connections,
            keepalive_expiry=LIFTED.keepalive_expiry,
            network_backend=_Backend(open_channel),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        outgoing = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _translated():
            answer = await self._pool.handle_async_request(outgoing)
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=_Stream(answer), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, AsyncIterable)
        with _translated():
            async for chunk in self._response.stream:
                yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


class _Backend(httpcore2.AsyncNetworkBackend):
    def __init__(self, open_channel: OpenChannel) -> None:
        self._open_channel = open_channel

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """The name is httpcore2's. There is one place to connect to, so host and port only name it."""
        try:
            async with asyncio.timeout(timeout):
                return _ChannelStream(*await self._open_channel())
        except TimeoutError as exc:
            raise httpcore2.ConnectTimeout(f"no channel within {timeout:g} s") from exc
        except (asyncssh.Error, OSError) as exc:
            raise httpcore2.ConnectError(str(exc)) from exc

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return await self.connect_tcp(path, 0, timeout)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _ChannelStream(httpcore2.AsyncNetworkStream):
    def __init__(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as exc:
            raise httpcore2.ReadTimeout(f"nothing came within {timeout} s") from exc
        except (asyncssh.Error, OSError) as exc:
            raise httpcore2.ReadError(str(exc)) from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()  # waits while the other side's window is used up
        except TimeoutError as exc:
            raise httpcore2.WriteTimeout(f"nothing was taken within {timeout} s") from exc
        except (asyncssh.Error, OSError) as exc:
            raise httpcore2.WriteError(str(exc)) from exc

    async def aclose(self) -> None:
        self._writer.channel.abort()  # not close(): that would first deliver what nobody wants any more

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.UnsupportedProtocol("the orchestrator is reached by http:// inside SSH, not by https://")

    def get_extra_info(self, info: str) -> Any:
        """`is_readable` of an idle connection means that it has ended: the pool then takes another one."""
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing()
        return None


@contextmanager
def _translated() -> Iterator[None]:
    """httpcore2's errors in httpx2's words, as httpx2's own transport does it."""
    try:
        yield
    except tuple(_ERRORS) as exc:
        raise _ERRORS[type(exc)](str(exc)) from exc

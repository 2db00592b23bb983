"""Pass an HTTP request on and its answer back: the bytes as they come, cancelled with the client.

    RelayError       the upstream gave no answer; nothing was sent to the client: the caller can answer or ask another
      Unsendable     the client's request is not valid HTTP/1.1: no upstream would take it
      Unreached      no connection came about: the request was certainly not acted on
      Unanswered     the connection broke before the first byte of an answer: the request may have been acted on
    Interrupted      the answer had begun and broke off: only the client's connection can be cut, see below

After `Interrupted` the caller must not end the answer: it returns or raises with the last body message unsent. The ASGI
server then cuts the connection, and the client sees that something is missing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import httpx2

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

LIFTED = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4.0)
"""Limits for a client that relays. The default of 100 connections queues the 101st stream in silence; 4 s is below the
5 s after which uvicorn (so vLLM too) closes an idle connection, which would break a request sent at that moment."""

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade"}
)  # fmt: skip


class RelayError(Exception):
    """The upstream gave no answer. The text is the transport's own words."""


class Unsendable(RelayError):
    """The request cannot be written as HTTP/1.1."""


class Unreached(RelayError):
    """No connection to the upstream; nothing was sent."""


class Unanswered(RelayError):
    """The upstream took the request, at least in part, and ended or broke without an answer."""


class Interrupted(Exception):
    """The upstream broke off within its answer."""


async def relay(
    client: httpx2.AsyncClient,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    url: str,
    target: bytes,
    headers: Headers | None = None,
    content: bytes | None = None,
    connect_timeout: float = 15.0,
) -> int | None:
    """Send the request of `scope` on and its answer to `send`; return the answer's status, None if the client left.

    `url` is scheme, host and port of the upstream; `target` the raw path with its query, sent as it is. `headers` are
    sent instead of the client's. `content` is the body where the caller has already received all of it; else the body
    is received here and streamed. `connect_timeout`: seconds; an answer may take as long as it takes.

    The client is watched from the start: when it leaves, also before the first byte of the answer, the upstream's
    connection is closed within the same turn of the loop. Raises RelayError and Interrupted.
    """
    body = _Body(receive, received=content is not None or not _has_body(scope["headers"]))
    request = httpx2.Request(
        scope["method"],
        url,
        headers=_forwarded(scope["headers"] if headers is None else headers),
        content=content if body.received else body.chunks(),
        extensions={"target": target, "timeout": httpx2.Timeout(None, connect=connect_timeout).as_dict()},
    )
    exchange = asyncio.create_task(_exchange(client, request, send, body))
    client_left = asyncio.create_task(body.receive_until_client_leaves())
    try:
        await asyncio.wait({exchange, client_left}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        exchange.cancel()
        client_left.cancel()
        await asyncio.wait({exchange, client_left})
    if not client_left.cancelled():
        client_left.result()  # a fault of `receive` is not to be lost
    return None if exchange.cancelled() else exchange.result()


async def _exchange(client: httpx2.AsyncClient, request: httpx2.Request, send: Send, body: "_Body") -> int:
    response = await _answer(client, request)
    try:
        headers = _kept(response.headers.raw)
        if not body.received:  # and nobody wants the rest, which may have no end
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for chunk in response.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except httpx2.TransportError as exc:
        raise Interrupted(_words(exc)) from exc
    finally:
        await response.aclose()
    # Only now, with the upstream's connection back in its pool: the last message also ends `receive` and so this task.
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return response.status_code


async def _answer(client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    """Everything until the head of the answer, with httpx2's errors in our words."""
    try:
        return await client.send(request, stream=True, auth=None, follow_redirects=False)
    except httpx2.LocalProtocolError as exc:
        raise Unsendable(_words(exc)) from exc
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
        raise Unreached(_words(exc)) from exc
    except httpx2.TransportError as exc:
        raise Unanswered(_words(exc)) from exc


class _Body:
    """The one reader of `receive`: hands the body on with back-pressure, then waits for the client to leave."""

    def __init__(self, receive: Receive, *, received: bool) -> None:
        self.received = received  # nothing of the body is to come, or nothing that is wanted
        self._receive = receive
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)

    async def receive_until_client_leaves(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            if self.received:
                continue
            if message.get("body"):
                await self._chunks.put(message["body"])
            if not message.get("more_body", False):
                self.received = True
                await self._chunks.put(None)

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk


def _has_body(headers: Headers) -> bool:
    return any((name == b"content-length" and value != b"0") or name == b"transfer-encoding" for name, value in headers)


def _kept(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The end-to-end headers: RFC 9110, 7.6.1."""
    # Stripped, since servers pass on "Bearer " (an empty token, as lm-eval sends it) but clients refuse to send that.
    lowered = [(name.lower(), value.strip(b" \t")) for name, value in headers]
    named = {word.strip().lower() for name, value in lowered if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in lowered if name not in _HOP_BY_HOP and name not in named]


def _forwarded(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What the upstream gets: its own Host, and no Expect, which the ASGI server has answered already."""
    headers = list(headers)
    dropped = {b"host", b"expect"}
    if any(name.lower() == b"transfer-encoding" for name, _ in headers):
        dropped.add(b"content-length")  # the body is sent chunked: a length beside it is request smuggling
    return [(name, value) for name, value in _kept(headers) if name not in dropped]


def _words(exc: Exception) -> str:
    return str(exc) or type(exc).__name__

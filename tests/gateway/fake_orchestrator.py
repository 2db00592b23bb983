"""A small orchestrator: plain ASGI, served by uvicorn on a UNIX socket. It tells what it was asked."""

import asyncio
import gzip
import hashlib
import json
from typing import Any

from starlette.types import Message, Receive, Scope, Send


class FakeOrchestrator:
    """`left` has the names of the slow answers whose client went away; `seen` the requests, as method and raw path.

    Not among them is the list of models, which a gateway asks for when it likes: `listed` counts that, and `models` is
    what it says then. `told`: by path, the JSON that is answered there.
    """

    def __init__(self) -> None:
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.proceed: asyncio.Queue[None] = asyncio.Queue()
        self.seen: list[tuple[str, str]] = []
        self.listed = 0
        self.models: object = {"object": "list", "data": []}
        self.told: dict[str, object] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["raw_path"].decode()
        if path == "/v1/models":
            self.listed += 1
            await _json(send, 200, self.models)
            return
        self.seen.append((scope["method"], path))
        if path in self.told:
            await _json(send, 200, self.told[path])
            return
        answers = {
            "/health": self._health, "/ready": self._health, "/api/echo": self._echo, "/v1/stream": self._stream,
            "/v1/slow": self._slow, "/v1/broken": self._broken, "/api/big": self._big,
            "/api/gzip": self._gzip, "/api/services/targets": self._echo,
        }  # fmt: skip
        await answers.get(path, self._unknown)(scope, receive, send)

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _json(send, 200, {"status": "healthy", "version": "9.9"})

    async def _unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _json(send, 404, {"detail": f"nothing at {scope['method']} {scope['raw_path'].decode()}"})

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        digest, size = hashlib.sha256(), 0
        async for chunk in _body(receive):
            digest.update(chunk)
            size += len(chunk)
        told = {
            "method": scope["method"], "target": f"{scope['raw_path'].decode()}?{scope['query_string'].decode()}",
            "headers": [[n.decode(), v.decode()] for n, v in scope["headers"]],
            "size": size, "sha256": digest.hexdigest(),
        }  # fmt: skip
        await _json(send, 200, told, [(b"x-own", b"1"), (b"keep-alive", b"timeout=9")])

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One event for each `proceed`, three in all."""
        await _start(send, 200, b"text/event-stream")
        for number in range(3):
            await self.proceed.get()
            await _chunk(send, f"data: {number}\n\n".encode())
        await _chunk(send, b"", more=False)

    async def _slow(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Never answers, or never ends after a first event (`?begin`), until its client leaves."""
        self.arrived.put_nowait("slow")
        if scope["query_string"] == b"begin":
            await _start(send, 200, b"text/event-stream")
            await _chunk(send, b"data: 0\n\n")
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.put_nowait("slow")

    async def _broken(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _start(send, 200, b"text/event-stream")
        await _chunk(send, b"data: 0\n\n")  # and an end without the last message: uvicorn cuts the connection

    async def _big(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _start(send, 200, b"application/octet-stream")
        for number in range(320):
            await _chunk(send, bytes([number % 256]) * 65536)
        await _chunk(send, b"", more=False)

    async def _gzip(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = gzip.compress(b"hello")
        headers = [(b"content-encoding", b"gzip"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _chunk(send, body, more=False)


async def _body(receive: Receive) -> Any:
    while True:
        message: Message = await receive()
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _json(send: Send, status: int, value: object, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = json.dumps(value).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await _chunk(send, body, more=False)


async def _start(send: Send, status: int, kind: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})


async def _chunk(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})

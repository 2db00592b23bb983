"""The answer to a request for a model that this process makes itself: the data path's other end, to be awaited."""

import asyncio
from collections.abc import AsyncIterator

from orchestrator.errors import ReplicaFailed
from orchestrator.inference import Inference
from orchestrator.replicas import Replica
from orchestrator.wire.http1 import HEAD_END, Extent, Response, parse_response

_MOST_HELD = 256 * 1024  # bytes that wait to be taken, until the engine is held back


class Incoming:
    """The Reply to one Inference, without the framing of its body.

    `replica`: the one whose answer it is; None where the answer is not one of a replica's.
    """

    inference: Inference  # set before it can answer
    replica: Replica | None = None

    def __init__(self) -> None:
        self._response: Response | None = None
        self._extent: Extent | None = None
        self._head = b""
        self._pieces: list[bytes] = []
        self._held = 0  # bytes of them
        self._paused = False
        self._over = False
        self._broken = ""
        self._news = asyncio.Event()

    # The reply

    def write(self, data: bytes) -> None:
        begin = 0
        if self._extent is None:
            data = self._head = self._head + data
            begin = data.find(HEAD_END) + len(HEAD_END)
            if begin < len(HEAD_END):
                return
            self._response = parse_response(data[:begin])
            self._extent = self._response.extent()
            self.replica = self.inference.replica
        self._extent.take(data, begin, self._pieces)
        self._held += len(data)
        if not self._paused and self._held > _MOST_HELD:
            self._paused = True
            self.inference.pause()
        self._news.set()

    def finish(self) -> None:
        self._over = True
        self._news.set()

    def cut(self, why: str, *, reached: bool = True) -> None:
        self._broken = why
        self.finish()

    def pause(self) -> None:
        """The request's body has been handed over already."""

    def resume(self) -> None:
        """As `pause`."""

    # For whoever asked

    async def response(self) -> Response:
        """The head, as soon as it is here. Raises ReplicaFailed."""
        while self._response is None and not self._over:
            await self._wait()
        if self._response is None:
            raise self._failure()
        return self._response

    async def pieces(self) -> AsyncIterator[bytes]:
        """The content as it comes. Raises ReplicaFailed where it breaks off."""
        while True:
            if self._pieces:
                data = b"".join(self._pieces)
                self._pieces.clear()
                self._held = 0
                yield data
            elif self._over:
                break
            else:
                await self._wait()
        if self._broken:
            raise self._failure()

    async def whole(self) -> bytes:
        """All of the content. Raises ReplicaFailed where it breaks off."""
        return b"".join([piece async for piece in self.pieces()])

    def leave(self) -> None:
        """No more is wanted."""
        if not self._over:
            self._over = True
            self.inference.abort()

    def _failure(self) -> ReplicaFailed:
        return ReplicaFailed(f"the model's server broke off: {self._broken}")

    async def _wait(self) -> None:
        """For what comes next."""
        if self._paused:
            self._paused = False
            self.inference.resume()
        self._news.clear()
        await self._news.wait()

"""A client of the soak: asks, looks at the whole answer, and at times leaves before it is complete."""

import asyncio
import json
import re
from dataclasses import dataclass
from random import Random

from bench.parts import KEY, MODEL

HUNG_SECONDS = 30.0
_LEAVES = 0.25  # of all requests
_BIG = 1_000_000
_EVENT = re.compile(rb"@\d{19}#(\d{6})")


@dataclass(frozen=True)
class Question:
    """`kind`: plain, stream or big. `leave_after`: bytes of the answer after which the client leaves, None: never."""

    kind: str
    prompt: str
    events: int = 0
    size: int = 0
    leave_after: int | None = None

    @property
    def begins(self) -> bool:
        """Whether its answer can be cut in its middle: it is not sent in one go."""
        return self.kind != "plain"

    def request(self) -> bytes:
        told = {"model": MODEL, "stream": self.kind == "stream", "messages": [{"role": "user", "content": self.prompt}]}
        body = json.dumps(told).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {KEY}",
            "content-type: application/json", f"content-length: {len(body)}",
        ]  # fmt: skip
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Wrong(Exception):
    """The answer is complete and not the one that was to come."""


class Broken(Exception):
    """The answer is not complete, and says so or not."""


def chosen(random: Random) -> Question:
    leave = random.random() < _LEAVES
    match random.choices(("plain", "stream", "big"), (4, 4, 1))[0]:
        case "plain":
            return Question("plain", "size 700", size=700, leave_after=0 if leave else None)
        case "stream":
            events = random.randint(5, 40)
            after = random.randint(0, 200 * events) if leave else None
            return Question("stream", f"rate 50 count {events}", events=events, leave_after=after)
        case _:
            after = random.randint(0, _BIG) if leave else None
            return Question("big", f"size {_BIG}", size=_BIG, leave_after=after)


class Client:
    """One connection, opened anew after each answer that was left or broken."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, question: Question) -> bool:
        """True for a whole answer, False when the client has left. Raises Wrong, Broken; TimeoutError: it hung."""
        async with asyncio.timeout(HUNG_SECONDS):
            try:
                if self._streams is None:
                    self._streams = await asyncio.open_connection(*self._address, limit=4 * _BIG)
                reader, writer = self._streams
                writer.write(question.request())
                if question.leave_after is not None:
                    await _some(reader, question.leave_after)
                    self.close()
                    return False
                _check(question, *await _answer(reader))
            except (asyncio.IncompleteReadError, ConnectionError) as exc:
                self.close()
                raise Broken(str(exc)) from exc
            except (Wrong, Broken):
                self.close()
                raise
        return True

    def close(self) -> None:
        """At once, as a client that is killed."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _some(reader: asyncio.StreamReader, size: int) -> None:
    """So much of an answer, or all of it when it is shorter, because its engine was killed."""
    got = b""
    while len(got) < size and not got.endswith(b"\r\n0\r\n\r\n"):
        if not (data := await reader.read(size - len(got))):
            return
        got += data
        if not got.startswith(b"HTTP/1.1 200"[: len(got)]):
            raise Wrong(f"a client that was to leave was answered {got[:300]!r}")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if length is not None:
        return status, await reader.readexactly(int(length[1]))
    pieces = []
    while size := int(await reader.readline() or b"0", 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return status, b"".join(pieces)


def _check(question: Question, status: int, body: bytes) -> None:
    if status != 200:
        raise Wrong(f"{question.kind}: answered {status}: {body[:300]!r}")
    if question.kind != "stream":
        if len(body) != question.size or not body.startswith(b'{"id":"chatcmpl-bench"') or not body.endswith(b":100}}"):
            raise Wrong(f"{question.kind}: {len(body)} bytes instead of {question.size}: {body[:100]!r}")
        return
    numbers = [int(number) for number in _EVENT.findall(body)]
    if b'data: {"error"' in body:
        raise Broken(body[-300:].decode(errors="replace"))
    if numbers != list(range(question.events)) or not body.endswith(b"data: [DONE]\n\n"):
        raise Wrong(f"a stream of {question.events} events brought {numbers}, and ends with {body[-100:]!r}")

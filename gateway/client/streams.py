"""Streams, piece by piece: bytes in, whole pieces out."""

import codecs
import json

from gateway.client.call import said
from gateway.client.errors import ApiError, BrokenAnswer
from gateway.shapes import JSON


class Text:
    """Plain text, in which a character may be cut in two."""

    def __init__(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> list[str]:
        text = self._characters.decode(data)
        return [text] if text else []

    def end(self) -> list[str]:
        text = self._characters.decode(b"", final=True)
        return [text] if text else []


class Chunks:
    """The server-sent events of a chat, each of them JSON. Comments, which our servers send to keep it open, are none.

    Raises ApiError for an error event and BrokenAnswer for a stream without its last event, `[DONE]`.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._done = False

    def feed(self, data: bytes) -> list[JSON]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in lines:
            if line.startswith(b"data:") and not self._done:
                value = line[5:].strip()
                self._done = value == b"[DONE]"
                if not self._done:
                    found.append(_chunk(value))
        return found

    def end(self) -> list[JSON]:
        if not self._done:
            raise BrokenAnswer("the answer broke off before its end")
        return []


class Words:
    """The text in the chunks of a chat."""

    def __init__(self) -> None:
        self._chunks = Chunks()

    def feed(self, data: bytes) -> list[str]:
        return [text for chunk in self._chunks.feed(data) if (text := words_of(chunk))]

    def end(self) -> list[str]:
        self._chunks.end()
        return []


def words_of(chunk: JSON) -> str:
    """What a chunk adds to the first choice."""
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return delta.get("content") or ""


def _chunk(value: bytes) -> JSON:
    try:
        chunk = json.loads(value)
    except ValueError as exc:
        raise BrokenAnswer(f"an event of the answer is not JSON: {value[:100]!r}") from exc
    if not isinstance(chunk, dict):
        raise BrokenAnswer(f"an event of the answer is not an object: {value[:100]!r}")
    if "error" in chunk:
        raise ApiError(_status(chunk), said(chunk), body=chunk)
    return chunk


def _status(chunk: JSON) -> int:
    """An error within a stream has no status of HTTP; what is not told is the engine's failure."""
    code = chunk["error"].get("code") if isinstance(chunk["error"], dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502

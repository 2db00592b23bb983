"""Where a stream of events stands, told by its last bytes. Pure.

Nothing is parsed on the way: the last bytes are kept, and looked at when a stream falls silent, breaks off or ends. The
last event of /v1/responses has all of the answer in it, so its beginning is not among them: only in such a stream each
piece is searched for that event's name.
"""

import re

from orchestrator.wire.http1 import Chunked, Malformed

LAST_CHUNK = b"0\r\n\r\n"
_KEPT = 256  # bytes: the end of an event, also where each of its bytes is a chunk of its own
_BETWEEN_CHUNKS = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")
_BORDERS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_DONE = re.compile(rb"data: ?\[DONE\]\s*\Z")
_STOPPED = re.compile(rb'(?:"message_stop"\s*}|data: ?\[DONE\])\s*\Z')
_RESPONSES = b"/v1/responses"
_ENDS = {
    b"/v1/chat/completions": _DONE,
    b"/v1/completions": _DONE,
    b"/v1/messages": _STOPPED,
    _RESPONSES: _DONE,  # some engines send it behind the last event, vLLM does not
}
_LAST_NAME = re.compile(rb"\nevent: ?(?:response\.(?:completed|incomplete|failed)|error)[\r\n]")
_LINE = 32  # bytes: as long as such a line


class Tail:
    """The end of a stream so far. `path`: what was asked for; `chunked`: whether the pieces are chunks with framing."""

    __slots__ = ("_chunked", "_last", "_name", "_sign")

    def __init__(self, path: bytes, *, chunked: bool) -> None:
        self._sign = _ENDS.get(path)
        self._name = _LastName(chunked=chunked) if path == _RESPONSES else None
        self._chunked = chunked
        self._last = b"\r\n" if chunked else b""  # as behind a chunk

    def take(self, data: bytes) -> None:
        if self._name is not None:
            self._name.take(data)
        self._last = data if len(data) >= _KEPT else (self._last + data)[-_KEPT:]

    def _content(self) -> bytes:
        last = self._last[-_KEPT:]
        return _unframed(last) if self._chunked else last

    @property
    def between(self) -> bool:
        """No event is half sent. To be asked between two chunks."""
        content = self._content()
        return not content or content.endswith(_BORDERS)

    @property
    def whole(self) -> bool:
        """The engine has said that this was all; True where streams have no such sign."""
        return self._sign is None or self.said_so

    @property
    def said_so(self) -> bool:
        if self._name is not None and self._name.seen:
            return self.between
        return self._sign is not None and self._sign.search(self._content()) is not None


class _LastName:
    """Whether the last event has begun, told by its name, in a stream of OpenAI's responses."""

    __slots__ = ("_before", "_framing", "_over", "seen")

    def __init__(self, *, chunked: bool) -> None:
        self._framing = Chunked() if chunked else None
        self._before = b"\n"  # the end of what has come, in which the line may begin
        self._over = False
        self.seen = False

    def take(self, data: bytes) -> None:
        if self._over:
            return
        pieces = [self._before]
        if self._framing is None:
            pieces.append(data)
        else:
            try:
                self._framing.take(data, 0, pieces)
            except Malformed:
                self._over = True  # the connection has seen that before, and breaks the answer off
        content = b"".join(pieces)
        if _LAST_NAME.search(content) is not None:
            self.seen = self._over = True
        self._before = content[-_LINE:]


def _unframed(last: bytes) -> bytes:
    """The content of chunks, the newest of which is complete.

    A size is one if the chunks that it begins end where the bytes do: a line of content that is cut behind `da` of
    `data:` looks like one, too.
    """
    found = _BETWEEN_CHUNKS.search(last)
    while found is not None:
        content = [last[: found.start()]]
        border: re.Match[bytes] | None = found
        while border is not None:
            begin, size = border.end(), int(border[1], 16)
            content.append(last[begin : begin + size])
            if begin + size + 2 == len(last) or (not size and last.endswith(b"\r\n\r\n")):  # there may be trailers
                return b"".join(content)
            border = _BETWEEN_CHUNKS.match(last, begin + size)
        found = _BETWEEN_CHUNKS.search(last, found.start() + 1)
    return last[:-2]  # all of one chunk, which began earlier

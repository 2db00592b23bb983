"""Where a stream of events stands: the same in every cut, and the same with and without the framing of chunks."""

from orchestrator.events import Tail
from tests.fuzz.target import Target, cut, uncut

_PATHS = (b"/v1/chat/completions", b"/v1/completions", b"/v1/messages", b"/v1/responses")
_SEEN = 256  # bytes: what is looked at


def _run(data: bytes) -> None:
    if len(data) < 2:
        return
    path, pieces = _PATHS[data[0] % len(_PATHS)], cut(data[1:])
    content = b"".join(pieces)
    for chunked in (False, True):
        assert _verdict(path, pieces, chunked) == _verdict(path, [content], chunked)
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    if len(framed) <= _SEEN - 20:
        expected = _verdict(path, [content], chunked=False)
        for ending in (b"", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n"):
            assert _verdict(path, [framed + ending], chunked=True) == expected, (framed, expected)


def _verdict(path: bytes, pieces: list[bytes], chunked: bool) -> tuple[bool, bool, bool]:
    tail = Tail(path, chunked=chunked)
    for piece in pieces:
        tail.take(piece)
    return tail.between, tail.whole, tail.said_so


_EVENT = b'data: {"choices": []}\n\n'
_CRLF = b"event: message\r\ndata: {}\r\n\r\n"
TARGET = Target(
    _run,
    seeds=[
        b"\x00" + uncut(_EVENT + b"data: [DONE]\n\n", 23, 6, 4),
        b"\x01" + uncut(_CRLF + b"data: [DONE]\r\n\r\n", 16, 10, 4),
        b"\x02" + uncut(b'event: message_stop\ndata: {"type": "message_stop"}\n\n', 5, 5, 5),
        b"\x03" + uncut(_EVENT * 3, 23, 23),
        b"\x00" + uncut(b"data: [DONE]\n\n" + b"\n" * 300, 255, 9),
        b"\x03" + uncut(b"event: response.completed\ndata: {}\n\n", 9, 9, 9),
    ],
    words=[
        b"data: [DONE]",
        b"\n\n",
        b"\r\n\r\n",
        b"\r\r",
        b"\r\n",
        b"0\r\n\r\n",
        b'"message_stop"}',
        b"\nevent: response.failed\n",
        b": ping\n\n",
        b"a\r\n",
    ],
    longest=600,
)

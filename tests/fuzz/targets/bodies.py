"""Bodies in chunks: however they are cut, the content, the end and the refusal are the same, and those of RFC 9112."""

import re

from orchestrator.wire.http1 import Chunked, Malformed, Sized
from tests.fuzz.target import Target, cut, uncut

Outcome = tuple[str, bytes, int]  # what became of it, the content so far, and where the body ends
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")


def _run(data: bytes) -> None:
    pieces = cut(data)
    whole = b"".join(pieces)
    at_once, in_pieces = _read(Chunked(), [whole]), _read(Chunked(), pieces)
    assert at_once == in_pieces, (at_once, in_pieces)
    word, content, end = _expected(whole)
    if word == "complete" and at_once[0] != "malformed":  # or it is refused for a line that is too long
        assert at_once == (word, content, end)
    if at_once[0] == "complete":
        assert word == "complete"
    size = len(data) % 40
    assert _read(Sized(size), pieces) == (
        ("complete", whole[:size], size) if len(whole) >= size and pieces else ("partial", whole, -1)
    )


def _read(body: Chunked | Sized, pieces: list[bytes]) -> Outcome:
    content: list[bytes] = []
    before = 0
    for number, piece in enumerate(pieces):
        start = number % 3  # a body seldom begins where the bytes at hand do
        try:
            end = body.take(b"#" * start + piece, start, content)
        except Malformed:
            return "malformed", b"", -1
        if end >= 0:
            return "complete", b"".join(content), before + end - start
        before += len(piece)
    return "partial", b"".join(content), -1


def _expected(data: bytes) -> Outcome:
    """The same, in the simplest way: complete, or anything else."""
    content, at = b"", 0
    while match := _CHUNK.match(data, at):
        size, begin = int(match[1], 16), match.end()
        at = begin + size + 2
        if not size:
            end = (b"\r\n" + data[begin:]).find(b"\r\n\r\n")
            return ("complete", content, begin + end + 2) if end >= 0 else ("partial", content, -1)
        if data[at - 2 : at] != b"\r\n":
            break
        content += data[begin : begin + size]
    return "not complete", content, -1


TARGET = Target(
    _run,
    seeds=[
        uncut(b"5\r\nhello\r\n0\r\n\r\nrest", 1, 2, 3, 4),
        uncut(b"5;a=b\r\nhello\r\n000a \t;x\r\n0123456789\r\n0\r\nX: y\r\nZ: w\r\n\r\n", 4, 1, 1, 8),
        uncut(b"1\r\na\r\n" * 5 + b"0\r\n\r\n", 5, 1, 1, 1, 1),
        uncut(b"fffffffffffffff\r\nabc", 7),
        uncut(b"1;" + b"e" * 5000 + b"\r\na\r\n0\r\n\r\n", 255, 255),
        uncut(b"0\r\n" + b"X: y\r\n" * 900 + b"\r\n", 255, 255),
        uncut(b"0\r\nX: " + b"y" * 5000 + b"\r\n\r\n", 255, 255),
    ],
    words=[b"\r\n", b"0\r\n\r\n", b"\n", b"\r", b";", b"1\r\na\r\n", b"0x1", b"-1", b" ", b"\t", b"\x00"],
    longest=8192,
)

"""Heads of requests. What is accepted is read the same when it is written again, and as often as it is asked."""

import re

from orchestrator.wire.http1 import HEAD_END, Heads, Malformed, Request, check_beginning, parse_request, request_head
from tests.fuzz.target import Target

_DIGITS = re.compile(rb"(\r\ncontent-length:[ \t]*)[0-9]+", re.IGNORECASE)


def _run(data: bytes) -> None:
    end = data.find(HEAD_END)
    if end < 0:
        return
    raw = data[: end + len(HEAD_END)]  # as Front cuts it
    parsed = _parsed(raw)
    _check_remembered(raw, parsed)
    if parsed is None:
        return
    assert len(parsed.headers) == raw.lstrip(b"\r\n").count(b"\r\n") - 2, "a line is not one header"
    for size in {1, len(raw) // 2, len(raw) - 1, data[-1] % len(raw)}:
        check_beginning(raw[:size])
    if parsed.minor == 1:
        again = parse_request(request_head(parsed.method, parsed.target, parsed.headers))
        assert _facts(again) == _facts(parsed) and again.headers == parsed.headers


def _parsed(raw: bytes) -> Request | None:
    try:
        return parse_request(raw)
    except Malformed:
        return None


def _check_remembered(raw: bytes, parsed: Request | None) -> None:
    """Whatever was asked before, of heads that differ in the length of the body."""
    heads = Heads()
    for asked in (_DIGITS.sub(rb"\g<1>7", raw), raw, raw):
        try:
            found = heads.request(asked)
        except Malformed:
            found = None
    assert (found is None) == (parsed is None), "what is remembered is accepted, or refused, in another way"
    if found is not None and parsed is not None:
        assert _facts(found) == _facts(parsed)
        assert _without_length(found) == _without_length(parsed)


def _facts(request: Request) -> tuple[object, ...]:
    head = request.head
    return head.method, head.target, head.minor, request.length, request.keep_alive, head.chunked, head.expects


def _without_length(request: Request) -> list[tuple[bytes, bytes]]:
    return [header for header in request.headers if header[0] != b"content-length"]


_SEEDS = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nContent-Type: application/json\r\n\r\n",
    b"POST /a?b=%2F HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nTE: trailers\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
    b"GET /mux HTTP/1.1\r\nHost: o\r\nConnection: upgrade\r\nUpgrade: sluicegate-mux/1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 5\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    b"PATCH http://evil/ HTTP/1.1\r\nX:\t\r\nContent-Length:\t 007 \r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\n",
)
TARGET = Target(
    _run,
    seeds=_SEEDS,
    words=[
        b"\r\n", b"\n", b"\r", HEAD_END, b"\r\nContent-Length: ", b"\r\nTransfer-Encoding: chunked",
        b"\r\nConnection: ",
        b"close", b"keep-alive", b"\r\nExpect: 100-continue", b"\r\nUpgrade: h2c", b" HTTP/1.1", b" HTTP/1.0",
        b" HTTP/2.0", b"CONNECT ", b"PRI * ", b"\x00", b"\x80", b"\t", b"9" * 18, b"\r\n ", b", chunked", b"\x0b",
    ],
)  # fmt: skip

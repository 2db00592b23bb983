"""Heads of an engine's answers. What is passed on says the same of the body, and nothing that ends at this hop."""

from orchestrator.wire.http1 import (
    HEAD_END,
    HOP_BY_HOP,
    Heads,
    Malformed,
    Response,
    closing,
    parse_response,
    response_head,
)
from tests.fuzz.target import Target

_FRAMING = (b"transfer-encoding", b"trailer")


def _run(data: bytes) -> None:
    end = data.find(HEAD_END)
    if end < 0:
        return
    raw = data[: end + len(HEAD_END)]
    try:
        parsed = parse_response(raw)
    except Malformed:
        return
    heads = Heads()
    assert _facts(heads.response(raw, to_head=False)) == _facts(heads.response(raw, to_head=False)) == _facts(parsed)
    assert parse_response(raw, to_head=True).length == 0
    assert 100 <= parsed.status <= 999, parsed.status
    parsed.extent()
    if parsed.status == 101:
        return  # upstream refuses it
    passed = response_head(parsed, raw, (b"x-request-id", b"r"))
    assert passed.endswith(HEAD_END) and passed.find(HEAD_END) == len(passed) - len(HEAD_END)
    assert int(passed[9:12]) == parsed.status
    _check_same(parsed, parse_response(passed))
    assert parse_response(closing(passed)).keep_alive is False


def _check_same(engine: Response, passed: Response) -> None:
    assert (passed.status, passed.length, passed.events) == (engine.status, engine.length, engine.events)
    assert passed.headers == [*_kept(engine), (b"x-request-id", b"r")]


def _kept(response: Response) -> list[tuple[bytes, bytes]]:
    return [header for header in response.headers if header[0] in _FRAMING or header[0] not in HOP_BY_HOP]


def _facts(response: Response) -> tuple[object, ...]:
    return response.status, response.length, response.keep_alive, response.headers, response.plain, response.events


TARGET = Target(
    _run,
    seeds=[
        b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\ncontent-type: application/json\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 529 \r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Encoding: gzip\r\n\r\n",
    ],
    words=[
        b"\r\n", b"\n", b"\r", HEAD_END, b"\r\nContent-Length: ", b"\r\nTransfer-Encoding: chunked",
        b"\r\nConnection: ",
        b"\r\nTrailer: ", b"HTTP/1.1 ", b"HTTP/1.0 ", b" 304 ", b" 99 ", b" 1000 ", b"text/event-stream", b"\x00",
        b"\x80",
    ],
)  # fmt: skip

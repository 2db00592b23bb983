"""HTTP/1.1 as text: heads as programs send them, bodies in every split, and what is refused."""

import random
from collections.abc import Callable, Iterator

import pytest

from orchestrator.wire.http1 import (
    Chunked,
    Extent,
    Heads,
    Malformed,
    Sized,
    Unbounded,
    check_beginning,
    closing,
    parse_request,
    parse_response,
    response_head,
    status_line,
)

CURL = b"POST /v1/chat/completions?a=1 HTTP/1.1\r\nHost: localhost:8001\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nContent-Type: application/json\r\nContent-Length: 93\r\n\r\n"  # fmt: skip # noqa: E501
OPENAI = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:8001\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.99.1\r\nX-Stainless-Lang: python\r\nX-Stainless-Async: false\r\nAuthorization: Bearer x\r\nx-stainless-read-timeout: 600\r\nContent-Length: 2\r\n\r\n"  # fmt: skip # noqa: E501
CHROMIUM = b'GET /docs HTTP/1.1\r\nHost: localhost:8001\r\nConnection: keep-alive\r\nsec-ch-ua: "Chromium";v="130", "Not?A_Brand";v="99"\r\nsec-ch-ua-mobile: ?0\r\nUpgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: text/html,*/*;q=0.8\r\nSec-Fetch-Site: none\r\nAccept-Language: de-DE,de;q=0.9\r\n\r\n'  # fmt: skip # noqa: E501
VLLM = b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 10:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"  # fmt: skip # noqa: E501
NGINX = b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx/1.24.0\r\nDate: Sat, 21 Nov 2026 10:00:00 GMT\r\nContent-Type: text/html\r\nContent-Length: 157\r\nConnection: keep-alive\r\n\r\n"  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("head", "method", "path", "length"),
    [
        (CURL, b"POST", "/v1/chat/completions", 93),
        (OPENAI, b"POST", "/v1/chat/completions", 2),
        (CHROMIUM, b"GET", "/docs", 0),
    ],
)
def test_heads_of_clients(head: bytes, method: bytes, path: str, length: int) -> None:
    request = parse_request(head)
    assert (request.method, request.path, request.length, request.minor) == (method, path, length, 1)
    assert request.keep_alive
    assert (request.header(b"host"), request.header(b"x-none")) == (b"localhost:8001", None)
    for end in range(len(head)):
        check_beginning(head[:end])


def test_heads_of_engines() -> None:
    stream, broken = parse_response(VLLM), parse_response(NGINX)
    assert (stream.status, type(stream.extent()), stream.keep_alive) == (200, Chunked, True)
    assert (stream.chunked, stream.length, stream.events, stream.plain, stream.named) == (True, -1, True, True, False)
    assert (broken.status, broken.extent().take(b"x" * 157), broken.keep_alive) == (502, 157, True)
    assert (broken.chunked, broken.length, broken.events, broken.plain) == (False, 157, False, False)
    assert response_head(stream, VLLM) == VLLM
    assert b"onnection" not in response_head(broken, NGINX)
    assert b"date" not in response_head(stream, VLLM, without=frozenset({b"date"}))
    assert response_head(stream, VLLM, (b"x-more", b"1")).endswith(b"chunked\r\nx-more: 1\r\n\r\n")


def test_a_status_without_a_name_is_passed_on() -> None:
    head = b"HTTP/1.0 520 Odd\r\nContent-Length: 0\r\n\r\n"
    assert response_head(parse_response(head), head).startswith(b"HTTP/1.1 520 \r\n")
    assert status_line(404) == b"HTTP/1.1 404 Not Found\r\n"


@pytest.mark.parametrize(
    ("head", "to_head", "extent"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, Sized),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", False, Sized),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", True, Sized),
        (b"HTTP/1.1 200 OK\r\n\r\n", False, Unbounded),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n", False, Sized),
    ],
)
def test_where_an_answer_ends(head: bytes, to_head: bool, extent: type[Extent]) -> None:
    response = parse_response(head, to_head=to_head)
    assert type(response.extent()) is extent
    if to_head or response.status != 200:
        assert response.extent().take(b"surplus") == 0
    assert (response.length is None) == (extent is Unbounded)


CHUNKS = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = {
    "a length and chunks": b"Content-Length: 5\r\n" + CHUNKS,
    "chunks and a length": CHUNKS + b"Content-Length: 5\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "one length twice": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "a list of lengths": b"Content-Length: 5, 5\r\n",
    "no length": b"Content-Length: \r\n",
    "a length in hex": b"Content-Length: 0x5\r\n",
    "a length with a sign": b"Content-Length: +5\r\n",
    "a length with an underscore": b"Content-Length: 1_0\r\n",
    "an immense length": b"Content-Length: 1" + b"0" * 30 + b"\r\n",
    "another coding": b"Transfer-Encoding: gzip\r\n",
    "two codings": b"Transfer-Encoding: gzip, chunked\r\n",
    "a coding behind the chunks": b"Transfer-Encoding: chunked, identity\r\n",
    "chunks twice": CHUNKS + CHUNKS,
    "two lines of codings": b"Transfer-Encoding: identity\r\n" + CHUNKS,
    "chunks in quotes": b'Transfer-Encoding: "chunked"\r\n',
    "a vertical tab": b"Transfer-Encoding:\x0bchunked\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n",
    "a tab before the colon": b"Content-Length\t: 5\r\n",
    "a folded coding": b"Transfer-Encoding:\r\n chunked\r\n",
    "a line that ends in LF": b"A: b\nTransfer-Encoding: chunked\r\n",
    "a line that ends in CR": b"A: b\rTransfer-Encoding: chunked\r\n",
    "a NUL": b"A: \0\r\n",
}  # fmt: skip


@pytest.mark.parametrize("headers", SMUGGLED.values(), ids=SMUGGLED)
def test_a_head_that_two_could_read_differently_is_refused(headers: bytes) -> None:
    raw = b"POST / HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n"
    with pytest.raises(Malformed):
        parse_request(raw)
    heads = Heads()
    for known in (b"Content-Length: 5\r\n", CHUNKS, b""):
        heads.request(b"POST / HTTP/1.1\r\nHost: a\r\n" + known + b"\r\n")
    for _ in range(2):  # what was refused is not known afterwards
        with pytest.raises(Malformed):
            heads.request(raw)


def test_a_head_that_is_known_has_the_length_of_each_request() -> None:
    heads = Heads()
    first, second = heads.request(CURL), heads.request(CURL.replace(b": 93\r", b": 0094\r"))
    assert (first.head is second.head, first.length, second.length) == (True, 93, 94)
    chunks = CURL.replace(b"Content-Length: 93\r\n", CHUNKS)
    assert [heads.request(chunks).length for _ in range(2)] == [None, None]
    assert [heads.request(CHROMIUM).length for _ in range(2)] == [0, 0]
    assert heads.request(CURL.replace(b"POST", b"PUT")).method == b"PUT"


def test_what_is_known_of_a_template_is_not_the_requests() -> None:
    heads = Heads()
    template = b"POST /a HTTP/1.1\r\nhost: a\r\n\r\n"
    first, second = heads.template(template, 5, b"one"), heads.template(template, None, b"two")
    assert first.head is second.head
    assert [(request.length, request.id) for request in (first, second)] == [(5, b"one"), (None, b"two")]


def test_an_answer_to_head_is_not_taken_for_one_to_get() -> None:
    heads = Heads()
    for _ in range(2):
        assert heads.response(NGINX, to_head=True).length == 0
        assert heads.response(NGINX, to_head=False).length == 157


def test_an_answer_with_a_length_and_chunks_is_refused() -> None:
    for headers in (b"Content-Length: 5\r\n" + CHUNKS, b"Content-Length: 5\r\nContent-Length: 6\r\n"):
        with pytest.raises(Malformed):
            parse_response(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n")


@pytest.mark.parametrize("status", [b"20", b"99", b"0", b"1000"])
def test_a_status_that_is_none_is_refused(status: bytes) -> None:
    with pytest.raises(Malformed):
        parse_response(b"HTTP/1.1 " + status + b" OK\r\nContent-Length: 5\r\n\r\n")


@pytest.mark.parametrize(
    "line", [b"CONNECT a:80 HTTP/1.1", b"GET / HTTP/2.0", b"GET / HTTP/0.9", b"get / HTTP/1.1", b"GET /a b HTTP/1.1"]
)
def test_a_line_that_is_no_request_of_ours_is_refused(line: bytes) -> None:
    with pytest.raises(Malformed):
        parse_request(line + b"\r\nHost: a\r\n\r\n")


def test_http_1_0_knows_no_chunks_and_no_second_request() -> None:
    with pytest.raises(Malformed):
        parse_request(b"POST / HTTP/1.0\r\n" + CHUNKS + b"\r\n")
    assert not parse_request(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive


@pytest.mark.parametrize("begin", [b"\x16\x03\x01", b"FOO", b"GET / HTTP/1.1\nHost", b"PRI * HTTP/2.0\r\n", b"\0"])
def test_what_can_never_become_a_head(begin: bytes) -> None:
    with pytest.raises(Malformed):
        check_beginning(begin)


def test_the_word_that_the_connection_ends_is_said_once() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"
    said = closing(head)
    assert said == b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nab"
    assert closing(said) == said
    assert closing(b"HTTP/1.1 200 OK\r\n") == b"HTTP/1.1 200 OK\r\nconnection: close\r\n"


# Bodies

CONTENT = bytes(range(256)) * 3
REST = b"GET /next HTTP/1.1\r\n\r\n"


def chunked(rng: random.Random, content: bytes) -> bytes:
    """In chunks of any size, with extensions and trailers now and then."""
    out, at = b"", 0
    while at < len(content):
        piece = content[at : at + rng.choice((1, 2, 15, 16, 17, 255, 300))]
        size = rng.choice((b"%x", b"%X", b"000%x")) % len(piece)
        out += size + rng.choice((b"", b"", b";a=b", b" ;x", b';q="y z"')) + b"\r\n" + piece + b"\r\n"
        at += len(piece)
    return out + b"0\r\n" + rng.choice((b"", b"X-A: 1\r\n", b"X-A: 1\r\nX-B: \r\n")) + b"\r\n"


def fed(extent: Extent, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """The content that an extent finds in pieces, and what is behind the body."""
    content: list[bytes] = []
    for i, piece in enumerate(pieces):
        end = extent.take(piece, 0, content)
        if end >= 0:
            return b"".join(content), piece[end:] + b"".join(pieces[i + 1 :])
    return b"".join(content), b""


def splits(rng: random.Random, data: bytes) -> Iterator[list[bytes]]:
    """Bytes alone, every cut in two, and cuts anywhere."""
    yield [data[i : i + 1] for i in range(len(data))]
    for i in range(len(data)):
        yield [data[:i], data[i:]]
    for _ in range(100):
        cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(20)))
        yield [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_a_body_in_chunks_is_the_same_in_every_split(seed: int) -> None:
    rng = random.Random(seed)
    body = chunked(rng, CONTENT)
    for pieces in splits(rng, body + REST):
        assert fed(Chunked(), pieces) == (CONTENT, REST)


def test_a_body_with_a_length_is_the_same_in_every_split() -> None:
    for pieces in splits(random.Random(0), CONTENT + REST):
        assert fed(Sized(len(CONTENT)), pieces) == (CONTENT, REST)


def test_a_body_that_ends_with_its_connection_has_no_end() -> None:
    for pieces in splits(random.Random(0), CONTENT):
        assert fed(Unbounded(), pieces) == (CONTENT, b"")


def test_an_extent_begins_where_it_is_told() -> None:
    extents: list[tuple[Callable[[], Extent], bytes]] = [(Chunked, b"2\r\nab\r\n0\r\n\r\n"), (lambda: Sized(2), b"ab")]
    for make, body in extents:
        found: list[bytes] = []
        assert make().take(b"head" + body + b"rest", 4, found) == 4 + len(body)
        assert b"".join(found) == b"ab"


def test_an_extent_is_whole_between_two_chunks_only() -> None:
    extent, body = Chunked(), b"3\r\nabc\r\n"
    for i in range(len(body) * 3):
        assert extent.whole == (i % len(body) == 0)
        extent.take(bytes([body[i % len(body)]]))


BROKEN = {
    "hex with 0x": b"0x5\r\nabcde\r\n", "a sign": b"+1\r\na\r\n", "a minus": b"-1\r\na\r\n",
    "an underscore": b"1_0\r\n",
    "no size": b"\r\n", "a space before": b" 5\r\nabcde\r\n", "a space behind": b"5 \r\nabcde\r\n",
    "letters": b"zz\r\n",
    "an overflow": b"10000000000000005\r\nabcde\r\n", "LF behind the size": b"5\nabcde\r\n",
    "LF behind the content": b"5\r\nabcde\n0\r\n\r\n", "content that is longer": b"5\r\nabcdef\r\n0\r\n\r\n",
    "content that is shorter": b"5\r\nabcd\r\n0\r\n\r\n", "LF in an extension": b"5;a\nb\r\nabcde\r\n",
    "a size without an end": b"1" * 5000, "trailers without an end": b"0\r\n" + b"X: y\r\n" * 1000,
    "one trailer without an end": b"0\r\nX: " + b"y" * 5000, "LF behind the last": b"0\r\n\n",
    "LF in a trailer": b"0\r\nX: y\nZ: w\r\n\r\n", "a long trailer": b"0\r\nX: " + b"y" * 5000 + b"\r\n\r\n",
    "a long extension": b"1;" + b"e" * 5000 + b"\r\na\r\n0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_chunks_that_are_none_are_refused_in_every_split(body: bytes) -> None:
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))], [body[:1], body[1:]]):
        with pytest.raises(Malformed):
            fed(Chunked(), pieces)

"""HTTP/1.1 as text: heads, and where bodies end. Pure: bytes in, facts out.

Heads are parsed by httptools (llhttp), which is strict. Bodies are not parsed but measured: an Extent says where in the
bytes at hand a body ends, so that they can be passed on as they came.
"""

import re
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import httptools

MOST_HEAD = 64 * 1024
HEAD_END = b"\r\n\r\n"
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade"}
)  # fmt: skip
"""Headers that end at the next hop: RFC 9110, 7.6.1."""

_HOPS = HOP_BY_HOP - {b"transfer-encoding", b"trailer"}  # in answers, whose framing is passed on too

Headers = list[tuple[bytes, bytes]]

_MOST_LINE = 4096  # of a chunk's size with its extensions, and of all trailers
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]{0,16};[^\r\n]{0,4000})?\r\n")  # at most _MOST_LINE
_LENGTH = re.compile(rb"[0-9]{1,18}")
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class Malformed(Exception):
    """What was received is not HTTP/1.1 as we take it."""


class Head:
    """What a request's head says, apart from the length of its body. Shared by all requests with the same head.

    Names of headers are in lower case; `target` is raw, as in the request line. `memo` is for whoever handles such
    requests: what it has concluded from the head, to be found again; `admitted` is for whoever is at the door: in which
    state of the keys the head was let through.
    """

    __slots__ = (
        "admitted",
        "chunked",
        "expects",
        "first",
        "headers",
        "keep_alive",
        "memo",
        "method",
        "minor",
        "target",
    )

    method: bytes
    target: bytes
    minor: int  # 0 for HTTP/1.0, else 1
    keep_alive: bool
    chunked: bool
    expects: bool  # a "100 Continue" before it sends the body
    first: dict[bytes, bytes]  # the first value of each header
    headers: Headers

    def __init__(self) -> None:
        self.headers = []
        self.memo: Any = None
        self.admitted = 0

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def with_headers(self, headers: Headers) -> "Head":
        """The same with other headers, of one request alone. They do not say anything else of its body."""
        head = Head()
        head.method, head.target, head.minor = self.method, self.target, self.minor
        head.keep_alive, head.chunked, head.expects = self.keep_alive, self.chunked, self.expects
        head.headers, head.first = headers, dict(reversed(headers))
        return head


class Request:
    """One request: its head, and the `length` of its body, None when it comes in chunks.

    `id` is the one in its X-Request-Id, else one of ours; `kind` what a handler says that it is, for the metrics.
    """

    __slots__ = ("head", "id", "keep_alive", "kind", "length")

    def __init__(self, head: Head, length: int | None, identity: bytes = b"") -> None:
        self.head = head
        self.length = length
        self.id = identity
        self.kind = ""
        self.keep_alive = head.keep_alive

    @property
    def method(self) -> bytes:
        return self.head.method

    @property
    def target(self) -> bytes:
        return self.head.target

    @property
    def minor(self) -> int:
        return self.head.minor

    @property
    def headers(self) -> Headers:
        return self.head.headers

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        return self.head.first.get(name)

    @property
    def path(self) -> str:
        """Raw: still percent-encoded, without the query."""
        return self.head.target.partition(b"?")[0].decode("latin-1")


class Heads:
    """Heads that have been parsed, so that the next request with the same one costs a look-up.

    Of one client's requests often nothing differs but the length of the body, which is therefore left out of the key.
    """

    def __init__(self) -> None:
        self._measured: dict[bytes, Head] = {}
        self._others: dict[bytes, Head] = {}
        self._answers: dict[bytes, Response] = {}

    def request(self, raw: bytes) -> Request:
        """As `parse_request`."""
        length = _LENGTH_LINE.search(raw)
        if length is None:
            known, key = self._others, raw
        else:
            known, key = self._measured, raw[: length.start(1)] + raw[length.end(1) :]
        head = known.get(key)
        if head is None:
            request = parse_request(raw)
            _keep(known, key, request.head)
            return request
        if length is not None:
            return Request(head, int(length[1]))
        return Request(head, None if head.chunked else 0)

    def template(self, raw: bytes, length: int | None, identity: bytes) -> Request:
        """A head that comes without the length of the body and the request's id."""
        head = self._others.get(raw)
        if head is None:
            head = parse_request(raw).head
            _keep(self._others, raw, head)
        return Request(head, length, identity)

    def response(self, raw: bytes, *, to_head: bool) -> "Response":
        """As `parse_response`."""
        if to_head:
            return parse_response(raw, to_head=True)
        response = self._answers.get(raw)
        if response is None:
            response = parse_response(raw)
            _keep(self._answers, raw, response)
        return response


_LENGTH_LINE = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_MOST_KEPT = 512  # heads
_LONGEST_KEPT = 4096  # bytes

T = TypeVar("T")


def _keep(known: dict[bytes, T], key: bytes, value: T) -> None:
    if len(known) >= _MOST_KEPT:
        known.clear()
    if len(key) <= _LONGEST_KEPT:
        known[key] = value


def parse_request(raw: bytes) -> Request:
    """A complete head, the empty line included. Raises Malformed."""
    head = Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # an offer, which nobody has to take
    except httptools.HttpParserError as exc:
        raise Malformed(f"This is no valid HTTP/1.1 request: {exc}") from exc
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise Malformed(f"This is no valid HTTP/1.1 request: it is one of HTTP/{version}")
    head.method, head.minor = parser.get_method(), int(version[-1])
    if head.method == b"CONNECT":
        raise Malformed("This is no valid HTTP/1.1 request: CONNECT is for proxies")
    head.keep_alive = head.minor == 1 and not _closes(head.headers)
    head.first = dict(reversed(head.headers))
    head.expects = head.minor == 1 and head.first.get(b"expect", b"").lower() == b"100-continue"
    length = _request_length(head)
    head.chunked = length is None
    return Request(head, length)


def check_beginning(raw: bytes) -> None:
    """The beginning of a head: can it become one? Raises Malformed where it cannot, as with bytes of TLS."""
    parser = httptools.HttpRequestParser(None)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserError as exc:
        raise Malformed(f"This is no valid HTTP/1.1 request: {exc}") from exc
    if parser.get_http_version() not in ("0.0", "1.0", "1.1"):  # 0.0: not known yet
        raise Malformed(f"This is no valid HTTP/1.1 request: it is one of HTTP/{parser.get_http_version()}")


def _request_length(head: Head) -> int | None:
    length = 0
    for name, value in head.headers:
        if name == b"content-length":
            length = _number(value)
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise Malformed(f"This is no valid HTTP/1.1 request: its transfer coding is {value[:100]!r}")
            if head.minor == 0:
                raise Malformed("This is no valid HTTP/1.1 request: HTTP/1.0 knows no chunks")
            return None
    return length


def _closes(headers: Headers) -> bool:
    said = (value.lower().replace(b" ", b"").split(b",") for name, value in headers if name == b"connection")
    return any(b"close" in words for words in said)


def _number(value: bytes) -> int:
    digits = value.strip(b" \t")
    if not _LENGTH.fullmatch(digits):
        raise Malformed(f"Content-Length {value[:100]!r} is not a number")
    return int(digits)


def request_head(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    lines = [method, b" ", target, b" HTTP/1.1\r\n"]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def whole_head(template: bytes, request: Request) -> bytes:
    """A head with the length of the request's body, and its id."""
    length = b"content-length: %d\r\n" % request.length if request.length else b""
    return b"%s%sx-request-id: %s\r\n\r\n" % (template[:-2], length, request.id)


def end_to_end(headers: Headers, without: frozenset[bytes] = frozenset()) -> Headers:
    """The headers that may be passed on, less those of `without`."""
    dropped = HOP_BY_HOP | without
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            dropped |= {word.strip().lower() for word in value.split(b",")}
    return [header for header in headers if header[0] not in dropped]


class Response:
    """The head of a response. Shared by all responses with the same head: never changed.

    `length` is that of the body, -1 when it comes in chunks, None when it ends with the connection. `plain`: the head
    can be passed on as it came.
    """

    __slots__ = ("events", "headers", "keep_alive", "length", "named", "plain", "status")

    status: int
    keep_alive: bool  # whether the connection can be used again after the body
    headers: Headers
    length: int | None
    plain: bool
    named: bool  # it has an X-Request-Id
    events: bool  # the body is a stream of events that can be read

    def __init__(self) -> None:
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def header(self, name: bytes) -> bytes | None:
        for known, value in self.headers:
            if known == name:
                return value
        return None

    @property
    def chunked(self) -> bool:
        return self.length == CHUNKED

    def extent(self) -> "Extent":
        """Measures one body of such a response."""
        if self.length is None:
            return Unbounded()
        return Chunked() if self.length == CHUNKED else Sized(self.length)


CHUNKED = -1


def parse_response(raw: bytes, *, to_head: bool = False) -> Response:
    """A complete head, the empty line included. `to_head`: the request was a HEAD. Raises Malformed."""
    response = Response()
    parser = httptools.HttpResponseParser(response)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as exc:
        raise Malformed(f"the answer is not valid HTTP/1.1: {exc}") from exc
    response.status = parser.get_status_code()
    if response.status < 100:
        raise Malformed(f"the answer is not valid HTTP/1.1: its status is {response.status}")
    response.length = _response_length(response, to_head)
    names = {name for name, _ in response.headers}
    response.plain = raw.startswith(b"HTTP/1.1 ") and names.isdisjoint(_HOPS)
    response.named = b"x-request-id" in names
    kind = (response.header(b"content-type") or b"").lower()
    response.events = kind.startswith(b"text/event-stream") and b"content-encoding" not in names
    again = response.length is not None and parser.get_http_version() == "1.1"
    response.keep_alive = again and not _closes(response.headers)
    return response


def response_head(
    response: Response, raw: bytes, *more: tuple[bytes, bytes], without: frozenset[bytes] = frozenset()
) -> bytes:
    """A head as it is passed on, with `more` headers: as it came, less what ends at this hop and those of `without`."""
    added = b"".join(b"%s: %s\r\n" % header for header in more)
    if response.plain and not any(name in without for name, _ in response.headers):
        return b"%s%s\r\n" % (raw[:-2], added)
    dropped = _HOPS | without
    lines = [status_line(response.status)]
    for name, value in response.headers:
        if name not in dropped:
            lines += (name, b": ", value, b"\r\n")
    return b"".join((*lines, added, b"\r\n"))


def _response_length(response: Response, to_head: bool) -> int | None:
    if to_head or response.status in (204, 304) or response.status < 200:
        return 0
    length: int | None = None
    for name, value in response.headers:
        if name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise Malformed(f"the answer has Transfer-Encoding {value[:100]!r}")
            return CHUNKED
        if name == b"content-length":
            length = _number(value)
    return length


class Extent(Protocol):
    """Measures one body. `whole` is true between two pieces of it: nothing of a piece is outstanding."""

    whole: bool

    def take(self, data: bytes, start: int = 0, pieces: list[bytes] | None = None) -> int:
        """Where in `data` the body ends: the index behind it, or -1 when all from `start` on belongs to it.

        Its content, without framing, is appended to `pieces`. Raises Malformed.
        """


class Sized:
    """A body of `left` bytes."""

    __slots__ = ("left", "whole")

    def __init__(self, left: int) -> None:
        self.left = left
        self.whole = False

    def take(self, data: bytes, start: int = 0, pieces: list[bytes] | None = None) -> int:
        here = len(data) - start
        end = -1 if here < self.left else start + self.left
        self.left = 0 if end >= 0 else self.left - here
        if pieces is not None and here:
            pieces.append(data[start:] if end < 0 else data[start:end])
        return end


class Unbounded:
    """A body that ends with its connection."""

    __slots__ = ("whole",)

    def __init__(self) -> None:
        self.whole = False

    def take(self, data: bytes, start: int = 0, pieces: list[bytes] | None = None) -> int:
        if pieces is not None and len(data) > start:
            pieces.append(data[start:])
        return -1


class Chunked:
    """A body in chunks: RFC 9112, 7.1. Extensions and trailers are left out of the content."""

    __slots__ = ("_left", "_rest", "_state", "_trailers", "whole")

    def __init__(self) -> None:
        self._state = _Part.SIZE
        self._left = 0  # bytes of this chunk's content
        self._trailers = 0  # bytes of trailers so far
        self._rest = b""  # of a line that is not complete yet
        self.whole = True

    def take(self, data: bytes, start: int = 0, pieces: list[bytes] | None = None) -> int:
        if not self._rest:
            return self._walk(data, start, pieces)
        kept, self._rest = self._rest, b""
        end = self._walk(kept + data[start:], 0, pieces)
        return end if end < 0 else end - len(kept) + start

    def _walk(self, data: bytes, at: int, pieces: list[bytes] | None) -> int:
        size = len(data)
        while 0 <= at < size:
            if self._state is _Part.SIZE:
                at = self._whole_chunks(data, at, size, pieces)
                at = self._size(data, at) if at < size else at
            elif self._state is _Part.CONTENT:
                at = self._content(data, at, pieces)
            elif self._state is _Part.LINE_END:
                at = self._line_end(data, at)
            else:
                end = data.find(b"\r\n", at)
                if end == at:
                    return at + 2
                at = self._trailer(data, at, end)
        if at >= 0:
            self.whole = self._state is _Part.SIZE
        return -1

    def _size(self, data: bytes, at: int) -> int:
        match = _SIZE.match(data, at)
        if match is None:
            return self._keep(data[at:])
        self._left = int(match[1], 16)
        self._state = _Part.CONTENT if self._left else _Part.TRAILERS
        return match.end()

    def _line_end(self, data: bytes, at: int) -> int:
        if not data.startswith(b"\r\n", at):
            return self._keep(data[at:])
        self._state = _Part.SIZE
        return at + 2

    def _trailer(self, data: bytes, at: int, end: int) -> int:
        line = data[at:end] if end >= 0 else data[at:].removesuffix(b"\r")  # the least that it can become
        size = len(line) + 2 if line else 0  # the empty line is none
        if b"\n" in line or self._trailers + size > _MOST_LINE:
            raise Malformed(f"{line[:40]!r} is no trailer, or the trailers are longer than {_MOST_LINE} bytes")
        if end < 0:
            return self._keep(data[at:])
        self._trailers += size
        return end + 2

    def _whole_chunks(self, data: bytes, at: int, size: int, pieces: list[bytes] | None) -> int:
        """Over the chunks that are here from their first to their last byte, which is how engines send tokens."""
        while match := _SIZE.match(data, at):
            begin = match.end()
            end = begin + int(match[1], 16)
            if end == begin or end + 2 > size or data[end : end + 2] != b"\r\n":
                break
            if pieces is not None:
                pieces.append(data[begin:end])
            at = end + 2
        return at

    def _content(self, data: bytes, at: int, pieces: list[bytes] | None) -> int:
        end = min(at + self._left, len(data))
        if pieces is not None:
            pieces.append(data[at:end])
        self._left -= end - at
        if not self._left:
            self._state = _Part.LINE_END
        return end

    def _keep(self, rest: bytes) -> int:
        """A line that is not complete, unless it can never become one."""
        broken = rest != b"\r" if self._state is _Part.LINE_END else b"\n" in rest
        if broken or len(rest) > _MOST_LINE:
            raise Malformed(f"{rest[:40]!r} has no place in a chunked body")
        self._rest, self.whole = rest, False
        return -1


class _Part(Enum):
    """What comes next in a chunked body."""

    SIZE = auto()
    CONTENT = auto()
    LINE_END = auto()
    TRAILERS = auto()


def answer(status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A complete response with a body of JSON."""
    lines = [status_line(status), b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    return b"".join((*lines, b"\r\n", body))


def closing(head: bytes) -> bytes:
    """The beginning of an answer, its status line at least, with the word that the connection ends behind it."""
    line, end, rest = head.partition(b"\r\n")
    if b"\r\nconnection: close\r\n" in head[: head.find(HEAD_END) + len(HEAD_END)].lower():
        return head
    return b"%s%sconnection: close\r\n%s" % (line, end, rest)


def status_line(status: int) -> bytes:
    """Also of a status that has no name, as 529."""
    return b"HTTP/1.1 %d %s\r\n" % (status, _PHRASES.get(status, b""))

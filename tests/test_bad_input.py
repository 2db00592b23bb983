"""What no client should send, sent byte by byte: to the orchestrator's socket, and through the gateway.

The answer is a 4xx in the shape of our errors, and the two processes go on. Whatever can be said by an HTTP client to
one route is in test_app.py and tests/gateway; here is what holds for all of them.
"""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from orchestrator.routes.strict import MOST_BYTES
from orchestrator.wire.http1 import MOST_HEAD
from tests.halves import BATCH, COLLECTION, ENDED, FILE, GROUP, JOB, PENDING, QDRANT, SLOT, VLLM, Halves, halves
from tests.renting import CONTROL

pytestmark = [pytest.mark.system, pytest.mark.beside]

OPENAPI = Path(__file__).parents[1] / "openapi"
COLLECTIONS = f"/api/v1/vector-db/{QDRANT}/collections"
PROMPT = f"/api/v1/vllm/{VLLM}/prompt"
START = "/api/v1/services"
JSON_BODY = b"Content-Type: application/json\r\n"


@dataclass(frozen=True)
class Answer:
    """`rest` is what came behind it until the connection ended, where that was waited for."""

    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""

    def error(self) -> Any:
        """The `detail` of an answer in the shape of our errors."""
        assert 400 <= self.status < 500, (self.status, self.body[:300])
        assert self.headers["content-type"] == "application/json"
        assert len(self.body) < 50_000
        told = json.loads(self.body)
        if "error" in told and "detail" not in told:  # OpenAI's form, below /v1
            return told["error"]["message"]
        assert told["detail"]
        return told["detail"]


@dataclass(frozen=True)
class Door:
    """One of the two ways in. Requests are written as they are given."""

    name: str
    address: Any

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        connection.settimeout(20)
        connection.connect(self.address)
        return connection

    def send(self, request: bytes, *, to_the_end: bool = False) -> Answer:
        """The answer to `request`. Fails when there is none within 20 s."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_answer(connection, to_the_end=to_the_end)

    def ask(self, method: str, target: str, body: str | bytes | None = None, headers: bytes = JSON_BODY) -> Answer:
        content = body.encode() if isinstance(body, str) else body
        length = b"" if content is None else b"Content-Length: %d\r\n" % len(content)
        return self.send(request(f"{method} {target}".encode(), headers + length, content or b""))


def request(line: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
    return line + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n" + body


def read_answer(connection: socket.socket, *, to_the_end: bool = False, no_body: bool = False) -> Answer:
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        lines = iter(stream.readline, b"\r\n")
        headers = {
            name.lower().decode(): value.strip().decode() for name, _, value in (x.partition(b":") for x in lines)
        }
        body = b"" if no_body else stream.read(int(headers.get("content-length", 0)))
        return Answer(status, headers, body, read_rest(stream) if to_the_end else b"")


def read_rest(stream: BinaryIO) -> bytes:
    """All until the connection ends. It is reset where the other side closed with some of our bytes unread."""
    try:
        return stream.read()
    except ConnectionResetError:
        return b""


@pytest.fixture(scope="module")
def both() -> Iterator[Halves]:
    with halves() as both:
        yield both


@pytest.fixture(params=["orchestrator", "gateway"])
def door(both: Halves, request: pytest.FixtureRequest) -> Iterator[Door]:
    """Both processes are alive and well after each test."""
    own = request.param == "orchestrator"
    yield Door(request.param, str(both.socket) if own else ("127.0.0.1", both.port))
    both.check()


# Bytes that are no HTTP

POST = b"POST " + START.encode()
GET = b"GET " + START.encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n"
NO_HTTP = {
    "NUL in the path": request(GET + b"/a\0b"),
    "a space in the path": request(GET + b"/a b"),
    "bytes beyond ASCII in the path": request(GET + b"/\xff"),
    "no method of this world": request(b"FOO " + START.encode()),
    "CONNECT": request(b"CONNECT evil.example:80"),
    "HTTP/9.9": GET + b" HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "lines that end in LF": GET + b" HTTP/1.1\nHost: localhost\n\n",
    "a space before the colon": request(GET, b"X-A : 1\r\n"),
    "a folded header": request(GET, b"X-A: 1\r\n 2\r\n"),
    "CR in a header": request(GET, b"X-A: a\rb\r\n"),
    "NUL in a header": request(GET, b"X-A: a\0b\r\n"),
    "two lengths": request(POST, JSON_BODY + b"Content-Length: 2\r\nContent-Length: 44\r\n", b"{}"),
    "one length twice": request(POST, JSON_BODY + b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}"),
    "a list of lengths": request(POST, JSON_BODY + b"Content-Length: 2, 2\r\n", b"{}"),
    "a negative length": request(POST, JSON_BODY + b"Content-Length: -1\r\n", b"{}"),
    "a length with a sign": request(POST, JSON_BODY + b"Content-Length: +2\r\n", b"{}"),
    "a length beyond 64 bits": request(POST, JSON_BODY + b"Content-Length: 99999999999999999999999\r\n", b"{}"),
    "a length and chunks": request(POST, JSON_BODY + b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n" + request(GET)),
    "chunks and a length": request(POST, JSON_BODY + CHUNKED + b"Content-Length: 4\r\n", b"0\r\n\r\n" + request(GET)),
    "an unknown transfer coding": request(POST, JSON_BODY + b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http_is_one_400_in_json_and_ends_the_connection(door: Door, sent: bytes) -> None:
    answer = door.send(sent, to_the_end=True)
    assert answer.status == 400
    assert answer.error().startswith("This is no valid HTTP/1.1 request: ")
    assert (answer.headers["connection"], answer.rest) == ("close", b"")


def test_a_chunk_that_is_none_is_a_400(door: Door) -> None:
    """The gateway has asked the orchestrator by then; that request ends with it."""
    answer = door.send(request(POST, JSON_BODY + CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"), to_the_end=True)
    assert (answer.status, "chunk" in answer.error(), answer.rest) == (400, True, b"")


def test_headers_without_an_end_are_a_431(door: Door) -> None:
    with door.connect() as connection:
        send_until_refused(connection, request(GET).removesuffix(b"\r\n"), b"X-More: " + b"x" * 60_000 + b"\r\n")
        answer = read_answer(connection, to_the_end=True)
    assert (answer.status, answer.rest) == (431, b"")
    assert f"larger than {MOST_HEAD >> 10} KiB" in answer.error()


def test_a_trailer_without_an_end_is_no_way_around(door: Door) -> None:
    begun = request(POST, JSON_BODY + CHUNKED, b"2\r\n{}\r\n0\r\n")
    with door.connect() as connection:
        send_until_refused(connection, begun, b"X-More: " + b"x" * 60_000 + b"\r\n")
        assert read_answer(connection, to_the_end=True).status in (400, 431)


def send_until_refused(connection: socket.socket, begin: bytes, piece: bytes, most: int = 400 << 20) -> None:
    """Send `begin`, then `piece` again and again until the other side closes. Fails when it takes `most` bytes."""
    sent = 0
    try:
        connection.sendall(begin)
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    except (BrokenPipeError, ConnectionResetError):
        return
    raise AssertionError(f"{sent} bytes were taken")


# Hosts


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 403),
        (b"Host:\r\n", 403),
        (b"Host: evil.example\r\n", 403),
        (b"Host: localhost\r\nHost: evil.example\r\n", 400),
        (b"Host: evil.example\r\nHost: localhost\r\n", 400),
        (b"Host: localhost\r\nOrigin: http://evil.example\r\nOrigin: http://localhost\r\n", 400),
    ],
)
def test_the_gateway_answers_to_one_host_and_that_is_its_own(both: Halves, headers: bytes, status: int) -> None:
    answer = Door("gateway", ("127.0.0.1", both.port)).send(GET + b" HTTP/1.1\r\n" + headers + b"\r\n")
    assert answer.status == status
    assert re.search("host|origin", answer.error().lower())


# Paths

DOCUMENTS = {
    name: json.loads((OPENAPI / f"{name}-openapi.json").read_text("utf-8"))["paths"]
    for name in ("server", "orchestrator")
}
OF_DOOR = {"gateway": "server", "orchestrator": "orchestrator"}
SERVED = "Qwen/Qwen2.5-0.5B-Instruct"
REAL = {
    "group_id": GROUP,
    "collection": COLLECTION,
    "category": "inference",
    "name": "vllm-single-node",
    "job_id": JOB,
    "file_id": FILE,
    "batch_id": BATCH,
    "pull_id": "pull_0123456789abcdef0123456789abcdef",  # of its form: nothing is pulled here
}
# In the place of one path parameter. Encoded line breaks: a header of ours must not come from them.
ODD_NAMES = (
    "..",
    "%2e%2e",
    "%2F..%2F",
    "..%2F..%2Fetc%2Fpasswd",
    "%00",
    "%",
    "%zz",
    "%ff",
    "%ED%A0%80",
    "a%0d%0aX-Evil:%201",
)


def real_path(path: str) -> str:
    """A documented path with parameters for which there is something."""
    service = QDRANT if "vector-db" in path else VLLM
    model = SERVED if path.startswith("/v1/") else "Qwen/Qwen2.5-7B-Instruct"
    real = REAL | {"name": SLOT} if path.startswith("/slots/") else REAL
    return path.format(**real, service_id=service, model_id=model)


def odd_paths(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for path, operations in document.items():
        for parameter in re.findall(r"{\w+}", path):
            for odd in (*ODD_NAMES, "x" * 30_000):
                for method in operations:
                    yield method.upper(), real_path(path.replace(parameter, odd, 1))


def test_odd_names_in_paths_are_4xx_that_give_nothing_away(door: Door) -> None:
    wrong = []
    for method, path in odd_paths(DOCUMENTS[OF_DOOR[door.name]]):
        answer = door.ask(method, path, None if method in ("GET", "DELETE") else "{}")
        whole = json.dumps(answer.headers).lower() + answer.body.decode()
        told = json.loads(answer.body)
        told = told["detail"] if "detail" in told else told["error"]["message"]
        if not (400 <= answer.status < 500 and told) or "x-evil" in answer.headers:
            wrong.append((method, path[:100], answer.status, answer.body[:200]))
        assert "root:" not in whole
    assert wrong == []


def test_the_methods_of_a_path_are_those_that_allow_names(door: Door) -> None:
    for path, operations in DOCUMENTS[OF_DOOR[door.name]].items():
        allowed = set(door.ask("TRACE", real_path(path)).headers["allow"].split(", "))
        documented = {method.upper() for method in operations}
        assert documented | ({"HEAD"} if "GET" in documented else set()) <= allowed, path
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
            answer = door.ask(method, real_path(path), "{}")
            assert (answer.status, set(answer.headers["allow"].split(", "))) == (405, allowed), (method, path)
            assert f", not {method}" in answer.error()


def test_files_of_the_docs_are_only_read(door: Door) -> None:
    path = {"gateway": "/docs/static/x", "orchestrator": "/static-offline-docs/x"}[door.name]
    answer = door.ask("POST", path, "{}")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_path_with_a_slash_behind_it_leads_nowhere_else(door: Door) -> None:
    """A redirect would name the orchestrator's socket, which the gateway's clients do not know."""
    for method, path in (("GET", START), ("POST", START), ("GET", "/health")):
        answer = door.ask(method, f"{path}/", None)
        assert (answer.status, "location" in answer.headers) == (404, False)
        assert "nothing at" in answer.error()


def test_head_is_get_without_its_body(door: Door) -> None:
    paths = [path for path, operations in DOCUMENTS[OF_DOOR[door.name]].items() if "get" in operations]
    key = b"X-API-Key: %s\r\n" % CONTROL.encode()  # of those that ask for one themselves
    for path in map(real_path, paths):
        line = path.replace(VLLM, GROUP) if "service-groups" in path else path
        with door.connect() as connection:
            connection.sendall(request(f"HEAD {line}".encode(), key))
            head = read_answer(connection, no_body=True)
            connection.sendall(request(b"GET /health"))
            assert read_answer(connection).status == 200, "nothing came between the two answers"
        got = door.ask("GET", line, headers=key)
        assert (head.status, head.headers.get("content-type")) == (got.status, got.headers.get("content-type")), line
        assert got.status == (404 if "/pulls/" in line else 200), (line, got.body)
    assert len(paths) > 20


# Queries


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"{START}?staus=failed", ["'staus'", "'status'", "limit"]),
        (f"{START}/{VLLM}?x=1", ["'x'", "none"]),
        (f"{START}/{ENDED}/logs?tails=1", ["'tails'", "'tail'", "follow"]),
        ("/api/v1/recipes?%0d%0aX-Evil:%201=2", ["name", "path"]),
        (f"{START}?limit=1&limit=x", ["limit"]),
        (f"{START}?recipe=%00", ["inference/vllm-single-node"]),
        (f"{START}?recipe=%ED%A0%80", ["inference/vllm-single-node"]),
        ("/api/v1/vllm/search-models?limit=1&query=" + "x" * 201, ["query"]),
    ],
)
def test_a_wrong_query_is_named(door: Door, path: str, words: list[str]) -> None:
    answer = door.ask("GET", path)
    told = json.dumps(answer.error())
    assert [word for word in words if word not in told] == []
    assert "x-evil" not in answer.headers


NUMBERS = (
    "1e400",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    "-1",
    str(2**63),
    str(2**64),
    "NaN",
    "Infinity",
    "0x10",
    "",
)


@pytest.mark.parametrize("name", [f"{START}?limit", f"{START}?offset", f"{START}/{ENDED}/logs?tail"])
def test_no_number_is_too_large_for_a_query(door: Door, name: str) -> None:
    for number in NUMBERS:
        answer = door.ask("GET", f"{name}={number}")
        assert answer.status == 422, (number, answer.body[:200])
        assert name.partition("?")[2] in json.dumps(answer.error())


# Bodies

CONFIG = '{"recipe_name": "vllm-single-node", "config": %s}'
# Bodies with a hole for one value, by where they go.
HOLES = (
    ("POST", START, '{"recipe_name": %s}'),
    *(("POST", START, CONFIG % f'{{"{name}": %s, "nodes": 2}}') for name in ("memory", "cpu", "gpu", "time_limit")),
    *(("POST", START, CONFIG % f'{{"{name}": %s, "nodes": 2}}') for name in ("model", "account", "max_model_len")),
    ("POST", START, CONFIG % '{"resources": {"nodes": %s}}'),
    ("POST", START, CONFIG % '{"environment": {"A": %s}}'),
    ("POST", START, CONFIG % "{%s: 1}"),
    ("POST", f"{START}/{ENDED}/status", '{"status": %s}'),
    ("POST", f"/api/v1/service-groups/{GROUP}/status", '{"status": %s}'),
    *(
        ("POST", PROMPT, f'{{"prompt": "x", "{name}": %s}}')
        for name in ("model", "max_tokens", "temperature", "stream")
    ),
    ("POST", PROMPT, '{"prompt": %s}'),
    ("POST", PROMPT, '{"prompt": "x", "stop": [%s]}'),
    ("POST", PROMPT, '{"prompt": "x", "stream": true, "model": %s}'),
    ("POST", PROMPT, '{"prompt": "x", %s: 1}'),
    ("PUT", f"{COLLECTIONS}/new", '{"vector_size": %s}'),
    ("PUT", f"{COLLECTIONS}/new", '{"vector_size": 2, "distance": %s}'),
    ("PUT", f"{COLLECTIONS}/{COLLECTION}/points", '{"points": [{"id": %s, "vector": [1, 2]}]}'),
    ("PUT", f"{COLLECTIONS}/{COLLECTION}/points", '{"points": [{"id": 9, "vector": [%s, 2]}]}'),
    ("PUT", f"{COLLECTIONS}/{COLLECTION}/points", '{"points": [{"id": 9, "vector": [1, 2], "payload": {"a": [%s]}}]}'),
    ("POST", f"{COLLECTIONS}/{COLLECTION}/points/search", '{"query_vector": [%s, 1]}'),
    ("POST", f"{COLLECTIONS}/{COLLECTION}/search", '{"query_vector": [1, 1], "limit": %s}'),
)
# What no JSON may have, wherever it stands.
NO_JSON = {
    "NaN": "NaN", "Infinity": "-Infinity", "a lone surrogate": '"\\ud800"', "a half value": "tru",
    "100,000 levels": "[" * 100_000 + "]" * 100_000,
    "a number of 5,000 digits": "1" + "0" * 5000, "a line break in a string": '"a\nb"',
}  # fmt: skip


@pytest.mark.parametrize("value", NO_JSON.values(), ids=NO_JSON)
def test_what_no_json_may_have_is_a_422_that_says_where(door: Door, value: str) -> None:
    for method, path, hole in HOLES:
        answer = door.ask(method, path, hole % value)
        assert answer.status == 422, (path, hole, answer.body[:200])
        (told,) = answer.error()
        assert (told["type"], "The body is no JSON: " in told["msg"], " at line " in told["msg"]) == (
            "json_invalid",
            True,
            True,
        )


@pytest.mark.parametrize(
    "value", ["1e400", "1" + "0" * 400, "-1", str(2**63), "null", "true", "{}", '"\\u0000"', '"a\\r\\nX: 1"']
)
def test_odd_values_are_understood_or_refused(door: Door, value: str) -> None:
    for method, path, hole in HOLES:
        answer = door.ask(method, path, hole % value)
        if answer.status != 200 or value == "1e400":
            answer.error()
        assert "x" not in answer.headers


NO_REQUESTS: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", JSON_BODY),
    "not UTF-8": (b'{"recipe_name": "\xff\xfe"}', JSON_BODY),
    "UTF-16": ('{"recipe_name": "x"}'.encode("utf-16"), JSON_BODY),
    "compressed": (b"\x1f\x8b\x08\x00", JSON_BODY + b"Content-Encoding: gzip\r\n"),
    "a form, as curl -d sends it": (b'{"recipe_name": "x"}', b"Content-Type: application/x-www-form-urlencoded\r\n"),
    "no type": (b'{"recipe_name": "x"}', b""),
    "a type of odd bytes": (b'{"recipe_name": "x"}', b"Content-Type: \xff/\xfe\r\n"),
    "a list": (b"[]", JSON_BODY),
}


@pytest.mark.parametrize(("content", "headers"), NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_a_body_that_is_none_is_a_4xx_everywhere(door: Door, content: bytes, headers: bytes) -> None:
    for method, path in sorted({(method, path) for method, path, _ in HOLES}):
        answer = door.ask(method, path, content, headers)
        told = answer.error()
        if b"json" not in headers:
            assert "Content-Type: application/json" in told


def test_of_a_key_that_stands_twice_the_last_one_counts(door: Door) -> None:
    answer = door.ask("POST", START, '{"recipe_name": "vllm-single-node", "recipe_name": "y"}')
    assert (answer.status, "'y'" in answer.error()) == (404, True)


@pytest.mark.parametrize("value", [b"a\xffb", b"a b", b"x" * 201, b"\xf0\x9f\x92\xa9"])
def test_a_header_with_an_odd_value_is_a_422(door: Door, value: bytes) -> None:
    body = b'{"recipe_name": "vllm-single-node"}'
    answer = door.ask("POST", START, body, JSON_BODY + b"Idempotency-Key: " + value + b"\r\n")
    assert (answer.status, "Idempotency-Key" in answer.error()) == (422, True)


@pytest.mark.parametrize(("method", "end"), [("POST", "prompt"), ("GET", "models")])
def test_a_service_without_a_model_answers_no_prompts(door: Door, method: str, end: str) -> None:
    answer = door.ask(method, f"/api/v1/vllm/{QDRANT}/{end}", '{"prompt": "x", "stream": true}')
    assert (answer.status, "vector-db/qdrant, which serves no model" in answer.error()) == (400, True)


# Much


def test_a_length_that_is_too_much_is_a_413_before_it_is_sent(both: Halves) -> None:
    for path in (START, PROMPT, f"{START}/{PENDING}/status"):
        answer = Door("orchestrator", str(both.socket)).send(
            request(f"POST {path}".encode(), JSON_BODY + b"Content-Length: 100000000\r\n"), to_the_end=True
        )
        assert (answer.status, answer.rest) == (413, b"")
        assert f"larger than {MOST_BYTES >> 20} MiB" in answer.error()


def test_a_body_without_an_end_is_a_413_and_fills_no_memory(door: Door, both: Halves) -> None:
    before = memory(both)
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    for path in (START, f"{COLLECTIONS}/{COLLECTION}/search"):
        with door.connect() as connection:
            send_until_refused(connection, request(f"POST {path}".encode(), JSON_BODY + CHUNKED), chunk)
            answer = read_answer(connection, to_the_end=True)
        assert (answer.status, answer.rest) == (413, b"")
        assert f"larger than {MOST_BYTES >> 20} MiB" in answer.error()
    grown = [now - then for now, then in zip(memory(both), before, strict=True)]
    assert max(grown) < 4 * MOST_BYTES


def memory(both: Halves) -> list[float]:
    """Bytes of orchestrator and gateway."""
    texts = [client.get("/metrics").text for client in (both.direct, both.through)]
    return [float(re.findall(r"(?m)^process_resident_memory_bytes (\S+)$", text)[0]) for text in texts]

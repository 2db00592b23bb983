"""A program that looks like vLLM until it is asked something, and then misbehaves as the prompt says.

    python quirks_engine.py --model M --served-model-name N --host H --port P [anything else]

The prompt's last word names the quirk: one of `QUIRKS`. What it says otherwise is always `TEXT`. Standard library only;
every byte of an answer is written here, as HTTP libraries refuse to be wrong.
"""

import argparse
import contextlib
import gzip
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

WORDS = ["one", " two", " three", " four", " five"]
TEXT = "".join(WORDS)
HUGE = 5 * 1024 * 1024
FLAT = {"object": "error", "message": "the flat form says no", "type": "BadRequestError", "param": None, "code": 400}
SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"


@dataclass
class Asked:
    path: str
    stream: bool
    quirk: str
    headers: dict[str, str]


class Answer:
    """Writes to one client."""

    def __init__(self, client: socket.socket, asked: Asked, model: str) -> None:
        self.client, self.asked, self.model = client, asked, model

    def raw(self, data: bytes) -> None:
        self.client.sendall(data)

    def head(self, status: str, *lines: str, version: str = "1.1") -> None:
        self.raw("\r\n".join([f"HTTP/{version} {status}", *lines, "", ""]).encode())

    @property
    def kind(self) -> str:
        return SSE if self.asked.stream else JSON

    def begin(self, *more: str) -> None:
        self.head("200 OK", f"Content-Type: {self.kind}", "Transfer-Encoding: chunked", *more)

    def chunk(self, data: bytes) -> None:
        self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    def last(self) -> None:
        self.raw(b"0\r\n\r\n")

    def body(self, words: list[str] = WORDS) -> bytes:
        """All that a well-behaved engine sends."""
        if self.asked.stream:
            return b"".join(self.events(words))
        chat = "chat" in self.asked.path
        said = {"message": {"role": "assistant", "content": "".join(words)}} if chat else {"text": "".join(words)}
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": len(words) + 1}
        return json.dumps(self.shape([{"index": 0, **said, "finish_reason": "stop"}]) | {"usage": usage}).encode()

    def shape(self, choices: list[Any], suffix: str = "") -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if "chat" in self.asked.path else "text_completion"
        return {"id": "quirk-1", "object": kind, "created": 1, "model": self.model, "choices": choices}

    def events(self, words: list[str] = WORDS) -> list[bytes]:
        if "responses" in self.asked.path:
            return self.named_events(words)
        deltas: list[Any] = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
        found = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        found.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        told = [json.dumps(self.shape([choice], ".chunk")) for choice in found]
        return [f"data: {event}\n\n".encode() for event in [*told, "[DONE]"]]

    def named_events(self, words: list[str]) -> list[bytes]:
        """OpenAI's responses: each event has a name, and the last one all of the answer."""
        part = {"item_id": "msg-1", "output_index": 0, "content_index": 0}
        response = {"id": "resp-1", "object": "response", "created_at": 1, "model": self.model, "output": []}
        told: list[dict[str, Any]] = [{"type": "response.created", "response": response | {"status": "in_progress"}}]
        told += [{"type": "response.output_text.delta", "delta": word, "logprobs": [], **part} for word in words]
        said = {"type": "output_text", "text": "".join(words), "annotations": []}
        message = {"type": "message", "id": "msg-1", "status": "completed", "role": "assistant", "content": [said]}
        whole = response | {"status": "completed", "output": [message], "instructions": "be long " * 100}
        told.append({"type": "response.completed", "response": whole})
        return [
            f"event: {one['type']}\ndata: {json.dumps(one | {'sequence_number': number})}\n\n".encode()
            for number, one in enumerate(told)
        ]

    def pieces(self) -> list[bytes]:
        """The first half of an answer and the rest."""
        if self.asked.stream:
            events = self.events()
            return [b"".join(events[:3]), b"".join(events[3:])]
        body = self.body()
        return [body[:40], body[40:]]

    def refuse(self, status: str, content: Any, *lines: str, kind: str = JSON) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.head(status, f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines)
        self.raw(body)

    def wait(self) -> None:
        """Send nothing more, until the client has left."""
        self.client.settimeout(60)
        with contextlib.suppress(OSError):
            while self.client.recv(1):
                pass


# What is harmless


def plain(to: Answer) -> None:
    to.begin()
    for event in to.events() if to.asked.stream else [to.body()]:
        to.chunk(event)
    to.last()


def crlf(to: Answer) -> None:
    to.begin()
    to.chunk(to.body().replace(b"\n", b"\r\n"))
    to.last()


def huge(to: Answer) -> None:
    to.begin()
    to.chunk(to.body(["x" * HUGE]))
    to.last()


def tiny_writes(to: Answer) -> None:
    to.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    to.begin()
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(to.body()), to.body())
    for index in range(len(body)):
        to.raw(body[index : index + 1])


def tiny_chunks(to: Answer) -> None:
    to.begin()
    body = to.body()
    for index in range(len(body)):
        to.chunk(body[index : index + 1])
    to.last()


def head_in_pieces(to: Answer) -> None:
    to.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for letter in f"HTTP/1.1 200 OK\r\nContent-Type: {to.kind}\r\nTransfer-Encoding: chunked\r\n\r\n":
        to.raw(letter.encode())
        time.sleep(0.002)
    to.chunk(to.body())
    to.last()


def interim(to: Answer) -> None:
    to.head("100 Continue")
    to.head("103 Early Hints", "Link: </style.css>; rel=preload")
    plain(to)


def sized(to: Answer) -> None:
    to.head("200 OK", f"Content-Type: {to.kind}", f"Content-Length: {len(to.body())}")
    to.raw(to.body())


def http10(to: Answer) -> None:
    to.head("200 OK", f"Content-Type: {to.kind}", version="1.0")
    to.raw(to.body())


def compressed(to: Answer) -> None:
    body = gzip.compress(to.body())
    to.head("200 OK", f"Content-Type: {to.kind}", "Content-Encoding: gzip", f"Content-Length: {len(body)}")
    to.raw(body)


def comments(to: Answer) -> None:
    to.begin()
    if to.asked.stream:
        to.chunk(b": a comment\n\n")
    to.chunk(to.body())
    to.last()


def split_events(to: Answer) -> None:
    """An event in two chunks."""
    to.begin()
    body = to.body()
    to.chunk(body[:30])
    time.sleep(0.05)
    to.chunk(body[30:])
    to.last()


def done_then_close(to: Answer) -> None:
    """All is said, but the last chunk does not come."""
    if not to.asked.stream:
        plain(to)
        return
    to.begin()
    to.chunk(to.body())


# What is an error


def break_before_head(to: Answer) -> None:
    """Nothing at all."""


def break_in_head(to: Answer) -> None:
    to.raw(b"HTTP/1.1 200 OK\r\nContent-Ty")


def break_after_head(to: Answer) -> None:
    to.begin()


def break_between(to: Answer) -> None:
    to.begin()
    to.chunk(to.pieces()[0])


def break_in_chunk(to: Answer) -> None:
    to.begin()
    to.raw(b"%x\r\n%s" % (5000, to.pieces()[0]))


def break_in_event(to: Answer) -> None:
    to.begin()
    to.chunk(to.pieces()[0] + to.pieces()[1][:20])


def reset(to: Answer) -> None:
    """As a process that is killed with unread data leaves its connections."""
    to.begin()
    to.chunk(to.pieces()[0])
    to.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def no_done(to: Answer) -> None:
    """Cut short, and ended in good order."""
    to.begin()
    to.chunk(to.pieces()[0])
    to.last()


def http10_short(to: Answer) -> None:
    to.head("200 OK", f"Content-Type: {to.kind}", version="1.0")
    to.raw(to.pieces()[0])


def length_too_long(to: Answer) -> None:
    to.head("200 OK", f"Content-Type: {to.kind}", f"Content-Length: {len(to.body()) + 100}")
    to.raw(to.pieces()[0])


def length_too_short(to: Answer) -> None:
    first, rest = to.pieces()
    to.head("200 OK", f"Content-Type: {to.kind}", f"Content-Length: {len(first)}")
    to.raw(first + rest)


def bad_chunk(to: Answer) -> None:
    to.begin()
    to.chunk(to.pieces()[0])
    to.raw(b"no size at all\r\n")


def no_http(to: Answer) -> None:
    to.raw(b"Segmentation fault (core dumped)\r\n\r\n")


def error_in_band(to: Answer) -> None:
    error = {"error": {"message": "out of cache", "type": "InternalServerError", "param": None, "code": 500}}
    if not to.asked.stream:
        to.refuse("500 Internal Server Error", error)
        return
    to.begin()
    to.chunk(to.pieces()[0])
    to.chunk(f"data: {json.dumps(error)}\n\n".encode())
    to.chunk(b"data: [DONE]\n\n")
    to.last()


def empty(to: Answer) -> None:
    to.head("200 OK", f"Content-Type: {to.kind}", "Content-Length: 0")


def empty_chunked(to: Answer) -> None:
    to.begin()
    to.last()


def html(to: Answer) -> None:
    to.refuse("500 Internal Server Error", b"<html><h1>it crashed</h1></html>", kind="text/html")


def too_many(to: Answer) -> None:
    to.refuse("429 Too Many Requests", {"error": {"message": "slow down", "type": "x"}}, "Retry-After: 7")


def unavailable(to: Answer) -> None:
    to.refuse("503 Service Unavailable", {"detail": "loading still"}, "Retry-After: 8")


def overloaded(to: Answer) -> None:
    to.refuse("529 Overloaded", {"error": "a status without a name"})


def flat(to: Answer) -> None:
    to.refuse("400 Bad Request", FLAT)


def compressed_refusal(to: Answer) -> None:
    to.refuse("400 Bad Request", gzip.compress(json.dumps(FLAT).encode()), "Content-Encoding: gzip")


def chunked_refusal(to: Answer) -> None:
    to.head("400 Bad Request", f"Content-Type: {JSON}", "Transfer-Encoding: chunked")
    to.chunk(json.dumps(FLAT).encode()[:20])
    to.chunk(json.dumps(FLAT).encode()[20:])
    to.last()


def stall(to: Answer) -> None:
    """In the middle of the answer. The health check goes on answering."""
    to.begin()
    to.chunk(to.pieces()[0])
    to.wait()


def stall_before_head(to: Answer) -> None:
    to.wait()


def odd_ports_fail(to: Answer) -> None:
    if to.client.getsockname()[1] % 2:
        html(to)
    else:
        plain(to)


def late_half(to: Answer) -> None:
    """An event whose halves come before and after the time at which a stream's client gets comments."""
    body = to.body()
    to.begin()
    to.chunk(body[:30])
    time.sleep(16)
    to.chunk(body[30:])
    to.last()


def late_done(to: Answer) -> None:
    """The same between two events."""
    body = to.body()
    to.begin()
    to.chunk(body[:-14])
    time.sleep(16)
    to.chunk(body[-14:])
    to.last()


def slow_refusal(to: Answer) -> None:
    """After the time at which a stream's client has got comments, and on several lines."""
    time.sleep(16)
    to.refuse("400 Bad Request", json.dumps({"error": {"message": "late words"}}, indent=2).encode())


HARMLESS: dict[str, Callable[[Answer], None]] = {
    one.__name__: one
    for one in (plain, crlf, huge, tiny_writes, tiny_chunks, head_in_pieces, interim, sized, http10, compressed,
                comments, split_events, done_then_close)
}  # fmt: skip
BROKEN: dict[str, Callable[[Answer], None]] = {
    one.__name__: one
    for one in (break_before_head, break_in_head, break_after_head, break_between, break_in_chunk, break_in_event,
                reset, no_done, http10_short, length_too_long, length_too_short, bad_chunk, no_http, error_in_band,
                empty, empty_chunked, html, too_many, unavailable, overloaded, flat, compressed_refusal,
                chunked_refusal)
}  # fmt: skip
STALLS: dict[str, Callable[[Answer], None]] = {
    one.__name__: one for one in (stall, stall_before_head, late_half, late_done, slow_refusal)
}
QUIRKS = HARMLESS | BROKEN | STALLS | {"odd_ports_fail": odd_ports_fail}


class Engine:
    """`frozen`: while it is set, nobody gets an answer to anything, as of a process that was stopped."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.key = os.environ.get("VLLM_API_KEY", "")
        self.thawed = threading.Event()
        self.thawed.set()

    def converse(self, client: socket.socket) -> None:
        with client, contextlib.suppress(ConnectionError):
            for method, asked in requests(client):
                self.thawed.wait(60)
                if method == "GET":
                    self.tell(client, asked)
                else:
                    self.answer(client, asked)
                    return

    def tell(self, client: socket.socket, asked: Asked) -> None:
        card = {"id": self.model, "object": "model", "created": 1, "owned_by": "vllm", "root": self.model}
        content = {"object": "list", "data": [card]} if asked.path == "/v1/models" else {}
        Answer(client, asked, self.model).refuse("200 OK", content)

    def answer(self, client: socket.socket, asked: Asked) -> None:
        to = Answer(client, asked, self.model)
        print(f"{asked.quirk} {asked.headers.get('x-request-id')}", file=sys.stderr, flush=True)
        if asked.quirk == "freeze":
            to.begin()
            to.chunk(to.pieces()[0])
            self.thawed.clear()
            to.wait()
            self.thawed.set()
        else:
            QUIRKS[asked.quirk](to)


def requests(client: socket.socket) -> Iterator[tuple[str, Asked]]:
    file = client.makefile("rb")
    while line := file.readline():
        method, target, _ = line.decode().split(" ", 2)
        headers = {}
        while (header := file.readline().decode().strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers.get("content-length", "0")))
        asked = json.loads(body) if body else {}
        yield method, Asked(target, bool(asked.get("stream")), quirk_of(asked), headers)


def quirk_of(asked: dict[str, Any]) -> str:
    found = asked.get("messages") or asked.get("prompt") or asked.get("input") or "plain"
    while not isinstance(found, str):
        found = found[-1] if isinstance(found, list) else found.get("content") or found.get("text") or "plain"
    return found.split()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    chosen, _ = parser.parse_known_args()
    engine = Engine(chosen.served_model_name or chosen.model)
    try:
        listener = socket.create_server((chosen.host, chosen.port))
    except OSError as exc:
        sys.exit(f"quirks_engine.py: {exc}")
    while True:
        client, _ = listener.accept()
        threading.Thread(target=engine.converse, args=[client], daemon=True).start()


if __name__ == "__main__":
    main()

"""An engine that says of each request what reached it, and answers with bytes that can be told beforehand.

    python echo_engine.py --model M --served-model-name N --host H --port P [anything else]

Every path is answered to whoever has the key: `X-Target`, `X-Kind` and `X-Digest` are the request's target,
Content-Type and its body's SHA-256, and the body is `said(path, stream)`. `framing=` in the query says how it is
framed: by its length, in chunks of uneven sizes, or by the end of the connection. Standard library only.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FRAMINGS = ("sized", "chunked", "closed")
_ENDS = {"/v1/messages": 'event: message_stop\ndata: {"type": "message_stop"}'}
_EVERY_BYTE = bytes(range(256))


def said(path: str, stream: bool) -> bytes:
    """JSON that nobody would write so, events, or a sound."""
    if path == "/v1/audio/speech":
        return _EVERY_BYTE * 700
    if stream:
        events = [f'data:  {{"path": "{path}",  "n": {number}}}' for number in range(50)]
        return "".join(f"{event}\n\n" for event in [*events, _ENDS.get(path, "data: [DONE]")]).encode()
    return b'{ "path":"%s","n": 1.50e+3,\r\n "twice": 1, "twice": 2, "\\u00e4": "\xc3\xa4\\/" }  \n' % path.encode()


def kind_of(path: str, stream: bool) -> str:
    if path == "/v1/audio/speech":
        return "audio/mpeg"
    return "text/event-stream" if stream else "application/json"


def pieces(body: bytes) -> Iterator[bytes]:
    """Of uneven sizes, which grow."""
    at, size = 0, 1
    while at < len(body):
        yield body[at : at + size]
        at, size = at + size, size * 3 + 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = key = ""

    def do_GET(self) -> None:
        card = {"id": self.name, "object": "model"}
        self.tell(json.dumps({"object": "list", "data": [card]}).encode(), "application/json", "sized")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get_all("authorization") != [f"Bearer {self.key}"]:
            self.send_error(401)
            return
        there = urlsplit(self.path)
        stream = b'"stream": true' in body
        framing = parse_qs(there.query)["framing"][0]
        told = {"X-Target": self.path, "X-Kind": self.headers["content-type"], "X-Digest": digest(body)}
        self.tell(said(there.path, stream), kind_of(there.path, stream), framing, told)

    def tell(self, body: bytes, kind: str, framing: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        framed = {"sized": ("Content-Length", str(len(body))), "chunked": ("Transfer-Encoding", "chunked")}
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header(*framed.get(framing, ("Connection", "close")))
        self.end_headers()
        if framing != "chunked":
            self.wfile.write(body)
            return
        for piece in pieces(body):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, file=sys.stderr, flush=True)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    chosen, _ = parser.parse_known_args()
    Handler.name, Handler.key = chosen.served_model_name or chosen.model, os.environ.get("VLLM_API_KEY", "")
    try:
        server = ThreadingHTTPServer((chosen.host, chosen.port), Handler)
    except OSError as exc:
        sys.exit(f"echo_engine.py: {exc}")
    server.serve_forever()


if __name__ == "__main__":
    main()

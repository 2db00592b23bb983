#!/usr/bin/env python3
"""A program that looks like Ollama, on the wire and on the disk. Standard library only.

    ollama serve          OLLAMA_HOST and OLLAMA_MODELS as in Ollama; answers OpenAI's routes for the models it has
    ollama list           exit code 1 while no server answers
    ollama pull MODEL     lets the server fetch MODEL; a model that is called `no-such-…` is refused

As Ollama, it knows no key, and needs `manifests/HOST/OWNER/NAME/TAG` and the blob that the manifest names.
"""

import hashlib
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def place(model: str) -> Path:
    name, _, tag = model.partition(":")
    parts = name.split("/")
    return Path(*["registry.ollama.ai", "library"][: 3 - len(parts)], *parts, tag or "latest")


def shown(path: Path) -> str:
    """The name of a model by the parts of its manifest's path."""
    name = "/".join(path.parts[:-1]).removeprefix("registry.ollama.ai/").removeprefix("library/")
    return f"{name}:{path.parts[-1]}"


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("manifests", "blobs"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def models(self) -> list[str]:
        manifests = self.root / "manifests"
        found = [p for p in manifests.rglob("*") if p.is_file() and (self.root / "blobs" / p.read_text()).is_file()]
        return sorted(shown(path.relative_to(manifests)) for path in found)

    def fetch(self, model: str) -> None:
        blob = f"sha256-{hashlib.sha256(model.encode()).hexdigest()}"
        (self.root / "blobs" / blob).write_text("the weights")
        manifest = self.root / "manifests" / place(model)
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(blob)
        print(f"fetched {model}", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    store: Store

    def do_GET(self) -> None:
        if self.path == "/api/version":
            self.answer(200, {"version": "0.32.15"})
        elif self.path in ("/v1/models", "/api/tags"):
            models = [{"id": name, "object": "model", "owned_by": "library"} for name in self.store.models()]
            self.answer(200, {"object": "list", "data": models or None})
        else:
            self.answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/pull" and asked["model"].startswith("no-such-"):
            self.answer(500, {"error": "pull model manifest: file does not exist"})
        elif self.path == "/api/pull":
            self.store.fetch(asked["model"])
            self.answer(200, {"status": "success"})
        elif self.path == "/v1/chat/completions" and asked["model"] in self.store.models():
            said = {"role": "assistant", "content": f"{asked['model']} heard: {asked['messages'][-1]['content']}"}
            choice = {"index": 0, "message": said, "finish_reason": "stop"}
            self.answer(200, {"object": "chat.completion", "model": asked["model"], "choices": [choice]})
        else:
            self.answer(404, {"error": {"message": f"model {asked.get('model')!r} not found", "type": "not_found"}})

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """No line for each request."""


def serve() -> int:
    host, _, port = os.environ["OLLAMA_HOST"].rpartition(":")
    Handler.store = Store(Path(os.environ["OLLAMA_MODELS"]))
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    given = {name: value for name, value in sorted(os.environ.items()) if name.startswith("OLLAMA_")}
    print(f"serving with {json.dumps(given)}", file=sys.stderr, flush=True)
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
    return 0


def ask(path: str, content: Any = None) -> int:
    body = None if content is None else json.dumps(content).encode()
    url = f"http://{os.environ['OLLAMA_HOST'].replace('0.0.0.0', '127.0.0.1')}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body)) as answer:
            print(answer.read().decode())
            return 0
    except urllib.error.HTTPError as exc:
        print(f"Error: {json.loads(exc.read())['error']}", file=sys.stderr)
    except urllib.error.URLError as exc:
        print(f"Error: could not connect to a running Ollama instance: {exc.reason}", file=sys.stderr)
    return 1


def main(words: list[str]) -> int:
    match words:
        case ["serve"]:
            return serve()
        case ["list"]:
            return ask("/api/tags")
        case ["pull", model]:
            return ask("/api/pull", {"model": model})
    sys.exit(f"fake_ollama.py: {words} is none of serve, list, pull MODEL")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

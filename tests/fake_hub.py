"""A program that looks like the Hugging Face Hub to huggingface_hub: GET /api/models and /api/models/{id}.

A model's small files are at /{id}/resolve/main/{name}: those that stand under `files` in its description. A model made
by `whole` has contents, with the hashes of the hub, in ranges too; they come through a `gate` that a test may shut.

With the hub's own ways: fields only where `expand` names them, pages of at most 100 with a Link header, 307 for a
renamed model, 401 with X-Error-Code for what an anonymous client may not see, sizes of files only with `blobs`.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests.checkpoints import QWEN25_7B

JSON = dict[str, Any]
Mood = Literal[
    "well", "hangs", "trickles", "breaks", "busy", "login page", "sends us away", "refuses the token", "refuses"
]
PAGE = 100
TOKEN = "hf_right"


def model(model_id: str, architecture: str | None, downloads: int, **more: Any) -> JSON:
    """A model as the hub describes it."""
    return {
        "id": model_id,
        "downloads": downloads,
        "likes": downloads // 100,
        "tags": ["transformers", "text-generation"],
        "createdAt": "2024-09-16T11:55:40.000Z",
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "config": {"architectures": [architecture], "model_type": "any"} if architecture else None,
        **more,
    }


QWEN = model(
    "Qwen/Qwen2.5-7B-Instruct", "Qwen2ForCausalLM", 9000,
    safetensors={"parameters": {"BF16": 7_615_616_512}, "total": 7_615_616_512},
    siblings=[
        {"rfilename": "config.json", "size": 663, "blobId": "a"},
        {"rfilename": "model-00001-of-00002.safetensors", "size": 8_000_000_000, "blobId": "b"},
        {"rfilename": "model-00002-of-00002.safetensors", "size": 7_231_271_888, "blobId": "c"},
        {"rfilename": "consolidated.safetensors", "size": 15_231_271_888, "blobId": "d"},
        {"rfilename": "original/model.safetensors", "size": 1, "blobId": "e"},
    ],
    files={"config.json": QWEN25_7B},
)  # fmt: skip
GPT2 = model("openai-community/gpt2", "GPT2LMHeadModel", 8000, siblings=[{"rfilename": "pytorch_model.bin"}])
GGUF = model("Qwen/Qwen2.5-7B-Instruct-GGUF", None, 7000, library_name=None, siblings=[])
BERT = model("BAAI/bge-m3", "XLMRobertaModel", 6000, pipeline_tag="sentence-similarity", siblings=[])
PARAMETERS_ONLY = model(
    "tiny/counted", "LlamaForCausalLM", 5,
    safetensors={"parameters": {"F32": 100, "BF16": 1000}, "total": 1100}, siblings=[],
)  # fmt: skip
COMMIT = "7ae557604adf67be50417f59c2c2f167def9a775"


def whole(model_id: str, contents: dict[str, bytes], **more: Any) -> JSON:
    """A model whose files are really there. Weights are stored by git LFS, all else by git."""
    siblings = [_sibling(name, content) for name, content in contents.items()]
    return model(model_id, "LlamaForCausalLM", 3, siblings=siblings, contents=contents, sha=COMMIT, **more)


def _sibling(name: str, content: bytes) -> JSON:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: JSON = {"rfilename": name, "size": len(content), "blobId": git}
    if name.endswith((".safetensors", ".bin")):
        found["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
    return found


TINY = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "README.md": b"A model of 300 kB.",
    "model.safetensors": bytes(range(256)) * 1200,
    "pytorch_model.bin": bytes(1000),
}
SMALL = whole("tiny/whole", TINY)
ODD: JSON = model("odd/fields", None, 1) | dict.fromkeys(("downloads", "likes", "tags", "createdAt", "pipeline_tag"))


@dataclass
class FakeHub:
    """`requests`: the paths asked for, decoded, without their queries; `queries` those. Change `mood` at any time."""

    models: list[JSON] = field(default_factory=lambda: [QWEN, GPT2, GGUF, BERT, PARAMETERS_ONLY, ODD])
    mood: Mood = "well"
    seconds: float = 0  # before each answer
    url: str = ""
    requests: list[str] = field(default_factory=list)
    queries: list[dict[str, list[str]]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    shut_at: int | None = None  # bytes of a content after which it stops, until this is None
    ranges: list[str] = field(default_factory=list)  # that were asked for

    def listed(self, query: dict[str, list[str]]) -> list[JSON]:
        wanted = query.get("search", [""])[0].lower()
        tag = query.get("pipeline_tag", [None])[0]
        sort = query.get("sort", ["downloads"])[0]
        found = [m for m in self.models if wanted in m["id"].lower() and tag in (None, m["pipeline_tag"])]
        found.sort(key=lambda m: (m.get(sort) is not None, m.get(sort)), reverse=True)
        return [{key: m[key] for key in ("id", *query.get("expand", [])) if key in m} for m in found]


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        self.hub.requests.append(path)
        self.hub.queries.append(query)
        self.hub.tokens.append(self.headers.get("authorization"))
        time.sleep(self.hub.seconds)
        if self.hub.mood != "well":
            self.answer_badly()
        elif path == "/api/models":
            self.answer_list(query)
        elif "/resolve/" in path:
            model_id, _, rest = path.removeprefix("/").partition("/resolve/")
            self.answer_file(model_id, rest.partition("/")[2])
        else:
            self.answer_model(path.removeprefix("/api/models/"), query)

    def answer_badly(self) -> None:
        match self.hub.mood:
            case "hangs":
                self.hub.ended.wait(30)
                self.close_connection = True
            case "trickles":
                self.trickle()
            case "breaks":
                self.send(503, {"error": "Service Unavailable"}, {"Retry-After": "3000"})
            case "busy":
                self.send(429, {"error": "slow down"}, {"Retry-After": "77"})
            case "login page":
                self.send(200, "<html>Please log in</html>")
            case "sends us away":
                self.send(307, {}, {"Location": "http://169.254.169.254/latest/meta-data"})
            case "refuses":
                self.send(400, {"error": "this is not for me"})
            case "refuses the token":
                self.send(401, {}, {"X-Error-Message": "Invalid credentials in Authorization header"})

    def answer_list(self, query: dict[str, list[str]]) -> None:
        found, at = self.hub.listed(query), int(query.get("cursor", ["0"])[0])
        size = min(PAGE, int(query.get("limit", ["1000"])[0]))
        headers = {}
        if at + size < len(found):
            rest = self.path.split("&cursor=")[0]
            headers["Link"] = f'<{self.hub.url}{rest}&cursor={at + size}>; rel="next"'
        self.send(200, found[at : at + size], headers)

    def answer_model(self, model_id: str, query: dict[str, list[str]]) -> None:
        model_id, _, revision = model_id.partition("/revision/")
        if revision not in ("", "main", COMMIT):
            self.send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return
        if model_id == "gpt2":
            self.send(307, {}, {"Location": f"/api/models/openai-community/gpt2?{urlsplit(self.path).query}"})
        elif model_id == "meta-llama/gated":
            self.send(401, {"error": "Access to model is restricted"}, {"X-Error-Code": "GatedRepo"})
        elif found := next((m for m in self.hub.models if m["id"] == model_id), None):
            hidden = {"files", "contents"} if "blobs" in query else {"files", "contents", "siblings"}
            self.send(200, {key: found[key] for key in found if key not in hidden})
        elif self.headers.get("authorization") == f"Bearer {TOKEN}":
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        else:
            self.send(401, {"error": "Invalid username or password."}, {})

    def answer_file(self, model_id: str, name: str) -> None:
        """Of a gated model everybody may see which files there are, but not what stands in them."""
        found: JSON = next((m for m in self.hub.models if m["id"] == model_id), {})
        if found.get("gated"):
            self.send(403, {"error": "Access to model is restricted"}, {"X-Error-Code": "GatedRepo"})
        elif name in found.get("files", {}):
            self.send(200, found["files"][name])
        elif name in found.get("contents", {}):
            self.send_content(found["contents"][name])
        else:
            self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})

    def send_content(self, content: bytes) -> None:
        given = self.headers.get("range", "")
        at = int(given.removeprefix("bytes=").partition("-")[0] or 0)
        self.hub.ranges += [given] if given else []
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(len(content) - at))
        if given:
            self.send_header("Content-Range", f"bytes {at}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        for start in range(at, len(content), 10_000):
            while self.hub.shut_at is not None and start >= self.hub.shut_at:
                self.wfile.flush()
                if self.hub.ended.wait(0.02):
                    return
            self.wfile.write(content[start : start + 10_000])

    def trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.hub.ended.wait(0.1):
            self.wfile.write(b" ")

    def send(self, status: int, content: Any, headers: JSON | None = None) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # the client has given up

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that listens on loopback."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""A program that looks like vLLM on the wire, for tests that need many engines in no time.

    VLLM_API_KEY=… python fake_engine.py --model M --served-model-name N --host H --port P
        [--tensor-parallel-size T] [--max-model-len L] [--gpu-memory-utilization G] [--load-seconds S]
        [--middleware MODULE.CLASS] [anything else]

Standard library only; it writes nothing to disk. As vLLM, it does not listen until it has loaded, its key guards /v1
alone, /invocations and /tokenize not, and it loads middleware by its name. One word is one token. Words in a prompt
command it:

    sleep 2      wait 2 s before the first token          delay 0.1   wait 0.1 s before each token
    status 500   answer with that status                  die         end the process (exit code 9) after 2 tokens

Environment: FAKE_LOAD_SECONDS (as --load-seconds), FAKE_TOKEN_SECONDS (as `delay`); to die by itself FAKE_EXIT_AFTER
(seconds since its start) with FAKE_EXIT_CODE. FAKE_METRICS: a folder whose file named like our port, where there is
one, is what /metrics says, read each time. FAKE_BROKEN: a folder; while a file named like our port is there, text is
answered with status 500 and /health stays green. FAKE_SLOTS: how many answers are generated at once, all unless given;
further ones wait. FAKE_SAYS: what it writes to stderr before it loads, with \\r and \\n. A model named *-base has no
chat template.
"""

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = "0.32.0"
NOTED = ("x-request-id", "traceparent", "tracestate")  # headers that stand in the log
TIMES = (
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds",
)  # fmt: skip
PHRASES = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
JSON = dict[str, Any]


class Refusal(Exception):
    """An answer in vLLM's error shape."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class Connection:
    """One client: requests in, answers out, and a look at whether it is still there."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ahead = b""  # read while waiting for a disconnect

    async def requests(self) -> AsyncIterator[Request]:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = self._ahead + await self._reader.readuntil(b"\r\n\r\n")
                self._ahead = b""
                first, *lines = head.decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ", 2)
                pairs = (line.split(":", 1) for line in lines if line)
                headers = {name.lower(): value.strip() for name, value in pairs}
                body = await self._reader.readexactly(int(headers.get("content-length", "0")))
                yield Request(method, target.partition("?")[0], headers, body)

    async def gone(self) -> None:
        """Return when the client closes."""
        while (data := await self._reader.read(1)) != b"":
            self._ahead += data

    def _head(self, status: int, kind: str, *more: str) -> bytes:
        lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Error')}", "server: uvicorn", f"content-type: {kind}", *more]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def send(self, status: int, content: JSON | str) -> None:
        kind = "text/plain; version=0.0.4; charset=utf-8" if isinstance(content, str) else "application/json"
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self._writer.write(self._head(status, kind, f"content-length: {len(body)}") + body)
        await self._writer.drain()

    async def send_events(self, events: AsyncIterator[str]) -> None:
        self._writer.write(self._head(200, "text/event-stream; charset=utf-8", "transfer-encoding: chunked"))
        async for event in events:
            data = f"data: {event}\n\n".encode()
            self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await self._writer.drain()
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()


@dataclass(frozen=True)
class Generation:
    """One accepted request for text."""

    number: int
    chat: bool
    prompt: str
    words: list[str]  # the answer
    finish: str
    delay: float

    @property
    def usage(self) -> JSON:
        asked, answered = len(self.prompt.split()), len(self.words)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


class Histogram:
    """Seconds that something took, as vLLM counts them."""

    BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0, float("inf"))

    def __init__(self) -> None:
        self.buckets = dict.fromkeys(self.BOUNDS, 0)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.sum += seconds
        for bound in self.BOUNDS:
            self.buckets[bound] += seconds <= bound

    def lines(self, name: str, label: str) -> list[str]:
        bounds = [(f"{bound:g}".replace("inf", "+Inf"), number) for bound, number in self.buckets.items()]
        buckets = [f'vllm:{name}_bucket{label[:-1]},le="{bound}"}} {number:.1f}' for bound, number in bounds]
        total = [f"vllm:{name}_sum{label} {self.sum}", f"vllm:{name}_count{label} {self.buckets[self.BOUNDS[-1]]:.1f}"]
        return [f"# TYPE vllm:{name} histogram", *buckets, *total]


class Engine:
    def __init__(self, options: argparse.Namespace, environment: dict[str, str]) -> None:
        self.options = options
        self.names: list[str] = options.served_model_name or [options.model]
        self.key = environment.get("VLLM_API_KEY", "")
        self.gpus = environment.get("CUDA_VISIBLE_DEVICES", "none")
        self.delay = float(environment.get("FAKE_TOKEN_SECONDS", "0"))
        self.created = int(time.time())
        self.told = environment.get("FAKE_METRICS", "")
        self.broken = environment.get("FAKE_BROKEN", "")
        self.slots = asyncio.Semaphore(int(environment.get("FAKE_SLOTS", "1000000")))
        self.accepted = self.running = self.waiting = self.succeeded = self.prompt_tokens = self.generation_tokens = 0
        self.times = {name: Histogram() for name in TIMES}
        self.middleware: Any = reached
        for name in options.middleware:
            module, _, kind = name.rpartition(".")
            self.middleware = getattr(importlib.import_module(module), kind)(self.middleware)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            async for request in connection.requests():
                log(
                    " ".join(
                        [request.method, request.path, *(request.headers[n] for n in NOTED if n in request.headers)]
                    )
                )
                try:
                    await self.answer(request, connection)
                except Refusal as refusal:
                    await connection.send(refusal.status, refusal.body)
        except ConnectionError:
            log("connection lost")
        finally:
            writer.close()

    async def answer(self, request: Request, connection: Connection) -> None:
        route = f"{request.method} {request.path}"
        if refused := await self.refused(request):
            await connection.send(*refused)
        elif (
            request.path.startswith("/v1") and self.key and request.headers.get("authorization") != f"Bearer {self.key}"
        ):
            await connection.send(401, {"error": "Unauthorized"})
        elif route in ("GET /health", "GET /ping"):
            await connection.send(200, "")
        elif route == "GET /version":
            await connection.send(200, {"version": VERSION})
        elif route == "GET /metrics":
            told = Path(self.told, str(self.options.port))
            await connection.send(200, told.read_text() if self.told and told.is_file() else self.metrics())
        elif route == "GET /v1/models":
            await connection.send(200, {"object": "list", "data": [self.model(name) for name in self.names]})
        elif route in ("POST /v1/chat/completions", "POST /v1/completions", "POST /invocations"):
            await self.complete(request, connection)
        elif request.method == "POST" and request.path in TASKS:
            await connection.send(200, self.do(request))
        else:
            await connection.send(404, {"detail": "Not Found"})

    async def refused(self, request: Request) -> tuple[int, JSON] | None:
        """What the middleware answers in the engine's place, None when it lets a request through."""
        headers = [(name.encode(), value.encode("latin-1")) for name, value in request.headers.items()]
        scope = {"type": "http", "method": request.method, "path": request.path, "headers": headers}
        sent: list[JSON] = []

        async def send(message: JSON) -> None:
            sent.append(message)

        await self.middleware(scope, None, send)
        if sent[0]["type"] == "reached":
            return None
        return sent[0]["status"], json.loads(sent[1]["body"])

    def model(self, name: str) -> JSON:
        shown: JSON = {"id": name, "object": "model", "created": self.created, "owned_by": "vllm"}
        return shown | {"root": self.options.model, "parent": None, "max_model_len": self.options.max_model_len}

    def metrics(self) -> str:
        label = f'{{engine="0",model_name="{self.names[0]}"}}'
        running = self.running - self.waiting
        gauges = {"num_requests_running": running, "num_requests_waiting": self.waiting, "kv_cache_usage_perc": 0}
        counters = {"prompt_tokens": self.prompt_tokens, "generation_tokens": self.generation_tokens}
        counters |= {"prefix_cache_queries": self.prompt_tokens, "prefix_cache_hits": 0, "num_preemptions": 0}
        lines = [f"# TYPE vllm:{name} gauge\nvllm:{name}{label} {value:.1f}" for name, value in gauges.items()]
        lines += [f"# TYPE vllm:{n}_total counter\nvllm:{n}_total{label} {v:.1f}" for n, v in counters.items()]
        lines += [line for name, times in self.times.items() for line in times.lines(name, label)]
        success = label.replace("{", '{finished_reason="stop",')
        lines.append(
            f"# TYPE vllm:request_success_total counter\nvllm:request_success_total{success} {self.succeeded:.1f}"
        )
        return "\n".join(lines) + "\n"

    def named(self, asked: JSON) -> str:
        """The model that a request asks for, or the only one."""
        name = asked.get("model") or self.names[0]
        if name not in self.names:
            raise Refusal(404, "NotFoundError", f"The model `{name}` does not exist.", "model")
        return str(name)

    def do(self, request: Request) -> JSON:
        """The answer to what is not generated: the same for the same question, and of the right form."""
        form = request.headers.get("content-type", "").startswith("multipart/form-data")
        asked = fields(request.body) if form else parse(request.body)
        return {"model": self.named(asked)} | TASKS[request.path](asked)

    async def complete(self, request: Request, connection: Connection) -> None:
        """Generate, and stop as soon as the client leaves."""
        asked = parse(request.body)
        generation = self.accept(
            asked, chat="messages" in asked if "/v1" not in request.path else "chat" in request.path
        )
        if asked.get("stream"):
            with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            work = asyncio.create_task(connection.send_events(self.events(generation, with_usage)))
        else:
            work = asyncio.create_task(self.send_whole(generation, connection))
        left = asyncio.create_task(connection.gone())
        self.running += 1
        began = time.monotonic()
        try:
            await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() or isinstance(work.exception(), ConnectionError):
                log(f"cancelled at {time.time():.3f}")
                raise ConnectionResetError
            await work
            self.succeeded += 1
            self.times["e2e_request_latency_seconds"].observe(time.monotonic() - began)
        finally:
            self.running -= 1
            for task in (work, left):
                task.cancel()
            await asyncio.gather(work, left, return_exceptions=True)

    def accept(self, asked: JSON, *, chat: bool) -> Generation:
        """What will be answered. Raises Refusal for what vLLM refuses."""
        if self.broken and Path(self.broken, str(self.options.port)).exists():
            raise Refusal(500, "InternalServerError", "broken, as it was told")
        name = self.named(asked)
        if chat and name.endswith("-base"):
            message = "default chat template is no longer allowed, so you must provide a chat template"
            raise Refusal(400, "BadRequestError", f"As of transformers v4.44, {message} if the tokenizer defines none.")
        check_sampling(asked)
        prompt = prompt_of(asked, chat=chat)
        if status := directive(prompt, "status"):
            raise Refusal(int(status), "InternalServerError", f"told to answer {int(status)}")
        size, limit = len(prompt.split()), self.options.max_model_len
        if size > limit:
            message = f"This model's maximum context length is {limit} tokens. However, your request has {size} input"
            raise Refusal(400, "BadRequestError", f"{message} tokens. Please reduce the length of the input messages.")
        said = " ".join(prompt.split()[-12:])
        words = f"{said} | {name} CUDA_VISIBLE_DEVICES={self.gpus} port={self.options.port}".split()
        most = asked.get("max_completion_tokens") or asked.get("max_tokens") or limit
        self.accepted += 1
        self.prompt_tokens += size
        delay = directive(prompt, "delay") or self.delay
        return Generation(self.accepted, chat, prompt, words[:most], "stop" if len(words) <= most else "length", delay)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One of those that FAKE_SLOTS allows, as soon as it is free."""
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self.slots.release()

    async def tokens(self, generation: Generation) -> AsyncIterator[str]:
        began = last = time.monotonic()
        async with self.slot():
            self.times["request_queue_time_seconds"].observe(time.monotonic() - began)
            await asyncio.sleep(directive(generation.prompt, "sleep") or 0)
            for index, word in enumerate(generation.words):
                if generation.delay:
                    await asyncio.sleep(generation.delay)
                if index == 2 and re.search(r"\bdie\b", generation.prompt):
                    os._exit(9)
                self.generation_tokens += 1
                now = time.monotonic()
                self.times[TIMES[1] if index else TIMES[0]].observe(now - last)
                last = now
                yield word if index == 0 else f" {word}"

    def shape(self, generation: Generation, choices: list[JSON], suffix: str = "") -> JSON:
        kind = f"chat.completion{suffix}" if generation.chat else "text_completion"
        ident = f"{'chatcmpl' if generation.chat else 'cmpl'}-{generation.number}"
        return {"id": ident, "object": kind, "created": self.created, "model": self.names[0], "choices": choices}

    async def send_whole(self, generation: Generation, connection: Connection) -> None:
        text = "".join([token async for token in self.tokens(generation)])
        said = {"message": {"role": "assistant", "content": text}} if generation.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": generation.finish}
        await connection.send(200, self.shape(generation, [choice]) | {"usage": generation.usage})

    async def events(self, generation: Generation, with_usage: bool) -> AsyncIterator[str]:
        def chunk(delta: JSON, finish: str | None = None) -> str:
            said = {"delta": delta} if generation.chat else {"text": delta.get("content", "")}
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
            return json.dumps(self.shape(generation, [choice], ".chunk"))

        if generation.chat:
            yield chunk({"role": "assistant", "content": ""})
        async for token in self.tokens(generation):
            yield chunk({"content": token})
        yield chunk({}, generation.finish)
        if with_usage:
            yield json.dumps(self.shape(generation, [], ".chunk") | {"usage": generation.usage})
        yield "[DONE]"


async def reached(scope: JSON, receive: Any, send: Any) -> None:
    """The innermost application: a request that comes here is answered by the engine."""
    await send({"type": "reached"})


def parse(body: bytes) -> JSON:
    try:
        asked = json.loads(body)
    except ValueError as exc:
        raise Refusal(400, "Bad Request", f"JSON decode error: {exc}") from exc
    if not isinstance(asked, dict):
        raise Refusal(400, "Bad Request", "the body must be an object")
    return asked


def fields(body: bytes) -> JSON:
    """The short fields of a form, and how long its file is."""
    found = re.findall(rb'name="(\w+)"([^\r\n]*)\r\n(?:[^\r\n]+\r\n)*\r\n(.*?)\r\n--', body, re.DOTALL)
    return {n.decode(): len(value) if b"filename=" in more else value.decode("latin-1") for n, more, value in found}


def given(asked: JSON, name: str) -> list[str]:
    """The texts of a field that must have some."""
    if not (found := list(texts(asked.get(name)))):
        raise Refusal(400, "BadRequestError", f"Field required: {name}", name)
    return found


def embed(asked: JSON) -> JSON:
    data = [
        {"object": "embedding", "index": n, "embedding": [float(len(text)), 1.0]}
        for n, text in enumerate(given(asked, "input"))
    ]
    return {"object": "list", "data": data, "usage": {"prompt_tokens": len(data), "total_tokens": len(data)}}


def respond(asked: JSON) -> JSON:
    said = {"type": "output_text", "text": " ".join(given(asked, "input")), "annotations": []}
    message = {"type": "message", "id": "msg-1", "status": "completed", "role": "assistant", "content": [said]}
    return {"id": "resp-1", "object": "response", "status": "completed", "output": [message]}


def write_message(asked: JSON) -> JSON:
    content = [{"type": "text", "text": prompt_of(asked, chat=True)}]
    usage = {"input_tokens": 1, "output_tokens": 1}
    about = {"id": "msg-1", "type": "message", "role": "assistant", "stop_reason": "end_turn", "usage": usage}
    return about | {"content": content}


def likeness(one: str, other: str) -> float:
    words, others = set(one.lower().split()), set(other.lower().split())
    return len(words & others) / max(1, len(words | others))


def rerank(asked: JSON) -> JSON:
    (query, *_), documents = given(asked, "query"), given(asked, "documents")
    scored = [(likeness(query, document), n, document) for n, document in enumerate(documents)]
    results = [
        {"index": n, "document": {"text": document}, "relevance_score": score}
        for score, n, document in sorted(scored, key=lambda one: -one[0])
    ]
    return {"id": "rerank-1", "results": results}


def score(asked: JSON) -> JSON:
    (one, *_), others = given(asked, "text_1"), given(asked, "text_2")
    data = [{"index": n, "object": "score", "score": likeness(one, other)} for n, other in enumerate(others)]
    return {"id": "score-1", "object": "list", "data": data}


def transcribe(asked: JSON) -> JSON:
    if not isinstance(asked.get("file"), int):
        raise Refusal(400, "BadRequestError", "Field required: file", "file")
    return {"text": f"{asked['file']} bytes of speech"}


def tokenize(asked: JSON) -> JSON:
    count = len(" ".join(given(asked, "prompt")).split())
    return {"count": count, "max_model_len": 2048, "tokens": list(range(count))}


def detokenize(asked: JSON) -> JSON:
    tokens = asked.get("tokens")
    if not isinstance(tokens, list):
        raise Refusal(400, "BadRequestError", "Field required: tokens", "tokens")
    return {"prompt": " ".join(f"word{token}" for token in tokens)}


TASKS = {
    "/v1/embeddings": embed,
    "/v1/responses": respond,
    "/v1/messages": write_message,
    "/v1/rerank": rerank,
    "/v1/score": score,
    "/v1/audio/transcriptions": transcribe,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}


def check_sampling(asked: JSON) -> None:
    """As vLLM: what is no number of tokens, of answers or no switch is refused."""
    for name, most in (("max_tokens", 10**9), ("max_completion_tokens", 10**9), ("n", 16384)):
        given = asked.get(name)
        if given is not None and not (isinstance(given, int) and 1 <= given <= most):
            raise Refusal(400, "BadRequestError", f"{name} must be 1 to {most}, got {given}.", name)
    if isinstance(asked.get("stream"), dict | list):
        raise Refusal(400, "BadRequestError", "stream: Input should be a valid boolean", "stream")


def prompt_of(asked: JSON, *, chat: bool) -> str:
    """All the words of the request, the last message last."""
    found = asked.get("messages" if chat else "prompt")
    if not found or (chat and not isinstance(found, list)):
        raise Refusal(400, "Bad Request", f"Field required: {'messages' if chat else 'prompt'}")
    return " ".join(texts([message.get("content") for message in found] if chat else found))


def texts(content: Any) -> Iterator[str]:
    """The strings of a prompt: a string, a list of them, or content parts `{"type": "text", "text": …}`."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield str(content.get("text", ""))
    elif isinstance(content, list):
        for part in content:
            yield from texts(part)


def directive(prompt: str, word: str) -> float | None:
    found = re.search(rf"\b{word} (\d+(?:\.\d+)?)\b", prompt)
    return float(found[1]) if found else None


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments(words: list[str], environment: dict[str, str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--middleware", action="append", default=[])
    parser.add_argument("--load-seconds", type=float, default=float(environment.get("FAKE_LOAD_SECONDS", "0")))
    known, unknown = parser.parse_known_args(words)
    if unknown:
        log(f"ignored: {' '.join(unknown)}")
    return known


async def serve(options: argparse.Namespace, environment: dict[str, str]) -> int:
    """Listen until SIGTERM (exit code 0) or the end that the environment asks for."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    after = environment.get("FAKE_EXIT_AFTER")
    try:
        async with asyncio.timeout(float(after) if after else None):
            if said := environment.get("FAKE_SAYS"):
                sys.stderr.write(said.replace("\\r", "\r").replace("\\n", "\n"))
                sys.stderr.flush()
            if options.load_seconds:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), options.load_seconds)
            engine = Engine(options, environment)
            server = await asyncio.start_server(engine.converse, options.host, options.port)
            options.port = server.sockets[0].getsockname()[1]  # --port 0: any free one
            print(f"{engine.names[0]} listens on {options.host}:{options.port}, GPUs {engine.gpus}", flush=True)
            await stopped.wait()
            server.close()
    except TimeoutError:
        return int(environment.get("FAKE_EXIT_CODE", "1"))
    return 0


if __name__ == "__main__":
    chosen = arguments(sys.argv[1:], dict(os.environ))
    try:
        code = asyncio.run(serve(chosen, dict(os.environ)))
    except OSError as exc:  # the port is taken
        sys.exit(f"fake_engine.py: {exc}")
    sys.exit(code)

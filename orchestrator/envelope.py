"""Errors as OpenAI's clients read them, and engines' own shapes put into that form. Pure."""

import json
import re
import zlib
from typing import Any

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
          429: "rate_limit_error", 503: "service_unavailable_error"}  # fmt: skip
_MOST_WORDS = 10_000
_OPENAI = re.compile(r"(/api(/v1)?/services/[^/]+|(/api(/v1)?)?/slots/[^/]+)?/v1(/.*)?")
_MOST_INFLATED = 1024 * 1024


def belongs_to(path: str) -> bool:
    """Whether a path is one of OpenAI's API: of all services, or of one."""
    return _OPENAI.fullmatch(path) is not None


def envelope(status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """The body of an error."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    error = {"message": message[:_MOST_WORDS], "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}).encode()


def event(status: int, message: str, target: bytes = b"") -> bytes:
    """The same within a stream, whose status is spent. No [DONE] follows: the answer must not look complete."""
    return in_a_stream(envelope(status, message), target)


def in_a_stream(body: bytes, target: bytes) -> bytes:
    """An error's body as an event of a stream. Anthropic's clients listen to events by their names only, and in a
    stream of OpenAI's responses each event has one."""
    line = b" ".join(body.splitlines())
    if target.startswith(b"/v1/messages"):
        return _named({"type": "error", "error": _inner(line)})
    if target.startswith(b"/v1/responses"):
        # OpenAI's SDKs raise where there is an `error`; others read the message where OpenAI's document has it.
        error = _inner(line)
        told = {name: error.get(name) for name in ("message", "code", "param")} if isinstance(error, dict) else {}
        return _named({"type": "error", **told, "error": error})
    return b"data: %s\n\n" % line


def _named(content: dict[str, Any]) -> bytes:
    return b"event: error\ndata: %s\n\n" % json.dumps(content).encode()


def _inner(body: bytes) -> Any:
    content = json.loads(body)
    return content.get("error", content) if isinstance(content, dict) else content


def translated(status: int, body: bytes, coding: bytes = b"") -> bytes:
    """An engine's error in the envelope; as it is if it is in one. `coding` is its Content-Encoding."""
    if coding.strip().lower() in (b"gzip", b"x-gzip", b"deflate"):
        body = _inflated(body)
    try:
        content = json.loads(body)
    except ValueError:
        return envelope(status, body[:_MOST_WORDS].decode(errors="replace").strip() or f"status {status}, no message")
    if isinstance(content, dict) and isinstance(content.get("error"), dict) and "message" in content["error"]:
        return body
    return envelope(status, words(content))


def _inflated(body: bytes) -> bytes:
    """What can be read of a compressed body."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, _MOST_INFLATED)
    except zlib.error as exc:
        return f"a compressed message that cannot be read ({exc})".encode()


def words(content: Any) -> str:
    """The message in an engine's error: vLLM's older flat form, FastAPI's detail, llama.cpp's, a bare string."""
    if isinstance(content, dict):
        for name in ("error", "message", "detail"):
            if content.get(name):
                return words(content[name])
    return content if isinstance(content, str) else json.dumps(content)

"""Errors as OpenAI's clients read them, and engines' own shapes put into that form. Pure."""

import json
from typing import Any

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
          429: "rate_limit_error", 503: "service_unavailable_error"}  # fmt: skip
_MOST_WORDS = 10_000


def envelope(status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """The body of an error."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    error = {"message": message[:_MOST_WORDS], "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}).encode()


def event(status: int, message: str) -> bytes:
    """The same within a stream, whose status is spent. No [DONE] follows: the answer must not look complete."""
    return b"data: %s\n\n" % envelope(status, message)


def translated(status: int, body: bytes) -> bytes:
    """An engine's error in the envelope; as it is if it is in one."""
    try:
        content = json.loads(body)
    except ValueError:
        return envelope(status, body[:_MOST_WORDS].decode(errors="replace").strip() or f"status {status}, no message")
    if isinstance(content, dict) and isinstance(content.get("error"), dict) and "message" in content["error"]:
        return body
    return envelope(status, words(content))


def words(content: Any) -> str:
    """The message in an engine's error: vLLM's older flat form, FastAPI's detail, llama.cpp's, a bare string."""
    if isinstance(content, dict):
        for name in ("error", "message", "detail"):
            if content.get(name):
                return words(content[name])
    return content if isinstance(content, str) else json.dumps(content)

"""The errors that the gateway itself answers, in the shape that belongs to the path."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from orchestrator.envelope import belongs_to
from orchestrator.wire.http1 import answer

_CODES = {401: "invalid_api_key", 403: "forbidden", 404: "not_found", 502: "upstream_error", 503: "service_unavailable"}


class Problem(Response):
    """An error as JSON: OpenAI's envelope below /v1, `{"detail": …}` elsewhere, and with `success` and `error` beside
    it under the paths whose answers have them."""

    media_type = "application/json"

    def __init__(
        self, path: str, status: int, message: str, headers: Mapping[str, str] | None = None, code: str = ""
    ) -> None:
        super().__init__(body_of(path, status, message, code), status_code=status, headers=headers)


def rendered(path: str, status: int, message: str, headers: Mapping[str, str] | None = None, code: str = "") -> bytes:
    """The same as bytes of HTTP."""
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return answer(status, body_of(path, status, message, code), pairs)


def body_of(path: str, status: int, message: str, code: str = "") -> bytes:
    """`code`: a word for programs; "" for that of the status, which only OpenAI's envelope has."""
    return json.dumps(_body(path, status, message, code), ensure_ascii=False).encode("utf-8", "replace")


def _body(path: str, status: int, message: str, code: str) -> dict[str, Any]:
    if belongs_to(path):
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": code or _CODES.get(status)}}
    return _detailed(path, message) | ({"code": code} if code else {})


def _detailed(path: str, message: str) -> dict[str, Any]:
    if path.startswith(("/api/v1/vllm/", "/api/v1/vector-db/", "/api/services/vllm/", "/api/services/vector-db/")):
        return {"detail": message, "success": False, "error": message}
    return {"detail": message}

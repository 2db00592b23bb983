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

    def __init__(self, path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body_of(path, status, message), status_code=status, headers=headers)


def rendered(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The same as bytes of HTTP."""
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return answer(status, body_of(path, status, message), pairs)


def body_of(path: str, status: int, message: str) -> bytes:
    return json.dumps(_body(path, status, message), ensure_ascii=False).encode("utf-8", "replace")


def _body(path: str, status: int, message: str) -> dict[str, Any]:
    if belongs_to(path):
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": _CODES.get(status)}}
    if path.startswith(("/api/v1/vllm/", "/api/v1/vector-db/", "/api/services/vllm/", "/api/services/vector-db/")):
        return {"detail": message, "success": False, "error": message}
    return {"detail": message}

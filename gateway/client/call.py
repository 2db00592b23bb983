"""One request and how its answer is read: no sockets here, so that both clients share it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

from gateway.client.errors import ApiError, BrokenAnswer

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """`T` is the answer's JSON. `path` is percent-encoded. `seconds`: how long an answer may be silent; None: for ever.

    `repeatable`: it may be sent once more when the connection broke, since the second time changes nothing.
    """

    method: str
    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: Any = None
    content: bytes | None = None  # a body that is no JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = 90
    repeatable: bool = False


class Decoder(Protocol[T]):
    """Bytes as they come, in; whole pieces out. `end` raises BrokenAnswer for a stream that is not complete."""

    def feed(self, data: bytes) -> list[T]: ...
    def end(self) -> list[T]: ...


@dataclass(frozen=True)
class Flow(Generic[T]):
    """A request whose answer is a stream of `T`."""

    call: Call[Any]
    decoder: Callable[[], Decoder[T]]


def read(call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> T:
    """The answer. Raises ApiError for a refusal, BrokenAnswer for what is not JSON."""
    if status >= 400:
        raise refusal(status, headers, body)
    try:
        return cast(T, json.loads(body))
    except ValueError as exc:
        raise BrokenAnswer(
            f"{call.method} {call.path}: the answer (status {status}) is not JSON; is this a gateway?"
        ) from exc


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """`headers`: names in lower case."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    fields = content if isinstance(content, dict) else {}
    detail = said(fields) or body.decode(errors="replace").strip()[:500] or f"HTTP {status}"
    return ApiError(status, detail, _seconds(headers.get("retry-after")), fields)


def said(body: Mapping[str, Any]) -> str:
    """The sentence of an error: the API's `detail`, also a list of wrong fields, or OpenAI's envelope."""
    detail, error = body.get("detail"), body.get("error")
    if isinstance(detail, list):
        return "; ".join(_wrong(item) for item in detail)
    if isinstance(detail, str):
        return detail
    if isinstance(error, dict):
        return str(error.get("message", error))
    return str(error or body.get("message") or "")


def _wrong(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = ".".join(str(part) for part in item.get("loc", ()) if part != "body")
    return f"{where}: {item.get('msg')}" if where else str(item.get("msg"))


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:  # a date, which our servers never send
        return None

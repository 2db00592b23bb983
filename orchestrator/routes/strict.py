"""Requests as they must be: a query with known names only, and a body of JSON as RFC 8259 has it."""

import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from difflib import get_close_matches
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from orchestrator.errors import Invalid, TooLarge

MOST_BYTES = 32 * 1024 * 1024  # of a body that is read here: Qdrant's own default. What is passed on has no limit


class StrictRoute(APIRoute):
    """The class of all routes that read what they are sent. Those that pass it on unread are plain ones."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = sorted(field.alias for field in self.dependant.query_params)
        wants_body = self.body_field is not None

        async def strict(request: Request) -> Response:
            check_query(request.query_params, known)
            check_size(int(request.headers.get("content-length", 0)))
            strictly = StrictRequest(request.scope, request.receive)
            if wants_body and await strictly.body():
                check_type(request.headers.get("content-type", ""))
            return await handle(strictly)

        return strict


class StrictRequest(Request):
    async def stream(self) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in super().stream():
            size += len(chunk)
            check_size(size)
            yield chunk

    async def json(self) -> Any:
        """Without NaN, lone surrogates and nesting beyond 200 levels: nobody could be told of these, or sent them."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as exc:
            raise json.JSONDecodeError(str(exc), "", 0) from exc  # which FastAPI answers with a 422


def check_query(given: Iterable[str], known: list[str]) -> None:
    """Raises Invalid for a name that is not known: a filter with a slip in its name would be no filter."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f" Do you mean {near[0]!r}?" if near else ""
            raise Invalid(
                f"{name[:100]!r} is no query parameter of this path.{hint} It has {', '.join(known) or 'none'}."
            )


def check_size(size: int) -> None:
    """Raises TooLarge for more bytes than a body may have."""
    if size > MOST_BYTES:
        raise TooLarge(f"the body is larger than {MOST_BYTES >> 20} MiB; send it in parts")


def check_type(content_type: str) -> None:
    """Raises Invalid for a body that is not said to be JSON, as curl sends it without -H."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Invalid(f"the body is sent as {kind[:100]!r}; send JSON, with the header Content-Type: application/json")

"""Questions to the orchestrator, on behalf of whoever looks at a page."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

from gateway.link import Link, LinkStatus, Unreached
from gateway.paths import to_orchestrator
from gateway.trunk import Trunk
from orchestrator.access import ACTOR, SCOPE, needed
from orchestrator.keys import Scope

_HOLD_SECONDS = 2.0  # that a page waits for a link that is being opened; then it says so


class Refused(Exception):
    """The orchestrator, or the key in use, does not allow it. `text` is for the user; `body` the whole answer."""

    def __init__(self, status: int, text: str, body: Any = None) -> None:
        super().__init__(text)
        self.status, self.text, self.body = status, text, body


class Away(Exception):
    """There is no orchestrator to ask."""

    def __init__(self, link: LinkStatus) -> None:
        super().__init__(link.advice)
        self.link = link


@dataclass(frozen=True)
class Asker:
    """`actor` and `scope` are those of the key in use; None where none is wanted, and everything allowed."""

    trunk: Trunk
    link: Link
    seconds: float
    actor: str | None = None
    scope: Scope | None = None

    def may(self, method: str, path: str) -> bool:
        return self.scope is None or self.scope.covers(needed(method, path))

    async def json(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of the answer to a client's request, as `GET /api/v1/services`. Raises Refused and Away."""
        status, content = await self.ask(method, path, body, query=query, headers=headers)
        try:
            answer = json.loads(content)
        except ValueError as exc:
            raise Refused(502, f"{method} {path} was not answered with JSON") from exc
        if status >= 400:
            raise Refused(status, _text_of(answer), answer)
        return answer

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body as they are. Raises Refused for what the key may not do, and Away."""
        if not self.may(method, path):
            raise Refused(403, f"the key in use has the scope {self.scope}, but this needs {needed(method, path)}")
        their_method, target = to_orchestrator(method, path)
        if query:
            target += "?" + urlencode({name: value for name, value in query.items() if value is not None})
        sent = [(name.encode(), value.encode()) for name, value in (headers or {}).items()] + self._told()
        content = b"" if body is None else json.dumps(body).encode()
        try:
            async with asyncio.timeout(self.seconds + _HOLD_SECONDS):
                return await self.trunk.ask(their_method.encode(), target.encode(), _HOLD_SECONDS, sent, content)
        except (Unreached, TimeoutError) as exc:
            raise Away(self.link.status) from exc

    def _told(self) -> list[tuple[bytes, bytes]]:
        if self.actor is None or self.scope is None:
            return []
        return [(ACTOR, self.actor.encode()), (SCOPE, self.scope.value.encode())]


def asker_of(request: Request) -> Asker:
    """With the key of the request, as the door has said it (`orchestrator.access.acting`)."""
    state = request.state
    scope, actor = request.headers.get(SCOPE.decode()), request.headers.get(ACTOR.decode())
    return Asker(
        state.trunk, state.link, state.settings.connect_seconds, actor, None if scope is None else Scope(scope)
    )


def _text_of(answer: Any) -> str:
    """What an error says, whichever of the shapes it has."""
    if not isinstance(answer, dict):
        return str(answer)[:500]
    detail = answer.get("detail", answer.get("error", answer))
    if isinstance(detail, list):
        return "; ".join(f"{'.'.join(str(part) for part in fault['loc'][1:])}: {fault['msg']}" for fault in detail)
    return str(detail.get("message", detail) if isinstance(detail, dict) else detail)

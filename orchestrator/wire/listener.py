"""Our connections inside uvicorn, which keeps the sockets, the lifespan and the signals."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from orchestrator.wire.front import Front
from orchestrator.wire.hosted import Application
from orchestrator.wire.server import Server

_SWEEP_SECONDS = 1.0


class Listener:
    """The `http` of a uvicorn.Config: makes the protocol of each connection.

    `make_server` is called at the first connection, when the lifespan has begun, with the application and the state
    that its lifespan has yielded.
    """

    def __init__(self, make_server: Callable[[Application, dict[str, Any]], Server]) -> None:
        self._make_server = make_server
        self._server: Server | None = None

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Front:
        loop = _loop or asyncio.get_running_loop()
        if self._server is None:
            self._server = self._make_server(Application(config, server_state, app_state), app_state)
            self._server.registry = server_state.connections
            self._sweep(loop, self._server)
        return Front(self._server, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop, server: Server) -> None:
        server.sweep(loop.time())
        server.tick()
        loop.call_later(_SWEEP_SECONDS, self._sweep, loop, server)

"""Our connections inside uvicorn, which keeps the sockets, the lifespan and the signals."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from orchestrator.wire.front import Front
from orchestrator.wire.hosted import Application
from orchestrator.wire.server import Server

_SWEEP_SECONDS = 1.0


def bound(host: str, port: int) -> socket.socket:
    """A TCP socket that listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With protocol 0 asyncio would not recognise TCP and leave Nagle on for every connection: 40 ms for each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Two sockets may be bound to one port with SO_REUSEADDR, but only one may listen: so listen before saying so.
        listener.listen(socket.SOMAXCONN)
    except OSError:
        listener.close()
        raise
    return listener


class Listener:
    """The `http` of a uvicorn.Config: makes the protocol of each connection.

    `make_server` is called at the first connection, when the lifespan has begun, with the application and the state
    that its lifespan has yielded.
    """

    def __init__(self, make_server: Callable[[Application, dict[str, Any]], Server]) -> None:
        self._make_server = make_server
        self._server: Server | None = None
        self._leaving = False

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
            for server in self._all(self._server):
                server.registry, server.leaving = server_state.connections, self._leaving
            self._sweep(loop, self._server)
        return Front(self._server, loop)

    def leave(self) -> None:
        """Another process takes the new connections: those that are open end with their next answer, or when idle."""
        self._leaving = True
        for server in self._all(self._server) if self._server is not None else ():
            server.leaving = True

    def _sweep(self, loop: asyncio.AbstractEventLoop, server: Server) -> None:
        loop.call_later(_SWEEP_SECONDS, self._sweep, loop, server)  # first: a turn that fails is not the last one
        for one in self._all(server):
            one.sweep(loop.time())
            one.tick()

    def _all(self, server: Server) -> list[Server]:
        return [server] if server.remote is None else [server, server.remote]

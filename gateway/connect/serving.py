"""Becoming the gateway on a link that is open already, and leaving it to a successor."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self, cast

import uvicorn

from gateway.app import State, create_app, listener_of
from gateway.connect import seat
from gateway.link import Link, LinkStatus
from gateway.remote import Said
from gateway.settings import Settings
from orchestrator.wire.listener import Listener

log = logging.getLogger("gateway")

_GRACE_SECONDS = 5  # that running answers get to end after a signal
_LEAVING_SECONDS = 150.0  # that clients' connections get after the port was handed over: longer than they may be idle
_LOOK_SECONDS = 0.1


class Lent:
    """A link that somebody else opens and closes."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def status(self) -> LinkStatus:
        return self._link.status

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        await self._link.connect(factory)

    async def changed(self) -> None:
        await self._link.changed()

    def check(self) -> None:
        self._link.check()

    async def execute(self, command: str, stdin: bytes | Path = b"", seconds: float = 60) -> Said:
        return await self._link.execute(command, stdin, seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return


class Gateway:
    """`link` is open. `listener` is bound, and closed at the end."""

    def __init__(self, settings: Settings, link: Link, listener: socket.socket) -> None:
        self._listener = listener
        self._handed = listener.dup()  # uvicorn closes its own when it is to take no more
        self._connections: Listener = listener_of(settings)
        self._leaving: asyncio.Task[None] | None = None
        self.server = uvicorn.Server(
            uvicorn.Config(
                create_app(settings, lambda _: Lent(link)),
                http=self._connections,  # type: ignore[arg-type] # it makes protocols, as their classes do
                log_config=None,
                access_log=settings.log_level == "debug",
                ws="none",
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )

    async def serve(self, control: Path) -> None:
        """Until a signal, or until a successor has taken the port and ours have had their answers."""
        with self._listener, self._handed:
            async with self._attended(control):
                await self.server.serve(sockets=[self._listener])

    @contextlib.asynccontextmanager
    async def _attended(self, control: Path) -> AsyncIterator[None]:
        holding = seat.Holding(self._rest, self._go_on, self._leave, self._handed)
        async with seat.attended(control, holding):
            yield
        if self._leaving is not None:
            self._leaving.cancel()

    @property
    def _state(self) -> State:
        """What the lifespan has yielded."""
        return cast(State, self.server.lifespan.state)

    async def _rest(self, seconds: float) -> int:
        return await self._state["trunk"].rest(seconds) if self.server.started else 0

    def _go_on(self) -> None:
        if self.server.started:
            self._state["trunk"].go_on()

    def _leave(self) -> None:
        self._connections.leave()
        for one in self.server.servers:
            one.close()
        log.info("another gateway has the port now; this one ends when its clients have their answers")
        self._leaving = asyncio.create_task(self._end_when_left(), name="leaving")

    async def _end_when_left(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVING_SECONDS):
                while self.server.server_state.connections:  # noqa: ASYNC110 (uvicorn has no event for it)
                    await asyncio.sleep(_LOOK_SECONDS)
        self.server.should_exit = True

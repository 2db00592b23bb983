"""Serving the two halves in a test, and waiting for what a user would wait for."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from gateway.app import create_app, listener_of
from gateway.settings import Settings
from orchestrator.wire.hosted import Application
from orchestrator.wire.listener import Listener
from orchestrator.wire.server import Server
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.sshd import Sshd


@contextmanager
def short_folder() -> Iterator[Path]:
    """Short enough for a UNIX socket's path."""
    with tempfile.TemporaryDirectory(prefix="sg-") as name:
        yield Path(name)


def settings_through(sshd: Sshd, folder: Path) -> Settings:
    """Through SSH to `folder`/orchestrator.sock, with short delays."""
    return Settings(
        cluster="login",
        ssh_config=sshd.configure(folder),
        remote_socket=str(folder / "orchestrator.sock"),
        models_file=folder / "models.json",
        backoff_min_seconds=0.05,
        backoff_max_seconds=0.2,
    )


@asynccontextmanager
async def served(app: Any, listener: socket.socket, http: Any = "httptools") -> AsyncIterator[None]:
    """`app` on a socket that is bound already, from ready to closed."""
    config = uvicorn.Config(
        app, http=http, log_config=None, timeout_graceful_shutdown=1, ws="none", server_header=False
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            assert not task.done(), task
            await asyncio.sleep(0)
        yield
    finally:
        server.should_exit = True
        await task
        listener.close()


def muxed() -> Listener:
    """Connections that may carry many requests at once, as the orchestrator's do."""

    def make_server(application: Application, state: dict[str, Any]) -> Server:
        return Server(application.exchange, lambda path, status, text: b"", lambda *told: None, muxed=True)

    return Listener(make_server)


def served_orchestrator(
    app: FakeOrchestrator, path: Path, http: Any = "httptools"
) -> AbstractAsyncContextManager[None]:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return served(app, listener, http)


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A served gateway, as a client with its base URL."""
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # with 0, asyncio leaves Nagle on
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with (
        served(create_app(settings), listener, listener_of(settings)),
        httpx2.AsyncClient(base_url=url, trust_env=False, timeout=10) as client,
    ):
        yield client


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 20) -> None:
    """Ask again and again, as a user would, until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 (what is waited for has no event: another process)
            await asyncio.sleep(0.01)


async def until_ready(client: httpx2.AsyncClient) -> None:
    async def ready() -> bool:
        return (await client.get("/ready")).status_code == 200

    await until(ready)

"""The place of a gateway on this machine: which process `sluice connect` has at a port, and how the next one takes it.

A file says who has the port. Beside it the gateway listens at a private socket for its successor, which may ask it
    hold       to let no request through while the orchestrator is replaced; answered when none is under way
    release    to go on. The end of the connection is one, too
    listener   for the port itself: its listening socket is handed over, so that no client is ever refused
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.connect.wheel import Wheel
from gateway.settings import cache_folder
from orchestrator.lock import start_of

_QUIET_SECONDS = 10.0  # for answers that are under way; what takes longer is cut off, visibly
_ASK_SECONDS = 30.0
_MOST = 4096


@dataclass(frozen=True)
class Seat:
    """`name`: of the wheel that it runs (see `name_of`). `control`: where its successor asks it."""

    pid: int
    started: str
    port: int
    url: str
    cluster: str
    name: str
    control: str

    @property
    def alive(self) -> bool:
        """Whether that very process runs, not another one with its number."""
        return start_of(self.pid) == self.started


def name_of(wheel: Wheel) -> str:
    """Changes with every file of the program."""
    return f"{wheel.version}-{wheel.digest[:10]}"


def file_of(port: int) -> Path:
    return cache_folder() / "connect" / f"gateway-{port}.json"


def taken(port: int) -> Seat | None:
    """Who has the port by `sluice connect`; None for nobody, or for one that has ended without a word."""
    try:
        seat = parse(file_of(port).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return seat if seat is not None and seat.alive else None


def parse(text: str) -> Seat | None:
    """None for anything else."""
    try:
        told = json.loads(text)
        texts = {name: str(told[name]) for name in ("started", "url", "cluster", "name", "control")}
        return Seat(pid=int(told["pid"]), port=int(told["port"]), **texts)
    except (ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def sitting(port: int, url: str, cluster: str, name: str) -> Iterator[Path]:
    """This process has the port. Gives the path for its control socket, in a folder that is ours alone."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-seat-", dir="/tmp"))  # short enough for a socket's path
    seat = Seat(os.getpid(), start_of(os.getpid()) or "", port, url, cluster, name, str(folder / "control"))
    file = file_of(port)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_text(json.dumps(asdict(seat)), "utf-8")
    part.replace(file)
    try:
        yield folder / "control"
    finally:
        with contextlib.suppress(FileNotFoundError):
            if parse(file.read_text("utf-8")) == seat:  # else our successor has it
                file.unlink()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Holding:
    """What a gateway does for its successor. `rest`: seconds that answers may take → how many are still under way."""

    rest: Callable[[float], Awaitable[int]]
    go_on: Callable[[], None]
    leave: Callable[[], None]
    listener: socket.socket


@contextlib.asynccontextmanager
async def attended(path: Path, holding: Holding) -> AsyncIterator[None]:
    """Within it a successor is answered."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(str(path))
    listener.listen(4)
    task = asyncio.create_task(_attend(listener, holding), name="successors")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        listener.close()


async def _attend(listener: socket.socket, holding: Holding) -> None:
    loop = asyncio.get_running_loop()
    while True:
        connection, _ = await loop.sock_accept(listener)
        with connection:
            connection.setblocking(False)
            await _serve(connection, holding)


async def _serve(connection: socket.socket, holding: Holding) -> None:
    """One successor at a time, up to its end."""
    loop = asyncio.get_running_loop()
    try:
        while word := (await loop.sock_recv(connection, _MOST)).strip():
            if word == b"hold":
                left = await holding.rest(_QUIET_SECONDS)
                await loop.sock_sendall(connection, b"held %d\n" % left)
            elif word == b"release":
                holding.go_on()
                await loop.sock_sendall(connection, b"released\n")
            elif word == b"listener":
                socket.send_fds(connection, [b"listener\n"], [holding.listener.fileno()])
                holding.leave()
    except OSError:  # it has ended, which is as good as its release
        pass
    finally:
        holding.go_on()


class Predecessor:
    """The gateway that has the port now, asked by its successor. Blocking calls run in threads. Raises OSError."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self._connection: socket.socket | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """No request of its is under way, and those that come wait."""
        await asyncio.to_thread(self._ask, b"hold")
        try:
            yield
        finally:
            await asyncio.to_thread(self._ask, b"release")

    async def listener(self) -> socket.socket:
        """The port's listening socket. The other one leaves, and ends when its clients have had their answers."""
        return await asyncio.to_thread(self._take)

    def _opened(self) -> socket.socket:
        if self._connection is None:
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._connection.settimeout(_ASK_SECONDS)
            self._connection.connect(self.seat.control)
        return self._connection

    def _ask(self, word: bytes) -> bytes:
        connection = self._opened()
        connection.sendall(word + b"\n")
        return connection.recv(_MOST)

    def _take(self) -> socket.socket:
        connection = self._opened()
        connection.sendall(b"listener\n")
        _, handles, _, _ = socket.recv_fds(connection, _MOST, 1)
        if not handles:
            raise OSError(f"process {self.seat.pid} has not handed over its port")
        taken: Any = socket.socket(fileno=handles[0])
        return taken  # type: ignore[no-any-return]

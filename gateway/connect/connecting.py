"""`sluice connect` and `sluice disconnect`."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import uvloop
from rich.console import Console

from gateway.__main__ import PortError, listen
from gateway.app import link_of
from gateway.connect import seat
from gateway.connect.errand import Arrived, Declined, Errand, Wishes
from gateway.connect.first import first_answer
from gateway.connect.host import Failed
from gateway.connect.packages import NotHad
from gateway.connect.plan import Refused, Step
from gateway.connect.seat import Predecessor, Seat
from gateway.connect.serving import Gateway
from gateway.connect.wheel import NotInstalled, running
from gateway.console.desk import FAILED, NOT_FOUND, NOT_NOW, USAGE, at_desk
from gateway.console.wanted import Options
from gateway.kept import Kept
from gateway.link import Unreached
from gateway.screen import Screen
from gateway.settings import Settings, SettingsError, address, read_settings
from gateway.terminal import Terminal
from orchestrator.journal import open_journal
from orchestrator.limits import raise_open_files

_END_SECONDS = 20.0  # for a gateway that was told to end
_ALIKE_SECONDS = 5.0
_EXPECTED = (Failed, Refused, Declined, NotHad, NotInstalled, Unreached, PortError)


@dataclass(frozen=True)
class First:
    """What is run once the gateway serves. `once`: the gateway ends after it."""

    what: str
    options: Options = field(default_factory=Options)
    question: str | None = None
    once: bool = False


@dataclass(frozen=True)
class Request:
    alias: str
    wishes: Wishes
    first: First | None = None
    detach: bool = False
    config: Path | None = None


def connect(request: Request) -> int:
    """Returns the exit status: of the gateway's end, or with `detach` when it is there."""
    try:
        settings = _settings(request)
        name = seat.name_of(running())
        before = seat.taken(settings.port)
        if before is not None and before.cluster != request.alias:
            raise Refused(
                f"the gateway at {before.url} leads to {before.cluster}. End it by `sluice disconnect`, or take "
                f"another port for this one: GATEWAY_PORT={settings.port + 1} sluice connect {request.alias}"
            )
        if before is not None and before.name == name and _answers(before):
            return _again(before, request)
        listener = None if before is not None else listen(settings)
    except SettingsError as exc:
        return _said(exc, USAGE)
    except _EXPECTED as exc:
        return _said(exc, FAILED)
    os.umask(0o077)
    raise_open_files()
    session = Session(request, settings, name, before, listener)
    return _in_background(session) if request.detach else session.run(lambda: None)


def disconnect(stop: bool, config: Path | None) -> int:
    """End the gateway that `connect` has started, and with `stop` the orchestrator before it. Jobs go on."""
    try:
        there = seat.taken(read_settings(config).port)
    except SettingsError as exc:
        return _said(exc, USAGE)
    if there is None:
        return _said(
            "no gateway that `sluice connect` has started is here; one by `sluice gateway` ends with its Ctrl-C",
            NOT_FOUND,
        )
    if stop and (status := _stop_orchestrator(there)):
        return status
    os.kill(there.pid, signal.SIGTERM)
    deadline = time.monotonic() + _END_SECONDS
    while there.alive:
        if time.monotonic() > deadline:
            return _said(f"process {there.pid} has not ended within {_END_SECONDS:g} s", FAILED)
        time.sleep(0.05)
    sys.stderr.write(f"The gateway to {there.cluster} has ended. Jobs there go on.\n")
    return 0


def _settings(request: Request) -> Settings:
    """Raises SettingsError."""
    alias = request.alias
    if not alias or alias.startswith("-") or any(char.isspace() for char in alias):
        raise SettingsError(f"{alias!r} is no Host of an SSH configuration; give what you would type behind `ssh`")
    return read_settings(request.config).model_copy(update={"cluster": alias, "local_socket": None})


def _said(what: object, status: int) -> int:
    sys.stderr.write(f"sluice: {what}\n")
    return status


def _answers(there: Seat) -> bool:
    """Whether the gateway at the port would serve a request."""
    try:
        return httpx2.get(f"{there.url}/ready", timeout=_ALIKE_SECONDS, trust_env=False).status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False


def _again(there: Seat, request: Request) -> int:
    """All of it is as wanted."""
    sys.stderr.write(f"{there.url} leads to {there.cluster} already (process {there.pid}, this version).\n")
    return _first(request.first, there.url) if request.first is not None else 0


def _first(first: First, url: str) -> int:
    return at_desk(lambda desk: first_answer(desk, first.what, first.options, first.question), url)


def _stop_orchestrator(there: Seat) -> int:
    try:
        _, key = address()
        headers = {"X-API-Key": key} if key else {}
        answer = httpx2.post(f"{there.url}/orchestrator/stop", headers=headers, timeout=90, trust_env=False)
        told = answer.json()
    except (httpx2.TransportError, ValueError) as exc:
        return _said(f"the gateway at {there.url} does not answer ({exc}); the orchestrator was not stopped", NOT_NOW)
    if answer.is_error:
        return _said(told.get("detail", told), FAILED)
    sys.stderr.write(f"{told['message']}\n")
    return 0


class Session:
    """From the login to the end of the gateway. `before`: who has the port now; else `listener` is bound to it."""

    def __init__(
        self, request: Request, settings: Settings, name: str, before: Seat | None, listener: socket.socket | None
    ) -> None:
        self._request, self._settings, self._name = request, settings, name
        self._before = Predecessor(before) if before is not None else None
        self._listener = listener
        self._screen = Screen(Console(stderr=True, highlight=False, soft_wrap=True))
        self._status = 0
        self._began = time.monotonic()

    def run(self, away: Callable[[], None]) -> int:
        """`away` is called when nobody at the terminal is needed any more. Returns the exit status."""
        logging.getLogger().addHandler(logging.NullHandler())  # until there is a journal, the screen says what happens
        try:
            with _ending(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._run(away))
        except _EXPECTED as exc:
            return _said(exc, FAILED)
        except KeyboardInterrupt:
            return _said("interrupted; what was begun there is finished by the next `sluice connect`", 130)
        return self._status

    async def _run(self, away: Callable[[], None]) -> None:
        link = link_of(self._settings)
        assert isinstance(link, Kept)
        with contextlib.closing(self._before) if self._before else contextlib.nullcontext():
            async with link:
                arrived = await Errand(link, self._request.wishes, self._screen, Terminal(), self._quiet).run()
                listener = await self._take_port()
                host, port = listener.getsockname()[:2]
                url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                gateway = Gateway(self._settings, link, listener)
                with seat.sitting(self._settings.port, url, self._request.alias, self._name) as control:
                    await self._serve(gateway, control, arrived, url, away)

    @contextlib.asynccontextmanager
    async def _quiet(self) -> AsyncIterator[None]:
        if self._before is None:
            yield
            return
        try:
            async with self._before.quiet():
                yield
        except OSError as exc:
            raise self._mute(exc) from exc

    async def _take_port(self) -> socket.socket:
        if self._before is None:
            assert self._listener is not None
            return self._listener
        try:
            return await self._before.listener()
        except OSError as exc:
            raise self._mute(exc) from exc
        finally:
            self._before.close()

    def _mute(self, exc: OSError) -> Failed:
        assert self._before is not None
        return Failed(
            f"the gateway of process {self._before.seat.pid} does not answer ({exc}); `sluice disconnect`, and again"
        )

    async def _serve(
        self, gateway: Gateway, control: Path, arrived: Arrived, url: str, away: Callable[[], None]
    ) -> None:
        afterwards = asyncio.create_task(self._welcome(gateway, arrived, url, away), name="welcome")
        try:
            with open_journal(self._settings.log_level, self._settings.log_format), _quiet_libraries(), _deaf():
                await gateway.serve(control)
        finally:
            afterwards.cancel()
            await asyncio.wait({afterwards})
        if not afterwards.cancelled() and (failure := afterwards.exception()) is not None:
            raise failure

    async def _welcome(self, gateway: Gateway, arrived: Arrived, url: str, away: Callable[[], None]) -> None:
        while not gateway.server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.02)
        alias, seconds = self._request.alias, time.monotonic() - self._began
        verb = "Upgraded and connected" if Step.REPLACE in arrived.did else "Connected"
        self._screen.say(f"{verb} after {seconds:.1f} s: {url} leads to {alias}, version {arrived.name}.")
        first = self._request.first
        if first is not None:
            self._status = await _in_thread(lambda: _first(first, url))
            self._screen.say(f"{time.monotonic() - self._began:.1f} s since the command was given.")
            if first.once:
                gateway.server.should_exit = True
                return
        self._screen.say("\n".join(_next_steps(url, alias, self._request.detach)))
        away()


def _next_steps(url: str, alias: str, detached: bool) -> Iterator[str]:
    where = "" if detached else ", in another terminal"
    yield f"Start a model{where}:  sluice run Qwen/Qwen2.5-0.5B-Instruct --gpus 1"
    yield f"OpenAI's base URL is {url}/v1, all routes are at {url}/docs."
    end = "sluice disconnect" if detached else "Ctrl-C, or sluice disconnect"
    yield f"End: {end}. Jobs on {alias} go on, and so does the orchestrator (sluice disconnect --stop ends it)."


async def _in_thread(work: Callable[[], int]) -> int:
    """In a thread that nobody has to wait for: a person may end the gateway meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[int] = loop.create_future()

    def settle(status: int) -> None:
        if not done.done():
            done.set_result(status)

    def run() -> None:
        status = FAILED
        try:
            status = work()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, status)

    threading.Thread(target=run, name="first answer", daemon=True).start()
    return await done


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """SIGTERM is a clean end, at any moment."""

    def end(*_: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """uvicorn ends cleanly at a signal and raises it again afterwards, when it would cut off our own clean end."""
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    for noisy in ("httpx2", "httpcore2", "asyncssh", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    yield


def _in_background(session: Session) -> int:
    """A child process has the dialogue at this terminal, and leaves it when the gateway serves."""
    heard, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        with os.fdopen(heard) as words:
            if words.read():
                return 0
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(heard)
    return session.run(lambda: _leave_terminal(told))


def _leave_terminal(told: int) -> None:
    log = seat.file_of(0).with_name(f"gateway-{os.getpid()}.log")
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, to in ((0, nothing), (1, out), (2, out)):
        os.dup2(to, fd)
    os.close(out)
    os.close(nothing)
    os.write(told, b"here\n")
    os.close(told)

"""The SSH connection by the system's `ssh`, as a child process: honours every word of ~/.ssh/config, ControlMaster and
security keys among them, and costs half the CPU of asyncssh.

There is one login. The child that logs in is the master of the connection (or uses the user's own one), and stays;
forwarding is asked of it, and bridges are further sessions of the same connection.
"""

import asyncio
import contextlib
import logging
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Self

from gateway import remote, shell
from gateway.asking import Asking
from gateway.bridge import MARKER
from gateway.kept import CIPHERS, Kept, NotOpened
from gateway.link import LinkState, Unreached, Waiting
from gateway.settings import environment_of_a_child

log = logging.getLogger(__name__)

_MOST_WORDS = 4000  # of what ssh says on stderr, the end of it
_MOST_NOISE = 64 * 1024  # bytes that a login shell may print before the bridge speaks
_ENDING_SECONDS = 3.0
_PROBE_SECONDS = 3.0  # after which a forwarding that has not been refused counts as allowed
_PROBE = b"GET /health HTTP/1.1\r\nHost: orchestrator\r\nConnection: close\r\n\r\n"
# Through the master or not at all: without it, this ssh would log in by itself.
_ONLY_A_MASTER = ("-o", "ProxyCommand=false", "-o", "ControlMaster=no", "-o", "BatchMode=yes")
_OFFENDING = re.compile(r"^Offending .*key in (?P<file>.+):(?P<line>\d+)\r?$", re.MULTILINE)


class OpenSsh(Kept):
    """`ssh` with a forwarding from a socket in a private folder to the orchestrator's."""

    _local: Path | None = None  # the socket, while the connection is up
    _child: "_Child | None" = None
    _own: Sequence[str] = ()  # the option with the way to a master of our own; none where the user has one
    _proven = False  # the forwarding of this connection has answered once
    _by_question = False  # ssh had a question in this login
    _folder: Path
    _number = 0

    async def __aenter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="sluice-ssh-")  # 0700: who may open it is us
        self._folder = Path(self._temporary.name)
        self._asking = await Asking(self._folder, self._ask).__aenter__()
        self._bridges: set[asyncio.Task[None]] = set()
        return await super().__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await super().__aexit__(*exc_info)
        await self._asking.__aexit__(*exc_info)
        self._temporary.cleanup()

    async def _ask(self, question: str) -> str | None:
        self._by_question = True
        answers = await self.answer("", "", [(question, False)])
        return answers[0] if answers else None

    # The connection

    async def one_connection(self) -> str:
        self._number += 1  # no path twice: a killed ssh leaves its sockets, and a ControlMaster may hold one
        self._own, self._proven, self._by_question = await self._own_master(), False, False
        master = ["-o", "ControlMaster=yes", "-o", "ControlPersist=no", *self._own] if self._own else []
        options = [*self._options(), *self._asking_options(), *master]
        then = "; exec cat"  # it stays, and says back what it hears
        async with self._ssh(options, remote.greeting(self.settings.remote_socket, then)) as child:
            forward = ""
            try:
                self.greeted(await self._lines(child))
                forward = await self._forward_socket()
                self._child = child
                self.up()
                await child.wait()
                return self.down(child.last_words)
            finally:
                self._local = self._child = None
                self._asking.forget()
                await self._end_bridges()
                if forward and not self._own:  # the user's outlives our child, and would keep the forwarding
                    await self._run(*_ONLY_A_MASTER, "-O", "cancel", "-L", forward)

    async def _own_master(self) -> list[str]:
        """Where a master of our own is to be found; nothing where the user's configuration has one."""
        said = (await self._run("-G"))[1]
        words = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
        if words.get("controlpath", "none") != "none":
            if words.get("controlmaster", "false") not in ("false", "no"):
                return []
            if (await self._run(*_ONLY_A_MASTER, "-O", "check"))[0] == 0:
                return []
        return ["-S", str(self._folder / f"{self._number}.master")]

    async def _forward_socket(self) -> str:
        local = self._folder / f"{self._number}.sock"
        forward = f"{local}:{self.socket}"
        mask = ["-o", "StreamLocalBindMask=0177"]
        status, words = await self._run(*_ONLY_A_MASTER, *self._own, *mask, "-O", "forward", "-L", forward)
        if status:
            raise self.failed(f"ssh cannot forward to {self.socket}: {words.strip() or f'status {status}'}")
        self._local = local
        return forward

    async def _lines(self, child: "_Child") -> list[str]:
        """What the greeting says. Raises NotOpened when the connection does not come about."""
        lines: list[str] = []
        try:
            async with self.patience():
                async for line in child.lines():
                    if line == remote.END:
                        return lines
                    lines.append(line)
                await child.wait()
        except TimeoutError as exc:
            raise self.late() from exc
        raise self._judge(child.words)

    def _judge(self, words: str) -> NotOpened:
        last = words.strip().splitlines()[-1:] or ["ssh ended without a word"]
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in words:
            places = _OFFENDING.findall(words)
            where = ", ".join(f"{file} line {line}" for file, line in places) or "Host key verification failed"
            files = [Path(file) for file, _ in places] or [Path.home() / ".ssh" / "known_hosts"]
            return self.changed_key(where, files)
        if "Host key verification failed" in words:
            return self.stranger()
        if "Permission denied" in words or "Too many authentication failures" in words:
            return self.refused(last[0], by_question=self._by_question or "keyboard-interactive" in last[0])
        return self.failed(last[0])

    async def sign_of_life(self) -> None:
        if self._child is not None:
            await self._child.echo()

    def abandon(self) -> None:
        if self._child is not None:
            self._child.kill()

    # Ways to the socket

    async def forward(self, factory: Callable[[], asyncio.Protocol]) -> None:
        local = self._local
        if local is None:
            raise Unreached(self.status.advice)
        if not self._proven:
            await self._prove(local)
            self._proven = True
        try:
            await asyncio.get_running_loop().create_unix_connection(factory, str(local))
        except OSError as exc:
            raise Unreached(f"{local}: {exc.strerror or exc}") from exc

    async def _prove(self, local: Path) -> None:
        """ssh takes a connection before it asks the other side, so only an answer says that it was let through."""
        try:
            reader, writer = await asyncio.open_unix_connection(local)
        except OSError as exc:
            raise Unreached(f"{local}: {exc.strerror or exc}") from exc
        try:
            writer.write(_PROBE)
            async with asyncio.timeout(_PROBE_SECONDS):
                if not await reader.read(1):
                    raise Unreached(f"no connection to {self.socket}, or sshd forbids it")
        except ConnectionError as exc:
            raise Unreached(f"no connection to {self.socket}: {exc}") from exc
        except TimeoutError:  # it hangs, but it is there
            pass
        finally:
            writer.transport.abort()

    async def bridge(self, factory: Callable[[], asyncio.Protocol], *, step: bool = False) -> None:
        """A further session of the connection, whose standard input and output are a pair of sockets."""
        if self._child is None:
            raise Unreached(self.status.advice)
        near, far = socket.socketpair()
        near.setblocking(False)
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(near.close)
            with far:
                process = await self._start_bridge(far, step)
            task = asyncio.create_task(_until_ended(process))
            self._bridges.add(task)
            task.add_done_callback(self._bridges.discard)
            unfinished.callback(task.cancel)
            rest = await _past_first_line(near)
            _, protocol = await asyncio.get_running_loop().create_unix_connection(factory, sock=near)
            unfinished.pop_all()
        if rest:
            protocol.data_received(rest)

    async def _start_bridge(self, far: socket.socket, step: bool) -> asyncio.subprocess.Process:
        command = remote.bridge_command(self.socket, step=step)
        argv = self._argv(*_ONLY_A_MASTER, *self._own, "-T", self.cluster, command)
        end, silent = far.fileno(), asyncio.subprocess.DEVNULL
        return await asyncio.create_subprocess_exec(*argv, stdin=end, stdout=end, stderr=silent, start_new_session=True)

    async def _end_bridges(self) -> None:
        for task in list(self._bridges):
            if not task.cancelling():  # one that failed is ending its program already
                task.cancel()
        if self._bridges:
            await asyncio.wait(self._bridges)

    async def execute(self, command: str, stdin: bytes | Path = b"", seconds: float = 60) -> remote.Said:
        if self._child is None:
            raise Unreached(self.status.advice)
        argv = self._argv(*_ONLY_A_MASTER, *self._own, "-T", self.cluster, command)
        try:
            said = await shell.run(argv, stdin, seconds)
        except TimeoutError as exc:
            raise Unreached(f"a command on {self.cluster} has not ended within {seconds:g} s") from exc
        except OSError as exc:
            raise Unreached(f"cannot run {argv[0]}: {exc}") from exc
        if said.status == 255:  # ssh's own
            raise Unreached(f"a command on {self.cluster} broke off: {said.err.strip()[-_MOST_WORDS:]}")
        return said

    # The program

    @contextlib.asynccontextmanager
    async def _ssh(self, options: Sequence[str], command: str) -> AsyncIterator["_Child"]:
        """A child that is gone afterwards."""
        argv = self._argv(*options, self.cluster, command)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C at our terminal is for us
                env=environment_of_a_child(**self._asking.environment) if self.may_ask else None,
            )  # fmt: skip
        except OSError as exc:
            raise NotOpened(f"cannot run {argv[0]}: {exc.strerror}; is it installed?", LinkState.DOWN) from exc
        child = _Child(process)
        try:
            yield child
        finally:
            await child.end()

    def _asking_options(self) -> list[str]:
        """Whether ssh may ask a person, by way of `Asking`: what is answered wrongly is not asked again."""
        if self.may_ask:
            return ["-o", "BatchMode=no", "-o", "NumberOfPasswordPrompts=1"]
        return ["-o", "BatchMode=yes"]

    def _options(self) -> list[str]:
        settings = self.settings
        said = {
            "StrictHostKeyChecking": "yes",  # whatever the configuration says: this would send prompts to anybody
            "Ciphers": CIPHERS,
            "ConnectTimeout": f"{max(1, round(settings.connect_seconds))}",
            "ServerAliveInterval": f"{max(1, round(settings.keepalive_seconds))}",
            "ServerAliveCountMax": f"{settings.keepalive_count}",
            "RequestTTY": "no",
            "ForwardX11": "no",
        }
        return ["-T", *(word for name, value in said.items() for word in ("-o", f"{name}={value}"))]

    def _argv(self, *words: str) -> list[str]:
        program = shutil.which("ssh") or "ssh"
        config = ["-F", str(self.settings.ssh_config)] if self.settings.ssh_config else []
        return [program, *config, *words]

    async def _run(self, *words: str) -> tuple[int, str]:
        """Run ssh for a question or a command about a connection: its status, 255 without one, and its words."""
        pipe, silent = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        argv = self._argv(*words, self.cluster)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=silent, stdout=pipe, stderr=asyncio.subprocess.STDOUT, start_new_session=True
            )
        except OSError as exc:
            raise NotOpened(f"cannot run {argv[0]}: {exc.strerror}; is it installed?", LinkState.DOWN) from exc
        try:
            async with asyncio.timeout(_ENDING_SECONDS):
                said, _ = await process.communicate()
        except TimeoutError:  # a master that does not answer
            return 255, f"no answer within {_ENDING_SECONDS:g} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, said.decode(errors="replace")


async def _until_ended(process: asyncio.subprocess.Process) -> None:
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _past_first_line(near: socket.socket) -> bytes:
    """Read past what a login shell prints and the bridge's first line; what came behind it. Raises Unreached."""
    loop, seen, line = asyncio.get_running_loop(), b"\n", b"\n" + MARKER + b"\n"
    while line not in seen:
        data = await loop.sock_recv(near, 4096)
        seen += data
        if not data and (why := remote.refused(seen)):
            raise Waiting(why)
        if not data or len(seen) > _MOST_NOISE:
            raise Unreached("there is no bridge to the orchestrator's socket" if not data else "too much noise")
    return seen.partition(line)[2]


class _Child:
    """A running ssh: what it says, and its end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.words = ""  # on stderr
        self._listening = asyncio.create_task(self._listen())
        self._echoing = asyncio.Lock()

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(4096):
            self.words = (self.words + data.decode("utf-8", "replace"))[-_MOST_WORDS:]

    @property
    def last_words(self) -> str:
        return "".join(self.words.strip().splitlines()[-1:])

    async def lines(self) -> AsyncIterator[str]:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")

    async def echo(self) -> None:
        """Return when the other side has said back what it was told, or the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        async with self._echoing:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"sluicegate-echo\n")
                await self._process.stdin.drain()
            await self._process.stdout.readline()

    async def wait(self) -> None:
        """Until it has ended and has said all that it wanted to."""
        await self._process.wait()
        await asyncio.wait({self._listening}, timeout=1)

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(_ENDING_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._listening.cancel()
        await asyncio.wait({self._listening})

"""The SSH connection by the system's `ssh`, as a child process: honours every word of ~/.ssh/config, ControlMaster and
security keys among them, and costs half the CPU of asyncssh."""

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Self

from gateway.kept import CIPHERS, Kept, NotOpened
from gateway.link import LinkState, Unreached

log = logging.getLogger(__name__)

_MOST_WORDS = 4000  # of what ssh says on stderr, the end of it
_ENDING_SECONDS = 3.0


class OpenSsh(Kept):
    """`ssh -L` from a socket in a private folder to the orchestrator's."""

    _local: Path | None = None  # the socket, while the connection is up
    _folder: Path
    _number = 0

    async def __aenter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="sluice-ssh-")  # 0700: who may open it is us
        self._folder = Path(self._temporary.name)
        return await super().__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await super().__aexit__(*exc_info)
        self._temporary.cleanup()

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        if self._local is None:
            raise Unreached(self.status.advice)
        try:
            await asyncio.get_running_loop().create_unix_connection(factory, str(self._local))
        except OSError as exc:
            raise Unreached(f"{self._local}: {exc.strerror or exc}") from exc

    async def one_connection(self) -> str:
        if not self.socket.startswith("/"):
            await self._find_home()
        self._number += 1
        local = self._folder / f"{self._number}.sock"  # never the last one: a ControlMaster may still hold that
        forward = f"{local}:{self.socket}"
        async with self._ssh(["-L", forward], self.greeting("; exec cat > /dev/null")) as child:
            try:
                self.greeted(await self._lines(child))
                self._local = local
                self.up()
                await child.wait()
            finally:
                self._local = None
                await self._cancel(forward)
            return self.ended(child.last_words)

    async def _find_home(self) -> None:
        """The remote socket's path is below the remote home, and -L wants it in full."""
        async with self._ssh([], self.greeting()) as child:
            self.greeted(await self._lines(child))

    async def _lines(self, child: "_Child") -> list[str]:
        """What the greeting says. Raises NotOpened when the connection does not come about."""
        lines: list[str] = []
        try:
            async with asyncio.timeout(self.settings.connect_seconds):
                async for line in child.lines():
                    if line == "sluicegate-end":
                        return lines
                    lines.append(line)
                await child.wait()
        except TimeoutError as exc:
            raise self.late() from exc
        raise self._judge(child.words)

    def _judge(self, words: str) -> NotOpened:
        last = words.strip().splitlines()[-1:] or ["ssh ended without a word"]
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in words:
            return self.changed("Host key verification failed")
        if "Host key verification failed" in words:
            return self.stranger()
        if "Permission denied" in words or "Too many authentication failures" in words:
            return self.refused(last[0])
        return self.failed(last[0])

    @contextlib.asynccontextmanager
    async def _ssh(self, options: Sequence[str], command: str) -> AsyncIterator["_Child"]:
        """A child that is gone afterwards."""
        argv = self._argv(*self._options(), *options, self.cluster, command)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C at our terminal is for us
            )  # fmt: skip
        except OSError as exc:
            raise NotOpened(f"cannot run {argv[0]}: {exc.strerror}; is it installed?", LinkState.DOWN) from exc
        child = _Child(process)
        try:
            yield child
        finally:
            await child.end()

    def _options(self) -> list[str]:
        settings = self.settings
        said = {
            "BatchMode": "yes",  # it cannot be asked anything here
            "StrictHostKeyChecking": "yes",  # whatever the configuration says: this would send prompts to anybody
            "ExitOnForwardFailure": "yes",
            "Ciphers": CIPHERS,
            "ConnectTimeout": f"{max(1, round(settings.connect_seconds))}",
            "ServerAliveInterval": f"{max(1, round(settings.keepalive_seconds))}",
            "ServerAliveCountMax": f"{settings.keepalive_count}",
            "StreamLocalBindMask": "0177",
            "RequestTTY": "no",
            "ForwardX11": "no",
        }
        return ["-T", *(word for name, value in said.items() for word in ("-o", f"{name}={value}"))]

    def _argv(self, *words: str) -> list[str]:
        program = shutil.which("ssh") or "ssh"
        config = ["-F", str(self.settings.ssh_config)] if self.settings.ssh_config else []
        return [program, *config, *words]

    async def _cancel(self, forward: str) -> None:
        """A ControlMaster of the user's outlives our child, and would keep the forwarding."""
        argv = self._argv("-O", "cancel", "-L", forward, self.cluster)
        with contextlib.suppress(OSError, TimeoutError):  # nothing is owed to a master that does not answer
            silent = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(*argv, stdin=silent, stdout=silent, stderr=silent)
            async with asyncio.timeout(_ENDING_SECONDS):
                await process.wait()


class _Child:
    """A running ssh: what it says, and its end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.words = ""  # on stderr
        self._listening = asyncio.create_task(self._listen())

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

    async def wait(self) -> None:
        """Until it has ended and has said all that it wanted to."""
        await self._process.wait()
        await asyncio.wait({self._listening}, timeout=1)

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

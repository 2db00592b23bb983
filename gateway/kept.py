"""Keep one SSH connection to the login node open, whichever program speaks SSH. See docs/link.md.

The connection is opened at the start and again whenever it ends:
1. it was up and ended: at once, then as in 2;
2. the network or the host failed: after `backoff_min_seconds`, twice as long each time up to `backoff_max_seconds`,
   each delay shortened by up to a half at random, so that many laptops do not return in step. A request that waits
   shortens a delay to 5 s, the end of the laptop's sleep ends it;
3. the login was refused, or the host key is unknown: every 60 s, since a person has to act first. What only a person
   can answer is asked once on the terminal, and then again when they press Enter;
4. the host key is another than the known one: when the known_hosts file has been changed. It may be an attack.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Self

from gateway import remote
from gateway.link import LinkState, LinkStatus, Rung, Unreached, Waiting
from gateway.settings import Settings
from gateway.terminal import Terminal, Unanswered, plain

log = logging.getLogger(__name__)

_PERSON_SECONDS = 60.0  # between two tries when a person has to act first
_ANSWER_SECONDS = 120.0  # for a person at the terminal; sshd itself waits no longer
_LOOK_SECONDS = 2.0  # between two looks at a file that a person has to correct
_SOON_SECONDS = 5.0  # until the next try while requests wait
_ALIVE_SECONDS = 3.0  # for an answer of a connection that is in doubt
_BRIDGE_SECONDS = 5.0  # between two tries of a bridge to a socket that nobody answers
_STEP_SECONDS = 30.0  # the same where forwarding is allowed, and the orchestrator has hardly become a job
# Both programs would take ChaCha20 first, which costs twice the CPU (asyncssh: 143 against 73 µs a request).
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"


class NotOpened(Exception):
    """No connection came about. `state` is what the link becomes; the text says what to do.

    `watched`: with a changed host key the files that the user may correct.
    """

    def __init__(self, message: str, state: LinkState, watched: Sequence[Path] = ()) -> None:
        super().__init__(message)
        self.state = state
        self.watched = watched


class Kept:
    """A link whose connection is kept open from `async with` on by a task in the background.

    `sleep`, `jitter` (a number in [0, 1)) and `now` are parameters for tests. Derived classes open the connection.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        terminal: Terminal | None = None,
    ) -> None:
        if settings.cluster is None:
            raise ValueError("a tunnel needs a cluster: set GATEWAY_CLUSTER")
        self.cluster = settings.cluster
        self.settings = settings
        self.socket = settings.remote_socket  # absolute, once the remote home is known
        self._sleep = sleep
        self._jitter = jitter
        self._now = now
        self._terminal = terminal or Terminal()
        self._asked = False  # a person, since the connection was up
        self.wants_person = False  # the last login was refused for want of what only a person can answer
        self._limit: asyncio.Timeout | None = None  # of the login that goes on
        self._opened = 0  # how often it was up
        self._changed = asyncio.Event()
        self._waiting = 0  # who waits for a change
        self._hurried = asyncio.Event()
        self._may_hurry = self._fresh = False
        self._checking: asyncio.Task[None] | None = None
        self._bridged_at = -_STEP_SECONDS
        self._forwards = False  # a forwarding has held since the connection was up: it is allowed
        self._status = LinkStatus(LinkState.CONNECTING, self._where(), now())

    @property
    def status(self) -> LinkStatus:
        return self._status

    async def changed(self) -> None:
        self._waiting += 1
        if self._may_hurry:
            self._hurried.set()
        try:
            await self._changed.wait()
        finally:
            self._waiting -= 1

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_open(), name="tunnel")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = {self._keeper} | ({self._checking} if self._checking else set())
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    # What the two who speak SSH do

    async def one_connection(self) -> str:
        """Open, use up and close one connection, calling `up` in between; return why it ended. Raises NotOpened."""
        raise NotImplementedError

    async def forward(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect to the socket by SSH's own forwarding. Raises Unreached."""
        raise NotImplementedError

    async def bridge(self, factory: Callable[[], asyncio.Protocol], *, step: bool = False) -> None:
        """Connect to the socket by a command on the login node, or with `step` into the orchestrator's own job by it,
        and nowhere else. Raises Unreached."""
        raise NotImplementedError

    async def execute(self, command: str, stdin: bytes | Path = b"", seconds: float = 60) -> remote.Said:
        """Run a command on the login node, in a further session of the connection. Raises Unreached."""
        raise NotImplementedError

    async def sign_of_life(self) -> None:
        """Return when the other side of the connection has answered something, or the connection has ended."""
        raise NotImplementedError

    def abandon(self) -> None:
        """End the connection without waiting for the other side."""
        raise NotImplementedError

    # The ladder

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """By the first rung of the ladder that holds; a bridge is kept for as long as the connection is up.

        A forwarding that is forbidden looks like a socket that nobody answers, so what tells them apart is the bridge.
        Where forwarding is allowed it is tried first all the same: the orchestrator may have moved out of a job, or
        into one, which is all that a bridge is for then.
        """
        if self._status.state is not LinkState.UP:
            raise Unreached(self._status.advice)
        if self._status.via is Rung.BRIDGE and not self._forwards:
            await self._by_bridge(factory)
            return
        try:
            await self.forward(factory)
            self._forwards = True
            self._took(Rung.UNIX_SOCKET)
        except Unreached:
            now = asyncio.get_running_loop().time()
            pause = _STEP_SECONDS if self._forwards else _BRIDGE_SECONDS
            if self._status.via is not Rung.BRIDGE and now - self._bridged_at < pause:
                raise
            self._bridged_at = now
            await self._by_bridge(factory)

    async def _by_bridge(self, factory: Callable[[], asyncio.Protocol]) -> None:
        try:
            await self.bridge(factory, step=self._forwards)
        except Waiting as exc:
            if self._status.state is LinkState.UP:
                self._status = replace(self._status, error=str(exc))
            raise
        self._took(Rung.BRIDGE)

    def _took(self, rung: Rung) -> None:
        if self._status.error and self._status.state is LinkState.UP:
            self._status = replace(self._status, error="")
        if self._status.via is not rung and self._status.state is LinkState.UP:
            log.info("%s: the orchestrator is reached by %s", self.cluster, rung)
            self._status = replace(self._status, via=rung)

    # The states

    def up(self) -> None:
        """The connection is open."""
        self._opened += 1
        self._asked = False
        self._bridged_at = -_STEP_SECONDS
        self._forwards = False
        self._become(LinkState.UP)

    def down(self, words: object) -> str:
        """The connection has ended; the text for it."""
        error = f"the SSH connection ended ({words or 'closed by the other side'}); it is being opened again."
        self._become(LinkState.DOWN, error)
        return error

    def check(self) -> None:
        if self._status.state is LinkState.UP:
            if self._checking is None or self._checking.done():
                self._checking = asyncio.create_task(self._check(), name="check of the tunnel")
        elif self._status.state is LinkState.DOWN:
            self._fresh = True
            self._hurried.set()

    async def _check(self) -> None:
        try:
            async with asyncio.timeout(_ALIVE_SECONDS):
                await self.sign_of_life()
        except TimeoutError:
            log.warning("%s: no sign of life within %g s; connecting again", self.cluster, _ALIVE_SECONDS)
            self.abandon()

    async def _keep_open(self) -> None:
        delays = self._delays()
        while True:
            watched: Sequence[Path] = ()
            try:
                error = await self.one_connection()
                state, delays = LinkState.DOWN, itertools.chain([0.0], self._delays())
            except NotOpened as exc:
                state, error, watched = exc.state, str(exc), exc.watched
            except Exception as exc:
                log.exception("the tunnel to %s failed in an unforeseen way", self.cluster)
                state, error = LinkState.DOWN, f"{type(exc).__name__}: {exc}"
            self._become(state, error)
            if state is LinkState.HOST_KEY_CHANGED:
                await self._corrected(watched)
            elif state is LinkState.DOWN:
                await self._nap(next(delays))
            else:
                await self._person_acts()
            if self._fresh:
                delays, self._fresh = self._delays(), False
            self._become(LinkState.CONNECTING, error)

    async def _nap(self, seconds: float) -> None:
        """Until it is over or cut short."""
        self._hurried.clear()
        reminder = asyncio.get_running_loop().call_later(_SOON_SECONDS, self._allow_hurry)
        try:
            await _first_of(self._sleep(seconds), self._hurried.wait())
        finally:
            reminder.cancel()
            self._may_hurry = False

    def _allow_hurry(self) -> None:
        self._may_hurry = True
        if self._waiting:
            self._hurried.set()

    async def _person_acts(self) -> None:
        """A minute, or until the person at the terminal wants to be asked again."""
        if not (self._asked and self._terminal.present):
            await self._sleep(_PERSON_SECONDS)
            return
        await _first_of(self._sleep(_PERSON_SECONDS), self._enter())

    async def _enter(self) -> None:
        try:
            await self._terminal.ask(f"{self.cluster}: press Enter to log in again. ", echo=True)
            self._asked = False
        except Unanswered:  # the terminal is gone; the minute is waited for
            await asyncio.Event().wait()

    async def _corrected(self, files: Sequence[Path]) -> None:
        """Until one of the files is another than now."""
        before = _versions(files)
        while _versions(files) == before:
            await self._sleep(_LOOK_SECONDS)

    def _become(self, state: LinkState, error: str = "") -> None:
        if (state, error) != (self._status.state, self._status.error):
            log.log(logging.INFO if state in (LinkState.UP, LinkState.CONNECTING) else logging.WARNING,
                    "%s: %s %s", self.cluster, state, error)  # fmt: skip
        self._status = LinkStatus(state, self._where(), self._now(), error, max(self._opened - 1, 0))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _where(self) -> str:
        return f"{self.socket} on {self.cluster}"

    def _delays(self) -> Iterator[float]:
        """Seconds to wait before the second, third, … try."""
        delay = self.settings.backoff_min_seconds
        while True:
            yield delay * (1 - self._jitter() / 2)
            delay = min(delay * 2, self.settings.backoff_max_seconds)

    # A person at the terminal

    @property
    def may_ask(self) -> bool:
        """Once for each time that the connection is lost: every question may be a message to somebody's telephone."""
        return self._terminal.present and not self._asked

    def patience(self) -> asyncio.Timeout:
        """The time limit of a login. A person who is asked meanwhile gets a time of their own."""
        self._limit = asyncio.timeout(self.settings.connect_seconds)
        return self._limit

    async def answer(self, title: str, text: str, prompts: Sequence[tuple[str, bool]]) -> list[str] | None:
        """What a person says to the site's prompts (True: what is typed may be seen). None when there is nobody."""
        if not self._terminal.present:
            return None
        self._asked = True
        self._extend(_ANSWER_SECONDS)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                for words in filter(None, (title, text)):
                    self._terminal.say(f"{self.cluster}: {words.strip()}")
                return [await self._terminal.ask(f"{self.cluster}: {prompt}", echo=echo) for prompt, echo in prompts]
        except (TimeoutError, Unanswered):
            return None
        finally:
            self._extend(self.settings.connect_seconds)

    def _extend(self, seconds: float) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)

    # What both programs say

    def greeted(self, lines: list[str]) -> None:
        """Note what the greeting has said. Raises NotOpened where the home is needed and was not told."""
        socket = PurePosixPath(self.settings.remote_socket)
        heard = remote.heard(lines)
        if not heard.listens:
            log.warning("no orchestrator's socket at %s on %s yet", socket, self.cluster)
        if not socket.is_absolute() and not heard.home:
            raise NotOpened(
                "the login shell did not say where the home folder is; set GATEWAY_REMOTE_SOCKET to an absolute path "
                f"(it is {str(socket)!r})",
                LinkState.DOWN,
            )
        self.socket = str(socket if socket.is_absolute() else PurePosixPath(heard.home) / socket)

    def refused(self, words: str, *, by_question: bool = False) -> NotOpened:
        """`by_question`: the site asks for something that only a person can answer."""
        self.wants_person = by_question
        act = f"Make `ssh {self.cluster}` work without a question, for example by `ssh-add` of your key or a new "
        act += "certificate"
        if by_question:
            act += ". Where the site asks for what only you can answer, start the gateway in a terminal, which asks "
            act += f"you; or give your SSH configuration a ControlMaster, log in by `ssh {self.cluster}`, and set "
            act += "GATEWAY_TRANSPORT=openssh"
        again = f"it is tried again every {_PERSON_SECONDS:g} s"
        if self._asked and self._terminal.present:
            again = "press Enter in the gateway's terminal to be asked again"
        return NotOpened(f"the login was refused ({plain(words)}). {act}; {again}.", LinkState.AUTH_REQUIRED)

    def failed(self, words: str) -> NotOpened:
        return NotOpened(f"{words}. Does `ssh {self.cluster}` work? It is tried again by itself.", LinkState.DOWN)

    def late(self) -> NotOpened:
        return self.failed(f"no answer within {self.settings.connect_seconds:g} s")

    def stranger(self) -> NotOpened:
        return NotOpened(
            f"the host is not in your known_hosts. Run `ssh {self.cluster}` once, compare the fingerprint and accept "
            "it; it is tried again every minute.",
            LinkState.HOST_KEY_UNKNOWN,
        )

    def changed_key(self, where: str, files: Sequence[Path]) -> NotOpened:
        """`where`: the file and the line with the key that was expected."""
        return NotOpened(
            f"the host's key is not the one in your known_hosts ({where}): somebody may be listening in. Ask the site "
            f"whether it was changed, and only then correct that file until `ssh {self.cluster}` works. Until the file "
            "has been changed nothing is tried again.",
            LinkState.HOST_KEY_CHANGED,
            files,
        )


async def _first_of(*several: Awaitable[object]) -> None:
    """Return when one of them does; the others are cancelled."""
    tasks = {asyncio.ensure_future(one) for one in several}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _versions(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """What tells two versions of a file apart; None for one that is not there."""

    def version(file: Path) -> tuple[int, int, int] | None:
        try:
            stat = file.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    return [version(file) for file in files]

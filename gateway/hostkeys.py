"""Is the host the one we know, and who answers what it asks? Host keys are always verified."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

_SYSTEM_WIDE = Path("/etc/ssh/ssh_known_hosts")


class TrustsAnybody(Exception):
    """The user's SSH configuration would have every host trusted."""


class HostKeys:
    """The keys known for a host, from the files that OpenSSH would read. Raises TrustsAnybody where that is off.

    asyncssh takes `UserKnownHostsFile none` to mean that every host is trusted, and a listed file that does not exist
    for an error; OpenSSH does neither.
    """

    def __init__(self, options: asyncssh.SSHClientConnectionOptions) -> None:
        configured = options.known_hosts
        if configured is None:
            raise TrustsAnybody
        files = configured if isinstance(configured, list) and configured else [Path.home() / ".ssh" / "known_hosts"]
        self.files = [path for name in (*files, _SYSTEM_WIDE) if (path := Path(str(name))).is_file()]
        there = [str(path) for path in self.files]
        self.known = asyncssh.read_known_hosts(there) if there else asyncssh.import_known_hosts("")
        self.met = False  # a host whose key is not trusted
        self.offending: list[str] = []  # where its other key is written: "FILE line N"; empty for a stranger

    def meet(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> None:
        """Note a host whose key is not trusted, and the lines that know it with another one."""
        self.met = True
        where = host, addr, None if port == asyncssh.DEFAULT_PORT else port
        lines = [line for path in self.files for line in _lines_for(path, where)]
        same = [line for line in lines if line.algorithm == key.get_algorithm()]
        self.offending = list(dict.fromkeys(f"{line.path} line {line.number}" for line in same or lines))


@dataclass(frozen=True)
class _Line:
    """One key of a known_hosts file. `algorithm`: "" for that of an authority, which signs keys of any."""

    path: Path
    number: int
    algorithm: str


def _lines_for(path: Path, where: tuple[str, str, int | None]) -> Iterator[_Line]:
    """The lines of a file that say which key a host has."""
    for number, text in enumerate(path.read_text(errors="surrogateescape").splitlines(), 1):
        keys, authorities, *_ = asyncssh.import_known_hosts(text).match(*where)
        for known in (*keys, *authorities):
            yield _Line(path, number, "" if known in authorities else known.get_algorithm())


Answer = Callable[[str, str, Sequence[tuple[str, bool]]], Awaitable[list[str] | None]]
"""Has a person answer: a title, a text and prompts in (True: what is typed may be seen), lines out; None for nobody."""


class Client(asyncssh.SSHClient):
    """Listens to asyncssh: why the connection ended, which host was refused, and what the site asks of a person.

    `may_ask`: with False no question is begun, because a site may send a message to a telephone for each.
    """

    def __init__(self, host_keys: HostKeys, answer: Answer, *, may_ask: bool) -> None:
        self.loss: Exception | None = None
        self.asked = False  # the site wants something of a person, whether there was one or not
        self._host_keys = host_keys
        self._answer = answer
        self._may_ask = may_ask

    def connection_lost(self, exc: Exception | None) -> None:
        self.loss = exc

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called for a key that is not trusted. Never makes it trusted."""
        self._host_keys.meet(host, addr, port, key)
        return False

    def kbdint_auth_requested(self) -> str | None:
        return "" if self._first_question() else None

    async def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Sequence[tuple[str, bool]]
    ) -> list[str] | None:
        return await self._answer(name, instructions, prompts)

    async def password_auth_requested(self) -> str | None:
        answers = await self._answer("", "", [("Password: ", False)]) if self._first_question() else None
        return answers[0] if answers else None

    def _first_question(self) -> bool:
        """What was answered wrongly is not tried again in the same login."""
        first, self.asked = not self.asked, True
        return first and self._may_ask

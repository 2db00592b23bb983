"""Is the host the one we know? Host keys are always verified."""

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
        there = [str(path) for path in (*files, _SYSTEM_WIDE) if Path(str(path)).is_file()]
        self.known = asyncssh.read_known_hosts(there) if there else asyncssh.import_known_hosts("")
        self.met_stranger = False  # a host for which no key is known

    def meet(self, host: str, addr: str, port: int) -> None:
        """Note a host whose key is not trusted: is there any key known for it?"""
        keys, authorities, *_ = self.known.match(host, addr, None if port == asyncssh.DEFAULT_PORT else port)
        self.met_stranger = not keys and not authorities


class Client(asyncssh.SSHClient):
    """Listens to asyncssh: why the connection ended, and which host was refused."""

    def __init__(self, host_keys: HostKeys) -> None:
        self.loss: Exception | None = None
        self._host_keys = host_keys

    def connection_lost(self, exc: Exception | None) -> None:
        self.loss = exc

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called for a key that is not trusted. Never makes it trusted."""
        self._host_keys.meet(host, addr, port)
        return False

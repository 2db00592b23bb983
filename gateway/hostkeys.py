"""Is the host the one we know? Host keys are always verified; this says what to do when they are not as expected."""

from pathlib import Path

import asyncssh

from gateway.link import LinkState

_SYSTEM_WIDE = Path("/etc/ssh/ssh_known_hosts")


class HostKeyError(Exception):
    """The host cannot be verified. `state` is what the link becomes; the text says what to do."""

    def __init__(self, message: str, state: LinkState) -> None:
        super().__init__(message)
        self.state = state


class HostKeys:
    """The keys known for a host, from the files that OpenSSH would read. Raises HostKeyError where that is off.

    asyncssh takes `UserKnownHostsFile none` to mean that every host is trusted, and a listed file that does not exist
    for an error; OpenSSH does neither.
    """

    def __init__(self, options: asyncssh.SSHClientConnectionOptions, cluster: str) -> None:
        self._cluster = cluster
        configured = options.known_hosts
        if configured is None:
            raise HostKeyError(
                f"UserKnownHostsFile is 'none' for {cluster} in your SSH configuration, which would trust any host. "
                "Name a file there and restart the gateway.",
                LinkState.HOST_KEY_CHANGED,
            )
        files = configured if isinstance(configured, list) and configured else [Path.home() / ".ssh" / "known_hosts"]
        there = [str(path) for path in (*files, _SYSTEM_WIDE) if Path(str(path)).is_file()]
        self.known = asyncssh.read_known_hosts(there) if there else asyncssh.import_known_hosts("")
        self._met_stranger = False

    def meet(self, host: str, addr: str, port: int) -> None:
        """Note a host whose key is not trusted: is there any key known for it?"""
        keys, authorities, *_ = self.known.match(host, addr, None if port == asyncssh.DEFAULT_PORT else port)
        self._met_stranger = not keys and not authorities

    def error(self, exc: asyncssh.HostKeyNotVerifiable) -> HostKeyError:
        """What to tell the user after the refusal `exc`."""
        if self._met_stranger:
            return HostKeyError(
                f"the host is not in your known_hosts. Run `ssh {self._cluster}` once, compare the fingerprint and "
                "accept it; it is tried again every minute.",
                LinkState.HOST_KEY_UNKNOWN,
            )
        return HostKeyError(
            f"the host's key is not the one in your known_hosts ({exc}): somebody may be listening in. Ask the site "
            f"whether it was changed, correct known_hosts until `ssh {self._cluster}` works, and restart the gateway.",
            LinkState.HOST_KEY_CHANGED,
        )


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

"""A small SSH server that wants a code from a person: asyncssh's own server, which runs commands on this machine."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import asyncssh


class Site:
    """`asked`: how many codes it has wanted. `connections` are open."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder, self.code = folder, code
        self.asked = 0
        self.logins = 0
        self.connections: list[asyncssh.SSHServerConnection] = []

    async def __aenter__(self) -> "Site":
        key = asyncssh.generate_private_key("ssh-ed25519")
        self._acceptor = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=lambda: _Visitor(self), server_host_keys=[key],
            process_factory=_run, encoding=None,
        )  # fmt: skip
        port = self._acceptor.sockets[0].getsockname()[1]
        public = key.export_public_key().decode()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
        lines = [
            "Host login", "HostName 127.0.0.1", f"Port {port}", "User somebody", "IdentityFile none",
            f"UserKnownHostsFile {self.folder}/known_hosts",
            "PreferredAuthentications keyboard-interactive", "PubkeyAuthentication no",
        ]  # fmt: skip
        self.ssh_config.write_text("\n".join(lines) + "\n")
        return self

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh_config"

    def drop(self) -> None:
        for connection in self.connections:
            connection.abort()
        self.connections.clear()

    async def __aexit__(self, *exc_info: object) -> None:
        self.drop()
        self._acceptor.close()
        await self._acceptor.wait_closed()


class _Visitor(asyncssh.SSHServer):
    def __init__(self, site: Site) -> None:
        self._site = site

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._site.connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        return True

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(
        self, username: str, lang: str, submethods: str
    ) -> tuple[str, str, str, list[tuple[str, bool]]]:
        self._site.asked += 1
        return "Second\x1b[2Jfactor", "Look at your telephone", "en", [("\x1b]0;evil\x07Code: ", False)]

    def validate_kbdint_response(self, username: str, responses: Sequence[str]) -> bool:
        right = list(responses) == [self._site.code]
        self._site.logins += right
        return right

    def unix_connection_requested(self, dest_path: str) -> bool:
        return True


async def _run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """As a login shell would."""
    pipe = asyncio.subprocess.PIPE
    command = ["/bin/sh", "-c", process.command or "true"]
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=dict(os.environ))
    assert child.stdin is not None and child.stdout is not None
    bringing = asyncio.create_task(_bring(process, child.stdin))
    try:
        while data := await child.stdout.read(65536):
            process.stdout.write(data)
        process.exit(await child.wait())
    finally:
        bringing.cancel()
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _bring(process: asyncssh.SSHServerProcess[bytes], stdin: asyncio.StreamWriter) -> None:
    while data := await process.stdin.read(65536):
        stdin.write(data)
    stdin.close()

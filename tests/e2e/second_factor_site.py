"""A login node that wants a password and a code: a program for login, which runs commands as whoever starts it.

    python second_factor_site.py ADDRESS PORT HOST_KEY LOG PASSWORD CODE

Each question that it has asked, and each login, is a line of LOG.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncssh


class Visitor(asyncssh.SSHServer):
    def __init__(self, log: Path, answers: list[str]) -> None:
        self._log, self._answers = log, answers

    def begin_auth(self, username: str) -> bool:
        return True

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(
        self, username: str, lang: str, submethods: str
    ) -> tuple[str, str, str, list[tuple[str, bool]]]:
        self._note("asked")
        return "", "", "en", [("Password: ", False), ("Code: ", False)]

    def validate_kbdint_response(self, username: str, responses: Sequence[str]) -> bool:
        right = list(responses) == self._answers
        self._note("in" if right else "refused")
        return right

    def unix_connection_requested(self, dest_path: str) -> bool:
        return True

    def _note(self, word: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{word}\n")


async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """As a login shell would."""
    pipe = asyncio.subprocess.PIPE
    command = ["/bin/sh", "-c", process.command or "true"]
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=os.environ["HOME"])
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    bringing = asyncio.create_task(bring(process.stdin, child.stdin))
    complaining = asyncio.create_task(pass_on(child.stderr, process.stderr))
    try:
        await pass_on(child.stdout, process.stdout)
        await complaining
        process.exit(await child.wait())
    finally:
        bringing.cancel()
        complaining.cancel()
        if child.returncode is None:
            child.kill()
            await child.wait()


async def pass_on(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(65536):
        target.write(data)


async def bring(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()


async def main(address: str, port: str, host_key: str, log: str, *answers: str) -> None:
    await asyncssh.listen(
        address, int(port), server_factory=lambda: Visitor(Path(log), list(answers)), server_host_keys=[host_key],
        process_factory=run, encoding=None,
    )  # fmt: skip
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

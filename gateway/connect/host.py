"""Where the orchestrator is, as a place for `manage.sh`: verbs in, what they tell out."""

import shlex
from pathlib import Path, PurePosixPath
from typing import Protocol

from gateway.connect.standing import SCRIPT, Standing, Told, standing, told
from gateway.remote import Said

_PUSH = (
    'umask 077 && mkdir -p "$0" && cd "$0" && rm -rf "$1" ".$1.part" && mkdir ".$1.part" && '
    'tar -xzf - -C ".$1.part" && mv -T ".$1.part" "$1"'
)
_SITE = 'umask 077 && cd "$0" && test ! -e site.toml && cat >.site.part && mv .site.part site.toml'
_PUSH_SECONDS = 1800.0  # 100 MB at 60 kB/s


def state_of(socket: str) -> str:
    """The state folder that belongs to a socket: the orchestrator makes the one in the other."""
    return str(PurePosixPath(socket).parent)


class Failed(Exception):
    """A step on the login node has failed; the text has its last words."""


class Executing(Protocol):
    """What a `gateway.link.Link` is to us."""

    async def execute(self, command: str, stdin: bytes | Path = b"", seconds: float = 60) -> Said: ...


class Host:
    """`state`: the state folder, below the home there or absolute. All methods raise Unreached and Failed."""

    def __init__(self, link: Executing, state: str) -> None:
        self._link = link
        self.state = state

    async def standing(self) -> Standing:
        return standing((await self._run("status", 30)).out)

    async def manage(self, verb: str, *words: str, seconds: float = 120) -> Told:
        """Run a verb of the script. Raises Failed."""
        said = await self._run(verb, seconds, *words)
        heard = told(said.out)
        if said.status or heard.trouble:
            raise Failed(heard.trouble or _last(said) or f"`{verb}` ended with status {said.status}")
        return heard

    async def script(self, text: str, seconds: float) -> str:
        """Run a script of its own, and what it has printed."""
        return (await self._link.execute("sh -s", text.encode(), seconds)).out

    async def push(self, archive: bytes | Path, below: str, name: str) -> None:
        """Unpack a .tar.gz as the folder `name` in `below` of the state folder, whole or not at all."""
        where = f"{self.state}/{below}" if below else self.state
        await self._given(_PUSH, archive, where, name)

    async def put_site(self, text: str) -> None:
        """The site file, unless there is one."""
        await self._given(_SITE, text.encode(), self.state)

    async def _given(self, script: str, stdin: bytes | Path, *words: str) -> None:
        command = f"sh -c {shlex.quote(script)} {shlex.join(words)}"
        said = await self._link.execute(command, stdin, _PUSH_SECONDS)
        if said.status:
            raise Failed(f"cannot write into {words[0]} there: {_last(said) or f'status {said.status}'}")

    async def _run(self, verb: str, seconds: float, *words: str) -> Said:
        command = "sh -s -- " + shlex.join([verb, self.state, *words])
        return await self._link.execute(command, SCRIPT.encode(), seconds)


def _last(said: Said) -> str:
    return "\n".join(said.err.strip().splitlines()[-3:])

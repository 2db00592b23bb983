"""The commands that the gateway runs on the login node, and what they say. Text in, text out.

Each is one `sh -c`, whatever the login shell is, with nothing in it that csh or fish would read differently.
"""

import base64
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gateway import bridge

END = "sluicegate-end"
_HOME = "sluicegate-home:"
_SOCKET = "sluicegate-socket"


@dataclass(frozen=True)
class Greeting:
    """What the login node has said: its home folder ("" when it did not), and whether the socket is there."""

    home: str
    listens: bool


@dataclass(frozen=True)
class Said:
    """What a command has said, and its exit status."""

    status: int
    out: str
    err: str


def greeting(socket: str, then: str = "") -> str:
    """Ask where the home is, and whether the orchestrator's socket is there.

    Always run, also for an absolute path: before OpenSSH 10.1 sshd sets TCP_NODELAY only when the first command
    starts on a connection; without one each small packet, so each token, waits up to 40 ms.
    """
    home = f'printf "{_HOME}%s\\n" "$HOME"'
    look = f"cd && test -S {shlex.quote(str(PurePosixPath(socket)))} && echo {_SOCKET}; echo {END}"
    return "sh -c " + shlex.quote(f"{home}; {look}{then}")


def heard(lines: Sequence[str]) -> Greeting:
    """Read the answer. What a login shell prints beside it is passed over."""
    homes = [line.removeprefix(_HOME) for line in lines if line.startswith(f"{_HOME}/")]
    return Greeting(homes[-1] if homes else "", _SOCKET in lines)


def refused(seen: bytes) -> str:
    """Why a bridge has not come about, in its own words on standard output; "" for none."""
    _, found, rest = seen.partition(b"\n" + bridge.MARKER + b": ")
    return rest.partition(b"\n")[0].decode(errors="replace") if found else ""


def bridge_command(socket: str, *, step: bool = False) -> str:
    """Join the command's own input and output with the socket: by `sluice bridge` where that is found, else by any
    Python. An old `sluice` that knows no bridge ends with 2, and the next one is tried. `step`: see gateway.bridge."""
    # Small, as some shells take no long words: with csh a few thousand characters.
    program = base64.b64encode(zlib.compress(Path(bridge.__file__).read_bytes(), 9)).decode()
    start = "import base64,sys,zlib;exec(zlib.decompress(base64.b64decode(sys.argv.pop())))"
    lines = (
        'for one in sluice "$HOME/.sluicegate/bin/sluice"; do command -v "$one" >/dev/null 2>&1 || continue; '
        '"$one" bridge "$0" ${2:+"$2"}; code=$?; [ $code = 2 ] || exit $code; done; '
        f'exec python3 -IS -c "{start}" "$0" ${{2:+"$2"}} "$1"'
    )
    return f"sh -c {shlex.quote(lines)} {shlex.quote(socket)} {program}" + (" --step" if step else "")

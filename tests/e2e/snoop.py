"""What a curious user of the same machines does: look for words in all that can be read. Run as that user.

stdin: {"words": {label: word}, "folders": […], "since": seconds, "socket": path}. stdout: {"found": [[label, place]],
"looked": {place: how many}, "refused": […]}. The words come on stdin, so that this program does not find itself.
It runs under the system's Python.
"""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MOST = 64 << 20
COMMANDS = (
    ["ps", "axwwe", "-o", "user,pid,args"],
    ["scontrol", "--details", "--all", "show", "job"],
    ["scontrol", "show", "step"],
    ["squeue", "--all", "--states=all", "-o", "%all"],
    ["sacct", "--allusers", "--format=ALL"],
)


def main() -> None:
    asked = json.load(sys.stdin)
    words = {label: word.encode() for label, word in asked["words"].items()}
    found: list[tuple[str, str]] = []
    looked: dict[str, int] = {}
    for kind, place, content in everything(asked["folders"], asked["since"]):
        looked[kind] = looked.get(kind, 0) + 1
        found += [(label, place) for label, word in words.items() if word in content]
    json.dump({"found": found, "looked": looked, "refused": refused(Path(asked["socket"]))}, sys.stdout)


def everything(folders: list[str], since: float) -> Iterator[tuple[str, str, bytes]]:
    for command in COMMANDS:
        try:
            done = subprocess.run(command, capture_output=True, timeout=60)
        except FileNotFoundError:
            continue
        yield command[0], " ".join(command), done.stdout + done.stderr
    for place, content in processes():
        yield "/proc", place, content
    for folder in folders:
        for path, content in files(Path(folder), since):
            yield folder, str(path), str(path).encode(errors="replace") + b"\n" + content


def processes() -> Iterator[tuple[str, bytes]]:
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        for name in ("cmdline", "environ", "comm", "cwd", "fd"):
            try:
                yield f"{process}/{name}", of_a_process(process / name)
            except OSError:  # gone, or not ours to see
                continue


def of_a_process(path: Path) -> bytes:
    if path.name == "cwd":
        return os.fsencode(path.readlink())
    if path.name == "fd":
        return b"\n".join(os.fsencode(link.readlink()) for link in path.iterdir())
    return path.read_bytes()


def files(folder: Path, since: float) -> Iterator[tuple[Path, bytes]]:
    """The files below a folder that are new and that we can read."""
    for root, _, names in os.walk(folder):
        for path in (Path(root) / name for name in names):
            try:
                about = path.lstat()
                if stat.S_ISREG(about.st_mode) and about.st_mtime >= since and about.st_size <= MOST:
                    yield path, path.read_bytes()
            except OSError:
                continue


def refused(path: Path) -> list[str]:
    """What of the orchestrator is closed to us: its socket, and the folder that it is in."""
    told = []
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except PermissionError:
            told.append("connect")
    try:
        list(path.parent.iterdir())
    except PermissionError:
        told.append("list")
    return told


if __name__ == "__main__":
    main()

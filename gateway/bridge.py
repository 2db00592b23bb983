"""`sluice bridge SOCKET`: standard input and output of this process, joined with a UNIX socket.

For login nodes whose sshd forbids forwarding: the gateway runs this there as an ordinary command. It also sends this
file's text to `python3 -c`, where nothing of ours is installed, so: the standard library alone, and Python 3.6 on.
"""

import os
import socket
import sys
import threading

MARKER = b"sluicegate-bridge"  # a line of its own; what a login shell has printed before it is not for the gateway
_PIECE = 256 * 1024


def main(path: str) -> int:
    """Returns when either side has ended: the exit status."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as exc:
        sys.stderr.write("sluice bridge: {}: {}\n".format(path, exc.strerror or exc))  # noqa: UP032 (old Pythons)
        return 1
    threading.Thread(target=_bring, args=(connection,), daemon=True).start()
    try:
        _write(b"\n" + MARKER + b"\n")
        while True:
            data = connection.recv(_PIECE)
            if not data:
                return 0
            _write(data)
    except (BrokenPipeError, ConnectionResetError):  # one side has left, which is how a bridge ends
        return 0


def _bring(connection: socket.socket) -> None:
    """From standard input to the socket. Its end wakes the other direction, too."""
    try:
        while True:
            data = os.read(0, _PIECE)
            if not data:
                break
            connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the orchestrator has left, which the other direction sees, too
        pass


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

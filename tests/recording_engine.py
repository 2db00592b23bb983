"""An engine that says what reached it: `recording_engine.py MODE [arguments of the recipe]`. Standard library only.

It writes one line of JSON to stdout, {"argv": […], "environment": {…}, "umask": …, "pid": …}, and then, by its MODE:

    record      ends with exit code 0
    exit-N      ends with exit code N
    wait        waits for SIGTERM, its default action
    stubborn    ignores SIGTERM
    robbed      the first time, lets a child of its own listen on the --port and ends with exit code 1, as an engine
                that lost its port to somebody else; the child ends with the pipe whose number is $THIEF_PIPE.
                Afterwards like `record`.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path


def main(mode: str, words: list[str]) -> int:
    umask = os.umask(0o77)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(json.dumps({"argv": words, "environment": dict(os.environ), "umask": umask, "pid": os.getpid()}), flush=True)
    if mode == "robbed" and not Path("robbed").exists():
        Path("robbed").touch()
        return steal(int(words[words.index("--port") + 1]))
    while mode in ("wait", "stubborn"):
        signal.pause()
    return int(mode.removeprefix("exit-")) if mode.startswith("exit-") else 0


def steal(port: int) -> int:
    """Leave a process behind that listens on `port` until the pipe is closed."""
    listener = socket.create_server(("127.0.0.1", port))
    if os.fork() == 0:
        os.setsid()
        os.close(1)
        os.close(2)
        os.read(int(os.environ["THIEF_PIPE"]), 1)
        os._exit(0)
    listener.close()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

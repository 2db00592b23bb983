#!/usr/bin/python3
"""The parts of the command `ray` that a job uses, for tests on nodes without Ray. Standard library only.

    ray start --head --port=P … --block     listens until SIGTERM (exit code 1, as Ray) and counts the nodes that join
    ray start --address=HOST:P … --block    joins; ends with exit code 1 when the head is gone
    ray status --address=HOST:P             prints a line for each node
    ray --version                           is $FAKE_RAY_VERSION, or one that asks for a token

The token of RAY_AUTH_TOKEN is asked for, as Ray 2.52 does under RAY_AUTH_MODE=token. What was asked, and on which host,
goes to stderr.
"""

import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from types import FrameType


def option(words: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))


def say(line: str) -> None:
    print(f"fake ray on {socket.gethostname()}: {line}", file=sys.stderr, flush=True)


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def token() -> str:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    return os.environ["RAY_AUTH_TOKEN"]


def head(words: list[str]) -> int:
    """Keep the connections of the nodes that joined; answer a question for the status with their number."""
    listener = socket.create_server((option(words, "--node-ip-address"), int(option(words, "--port"))))
    nodes: set[socket.socket] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                one = key.fileobj
                assert isinstance(one, socket.socket)
                if one in nodes:  # it speaks no more: it is gone
                    selector.unregister(one)
                    nodes.discard(one)
                    one.close()
                    continue
                one, _ = listener.accept()
                given, _, wish = one.makefile().readline().strip().partition(" ")
                if given != token():
                    one.close()
                elif wish == "join":
                    nodes.add(one)
                    selector.register(one, selectors.EVENT_READ)
                    one.sendall(b"joined\n")
                    say(f"{len(nodes)} joined")
                else:
                    one.sendall(f"{1 + len(nodes)}\n".encode())
                    one.close()


def join(words: list[str]) -> int:
    one = connect(option(words, "--address"))
    one.sendall(f"{token()} join\n".encode())
    one.settimeout(None)
    answers = one.makefile()
    if answers.readline() != "joined\n":
        say("Authentication token is missing or incorrect")
        return 1
    answers.readline()
    say("the head is gone")
    return 1


def status(words: list[str]) -> int:
    with connect(option(words, "--address")) as one:
        one.sendall(f"{token()} status\n".encode())
        number = int(one.makefile().readline() or 0)
    print("Active:\n" + "".join(f" 1 node_{n:056x}\n" for n in range(number)) + "Pending:\n (no pending nodes)")
    return 0


def terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(1)


def main(words: list[str]) -> int:
    signal.signal(signal.SIGTERM, terminated)
    if words[0] == "--version":
        print(f"ray, version {os.environ.get('FAKE_RAY_VERSION', '2.60.0')}")
        return 0
    if words[0] == "status":
        return status(words)
    say(f"pid {os.getpid()} {' '.join(words)}")
    assert words[0] == "start" and "--block" in words
    Path(option(words, "--temp-dir"), "session").mkdir(parents=True, exist_ok=True)
    return head(words) if "--head" in words else join(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Answers to HEAD: whoever answers need not know that only the head may be sent."""

from orchestrator.wire import Reply
from orchestrator.wire.http1 import HEAD_END


class Bodiless:
    """A Reply that passes on an answer's head, and nothing behind it."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._head: bytes | None = b""  # None once it has been passed on
        self.finish, self.cut = reply.finish, reply.cut
        self.pause, self.resume = reply.pause, reply.resume

    def write(self, data: bytes) -> None:
        if self._head is None:
            return
        self._head += data
        end = self._head.find(HEAD_END) + len(HEAD_END)
        if end >= len(HEAD_END):
            head, self._head = self._head[:end], None
            self._reply.write(head)

"""Answers for HTTP/1.0 clients, who do not know chunks: ab, and nginx in front of us as it is configured by default."""

from orchestrator.wire import Reply
from orchestrator.wire.http1 import HEAD_END, Extent, parse_response, status_line


class Unchunked:
    """A Reply that passes an answer on without its chunks: such an answer ends with the connection."""

    def __init__(self, reply: Reply, *, to_head: bool) -> None:
        self._reply = reply
        self._to_head = to_head
        self._head = b""
        self._extent: Extent | None = None  # once the head has been passed on
        self.finish, self.cut = reply.finish, reply.cut
        self.pause, self.resume = reply.pause, reply.resume

    def write(self, data: bytes) -> None:
        if self._extent is None:
            self._head += data
            end = self._head.find(HEAD_END) + len(HEAD_END)
            if end < len(HEAD_END):
                return
            data, head = self._head[end:], self._head[:end]
            response = parse_response(head, to_head=self._to_head)
            self._extent = response.extent()
            if response.chunked:
                lines = [status_line(response.status), b"connection: close\r\n"]
                for name, value in response.headers:
                    if name not in (b"transfer-encoding", b"connection"):
                        lines += (name, b": ", value, b"\r\n")
                head = b"".join((*lines, b"\r\n"))
            self._reply.write(head)
        pieces: list[bytes] = []
        self._extent.take(data, 0, pieces)
        for piece in pieces:
            self._reply.write(piece)

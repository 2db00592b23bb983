"""The data path: requests and answers as bytes, from a client's connection to an engine's and back.

Two small interfaces hold it together. Whoever receives requests (`front`, and the serving side of `mux`) gives each
one to a handler and feeds the Exchange that it gets for it; the exchange answers through the Reply that it was given.
All calls are made in the event loop's thread and none of them waits: what is too fast is paused.

    client ─ front ─ mux.Stream ══ one channel ══ mux.Served ─ inference ─ upstream.Connection ─ engine
               └──── hosted.Hosted: the ASGI application of this process

See docs/wire.md.
"""

from collections.abc import Callable
from typing import Protocol

from orchestrator.wire.http1 import Request


class Exchange(Protocol):
    """One request on its way to its answer. Fed by the side that receives it, in order."""

    def feed(self, data: bytes) -> None:
        """A piece of the request's body, without its framing."""

    def end(self) -> None:
        """The body is complete."""

    def abort(self) -> None:
        """The client has left: stop all work for it. Nothing is called afterwards."""

    def pause(self) -> None:
        """The client does not take more of the answer for now."""

    def resume(self) -> None:
        """It does again."""


class Reply(Protocol):
    """The way back to the client. Nothing may be called after `finish`, `cut` or the exchange's `abort`."""

    def write(self, data: bytes) -> None:
        """Bytes of an HTTP/1.1 answer, exactly as they go to the client: head, then the body in its framing.

        The first call has at least the status line.
        """

    def finish(self) -> None:
        """The answer is complete. May come before the request's body is."""

    def cut(self, why: str, *, reached: bool = True) -> None:
        """No answer, or no more of it: what has been sent must not look complete. `reached`: the request may have been
        acted on."""

    def pause(self) -> None:
        """Hold back the rest of the request's body for now."""

    def resume(self) -> None:
        """Let it come again."""


Handle = Callable[[Request, Reply], Exchange]
"""Takes a request whose head is complete. May answer at once, within the call."""

Around = Callable[[Handle], Handle]
"""Makes a handler that does something more out of another one."""

"""The two clients: what is left when requests, answers and the order of things are `call`, `streams` and `watching`."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any, Self, TypeVar

import httpx2

from gateway.client.call import Call, Flow, read, refusal
from gateway.client.errors import ApiError, BrokenAnswer, NotReachable
from gateway.client.operations import Awaiting, Blocking, Operations
from gateway.client.watching import Look, Pause, answering, watching
from gateway.shapes import ServiceDetail

DEFAULT_URL = "http://localhost:8001"
_CONNECTING = 10.0  # seconds
_BROKE = (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError)

T = TypeVar("T")
OnProgress = Callable[[ServiceDetail], object]


class Client(Operations, Blocking):
    """To be closed, or opened by `with`. `key` goes into X-API-Key."""

    def __init__(self, url: str = DEFAULT_URL, *, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(**_settings(self.url, key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Raises ApiError, NotReachable, BrokenAnswer."""
        try:
            try:
                answer = self._http.request(**_request(call))
            except _BROKE:
                if not call.repeatable:
                    raise
                answer = self._http.request(**_request(call))
        except httpx2.TransportError as exc:
            raise NotReachable(self.url, _why(exc)) from exc
        return read(call, answer.status_code, answer.headers, answer.content)

    def stream(self, flow: Flow[T]) -> Iterator[T]:
        """Raises as `send` does, BrokenAnswer where the stream broke off."""
        decoder, began = flow.decoder(), False
        try:
            with self._http.stream(**_request(flow.call)) as answer:
                if answer.status_code >= 400:
                    raise refusal(answer.status_code, answer.headers, answer.read())
                began = True
                for data in answer.iter_bytes():
                    yield from decoder.feed(data)
                yield from decoder.end()
        except httpx2.TransportError as exc:
            raise _cut(self.url, exc, began) from exc

    def watch(self, service_id: str, *, every: float = 1, timeout: float | None = None) -> Iterator[ServiceDetail]:
        """A look every second until the service answers or has ended: the last one says which.

        Raises TookTooLong after `timeout` seconds.
        """
        with closing(watching(service_id, every=every, timeout=timeout, clock=time.monotonic)) as steps:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Look):
                        yield step.service
                        step = next(steps)
                    elif isinstance(step, Pause):
                        time.sleep(step.seconds)
                        step = next(steps)
                    else:
                        step = steps.send(self.send(step))
                except ApiError as exc:
                    step = steps.throw(exc)
                except StopIteration:
                    return

    def wait(
        self,
        service_id: str,
        *,
        every: float = 1,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> ServiceDetail:
        """The service when it answers. Raises Ended, TookTooLong. `on_progress` is told every look."""
        for look in self.watch(service_id, every=every, timeout=timeout):
            if on_progress is not None:
                on_progress(look)
        return answering(look)


class AsyncClient(Operations, Awaiting):
    """The same, awaited; opened by `async with`."""

    def __init__(self, url: str = DEFAULT_URL, *, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.AsyncClient(**_settings(self.url, key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Raises ApiError, NotReachable, BrokenAnswer."""
        try:
            try:
                answer = await self._http.request(**_request(call))
            except _BROKE:
                if not call.repeatable:
                    raise
                answer = await self._http.request(**_request(call))
        except httpx2.TransportError as exc:
            raise NotReachable(self.url, _why(exc)) from exc
        return read(call, answer.status_code, answer.headers, answer.content)

    async def stream(self, flow: Flow[T]) -> AsyncIterator[T]:
        """Raises as `send` does, BrokenAnswer where the stream broke off."""
        decoder, began = flow.decoder(), False
        try:
            async with self._http.stream(**_request(flow.call)) as answer:
                if answer.status_code >= 400:
                    raise refusal(answer.status_code, answer.headers, await answer.aread())
                began = True
                async for data in answer.aiter_bytes():
                    for piece in decoder.feed(data):
                        yield piece
                for piece in decoder.end():
                    yield piece
        except httpx2.TransportError as exc:
            raise _cut(self.url, exc, began) from exc

    async def watch(
        self, service_id: str, *, every: float = 1, timeout: float | None = None
    ) -> AsyncGenerator[ServiceDetail, None]:
        """As `Client.watch`."""
        with closing(watching(service_id, every=every, timeout=timeout, clock=time.monotonic)) as steps:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Look):
                        yield step.service
                        step = next(steps)
                    elif isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                        step = next(steps)
                    else:
                        step = steps.send(await self.send(step))
                except ApiError as exc:
                    step = steps.throw(exc)
                except StopIteration:
                    return

    async def wait(
        self,
        service_id: str,
        *,
        every: float = 1,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> ServiceDetail:
        """As `Client.wait`."""
        async with aclosing(self.watch(service_id, every=every, timeout=timeout)) as looks:
            async for look in looks:
                if on_progress is not None:
                    on_progress(look)
        return answering(look)


def _settings(url: str, key: str | None) -> dict[str, Any]:
    """A proxy of the environment is for other machines than this one."""
    here = httpx2.URL(url).host in ("localhost", "127.0.0.1", "::1")
    headers: Mapping[str, str] = {} if key is None else {"X-API-Key": key}
    return {"base_url": url, "headers": headers, "trust_env": not here}


def _request(call: Call[Any]) -> dict[str, Any]:
    timeout = httpx2.Timeout(call.seconds, connect=_CONNECTING)
    content = {} if call.body is None else {"json": call.body}
    content = content if call.content is None else {"content": call.content}
    return {
        "method": call.method, "url": call.path, "params": dict(call.params), "headers": dict(call.headers),
        "timeout": timeout, **content,
    }  # fmt: skip


def _why(exc: httpx2.TransportError) -> str:
    if isinstance(exc, httpx2.TimeoutException):
        return "it takes too long"
    return str(exc) or type(exc).__name__


def _cut(url: str, exc: httpx2.TransportError, began: bool) -> BrokenAnswer | NotReachable:
    return BrokenAnswer(f"the answer broke off: {_why(exc)}") if began else NotReachable(url, _why(exc))

"""The operations that both clients have, written once: at a Client they answer, at an AsyncClient they are awaited."""

import abc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar, overload

from gateway.client import calls
from gateway.client.call import Call, Flow

P = ParamSpec("P")
T = TypeVar("T")


class Blocking(abc.ABC):
    @abc.abstractmethod
    def send(self, call: Call[T]) -> T: ...

    @abc.abstractmethod
    def stream(self, flow: Flow[T]) -> Iterator[T]: ...


class Awaiting(abc.ABC):
    @abc.abstractmethod
    async def send(self, call: Call[T]) -> T: ...

    @abc.abstractmethod
    def stream(self, flow: Flow[T]) -> AsyncIterator[T]: ...


class Operation(Generic[P, T]):
    """A method that sends what `make` makes of its arguments."""

    def __init__(self, make: Callable[P, Call[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, client: Blocking, owner: Any = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: Any = None) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Blocking | Awaiting, owner: Any = None) -> Callable[P, Any]:
        def operation(*args: P.args, **options: P.kwargs) -> Any:
            return client.send(self._make(*args, **options))

        return operation


class Streamed(Generic[P, T]):
    """The same for an answer that comes in pieces. Nothing is sent before the first piece is asked for."""

    def __init__(self, make: Callable[P, Flow[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, client: Blocking, owner: Any = None) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: Any = None) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, client: Blocking | Awaiting, owner: Any = None) -> Callable[P, Any]:
        def operation(*args: P.args, **options: P.kwargs) -> Any:
            return client.stream(self._make(*args, **options))

        return operation


class Operations:
    """What each does is told at the function of the same name in `gateway.client.calls`."""

    start = Operation(calls.start)
    retry = Operation(calls.retry)
    services = Operation(calls.services)
    service = Operation(calls.service)
    status = Operation(calls.status)
    cancel = Operation(calls.cancel)
    logs = Operation(calls.logs)
    follow = Streamed(calls.follow)

    groups = Operation(calls.groups)
    group = Operation(calls.group)
    group_status = Operation(calls.group_status)
    cancel_group = Operation(calls.cancel_group)

    recipes = Operation(calls.recipes)
    recipe = Operation(calls.recipe)
    prompt = Operation(calls.prompt)
    chat = Streamed(calls.chat)
    chat_chunks = Streamed(calls.chat_chunks)
    models = Operation(calls.models)
    search_models = Operation(calls.search_models)
    pull_model = Operation(calls.pull_model)
    model_pulls = Operation(calls.model_pulls)
    model_pull = Operation(calls.model_pull)
    cancel_model_pull = Operation(calls.cancel_model_pull)
    push_model = Operation(calls.push_model)
    push_content = Operation(calls.push_content)
    pull_image = Operation(calls.pull_image)
    image_pulls = Operation(calls.image_pulls)
    image_pull = Operation(calls.image_pull)
    cancel_image_pull = Operation(calls.cancel_image_pull)
    preflight = Operation(calls.preflight)
    render = Operation(calls.render)
    costs = Operation(calls.costs)
    service_costs = Operation(calls.service_costs)

    chat_later = Operation(calls.chat_later)
    jobs = Operation(calls.jobs)
    job = Operation(calls.job)
    job_result = Operation(calls.job_result)
    cancel_job = Operation(calls.cancel_job)

    slots = Operation(calls.slots)
    slot = Operation(calls.slot)
    switch_slot = Operation(calls.switch_slot)

    vector_dbs = Operation(calls.vector_dbs)
    collections = Operation(calls.collections)
    create_collection = Operation(calls.create_collection)
    delete_collection = Operation(calls.delete_collection)
    upsert = Operation(calls.upsert)
    search = Operation(calls.search)

    health = Operation(calls.health)

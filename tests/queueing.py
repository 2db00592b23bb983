"""A queue of tasks in one process: the real store, loop and data path, and engines that look like vLLM."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.access import Caller
from orchestrator.app import ask
from orchestrator.batch_store import BatchStore
from orchestrator.batches import Batches
from orchestrator.errors import NotFound, NotReady, OrchestratorError
from orchestrator.files import Files
from orchestrator.inference import Group, Inferences
from orchestrator.models import Task, TaskState
from orchestrator.replicas import Replica, Replicas
from orchestrator.store import open_store
from orchestrator.task_store import TaskStore, new_task
from orchestrator.tasks import Tasks
from orchestrator.wire.upstream import open_pool
from tests.databases.place import Place
from tests.fake_engine import Engine, arguments
from tests.orchestrating import START, Clock, until

KEEP = timedelta(hours=72)
WAITING = timedelta(hours=24)
CHAT = "/v1/chat/completions"
EVERYBODY = Caller("user")


@dataclass
class Queue:
    """`engines` by the name of their model; those of `asleep` do not answer yet, others are not known."""

    home: Path
    clock: Clock
    tasks: Tasks
    replicas: Replicas
    engines: dict[str, Engine]
    asleep: set[str]

    @property
    def store(self) -> TaskStore:
        return self.tasks.store

    async def add(self, prompt: str = "hi", model: str = "m", **more: Any) -> Task:
        return await self.store.add(task(prompt, model, at=self.clock(), **more))

    async def state(self, one: Task) -> TaskState:
        return (await self.now(one)).state

    async def now(self, one: Task) -> Task:
        return await self.store.find(one.id, EVERYBODY, content=True)

    async def turn(self) -> None:
        """One look, and all that it began."""
        await self.tasks.look()
        await until(lambda: not self.tasks.running)

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition)


def task(prompt: str = "hi", model: str = "m", *, actor: str = "me", at: Any = START, **more: Any) -> Task:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    expires_at = more.pop("expires_at", at + WAITING)
    return new_task(
        actor=actor, target=CHAT, model=model, body=json.dumps(body).encode(), at=at, expires_at=expires_at, **more
    )


@asynccontextmanager
async def queueing(
    where: Path | Place, *models: str, clock: Clock | None = None, concurrency: int = 4, answering: float = 20
) -> AsyncIterator[Queue]:
    """With an engine for each of `models`. Opened again at the same place it is what comes up after a crash."""
    clock = clock or Clock()
    home, url = (where.path, where.url) if isinstance(where, Place) else (where, None)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(home / "orchestrator.db", url))
        pool = await stack.enter_async_context(open_pool())
        replicas, asleep = Replicas(), set[str]()

        async def away(model: str) -> OrchestratorError | None:
            if answers(model):
                return None
            return NotReady("it loads", retry_after=5) if model in asleep else NotFound(f"no {model!r}")

        def answers(model: str) -> bool:
            return bool(replicas.serving(model or None))

        async def explain(group: Group, model: str | None) -> OrchestratorError:
            return await away(model or "") or NotReady("it has just come")

        inferences = Inferences(replicas, pool, clock, explain)
        task_store = TaskStore(store.connections)
        batches = Batches(BatchStore(store.connections), task_store, Files(home / "files"), away, clock, KEEP)
        tasks = Tasks(
            store=task_store, batches=batches, ask=partial(ask, inferences), away=away, answers=answers, clock=clock,
            concurrency=concurrency, waiting=WAITING, answering=answering, keep=KEEP,
        )  # fmt: skip
        inferences.later = tasks.queue
        queue = Queue(home, clock, tasks, replicas, {}, asleep)
        for model in models:
            await wake_up(queue, stack, model)
        try:
            yield queue
        finally:
            await tasks.give_up()


async def wake_up(queue: Queue, stack: AsyncExitStack, model: str) -> None:
    """An engine for a model; from now on it answers."""
    engine = queue.engines[model] = Engine(arguments(["--model", model], {}), {})
    server = await stack.enter_async_context(await asyncio.start_server(engine.converse, "127.0.0.1", 0))
    replica = Replica(
        submission_id=model, service_id=model, created_at=START, job_id=model, index=0, node="localhost",
        port=server.sockets[0].getsockname()[1], gpus="", key="", health="/health", models_path=None, ready=True,
    )  # fmt: skip
    replica.serves(({"id": model},))
    queue.replicas.update(model, model, [replica])

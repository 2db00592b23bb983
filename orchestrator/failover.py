"""One request, several replicas: when one fails before the first byte the next is asked; never for a client's fault."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, TypeVar

from orchestrator.errors import NotReady, ReplicaFailed
from orchestrator.replicas import Replica, Replicas

Answer = TypeVar("Answer")


async def first_answer(
    replicas: Replicas,
    submission_id: str,
    attempt: Callable[[Replica], Awaitable[Answer]],
    *,
    clock: Callable[[], datetime],
    port: int | None = None,
) -> tuple[Replica, Answer]:
    """Attempt with one replica after the other, each at most once; the replica that answered, and its answer.

    `attempt` raises ReplicaFailed as long as nothing has reached the client, and any other error for what another
    replica would refuse too. Raises that error, the last ReplicaFailed, or NotReady when no replica answers at all.
    """
    tried: list[str] = []
    last: ReplicaFailed | None = None
    while True:
        try:
            replica = replicas.pick(submission_id, clock(), port=port, without=tried)
        except NotReady:
            if last is not None:
                raise last from None
            raise
        with replica.lease(clock()):
            try:
                answer = await attempt(replica)
            except ReplicaFailed as exc:
                replica.failed(clock())
                tried.append(replica.id)
                last = exc
                continue
        replica.succeeded()
        return replica, answer


async def unless_lost(replica: Replica, work: Coroutine[Any, Any, Answer], begun: Callable[[], bool]) -> Answer:
    """Await `work`, and give it up when the health checks lose the replica before `begun()`: raises ReplicaFailed.

    That bounds how long a request waits for an engine that hangs, without a limit on how long one may think.
    """
    working = asyncio.create_task(work)
    losing = asyncio.create_task(replica.lost.wait())
    try:
        await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not begun():
            raise ReplicaFailed(f"replica {replica.id} stopped answering: {replica.problem}")
        return await working
    finally:
        working.cancel()
        losing.cancel()
        await asyncio.wait({working, losing})

"""The engines that run now: which of them answer, whose turn it is, what is in flight. In memory; no database."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx2

from orchestrator.errors import NotReady


@dataclass
class Replica:
    """One engine of a service. `url` is its base; `problem` says why it does not answer, "" when it does."""

    submission_id: str
    job_id: str
    index: int
    node: str
    port: int
    gpus: str
    key: str
    health: str
    models_path: str | None
    ready: bool = False
    problem: str = "the engine has just been started"
    models: tuple[str, ...] = ()
    in_flight: int = 0
    last_used: datetime | None = None
    restarts: int = 0

    @property
    def id(self) -> str:
        return f"{self.job_id}:{self.port}"

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.node == "localhost" else self.node
        return f"http://{host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    @contextmanager
    def lease(self, now: datetime) -> Iterator["Replica"]:
        """Count one request, also when its client vanishes."""
        self.in_flight += 1
        self.last_used = now
        try:
            yield self
        finally:
            self.in_flight -= 1


@dataclass
class Replicas:
    """All replicas, by submission id. The watcher writes, requests read."""

    _all: dict[str, list[Replica]] = field(default_factory=dict)
    _turns: dict[str, Iterator[int]] = field(default_factory=dict)

    def of(self, submission_id: str) -> Sequence[Replica]:
        return tuple(self._all.get(submission_id, ()))

    def every(self) -> Sequence[Replica]:
        return tuple(replica for group in self._all.values() for replica in group)

    def answers(self, submission_id: str) -> bool:
        return any(replica.ready for replica in self._all.get(submission_id, ()))

    def update(self, submission_id: str, found: Sequence[Replica]) -> None:
        """These are the replicas of a service now. Those that stay the same keep what is known of them."""
        known = {(r.id, r.node, r.restarts): r for r in self._all.get(submission_id, ())}
        self._all[submission_id] = [known.get((r.id, r.node, r.restarts), r) for r in found]

    def drop(self, submission_id: str) -> None:
        self._all.pop(submission_id, None)
        self._turns.pop(submission_id, None)

    def pick(self, submission_id: str) -> Replica:
        """The next replica that answers, in turn. Raises NotReady saying what the others lack."""
        group = self._all.get(submission_id, [])
        ready = [replica for replica in group if replica.ready]
        if not ready:
            problems = "; ".join(f"{r.id}: {r.problem}" for r in group) or "its engine has not started yet"
            raise NotReady(f"no replica answers yet ({problems})")
        turn = self._turns.setdefault(submission_id, itertools.count())
        return ready[next(turn) % len(ready)]


async def probe(client: httpx2.AsyncClient, replica: Replica) -> None:
    """Ask one engine whether it serves, and for its models; write the answer into the replica."""
    try:
        health = await client.get(f"{replica.url}{replica.health}", headers=replica.headers)
        if health.status_code != 200:
            replica.ready, replica.problem = False, f"the engine is loading ({replica.health}: {health.status_code})"
            return
        if replica.models_path is not None and not replica.models:
            answer = await client.get(f"{replica.url}{replica.models_path}", headers=replica.headers)
            replica.models = model_ids(answer.json()) if answer.status_code == 200 else ()
            if not replica.models:
                replica.ready, replica.problem = False, f"{replica.models_path} answers {answer.status_code}"
                return
    except httpx2.ConnectError:
        replica.ready, replica.problem = False, "the engine does not listen yet"
    except (httpx2.HTTPError, ValueError) as exc:
        replica.ready, replica.problem = False, f"{type(exc).__name__} while asking {replica.health}"
    else:
        replica.ready, replica.problem = True, ""


def model_ids(content: Any) -> tuple[str, ...]:
    """The ids in an OpenAI list of models; () for anything else."""
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        return ()
    return tuple(str(item["id"]) for item in data if isinstance(item, dict) and "id" in item)

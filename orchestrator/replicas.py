"""The engines that run now: which of them answer, whose turn it is, what is in flight. In memory; no database."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import httpx2

from orchestrator.errors import NotReady
from orchestrator.routing import DEFAULT, LEAST_LOADED

_WAITING = re.compile(
    r"^(?:vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred)(?:\{[^}]*\})? ([0-9.e+]{1,20})$",
    re.MULTILINE,
)
# A replica that answers with errors although its health check passes is left alone for a while.
MOST_FAILURES = 3  # in a row
REST = timedelta(seconds=15)
# Health checks of a replica that has answered: so many time-outs in a row mean that it hangs.
MOST_SILENT_PROBES = 2


class Waiting(Protocol):
    """Whoever waits for a replica's answer."""

    def replica_lost(self) -> None:
        """It has stopped answering."""


@dataclass
class Replica:
    """One engine of a service. `url` is its base; `problem` says why it does not answer, "" when it does.

    `submission_id` and `job_id` are those of its job, of which a service may have several one after the other.
    `service_id` is the service's for users, `created_at` tells services of one id apart.
    `rented`: it runs on no node of ours, so there is no job, and both ids are the word for where it is rented.
    `state` is its supervisor's word (up, down, failed); `ready` is ours: its health check passes.
    """

    submission_id: str
    service_id: str
    created_at: datetime
    job_id: str
    index: int
    node: str
    port: int
    gpus: str
    key: str
    health: str
    models_path: str | None
    rented: bool = False
    restarts: int = 0
    starts: int = 1
    state: str = "up"
    draining: bool = False  # its service is being cancelled, or another job has taken over: no new requests
    ready: bool = False
    problem: str = "the engine has just been started"
    cards: tuple[dict[str, Any], ...] = ()  # what the engine says of its models, each with an `id`
    models: tuple[str, ...] = ()  # those ids, and its slot: the names that clients may use
    in_flight: int = 0
    in_use: int = 0  # of these, the requests that are a use of the service: no health check, no metrics
    last_used: datetime | None = None  # when one of those began or ended
    failures: int = 0  # errors in a row
    resting_until: datetime | None = None
    silent_probes: int = 0
    routing: str = DEFAULT  # the policy of its service, see orchestrator.routing
    slot: str | None = None  # the slot that its service has
    listed: str | None = None  # its model's name in the model list
    queue: int = 0  # requests that wait inside the engine, by its own metrics
    _waiting: "set[Waiting]" = field(default_factory=set)

    @property
    def id(self) -> str:
        return f"{self.job_id}:{self.port}"

    @property
    def incarnation(self) -> tuple[str, str, int, int]:
        """What tells one process from its successor at the same place."""
        return self.id, self.node, self.restarts, self.starts

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.node == "localhost" else self._host
        return f"http://{host}:{self.port}"

    @property
    def _host(self) -> str:
        """As it stands in a URL."""
        return f"[{self.node}]" if ":" in self.node else self.node

    def serves(self, cards: tuple[dict[str, Any], ...]) -> None:
        names = tuple(card["id"] for card in cards)
        self.cards = cards
        self.models = names if self.slot is None or self.slot in names else (*names, self.slot)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1" if self.node == "localhost" else self.node, self.port

    @property
    def host(self) -> bytes:
        """For the Host header."""
        return b"%s:%d" % (self._host.encode(), self.port)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def up(self) -> None:
        self.ready, self.problem, self.silent_probes = True, "", 0

    def down(self, problem: str) -> None:
        self.ready, self.problem = False, problem
        for one in list(self._waiting):
            one.replica_lost()

    def succeeded(self) -> None:
        self.failures, self.resting_until = 0, None

    def failed(self, now: datetime) -> None:
        """It answered with an error of its own. Several in a row, and it rests."""
        self.failures += 1
        if self.failures >= MOST_FAILURES:
            self.resting_until = now + REST

    def take(self, now: datetime | None, waiting: "Waiting") -> None:
        """Count a request until `release`. It is told when the replica stops answering meanwhile.

        `now`, here and there: None for a request that is no use of the service.
        """
        self.in_flight += 1
        if now is not None:
            self.in_use += 1
            self.last_used = now
        self._waiting.add(waiting)

    def release(self, now: datetime | None, waiting: "Waiting") -> None:
        self.in_flight -= 1
        if now is not None:
            self.in_use -= 1
            self.last_used = now
        self._waiting.discard(waiting)

    @contextmanager
    def lease(self, clock: Callable[[], datetime], *, used: bool = True) -> Iterator["Replica"]:
        """Count one request, also when its client vanishes. `used`: it is a use of the service."""
        self.in_flight += 1
        if used:
            self.in_use += 1
            self.last_used = clock()
        try:
            yield self
        finally:
            self.in_flight -= 1
            if used:
                self.in_use -= 1
                self.last_used = clock()


@dataclass
class Replicas:
    """All replicas, by the submission id of their service, or the word for where they are rented. Requests read; of
    each group one writes: the watcher, or who keeps what is rented."""

    _all: dict[str, list[Replica]] = field(default_factory=dict)
    _used: dict[str, datetime] = field(default_factory=dict)  # when, by replicas that are gone, or said by command

    def of(self, service: str, job: str | None = None) -> Sequence[Replica]:
        """Those of a service; with `job`, its submission id, only those of this job."""
        return tuple(r for r in self._all.get(service, ()) if job in (None, r.submission_id))

    def every(self) -> Sequence[Replica]:
        return tuple(replica for group in self._all.values() for replica in group)

    def serving(self, model: str | None) -> Sequence[Replica]:
        """The replicas of a model by the name that clients use; without a name of the only model that there is."""
        if model is None:
            names = {name for replica in self.every() for name in replica.models}
            model = names.pop() if len(names) == 1 else None
        return [r for group in self._all.values() for r in group if model in r.models]

    def in_slot(self, slot: str, listed: str | None) -> Sequence[Replica]:
        """The replicas of a slot, of this model of the list only or of any."""
        return [r for r in self.every() if r.slot == slot and listed in (None, r.listed)]

    def named(self, identity: str, port: int | None = None) -> Sequence[Replica]:
        """The replicas of a service by its id, its submission id or a job's id; with `port` only that one.

        Of several services with one id the newest is meant.
        """
        group = self._all.get(identity) or self._newest(identity)
        return [r for r in group if port in (None, r.port)]

    def _newest(self, service_id: str) -> Sequence[Replica]:
        groups = self._all.values()
        called = [group for group in groups if group[0].service_id == service_id]
        called = called or [group for group in groups if any(r.job_id == service_id for r in group)]
        return max(called, key=lambda group: group[0].created_at, default=())

    def drain(self, service: str, job: str | None = None, *, wanted: bool = True) -> bool:
        """Send these replicas nothing more (`wanted`), or do so again; true while they have requests under way."""
        group = self.of(service, job)
        for replica in group:
            replica.draining = wanted
        return any(replica.in_flight for replica in group)

    def busy(self, service: str) -> bool:
        """Whether a request of a service is open that is a use of it."""
        return any(replica.in_use for replica in self._all.get(service, ()))

    def last_used(self, service: str) -> datetime | None:
        """When any replica of a service was last used, also one that is gone."""
        used = [r.last_used for r in self._all.get(service, ()) if r.last_used is not None]
        if service in self._used:
            used.append(self._used[service])
        return max(used, default=None)

    def touch(self, service: str, at: datetime) -> None:
        """A service was used at this time."""
        self._used[service] = max(at, self._used.get(service, at))

    def forget(self, there: Collection[str]) -> None:
        """Of services that are not among these nothing need be known any more."""
        for gone in self._used.keys() - set(there):
            del self._used[gone]

    def answers(self, service: str, job: str | None = None) -> bool:
        return any(replica.ready for replica in self.of(service, job))

    def update(self, service: str, job: str, found: Sequence[Replica]) -> bool:
        """These are the replicas of a service's job now. Those that stay the same keep what is known of them.

        True when there is one among them that nobody has asked yet.
        """
        known = {r.incarnation: r for r in self.of(service, job)}
        others = [r for r in self._all.get(service, ()) if r.submission_id != job]
        now, unasked = [], False
        for new in found:
            replica = known.pop(new.incarnation, new)
            unasked = unasked or (replica is new and new.state == "up")
            if new.state != "up":
                replica.state = new.state
                replica.down("given up after several restarts" if new.state == "failed" else "it is started again")
            now.append(replica)
        for gone in known.values():
            self._leave(service, gone, "it is gone")
        self._keep(service, [*others, *now])
        return unasked

    def drop(self, service: str, job: str) -> None:
        """A service's job is gone."""
        gone = self.of(service, job)
        self._keep(service, [r for r in self._all.get(service, ()) if r.submission_id != job])
        for replica in gone:
            self._leave(service, replica, "its job is gone")

    def _leave(self, service: str, replica: Replica, why: str) -> None:
        replica.down(why)
        if replica.last_used is not None:
            self.touch(service, replica.last_used)

    def _keep(self, service: str, group: list[Replica]) -> None:
        if group:
            self._all[service] = group
        else:
            self._all.pop(service, None)

    def ready(self, service: str, *, port: int | None = None) -> list[Replica]:
        """The replicas that answer, at least one. Raises NotReady saying what the others lack."""
        group = [r for r in self._all.get(service, []) if port in (None, r.port)]
        ready = [r for r in group if r.ready and not r.draining]
        if not ready:
            problems = "; ".join(f"{r.id}: {r.problem or 'it is asked nothing more'}" for r in group)
            raise NotReady(f"no replica answers ({problems or 'its engine has not started yet'})")
        return ready


async def probe(client: httpx2.AsyncClient, replica: Replica) -> None:
    """Ask one engine whether it serves, and for its models; write the answer into the replica."""
    try:
        problem = await _ask(client, replica)
    except httpx2.ConnectError:
        problem = "the engine does not listen yet"
    except httpx2.TimeoutException:
        replica.silent_probes += 1
        if replica.ready and replica.silent_probes < MOST_SILENT_PROBES:
            return
        problem = f"the engine does not answer {replica.health}"
    except (httpx2.HTTPError, ValueError) as exc:
        problem = f"{type(exc).__name__} while asking {replica.health}"
    if problem:
        replica.down(problem)
    else:
        replica.up()


async def _ask(client: httpx2.AsyncClient, replica: Replica) -> str:
    """What keeps the engine from serving, "" for nothing."""

    async def get(path: str) -> httpx2.Response:
        return await client.get(f"{replica.url}{path}", headers=replica.headers)

    health = await get(replica.health)
    if health.status_code != 200:
        return f"the engine is loading ({replica.health}: {health.status_code})"
    if replica.models_path is not None and not replica.models:
        answer = await get(replica.models_path)
        if answer.status_code != 200:
            return f"{replica.models_path} answers {answer.status_code}"
        replica.serves(cards_in(answer.json()))
        if not replica.cards:
            return f"{replica.models_path} lists no model yet"
    if replica.routing == LEAST_LOADED:
        told = await get("/metrics")
        replica.queue = queue_in(told.text) if told.status_code == 200 else 0
    return ""


def queue_in(metrics: str) -> int:
    """How many requests wait in an engine, in its own metrics: vLLM's, SGLang's and llama.cpp's name for it."""
    return int(sum(float(number) for number in _WAITING.findall(metrics)))


def cards_in(content: Any) -> tuple[dict[str, Any], ...]:
    """The models in an OpenAI list of them; () for anything else."""
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        return ()
    return tuple(item | {"id": str(item["id"])} for item in data if isinstance(item, dict) and "id" in item)

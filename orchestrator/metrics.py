"""What we tell Prometheus of services, jobs and ourselves. Pure: what is known in, families out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from prometheus_client.metrics_core import Metric

from orchestrator.budgets import Spent
from orchestrator.census import OTHER, UNKNOWN
from orchestrator.costs import Use, Window, held
from orchestrator.exposition import counter, gauge, labelled, merged, summary
from orchestrator.models import JobState, ServiceStatus, TaskState, status_in
from orchestrator.scrape import Reading
from orchestrator.store import Tally
from orchestrator.switching import Phase
from orchestrator.task_store import Backlog

S = TypeVar("S", bound=str)

MOST_MODELS = 100  # whose tasks are counted apart

_UNKNOWN = 6
_NUMBERS = {
    ServiceStatus.PENDING: 0,
    ServiceStatus.CONFIGURING: 1,
    ServiceStatus.SUSPENDED: 1,  # it has its nodes and does not answer
    ServiceStatus.RUNNING: 2,
    ServiceStatus.COMPLETED: 3,
    ServiceStatus.FAILED: 4,
    ServiceStatus.TIMEOUT: 4,
    ServiceStatus.PREEMPTED: 4,
    ServiceStatus.NODE_FAIL: 4,
    ServiceStatus.OUT_OF_MEMORY: 4,
    ServiceStatus.CANCELLED: 5,
    ServiceStatus.LOST: _UNKNOWN,
}


def number_of(status: ServiceStatus) -> int:
    """A status as the HTTP contract numbers it."""
    return _NUMBERS.get(status, _UNKNOWN)


def status_info(labels: Mapping[str, str], status: ServiceStatus) -> Metric:
    words = "The service's status: 0 pending, 1 configuring, 2 running, 3 completed, 4 failed, 5 cancelled, 6 unknown."
    return gauge("service_status_info", words, [(labels, number_of(status))])


def of_engines(service_id: str, readings: Sequence[Reading], *, by_replica: bool) -> list[Metric]:
    """The engines' own families, one of each name, labelled; and which engines have told theirs."""
    families: list[Metric] = []
    for reading in readings:
        replica = {"replica_id": reading.replica.id} if by_replica else {}
        families += labelled(reading.families, {"service_id": service_id} | replica)
    scraped = [({"service_id": service_id, "replica_id": r.replica.id}, 0.0 if r.problem else 1.0) for r in readings]
    words = "1 for an engine whose own metrics are among these, 0 for one that did not give any."
    return merged([*families, gauge("sluice_scrape_ok", words, scraped)])


@dataclass(frozen=True)
class ReplicaFacts:
    """One engine. `service_id` and `id` as users know them."""

    service_id: str
    id: str
    ready: bool
    in_flight: int


@dataclass(frozen=True)
class Known:
    """What an orchestrator knows at one moment. Times in seconds.

    `ended`: how many jobs are in each ended state.
    `open_jobs`, `open_statuses`: of what has not ended. `in_flight`: requests by the service's id.
    `answer_age`: since the scheduler's last answer, None before the first.
    """

    ended: Sequence[Tally]
    open_jobs: Sequence[JobState]
    open_statuses: Sequence[ServiceStatus]
    replicas: Sequence[ReplicaFacts]
    in_flight: Mapping[str, int]
    watcher_lag: float
    watcher_turn: float
    scheduler_stale: bool
    answer_age: float | None


def of_orchestrator(known: Known) -> list[Metric]:
    jobs = Counter(known.open_jobs)
    services = Counter(known.open_statuses)
    for state, cancelled, last, number in known.ended:
        jobs[state] += number
        if last:
            services[status_in(state, cancelled=cancelled, answers=False)] += number
    in_flight = [({"service_id": service}, number) for service, number in known.in_flight.items()]
    answer_age: list[tuple[Mapping[str, str], float]] = []
    if known.answer_age is not None:
        answer_age.append(({}, known.answer_age))
    return [
        _by("sluice_jobs", "Jobs by the scheduler's state.", "state", JobState, jobs),
        _by("sluice_services", "Services by status.", "status", ServiceStatus, services),
        _one("sluice_replicas", "Engines that have been started.", len(known.replicas)),
        _one("sluice_replicas_ready", "Engines that answer.", sum(one.ready for one in known.replicas)),
        *_of_replicas(known.replicas),
        gauge("sluice_service_requests_in_flight", "Requests at a service's engines.", in_flight),
        _one("sluice_watcher_lag_seconds", "Since the end of the watcher's last turn.", known.watcher_lag),
        _one("sluice_watcher_turn_seconds", "How long the watcher's last turn took.", known.watcher_turn),
        _one("sluice_scheduler_stale", "1 while the scheduler does not answer.", known.scheduler_stale),
        gauge("sluice_scheduler_answer_age_seconds", "Since the scheduler's last answer.", answer_age),
    ]


def _of_replicas(replicas: Sequence[ReplicaFacts]) -> list[Metric]:
    labels = [{"service_id": one.service_id, "replica_id": one.id} for one in replicas]
    ready = zip(labels, (one.ready for one in replicas), strict=True)
    in_flight = zip(labels, (one.in_flight for one in replicas), strict=True)
    return [
        gauge("sluice_replica_ready", "1 for an engine that answers.", ready),
        gauge("sluice_replica_requests_in_flight", "Requests at an engine.", in_flight),
    ]


@dataclass(frozen=True)
class SlotFacts:
    """One slot. `waiting` has all its models: how many requests wait for each, and for how many seconds the first has.

    `switches`: how many models were started; of these `loads` have answered, after `load_seconds` in all.
    """

    name: str
    phase: Phase
    loaded: str | None
    waiting: Mapping[str, tuple[int, float]]
    switches: int
    loads: int
    load_seconds: float


def of_slots(slots: Sequence[SlotFacts]) -> list[Metric]:
    """What each slot holds and who waits. Its models are those of the model list."""
    models = [(slot, model, {"slot": slot.name, "model": model}) for slot in slots for model in slot.waiting]
    loaded = [(labels, float(model == slot.loaded)) for slot, model, labels in models]
    phases = [({"slot": s.name, "phase": phase.value}, float(phase is s.phase)) for s in slots for phase in Phase]
    waiting = [(labels, slot.waiting[model][0]) for slot, model, labels in models]
    longest = [(labels, slot.waiting[model][1]) for slot, model, labels in models]
    names = [{"slot": slot.name} for slot in slots]
    switches = zip(names, (slot.switches for slot in slots), strict=True)
    loads = [({"slot": slot.name}, slot.loads, slot.load_seconds) for slot in slots]
    return [
        gauge("sluice_slot_model_loaded", "1 for the model that a slot holds, also while it loads or leaves.", loaded),
        gauge("sluice_slot_phase", "1 at the phase that a slot is in.", phases),
        gauge("sluice_slot_requests_waiting", "Requests that wait for a model of a slot.", waiting),
        gauge("sluice_slot_longest_wait_seconds", "Since when a model has been waited for.", longest),
        counter("sluice_slot_switches", "How often a slot has started a model.", switches),
        summary("sluice_slot_load_seconds", "From the start of a slot's model until it answered.", loads),
    ]


@dataclass(frozen=True)
class QueueFacts:
    """The queue of tasks. `running` by model; `ended`: those that have had an answer since this process began;
    `longest_wait`: seconds that the first of those that wait has."""

    backlog: Backlog
    running: Mapping[str, int]
    ended: Mapping[TaskState, int]
    longest_wait: float


def of_queue(queue: QueueFacts) -> list[Metric]:
    by_state = {"queued": most(queue.backlog.waiting), "running": most(queue.running)}
    tasks = [({"state": s, "model": m or UNKNOWN}, n) for s, numbers in by_state.items() for m, n in numbers.items()]
    answered = [TaskState.DONE, TaskState.FAILED]
    ended = [({"state": state.value}, queue.ended.get(state, 0)) for state in answered]
    waited, lines = queue.longest_wait, queue.backlog.lines
    return [
        gauge("sluice_tasks", "Queued requests that have not ended, by model.", tasks),
        _one("sluice_task_longest_wait_seconds", "For how long the first queued request has waited.", waited),
        counter("sluice_tasks_ended", "Queued requests that have had their answer.", ended),
        _by("sluice_batch_lines", "Lines of batches that have not ended.", "state", TaskState, lines),
    ]


def most(numbers: Mapping[str, int]) -> dict[str, int]:
    """The largest by their names, and the sum of all others."""
    largest = dict(Counter(numbers).most_common(MOST_MODELS))
    rest = sum(number for name, number in numbers.items() if name not in largest)
    return {**largest, OTHER: largest.get(OTHER, 0) + rest} if rest else largest


@dataclass(frozen=True)
class Accounts:
    """What was used until `at`, by the accounts. `seconds`: of GPUs, by `model` and by `user`."""

    seconds: Mapping[str, Mapping[str, float]]
    open_uses: Sequence[Use]
    budgets: Sequence[Spent]
    failures: Mapping[str, int]
    rules: Sequence[str]
    at: datetime


def of_accounts(accounts: Accounts) -> list[Metric]:
    models = [({"model": name}, seconds) for name, seconds in accounts.seconds.get("model", {}).items()]
    users = [({"user": name}, seconds) for name, seconds in accounts.seconds.get("user", {}).items()]
    budgets = [({"budget": one.budget.name, "unit": one.unit}, one) for one in accounts.budgets]
    spent, limits = [(name, one.amount) for name, one in budgets], [(name, one.limit) for name, one in budgets]
    failures = [({"rule": rule}, accounts.failures.get(rule, 0)) for rule in [*accounts.rules, UNKNOWN]]
    return [
        counter("sluice_gpu_seconds", "What jobs have held of GPUs, by model.", models),
        counter("sluice_user_gpu_seconds", "What jobs have held of GPUs, by user.", users),
        *_of_open_uses(accounts),
        gauge("sluice_budget_used", "What has been used of a budget in its period.", spent),
        gauge("sluice_budget_limit", "What may be used of a budget in its period.", limits),
        counter("sluice_service_failures", "Services that have failed, by the rule that says why.", failures),
    ]


def _of_open_uses(accounts: Accounts) -> list[Metric]:
    """A service may have several jobs that have not ended: the one that serves, and one that takes over."""
    gpus, seconds = Counter[tuple[str, str]](), dict[tuple[str, str], float]()
    for use in accounts.open_uses:
        key = use.service_id or use.service, use.model or UNKNOWN
        gpus[key] += use.gpus if use.started_at is not None else 0
        lasted = held(use, Window(None, accounts.at), accounts.at)
        seconds[key] = seconds.get(key, 0.0) + use.gpus * lasted.total_seconds()
    labels = {key: {"service_id": key[0], "model": key[1]} for key in gpus}
    return [
        gauge("sluice_service_gpus", "GPUs that a service holds.", [(labels[key], n) for key, n in gpus.items()]),
        gauge(
            "sluice_service_gpu_seconds",
            "What the jobs of a service that have not ended have held of GPUs.",
            [(labels[key], n) for key, n in seconds.items()],
        ),
    ]


def _one(name: str, words: str, value: float) -> Metric:
    return gauge(name, words, [({}, value)])


def _by(name: str, words: str, label: str, values: Iterable[S], numbers: Mapping[S, int]) -> Metric:
    """All values, those without any as 0: a series that vanishes cannot be watched."""
    return gauge(name, words, [({label: str(value)}, numbers.get(value, 0)) for value in values])

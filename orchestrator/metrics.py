"""What we tell Prometheus of services, jobs and ourselves. Pure: what is known in, families out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client.metrics_core import Metric

from orchestrator.exposition import gauge, labelled, merged
from orchestrator.models import JobState, ServiceStatus, status_in
from orchestrator.scrape import Reading
from orchestrator.store import Tally

S = TypeVar("S", bound=str)

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
class Known:
    """What an orchestrator knows at one moment. Times in seconds.

    `ended`: how many jobs are in each ended state.
    `open_jobs`, `open_statuses`: of what has not ended. `in_flight`: requests by the service's id.
    """

    ended: Sequence[Tally]
    open_jobs: Sequence[JobState]
    open_statuses: Sequence[ServiceStatus]
    replicas: int
    replicas_ready: int
    in_flight: Mapping[str, int]
    watcher_lag: float
    watcher_turn: float
    scheduler_stale: bool


def of_orchestrator(known: Known) -> list[Metric]:
    jobs = Counter(known.open_jobs)
    services = Counter(known.open_statuses)
    for state, cancelled, last, number in known.ended:
        jobs[state] += number
        if last:
            services[status_in(state, cancelled=cancelled, answers=False)] += number
    in_flight = [({"service_id": service}, number) for service, number in known.in_flight.items()]
    return [
        _by("sluice_jobs", "Jobs by the scheduler's state.", "state", JobState, jobs),
        _by("sluice_services", "Services by status.", "status", ServiceStatus, services),
        _one("sluice_replicas", "Engines that have been started.", known.replicas),
        _one("sluice_replicas_ready", "Engines that answer.", known.replicas_ready),
        gauge("sluice_service_requests_in_flight", "Requests at a service's engines.", in_flight),
        _one("sluice_watcher_lag_seconds", "Since the end of the watcher's last turn.", known.watcher_lag),
        _one("sluice_watcher_turn_seconds", "How long the watcher's last turn took.", known.watcher_turn),
        _one("sluice_scheduler_stale", "1 while the scheduler does not answer.", known.scheduler_stale),
    ]


def _one(name: str, words: str, value: float) -> Metric:
    return gauge(name, words, [({}, value)])


def _by(name: str, words: str, label: str, values: Iterable[S], numbers: Mapping[S, int]) -> Metric:
    """All values, those without any as 0: a series that vanishes cannot be watched."""
    return gauge(name, words, [({label: str(value)}, numbers.get(value, 0)) for value in values])

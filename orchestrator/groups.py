"""Replica groups: each replica of a service as users see it, before, while and after it runs. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.config import Plan
from orchestrator.models import Job, Service
from orchestrator.replicas import Replica
from orchestrator.schedulers.slurm import hostnames


class ReplicaStatus(StrEnum):
    PENDING = "pending"  # its job has no node yet
    STARTING = "starting"  # it is loading, or is started again after a failure
    RUNNING = "running"  # it answers
    FAILED = "failed"  # given up, or its job has failed
    CANCELLED = "cancelled"
    ENDED = "ended"  # its job is over


class GroupStatus(StrEnum):
    HEALTHY = "healthy"  # all replicas answer
    PARTIAL = "partial"  # some do
    STARTING = "starting"  # none yet
    FAILED = "failed"  # none, and none will


@dataclass(frozen=True)
class ReplicaView:
    """A replica that runs, or one that is to come: then `port` is the one that it will ask for."""

    id: str
    job_id: str | None
    node_index: int
    replica_index: int
    node: str | None
    port: int
    gpus: str | None
    status: ReplicaStatus
    endpoint: str | None
    problem: str


def views(service: Service, job: Job, replicas: Sequence[Replica]) -> list[ReplicaView]:
    """All replicas of a service in the order of their numbers. A single service has one."""
    plan = Plan.model_validate(service.plan)
    # Of two jobs, while one takes over from the other, the one that serves is shown.
    running = {replica.index: replica for replica in replicas if replica.submission_id == job.submission_id}
    return [_view(service, job, plan, index, running.get(index)) for index in range(plan.total_replicas)]


def _view(service: Service, job: Job, plan: Plan, index: int, replica: Replica | None) -> ReplicaView:
    node_index = index // plan.replicas_per_node
    nodes = hostnames(job.nodes)
    port = replica.port if replica else plan.port + index
    status = _status(service, job, replica)
    return ReplicaView(
        id=f"{job.job_id or service.submission_id}:{port}",
        job_id=job.job_id,
        node_index=node_index,
        replica_index=index,
        node=replica.node if replica else nodes[node_index] if node_index < len(nodes) else None,
        port=port,
        gpus=replica.gpus or None if replica else None,
        status=status,
        endpoint=replica.url if replica and status is ReplicaStatus.RUNNING else None,
        problem=replica.problem if replica else "",
    )


def _status(service: Service, job: Job, replica: Replica | None) -> ReplicaStatus:
    if service.cancelled_at is not None or (job.state == "CANCELLED" and not service.kept):
        return ReplicaStatus.CANCELLED
    if job.state.ended and not service.kept:
        return ReplicaStatus.ENDED if job.state == "COMPLETED" else ReplicaStatus.FAILED
    if replica is None:
        return ReplicaStatus.STARTING if job.state.runs else ReplicaStatus.PENDING
    if replica.state == "failed":
        return ReplicaStatus.FAILED
    return ReplicaStatus.RUNNING if replica.ready else ReplicaStatus.STARTING


@dataclass(frozen=True)
class Tally:
    """How many replicas are how, in the words of the HTTP contract."""

    total_replicas: int
    healthy_replicas: int
    starting_replicas: int
    pending_replicas: int
    failed_replicas: int

    @property
    def overall_status(self) -> GroupStatus:
        if self.healthy_replicas == self.total_replicas:
            return GroupStatus.HEALTHY
        if self.healthy_replicas:
            return GroupStatus.PARTIAL
        if self.starting_replicas or self.pending_replicas:
            return GroupStatus.STARTING
        return GroupStatus.FAILED


def tally(replicas: Sequence[ReplicaView]) -> Tally:
    count = Counter(replica.status for replica in replicas)
    return Tally(
        total_replicas=len(replicas),
        healthy_replicas=count[ReplicaStatus.RUNNING],
        starting_replicas=count[ReplicaStatus.STARTING],
        pending_replicas=count[ReplicaStatus.PENDING],
        failed_replicas=count[ReplicaStatus.FAILED],
    )


def is_group(service: Service) -> bool:
    return service.plan.get("gpus_per_replica") is not None

"""Tables and enums. A service has no status column: `status_of` computes it from what is known."""

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import DateTime, Enum, Index, TypeDecorator, UniqueConstraint, text
from sqlalchemy.engine import Dialect
from sqlmodel import JSON, Column, Field, SQLModel


class JobState(StrEnum):
    """Slurm's own words for a job's state, all of them, and three of ours for when Slurm has none.

    Source: "JOB STATE CODES" of squeue(1), 22.05 to 26.05.
    """

    SUBMITTING = "SUBMITTING"  # ours: recorded here, not yet known to the scheduler
    LOST = "LOST"  # ours: the scheduler has forgotten the job and it left no evidence of its end
    UNKNOWN = "UNKNOWN"  # ours: the scheduler said a word that is not in this list; never stored

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    COMPLETING = "COMPLETING"
    SIGNALING = "SIGNALING"
    STAGE_OUT = "STAGE_OUT"
    RESIZING = "RESIZING"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    POWER_UP_NODE = "POWER_UP_NODE"
    UPDATE_DB = "UPDATE_DB"
    EXPEDITING = "EXPEDITING"

    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PREEMPTED = "PREEMPTED"
    BOOT_FAIL = "BOOT_FAIL"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    DEADLINE = "DEADLINE"
    REVOKED = "REVOKED"

    @property
    def ended(self) -> bool:
        """True when the job will never run again. An ended state is never revised."""
        return self in _ENDED

    @property
    def runs(self) -> bool:
        """True while the job's script may be alive on its nodes."""
        return self in _RUNS


_ENDED = frozenset(
    {
        JobState.LOST, JobState.COMPLETED, JobState.CANCELLED, JobState.FAILED, JobState.TIMEOUT, JobState.NODE_FAIL,
        JobState.OUT_OF_MEMORY, JobState.PREEMPTED, JobState.BOOT_FAIL, JobState.LAUNCH_FAILED, JobState.RECONFIG_FAIL,
        JobState.DEADLINE, JobState.REVOKED,
    }
)  # fmt: skip
_RUNS = frozenset(
    {
        JobState.RUNNING, JobState.COMPLETING, JobState.SIGNALING, JobState.STAGE_OUT, JobState.RESIZING,
        JobState.UPDATE_DB, JobState.EXPEDITING,
    }
)  # fmt: skip


class ServiceStatus(StrEnum):
    """What a user is told of a service. The ended ones are final."""

    PENDING = "pending"  # in the queue
    CONFIGURING = "configuring"  # allocated, or the engine is still loading
    RUNNING = "running"  # the engine answers
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NODE_FAIL = "node_fail"
    OUT_OF_MEMORY = "out_of_memory"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        return self not in (self.PENDING, self.CONFIGURING, self.RUNNING, self.SUSPENDED)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime. SQLite forgets the zone, so it is put back on the way out."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


def new_submission_id() -> str:
    """16 hex digits: unique for ever, older than the job id, part of the job's name."""
    return uuid.uuid4().hex[:16]


class Service(SQLModel, table=True):
    """What a user asked for. `id` is the scheduler's id of its first job, None until the scheduler has given one."""

    submission_id: str = Field(primary_key=True)
    id: str | None = Field(default=None, index=True)
    name: str = ""
    recipe_name: str = Field(index=True)
    config: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # as the user sent it
    plan: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JSON, nullable=False)
    )  # orchestrator.config.Plan
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)
    idempotency_key: str | None = Field(default=None, unique=True)
    cancelled_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when a user asked for the end
    # `config.keep_alive`, until nothing more will follow its job: then the end of the job is the service's.
    kept: bool = Field(default=False, index=True)
    job: str = Field(index=True)  # the submission id of the job that serves
    next_job: str | None = None  # of the last one that was to take over, also when it has failed
    handovers: int = 0  # how often one has
    actor: str = Field(default="", index=True)  # who started it: a key's name, or the user
    # What `orchestrator.idleness` goes by, kept so that a restart does not begin anew.
    last_activity: datetime | None = Field(default=None, sa_type=UtcDateTime)
    idle_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    looked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


# A width of its own: a new word of Slurm's must not need a migration.
STATE = Enum(JobState, native_enum=False, length=32)


class Job(SQLModel, table=True):
    """A scheduler's job. `submission_id` is ours and older than `job_id`.

    `replaces` is the job before it, None for a service's first. `attempt` counts from 1 and is one more than that of a
    job which never answered. Together they are unique: no job is replaced twice.
    """

    __table_args__ = (UniqueConstraint("replaces", "attempt"),)

    submission_id: str = Field(primary_key=True)
    service: str = Field(index=True, foreign_key="service.submission_id")
    scheduler: str
    name: str = Field(unique=True)
    job_id: str | None = Field(default=None, index=True)
    state: JobState = Field(default=JobState.SUBMITTING, sa_column=Column(STATE, nullable=False, index=True))
    reason: str = ""
    nodes: str = ""
    exit_code: int | None = None
    restarts: int = 0
    recorded_at: datetime = Field(sa_type=UtcDateTime)
    seen_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when the scheduler last spoke of it
    submitted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ready_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when its engine first answered
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ends_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    replaces: str | None = None
    attempt: int = 1
    # Before a requeue set `started_at` anew: [start, end] of each earlier run, in ISO 8601.
    earlier_runs: list[list[str]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    used_seconds: float = 0  # of all runs, written at the end: the database can add it up


class Event(SQLModel, table=True):
    """One line of the audit log, written in the transaction of the change that it tells of. Append only."""

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    actor: str
    kind: str = Field(index=True)
    subject: str = Field(index=True)
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


_OPEN = text("ended_at IS NULL")


class Rental(SQLModel, table=True):
    """One session of a rented machine: from when it was first seen to run until it was seen to have ended.

    `seen_at` is when it was last known to cost, `cost` what it has cost until then, in dollars; `price` is that of an
    hour from then on. `stopping` says by what it is being ended: `power_off`, `auto_shutdown`, "" for neither.
    Of an instance at most one session is open, and the database sees to that.
    """

    __table_args__ = (Index("uq_rental_open", "instance_id", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),)

    id: int | None = Field(default=None, primary_key=True)
    instance_id: int = Field(index=True)
    started_at: datetime = Field(sa_type=UtcDateTime)
    seen_at: datetime = Field(sa_type=UtcDateTime)
    active_at: datetime = Field(sa_type=UtcDateTime)  # when it was last used
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    price: float = 0.0
    cost: float = 0.0
    stopping: str = ""


def status_of(service: Service, job: Job, *, answers: bool) -> ServiceStatus:
    """The status of a service by its job: see `status_in`."""
    return status_in(job.state, cancelled=service.cancelled_at is not None, answers=answers, kept=service.kept)


def status_in(state: JobState, *, cancelled: bool, answers: bool, kept: bool = False) -> ServiceStatus:
    """The one place where a status comes from.

    `cancelled`: a user asked for the end. `answers`: the engine's health check passes now. `kept`: another job follows
    the one that has ended.
    """
    if state.ended and kept and not cancelled:
        return ServiceStatus.RUNNING if answers else ServiceStatus.PENDING
    if state.ended:
        if cancelled and state is not JobState.COMPLETED:
            return ServiceStatus.CANCELLED
        return _ENDED_STATUS.get(state, ServiceStatus.FAILED)
    if cancelled:
        return ServiceStatus.CANCELLED
    if state in (JobState.SUSPENDED, JobState.STOPPED):
        return ServiceStatus.SUSPENDED
    if state.runs or state in (JobState.CONFIGURING, JobState.POWER_UP_NODE):
        return ServiceStatus.RUNNING if answers else ServiceStatus.CONFIGURING
    return ServiceStatus.PENDING


def states_of(status: ServiceStatus) -> dict[tuple[bool, bool], list[JobState]]:
    """The states of jobs whose services may be in a status, by whether a user has cancelled the service, and whether
    it is kept.

    For `running` and `configuring`, which also depend on the engine, these are candidates; else the answer is exact.
    """
    return {
        (cancelled, kept): [
            s
            for s in JobState
            if status in {status_in(s, cancelled=cancelled, answers=a, kept=kept) for a in (True, False)}
        ]
        for cancelled in (True, False)
        for kept in (True, False)
    }


_ENDED_STATUS = {
    JobState.COMPLETED: ServiceStatus.COMPLETED,
    JobState.CANCELLED: ServiceStatus.CANCELLED,
    JobState.TIMEOUT: ServiceStatus.TIMEOUT,
    JobState.DEADLINE: ServiceStatus.TIMEOUT,
    JobState.PREEMPTED: ServiceStatus.PREEMPTED,
    JobState.NODE_FAIL: ServiceStatus.NODE_FAIL,
    JobState.OUT_OF_MEMORY: ServiceStatus.OUT_OF_MEMORY,
    JobState.LOST: ServiceStatus.LOST,
}


class TaskState(StrEnum):
    """Where a queued request stands. Users see these words."""

    QUEUED = "queued"
    RUNNING = "running"  # an engine is being asked
    DONE = "done"  # the engine's answer is kept
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # it waited too long, or its result was kept as long as it was to be

    @property
    def ended(self) -> bool:
        """True when no engine will be asked any more."""
        return self not in (self.QUEUED, self.RUNNING)


TASK_STATE = Enum(TaskState, native_enum=False, length=32)


class Task(SQLModel, table=True):
    """A request for a model that is answered later. `id` is the outer name, `job_…`; a scheduler's job is a `Job`.

    `body` is what the engine is sent, `result` what it answered with `status`; both are gone when the task has expired.
    `attempts` counts how often an engine was asked. `expires_at`: until when it may wait, once it has ended until when
    its result is kept, once it has expired until when the row is.
    """

    __table_args__ = (
        UniqueConstraint("actor", "idempotency_key"),
        UniqueConstraint("batch", "custom_id"),
        Index("ix_task_state_model_number", "state", "model", "number"),
        Index("ix_task_batch_state", "batch", "state"),
        {"sqlite_autoincrement": True},  # no number is given twice, also when rows have been deleted
    )

    number: int | None = Field(default=None, primary_key=True)  # the order in which tasks are taken
    id: str = Field(unique=True)
    created_at: datetime = Field(sa_type=UtcDateTime)
    actor: str = Field(index=True)
    target: str  # as the client asked, e.g. /v1/chat/completions
    model: str = ""  # "" where the request names none
    body: bytes | None = None
    digest: str = ""  # SHA-256 of target and body, which outlives them
    state: TaskState = Field(default=TaskState.QUEUED, sa_column=Column(TASK_STATE, nullable=False))
    attempts: int = 0
    not_before: datetime = Field(sa_type=UtcDateTime)  # the next attempt
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    cancel_requested_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
    status: int | None = None  # of the engine's answer, in HTTP
    result: bytes | None = None
    error: str | None = None  # why the last attempt gave no result
    idempotency_key: str | None = None
    batch: str | None = None
    custom_id: str | None = None


class BatchState(StrEnum):
    """OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (self.FAILED, self.COMPLETED, self.EXPIRED, self.CANCELLED)


BATCH_STATE = Enum(BatchState, native_enum=False, length=32)


class Batch(SQLModel, table=True):
    """Many tasks out of one file, and two files of what became of them. The times are those that OpenAI shows."""

    id: str = Field(primary_key=True)
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)
    actor: str = Field(index=True)
    endpoint: str
    completion_window: str
    input_file: str
    output_file: str | None = None
    error_file: str | None = None
    state: BatchState = Field(default=BatchState.VALIDATING, sa_column=Column(BATCH_STATE, nullable=False, index=True))
    total: int = 0
    completed: int = 0
    failed: int = 0
    about: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # OpenAI's `metadata`
    errors: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    expires_at: datetime = Field(sa_type=UtcDateTime)
    in_progress_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finalizing_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    cancelling_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class StoredFile(SQLModel, table=True):
    """A file that a client has uploaded, or that a batch has written. Its content lies in the folder `files`."""

    id: str = Field(primary_key=True)
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)
    actor: str = Field(index=True)
    filename: str
    purpose: str
    size: int  # bytes

"""Follow the jobs: the one loop that asks the scheduler, and the only writer of what is known of jobs and replicas.

One turn is `look()`; what a turn concludes is decided by `follow()`, a pure function.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx2

from orchestrator.errors import NotReady, OrchestratorError, SchedulerError, SchedulerUnknown, StateFull
from orchestrator.models import Job, JobState, Service
from orchestrator.replicas import Replica, Replicas, probe
from orchestrator.runs import Endpoint, Endpoints, Exit
from orchestrator.schedulers import JobInfo, Scheduler
from orchestrator.schedulers.slurm import hostnames
from orchestrator.services import Services, plan_of
from orchestrator.store import Store, Why
from orchestrator.succession import Act, Role, earliest, healthy, role_of, step

log = logging.getLogger(__name__)

ACTOR = "watcher"
SETTLING = timedelta(seconds=5)  # after a handover, for requests that are not counted, such as for a list of models
ESTIMATED_EVERY = timedelta(minutes=10)
JUMP_SECONDS = 5.0  # by which the clock may leave a steady one between two turns


@dataclass
class Watcher:
    """`client` is for probes and has a short time limit. `clock` gives aware UTC datetimes, `steady` seconds of a clock
    that nobody sets."""

    scheduler: Scheduler
    store: Store
    services: Services
    replicas: Replicas
    client: httpx2.AsyncClient
    clock: Callable[[], datetime]
    grace: timedelta
    drain: timedelta
    poll_seconds: float
    probe_seconds: float
    own_ports: frozenset[int] = frozenset()  # of this process: no engine is there
    steady: Callable[[], float] = time.monotonic
    stale_since: datetime | None = None  # since when the scheduler has not answered
    trouble: str = ""  # in its words
    heard: datetime | None = None  # when it last answered
    unrecorded: str = ""  # why what the last turn has learned could not be written down
    last_look: datetime | None = None  # the end of the last turn, whatever it found
    turn_seconds: float = 0.0  # how long it took
    estimates: Mapping[str, datetime] = field(default_factory=dict)  # when jobs that wait should start, by name
    began: datetime | None = None  # when the loops did
    _keys: dict[str, str] = field(default_factory=dict)
    _retired: dict[str, datetime] = field(default_factory=dict)  # since when, jobs by submission id
    _waits: dict[str, tuple[datetime, timedelta | None]] = field(default_factory=dict)  # when asked, the answer
    _anew: datetime | None = None  # graces count from there: the first answer after silence, or the clock was set
    _clocks: tuple[datetime, float] | None = None  # both clocks at the last turn
    _answered: bool = False  # whether the scheduler has answered this process
    _probes: int = 0
    _first_answers: set[str] = field(default_factory=set)  # of jobs, and not recorded yet
    _soon: asyncio.Event = field(default_factory=asyncio.Event)
    _new: asyncio.Event = field(default_factory=asyncio.Event)  # an engine that nobody has asked yet

    async def run(self) -> None:
        """Both loops, until cancelled."""
        self.began = self.clock()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.look, self.poll_seconds, self._soon))
            group.create_task(self._repeat(self.probe, self.probe_seconds, self._new))

    @property
    def late(self) -> bool:
        """Whether the last turn is older than three intervals. With short ones 10 s: a busy machine is no fault.

        One that ended in the future ended before the clock was set back, and none has since.
        """
        since = self.last_look or self.began
        return since is not None and abs((self.clock() - since).total_seconds()) > max(3 * self.poll_seconds, 10)

    @property
    def unseen_since(self) -> datetime | None:
        """Since when what is shown may be out of date: the scheduler does not answer, or nobody has asked it."""
        return self.stale_since or ((self.last_look or self.began) if self.late else None)

    def wake(self) -> None:
        """Something has just been changed by command: look before the interval is over."""
        self._soon.set()

    async def _repeat(self, turn: Callable[[], Any], seconds: float, soon: asyncio.Event) -> None:
        while True:
            try:
                await turn()
            except NotReady as exc:
                log.error("a turn of the watcher failed: %s", exc)
            except Exception:
                # The top of the loop: a turn that failed must not end the following of jobs. /health turns red when
                # turns go on failing, because last_look stays behind.
                log.exception("a turn of the watcher failed")
            try:
                async with asyncio.timeout(seconds):
                    await soon.wait()
                soon.clear()
                await asyncio.sleep(min(seconds, 0.2))  # several commands at once are one question
            except TimeoutError:
                continue

    async def look(self) -> None:
        """One turn: one question to the scheduler, then each open job in the light of the answer."""
        began = time.perf_counter()
        self._compare_clocks()
        try:
            rows = await self.store.open_jobs()
        except NotReady as exc:
            self.unrecorded = str(exc)
            raise
        try:
            answer = await self.scheduler.query([job.name for _, job in rows])
            known: Mapping[str, JobInfo] | None = answer
            self._hear()
            self.estimates = {name: info.starts_at for name, info in answer.items() if info.starts_at is not None}
        except SchedulerUnknown as exc:
            # Unknown is not gone: nothing is concluded from silence.
            known, self.trouble = None, str(exc)
            self.stale_since = self.stale_since or self.clock()
        unrecorded = ""
        for service, job in rows:
            try:
                if known is not None:
                    job = await self._follow(service, job, known.get(job.name))
                self._place(service, job)
            except (StateFull, NotReady) as exc:
                log.error("following %s: %s", job.name, exc)
                unrecorded = str(exc)
            except Exception:
                # One job that cannot be followed must not hide the others.
                log.exception("following %s failed", job.name)
        if known is not None:
            await self._keep()
        self.unrecorded = unrecorded
        self.last_look, self.turn_seconds = self.clock(), time.perf_counter() - began

    def _hear(self) -> None:
        """The scheduler has answered. Its first answer after silence, or to this process, may lack jobs that it has yet
        to read back, and requests that still wait to be taken: no grace ends by it."""
        if self.stale_since is not None or not self._answered:
            self._anew = self.clock()
        self._answered, self.heard = True, self.clock()
        self.stale_since, self.trouble = None, ""

    def _compare_clocks(self) -> None:
        """A clock that is set ahead must not end a grace, nor one that is set back make it last for days."""
        now, steady = self.clock(), self.steady()
        if self._clocks is not None:
            jump = (now - self._clocks[0]).total_seconds() - (steady - self._clocks[1])
            if abs(jump) > JUMP_SECONDS:
                log.warning("the clock was set by %+.0f s; graces count from now", jump)
                self._anew = now
        self._clocks = now, steady

    async def _follow(self, service: Service, job: Job, info: JobInfo | None) -> Job:
        if job.submission_id in self.services.submitting:  # its request is still being served
            return job
        if job.job_id is None:
            service, _ = await self.store.find(job.service)
            job = await self.store.job(job.submission_id)
            if job.job_id is not None or job.state.ended:  # its request was served while the scheduler was asked
                return job
        now = self.clock()
        ended = self.services.folder(job.submission_id).read_exit()
        unwanted = service.cancelled_at is not None or role_of(service, job) is Role.RETIRED
        known = last_known(job, now, self._anew)
        changes = follow(job, info, ended, cancelled=unwanted, now=now, grace=self.grace, known=known)
        if changes is None:
            await self._submit_again(job)
        elif job.job_id is None and "job_id" in changes:
            await self._adopt(job, changes["job_id"])
        if changes:
            kind = "job.state" if "state" in changes else None
            await self.store.record(job.submission_id, changes, at=now, actor=ACTOR, kind=kind)
        if unwanted and info is not None and not self.drains(service, job):
            await self._cancel_again(info)
        return job.model_copy(update=changes or {})

    async def end(self, service: Service, job: Job, *, actor: str, why: Why | None = None) -> None:
        """Cancel a service: at once when it has nothing to do, else when it has answered what it was asked before."""
        drains = self.drain > timedelta(0) and self.replicas.drain(service.submission_id)
        try:
            await self.services.cancel(service, job, actor=actor, drains=drains, why=why)
        except OrchestratorError:
            self.replicas.drain(service.submission_id, wanted=False)
            raise
        self.wake()

    def drains(self, service: Service, job: Job) -> bool:
        """Whether a job whose end is wanted still answers what it was asked before: of a cancelled service for a while,
        after a handover to its limit."""
        now = self.clock()
        if service.cancelled_at is not None:
            if now - service.cancelled_at >= self.drain:
                return False
        elif role_of(service, job) is not Role.RETIRED:
            return False
        busy = self.replicas.drain(service.submission_id, job.submission_id)
        since = self._retired.get(job.submission_id)
        return busy or (service.cancelled_at is None and since is not None and now - since < SETTLING)

    async def _keep(self) -> None:
        """What follows the jobs of the services that are kept."""
        for service, job, successor in await self.store.kept():
            try:
                await self._keep_one(service, job, successor)
            except OrchestratorError as exc:
                log.warning("service %s: its next job was not submitted: %s", service.id, exc)
            except Exception:
                # One service that cannot be kept must not keep the others from it.
                log.exception("keeping service %s failed", service.id)

    async def _keep_one(self, service: Service, job: Job, successor: Job | None) -> None:
        now = self.clock()
        wait = await self._wait(job, successor, now)
        todo = step(job, successor, healthy=self._healthy(service, successor, now), wait=wait, now=now)
        match todo.act:
            case Act.SUBMIT:
                log.info("service %s: submitting the job that takes over from %s", service.id, job.job_id)
                await self.services.replace(service, job, todo.attempt, actor=ACTOR)
            case Act.HAND_OVER if successor is not None:
                log.info("service %s: job %s takes over from %s", service.id, successor.job_id, job.job_id)
                await self.store.hand_over(service.submission_id, successor.submission_id, at=now, actor=ACTOR)
                self._retired[job.submission_id] = now
                self.replicas.drain(service.submission_id, job.submission_id)
                self._soon.set()
            case Act.LET_GO:
                await self.store.let_go(service.submission_id, todo.why, at=now, actor=ACTOR)
                self._soon.set()

    def _healthy(self, service: Service, successor: Job | None, now: datetime) -> bool:
        if successor is None or successor.state.ended:
            return False
        group = self.replicas.of(service.submission_id, successor.submission_id)
        answering = sum(replica.ready for replica in group)
        return healthy(successor, answering=answering, wanted=plan_of(service).total_replicas, now=now)

    async def _wait(self, job: Job, successor: Job | None, now: datetime) -> timedelta | None:
        """How long a job like this one would be in the queue. The scheduler is asked now and then, and only when a next
        job may be due."""
        half = earliest(job)
        if successor is not None or half is None or now < half:
            self._waits.pop(job.submission_id, None)
            return None
        asked, wait = self._waits.get(job.submission_id, (None, None))
        if asked is None or now - asked >= ESTIMATED_EVERY:
            start = await self.scheduler.starts_at(self.services.folder(job.submission_id).script)
            wait = None if start is None else start - now
            self._waits[job.submission_id] = now, wait
        return wait

    async def _adopt(self, job: Job, job_id: str) -> None:
        """There is a job whose id we never heard: of a crash, or of an sbatch that did not answer."""
        log.warning("adopting job %s of submission %s", job_id, job.submission_id)
        await self.store.accepted(job.submission_id, job_id, at=self.clock(), actor=ACTOR)

    async def _cancel_again(self, info: JobInfo) -> None:
        """A user asked for the end while the job had no id yet, or the scheduler took the wish and forgot it."""
        if info.state.ended or info.state is JobState.COMPLETING:
            return
        try:
            await self.scheduler.cancel(info.job_id, info.name)
        except SchedulerError as exc:
            log.warning("cancelling job %s failed: %s", info.job_id, exc)

    async def _submit_again(self, job: Job) -> None:
        """Recorded, never seen, and its request died with the process that served it."""
        log.warning("submitting %s, which was recorded before a crash and never reached the scheduler", job.name)
        try:
            await self.services.submit(job, actor=ACTOR)
        except OrchestratorError as exc:
            log.warning("submission %s failed: %s", job.submission_id, exc)

    def _place(self, service: Service, job: Job) -> None:
        """Bring the table of replicas in line with the job."""
        if service.cancelled_at is not None and self.drains(service, job):
            return
        if not job.state.runs or job.job_id is None or service.cancelled_at is not None:
            self.replicas.drop(service.submission_id, job.submission_id)
            self._retired.pop(job.submission_id, None)
            return
        found = self.services.folder(job.submission_id).read_endpoints()
        # Of a job that was requeued, the file of an earlier start may still lie there.
        if found is None or found.job_id != job.job_id or found.restarts < job.restarts:
            # And what that one had started is gone, also when nobody has seen the job wait.
            known = self.replicas.of(service.submission_id, job.submission_id)
            current = [r for r in known if r.restarts >= job.restarts]
            self.replicas.update(service.submission_id, job.submission_id, current)
            return
        if self.replicas.update(service.submission_id, job.submission_id, self._replicas(service, job, found)):
            self._new.set()

    def _replicas(self, service: Service, job: Job, found: Endpoints) -> list[Replica]:
        plan = plan_of(service)
        return [
            Replica(
                submission_id=job.submission_id,
                service_id=service.id or service.submission_id,
                created_at=service.created_at,
                job_id=found.job_id,
                index=e.replica,
                node=e.node,
                port=e.port,
                gpus=e.gpus,
                key=self._key(job.submission_id),
                routing=plan.routing,
                slot=plan.slot,
                listed=plan.listed,
                health=plan.health,
                models_path=plan.models,
                restarts=found.restarts,
                starts=e.starts,
                state=e.state,
                draining=role_of(service, job) is Role.RETIRED,
            )
            for e in found.all
            if belongs(e, job.nodes) and not (e.port in self.own_ports and is_here(e.node))
        ]

    def _key(self, submission_id: str) -> str:
        if submission_id not in self._keys:
            self._keys[submission_id] = self.services.folder(submission_id).read_secrets().get("VLLM_API_KEY", "")
        return self._keys[submission_id]

    async def probe(self) -> None:
        """Ask every engine at once whether it answers; the first yes of a job is recorded."""
        self._probes += 1
        # One that answers is asked less often: requests notice its death before we do.
        replicas = [r for r in self.replicas.every() if not r.ready or self._probes % 5 == 0]
        answered = {r.submission_id for r in self.replicas.every() if r.ready}
        async with asyncio.TaskGroup() as group:
            for replica in replicas:
                group.create_task(probe(self.client, replica))
        self._first_answers |= {r.submission_id for r in replicas if r.ready and not r.rented} - answered
        for submission_id in sorted(self._first_answers):
            await self.store.ready(submission_id, at=self.clock(), actor=ACTOR)
            self._first_answers.discard(submission_id)
            self._soon.set()  # it may take over


def belongs(endpoint: Endpoint, nodes: str) -> bool:
    """Whether an endpoint is on a node of its job. A job without nodes is a process on this machine."""
    return endpoint.node in hostnames(nodes) if nodes else endpoint.node == "localhost"


def is_here(node: str) -> bool:
    return node == "localhost" or node.partition(".")[0] == socket.gethostname().partition(".")[0]


def last_known(job: Job, now: datetime, anew: datetime | None) -> datetime:
    """From when the grace of a job counts: since it was seen or recorded, or since graces count anew after that."""
    known = job.seen_at or job.recorded_at
    return known if anew is None or anew <= known <= now else anew


def follow(
    job: Job,
    info: JobInfo | None,
    ended: Exit | None,
    *,
    cancelled: bool,
    now: datetime,
    grace: timedelta,
    known: datetime,
) -> dict[str, Any] | None:
    """What a turn learns of one open job: the fields to change, {} for nothing new, None for "submit it again".

    `known`: since when the grace counts (`last_known`).

    The cases, in order:
    1. The scheduler speaks of it: its word is taken, except for a word that nobody knows.
    2. It is silent, and the script left its exit file: that is the end, also of a job whose id we never heard.
    3. It is silent about a job that it never showed:
       within the grace, wait; afterwards give up if sbatch broke off (the user was told), else submit again.
    4. It is silent about a job that it used to show: a cancelled one has ended; another is lost after the grace.
       While the grace counts anew, also a cancelled one may turn up again.
    """
    if info is not None:
        return _told(job, info, ended, now)
    if ended is not None and job.job_id in (None, ended.job_id):
        return _left(job, ended, cancelled=cancelled)
    if job.state is JobState.SUBMITTING:
        return _never_seen(job, cancelled=cancelled, now=now, late=now - known > grace)
    anew = known > (job.seen_at or job.recorded_at)
    if now - known <= grace and (anew or not cancelled):
        return {}
    if cancelled:
        return {"state": JobState.CANCELLED, "ended_at": now}
    reason = f"the scheduler no longer knows job {job.job_id}, and it left no exit code"
    return {"state": JobState.LOST, "reason": reason, "ended_at": now}


def _told(job: Job, info: JobInfo, ended: Exit | None, now: datetime) -> dict[str, Any]:
    """Case 1. The exit file knows the script's own code, which some schedulers do not tell."""
    if info.state is JobState.UNKNOWN:
        log.warning("job %s is in a state that is not known here; it keeps the state %s", info.job_id, job.state)
        return {"job_id": info.job_id, "seen_at": now}
    exit_code = info.exit_code
    if exit_code is None and ended is not None and ended.job_id == info.job_id and info.state.ended:
        exit_code = ended.exit_code
    told = {
        "job_id": info.job_id,
        "state": info.state,
        "reason": info.reason,
        "nodes": info.nodes or job.nodes,
        "exit_code": exit_code,
        "restarts": info.restarts,
        "submitted_at": info.submitted_at or job.submitted_at,
        "started_at": info.started_at,
        "ready_at": job.ready_at if info.restarts == job.restarts else None,  # started again, it has yet to answer
        "ended_at": info.ended_at or (now if info.state.ended else None),
        "ends_at": info.ends_at or (job.ends_at if info.state.ended or info.state.runs else None),
    }
    changes = {name: value for name, value in told.items() if getattr(job, name) != value}
    # Written at most every few turns: it only serves the grace of a job that vanishes.
    if changes or job.seen_at is None or now - job.seen_at > timedelta(seconds=20):
        changes["seen_at"] = now
    return changes


def _left(job: Job, ended: Exit, *, cancelled: bool) -> dict[str, Any]:
    """Case 2. A script ended by SIGTERM was cancelled, or reached its limit: the clock tells."""
    if not ended.signal:
        state = JobState.COMPLETED if ended.exit_code == 0 else JobState.FAILED
    elif job.ends_at is not None and not cancelled and ended.ended_at >= job.ends_at - timedelta(seconds=30):
        state = JobState.TIMEOUT
    else:
        state = JobState.CANCELLED
    reason = {JobState.FAILED: "NonZeroExitCode", JobState.TIMEOUT: "TimeLimit"}.get(state, "")
    changes = {"state": state, "reason": reason, "exit_code": ended.exit_code, "ended_at": ended.ended_at}
    return changes if job.job_id is not None else {"job_id": ended.job_id, **changes}


def _never_seen(job: Job, *, cancelled: bool, now: datetime, late: bool) -> dict[str, Any] | None:
    """Case 3."""
    if not late:
        return {}
    if cancelled:
        return {"state": JobState.CANCELLED, "ended_at": now}
    if job.reason:
        return {"state": JobState.FAILED, "ended_at": now}
    return None

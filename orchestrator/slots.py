"""Slots: places for one model at a time, each with one worker that loads what is asked for and lets go of the rest.

A model of `models.yaml` without a slot has one of its own, which nothing else takes. Which model is loaded is read from
the database at every turn, so that a slot goes on after a crash where it was; only who waits is in memory.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.errors import EngineError, NotReady, OrchestratorError
from orchestrator.model_list import ListedModel, Listing, ModelList, Policy, config_of, known
from orchestrator.models import Job, JobState, Service
from orchestrator.replicas import Replicas
from orchestrator.services import Services, plan_of
from orchestrator.store import Store
from orchestrator.switching import Act, Phase, Step, View, Wish, longest, step
from orchestrator.watcher import Watcher

log = logging.getLogger(__name__)

MOST_WAITING = 10_000  # requests, of one slot
TURN_SECONDS = 0.2  # between two turns while something changes
_RESTING_SECONDS = 5.0  # between two turns while nothing does
_LOOK_SECONDS = 1.0  # between two questions to the scheduler while the end of a job is awaited
_RETURN_SECONDS = 15.0  # within which a client that was told to come back comes
_LEAST_RETRY, _MOST_RETRY = 2, 60  # seconds; SDKs wait no longer than 120
_DEFAULT_LOAD = 60.0  # seconds, of a model that has not been loaded yet


@dataclass(eq=False)
class Waiter:
    """A request that waits for its model."""

    done: "asyncio.Future[None]"


@dataclass
class Wanted:
    """A model that is asked for. `since`: when the first of those who wait now came; `until`: when the last of those
    who were told to come back should have."""

    since: float
    waiters: list[Waiter] = field(default_factory=list)
    until: float = 0


@dataclass(frozen=True)
class Failure:
    """`status`: of the refusal, where the model was not even submitted."""

    at: float
    why: str
    status: int | None = None


@dataclass(frozen=True)
class Tools:
    """What slots work with. `steady` is a clock that nobody sets, in seconds."""

    services: Services
    store: Store
    replicas: Replicas
    watcher: Watcher
    clock: Callable[[], datetime]
    steady: Callable[[], float] = time.monotonic


class Slot:
    """One place. Only its worker changes what it has."""

    def __init__(self, name: str, models: Mapping[str, ListedModel], policy: Policy, tools: Tools) -> None:
        self.name, self.models, self.policy = name, models, policy
        self.phase = Phase.EMPTY
        self.loaded: str | None = None
        self.switches = 0  # how often a model was started
        self.last_switch: float | None = None  # seconds from the start of the last one that answered until it did
        self.loads, self.load_seconds = 0, 0.0  # how many have answered, and the sum of those seconds
        self.wish: Wish | None = None
        self._tools = tools
        self._service: tuple[Service, Job] | None = None  # of the loaded model
        self._since = tools.steady()
        self._stopping = False
        self._looked = 0.0
        self._wanted: dict[str, Wanted] = {}
        self._failures: dict[str, Failure] = {}
        self._before: str | None = None  # the model that served before
        self._usual: dict[str, float] = {}  # seconds from the start of a model's last job until it answered
        self._changed = asyncio.Event()

    # Asked by requests

    async def wait(self, model: str, hold: float | None, actor: str) -> None:
        """Return when a model answers. `hold`: for so many seconds; None: as long as it takes.

        Raises NotReady saying what it waits for, EngineError when the model did not load.
        """
        if (failure := self._failure(model)) is not None:
            raise failure
        if sum(len(wanted.waiters) for wanted in self._wanted.values()) >= MOST_WAITING:
            raise NotReady(f"{MOST_WAITING} requests wait for the slot {self.name!r} already; try again")
        waiter = self._enter(model)
        try:
            async with asyncio.timeout(hold):
                await waiter.done
        except TimeoutError as exc:
            seconds = self.retry_after(model)
            self._wanted[model].until = self._tools.steady() + seconds + _RETURN_SECONDS
            raise NotReady(self.told(model), retry_after=seconds) from exc
        finally:
            self._leave(model, waiter)

    def _enter(self, model: str) -> Waiter:
        waiter = Waiter(asyncio.get_running_loop().create_future())
        self._wanted.setdefault(model, Wanted(self._tools.steady())).waiters.append(waiter)
        self._changed.set()
        return waiter

    def _leave(self, model: str, waiter: Waiter) -> None:
        wanted = self._wanted.get(model)
        if wanted is not None and waiter in wanted.waiters:
            wanted.waiters.remove(waiter)
            self._forget()

    def switch(self, model: str | None) -> None:
        """Load a model whatever is asked for, or none. Raises NotFound for one of another slot."""
        if model is not None and model not in self.models:
            raise known(self.models, model, f"model of the slot {self.name!r} called")
        self._failures.pop(model or "", None)
        self.wish = Wish(model)
        self._changed.set()

    # What is told

    def waits(self) -> dict[str, float]:
        """The models that are waited for, and since how many seconds."""
        now = self._tools.steady()
        return {model: now - wanted.since for model, wanted in self._wanted.items()}

    def waiting(self, model: str) -> int:
        """How many requests wait for a model now."""
        wanted = self._wanted.get(model)
        return 0 if wanted is None else len(wanted.waiters)

    @property
    def comes(self) -> str:
        """The model that a request gets which leaves the choice to the slot."""
        if self.wish is not None and self.wish.model is not None:
            return self.wish.model
        if self.loaded is not None and self.phase is not Phase.LEAVING:
            return self.loaded
        others = {model: waited for model, waited in self.waits().items() if model != self.loaded}
        return longest(others) if others else self.loaded or self.policy.default or next(iter(self.models))

    def state(self, model: str) -> str:
        """A model's state in a word."""
        if model == self.loaded:
            return {Phase.SERVING: "running", Phase.LOADING: "loading"}.get(self.phase, "stopping")
        if model in self._wanted or (self.wish is not None and self.wish.model == model):
            return "waiting"
        return "sleeping" if self._failure(model) is None else "failed"

    def told(self, model: str) -> str:
        """What a request for a model waits for, in a sentence."""
        waited = self.waits().get(model, 0.0)
        if model == self.loaded and self.phase is Phase.LOADING:
            return f"the model {model!r} is being loaded: {self._progress()} (asked for {waited:.0f} s ago)"
        ahead = [one for one, seconds in self.waits().items() if seconds > waited and one not in (model, self.loaded)]
        place = f"it is number {len(ahead) + 1} in the queue of the slot {self.name!r}"
        if self.loaded is None:
            return f"the model {model!r} is about to be started; {place}"
        return f"the model {model!r} waits until {self.loaded!r} ({self.phase}) makes room; {place}"

    def _progress(self) -> str:
        if self._service is None:
            return "its job is being submitted"
        job = self._service[1]
        estimate = self._tools.watcher.estimates.get(job.name)
        words = f"job {job.job_id or job.name} is {job.state.value}{f' ({job.reason})' if job.reason else ''}"
        if estimate is not None and not job.state.runs:
            words += f", Slurm expects it to start at {estimate:%Y-%m-%d %H:%M:%SZ}"
        usual = self._usual.get(self.loaded or "")
        return words if usual is None else f"{words}; from its start it took {usual:.0f} s last time"

    def retry_after(self, model: str) -> int:
        """Seconds after which asking again makes sense: what is left of the time that loading took before."""
        usual = self._usual.get(model, _DEFAULT_LOAD)
        loading = model == self.loaded and self.phase is Phase.LOADING
        left = usual - (self._tools.steady() - self._since) if loading else usual
        if self._service is not None and (start := self._tools.watcher.estimates.get(self._service[1].name)):
            left = max(left, (start - self._tools.clock()).total_seconds())
        return int(min(max(left, _LEAST_RETRY), _MOST_RETRY))

    def _failure(self, model: str) -> EngineError | None:
        """Why a model that failed lately is not tried again yet."""
        failure = self._failures.get(model)
        if failure is None:
            return None
        left = self.policy.retry_after_failure - (self._tools.steady() - failure.at)
        if left <= 0:
            del self._failures[model]
            return None
        words = (
            f"the model {model!r} did not load: {failure.why}; it is not tried again before {left:.0f} s have passed"
        )
        return EngineError(words, upstream_status=failure.status)

    # The worker

    async def run(self) -> None:
        """Turn after turn, until cancelled."""
        while True:
            resting: float | None = _RESTING_SECONDS
            try:
                await self.turn()
                if self.phase is Phase.EMPTY:
                    resting = None  # it stays so until somebody asks: nothing else starts a service of this slot
            except Exception:
                # The top of the loop: a turn that failed must not end the service of the slot.
                log.exception("a turn of the slot %s failed", self.name)
            busy = self.phase in (Phase.LOADING, Phase.LEAVING) or self._wanted or self.wish is not None
            try:
                async with asyncio.timeout(TURN_SECONDS if busy else resting):
                    await self._changed.wait()
                await asyncio.sleep(0)  # whoever has come at the same moment is seen by the same turn
            except TimeoutError:
                continue
            self._changed.clear()

    async def turn(self) -> None:
        """See what is, decide, act."""
        await self._see()
        await self._do(step(self._view(), self.policy))

    async def _see(self) -> None:
        """Bring what we know in line with the database and the engines."""
        inside = [(s, job) for s, job in await self._tools.store.open_services() if plan_of(s).slot == self.name]
        if not inside:
            await self._see_nothing()
            return
        wanted = [one for one in inside if one[0].cancelled_at is None]
        for service, job in wanted[1:]:  # what a user started by hand, or an older release
            await self._tools.services.cancel(service, job, actor=self._actor)
        service, job = self._service = (wanted or inside)[0]
        self.loaded = plan_of(service).listed
        if service.cancelled_at is not None:
            if self.phase is Phase.LOADING and self._waiters(self.loaded or ""):
                self._fail(self.loaded or "", f"its service {service.id} was cancelled")
            self._enter_phase(Phase.LEAVING)
            self._stopping = True
            self._look()
        elif self._tools.replicas.answers(service.submission_id) and self.phase is not Phase.LEAVING:
            self._serve()
        elif self.phase is not Phase.LEAVING:
            self._enter_phase(Phase.LOADING)
        self._forget()

    async def _see_nothing(self) -> None:
        if self.phase is Phase.LOADING and self.loaded is not None and self._service is not None:
            _, job = await self._tools.store.find(self._service[0].submission_id)
            # What was cancelled has not failed; perhaps by us, before a crash. But whoever waits for it must be told.
            if job.state is not JobState.CANCELLED or self._waiters(self.loaded):
                self._fail(self.loaded, f"job {job.job_id} ended as {job.state.value} {job.reason}".strip())
        self._enter_phase(Phase.EMPTY)
        self.loaded = self._service = None
        if self.wish == Wish(None):
            self.wish = None
        self._forget()

    def _serve(self) -> None:
        """The loaded model answers: whoever waits for it goes on."""
        if self.phase is Phase.LOADING:
            self.last_switch = self._tools.steady() - self._since
            self.loads, self.load_seconds = self.loads + 1, self.load_seconds + self.last_switch
            log.info("slot %s: %s answers after %.1f s", self.name, self.loaded, self.last_switch)
        self._enter_phase(Phase.SERVING)
        assert self.loaded is not None
        self._failures.pop(self.loaded, None)
        if self.wish == Wish(self.loaded):
            self.wish = None
        for waiter in self._waiters(self.loaded):
            if not waiter.done.done():
                waiter.done.set_result(None)

    def _waiters(self, model: str) -> list[Waiter]:
        wanted = self._wanted.get(model)
        return [] if wanted is None else list(wanted.waiters)

    def _forget(self) -> None:
        """Models that nobody waits for any more, and nobody is expected for."""
        now = self._tools.steady()
        for model, wanted in list(self._wanted.items()):
            if not wanted.waiters and now >= wanted.until:
                del self._wanted[model]

    def _enter_phase(self, phase: Phase) -> None:
        if phase is not self.phase:
            self.phase, self._since, self._stopping = phase, self._tools.steady(), False

    def _view(self) -> View:
        group = [] if self._service is None else self._tools.replicas.of(self._service[0].submission_id)
        last = max((r.last_used for r in group if r.last_used is not None), default=None)
        lasted = self._tools.steady() - self._since
        quiet = lasted if last is None else min((self._tools.clock() - last).total_seconds(), lasted)
        return View(
            phase=self.phase,
            loaded=self.loaded,
            waits=self.waits(),
            lasted=lasted,
            in_flight=sum(r.in_flight for r in group),
            quiet=quiet,
            stopping=self._stopping,
            wish=self.wish,
        )

    async def _do(self, todo: Step) -> None:
        match todo.act:
            case Act.LOAD if todo.model is not None:
                await self._load(todo.model)
            case Act.LEAVE if self._service is not None:
                log.info("slot %s: %s makes room", self.name, self.loaded)
                self._tools.replicas.drain(self._service[0].submission_id)
                self._before = self.loaded
                self._enter_phase(Phase.LEAVING)
                self._changed.set()
            case Act.STOP:
                await self._stop()
            case Act.GIVE_UP if self.loaded is not None:
                self._fail(self.loaded, f"it did not answer within {self.policy.switch_timeout:g} s")
                await self._stop()

    async def _load(self, model: str) -> None:
        entry = self.models[model]
        log.info("slot %s: loading %s", self.name, model)
        if (last := await self._tools.store.last_load(model)) is not None:
            self._usual[model] = max((last[1] - last[0]).total_seconds(), 0)
        self.loaded, self._service = model, None
        self.switches += 1
        self._enter_phase(Phase.LOADING)
        try:
            recipe = self._tools.services.recipes.find(entry.recipe)
            config = config_of(model, entry, recipe, entry.slot)
            listing = Listing(model, self.name, entry.backend.image, entry.price)
            self._service = await self._tools.services.start(entry.recipe, config, actor=self._actor, listing=listing)
        except OrchestratorError as exc:
            self._fail(model, str(exc), exc.status)
            self._enter_phase(Phase.EMPTY)
            self.loaded = None
            return
        self._tools.watcher.wake()

    async def _stop(self) -> None:
        if self._service is None:
            return
        service, job = await self._tools.store.find(self._service[0].submission_id)
        await self._tools.services.cancel(service, job, actor=self._actor)
        self._enter_phase(Phase.LEAVING)
        self._stopping = True
        self._look()

    def _look(self) -> None:
        """The memory is free when the job is gone, and the next model waits for that."""
        now = self._tools.steady()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._tools.watcher.wake()

    def _fail(self, model: str, why: str, status: int | None = None) -> None:
        log.warning("slot %s: %s did not load: %s", self.name, model, why)
        self._failures[model] = Failure(self._tools.steady(), why, status)
        for waiter in self._waiters(model):
            if not waiter.done.done():
                waiter.done.set_exception(self._failure(model) or EngineError(why))
        self._wanted.pop(model, None)
        self.wish = None
        back = self._before if self.policy.on_failure == "previous" else None
        if back is not None and back != model and not self._wanted and self._failure(back) is None:
            self.wish = Wish(back)

    @property
    def _actor(self) -> str:
        return f"slot {self.name}"


@dataclass
class Slots:
    """All slots, by name, and each offered name with its slot and model."""

    by_name: dict[str, Slot]
    offers: dict[str, tuple[Slot, str]]
    declared: list[str]  # slots of the file, without those that a single model has for itself
    hold_seconds: float  # for requests whose client can be told to come back

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.by_name.values())

    def find(self, name: str) -> Slot:
        """Raises NotFound with the names there are."""
        if name not in self.by_name:
            raise known(self.by_name, name, "slot")
        return self.by_name[name]

    def model_in(self, slot: str, asked: str | None) -> str | None:
        """Which of its models a request to a slot's URL means; None: the one that is loaded."""
        one, model = self.offers.get(asked or "", (None, None))
        return model if one is not None and one.name == slot else None

    async def wake(self, slot: str | None, asked: str | None, *, patient: bool, actor: str) -> bool:
        """Return true when a model answers that did not; false for one that is not offered here.

        `slot`: the request was sent to a slot's URL. Raises what a request is told instead.
        """
        found = self._meant(slot, asked)
        if found is None:
            return False
        await found[0].wait(found[1], None if patient else self.hold_seconds, actor)
        return True

    def _meant(self, slot: str | None, asked: str | None) -> tuple[Slot, str] | None:
        if slot is None and asked not in self.declared:
            return self.offers.get(asked or "")
        one = self.find(slot or asked or "")
        return one, self.model_in(one.name, asked) or one.comes

    def told(self, slot: str | None, asked: str | None) -> str:
        """What such a request waits for, "" for nothing."""
        found = self._meant(slot, asked)
        return "" if found is None else found[0].told(found[1])

    async def run(self) -> None:
        """All workers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for slot in self:
                group.create_task(slot.run())


def make_slots(listed: ModelList, tools: Tools, hold: timedelta) -> Slots:
    """The slots of a list that `model_list.check` has let pass."""
    slots = Slots({}, {}, listed.slot_names(), hold.total_seconds())
    for name in slots.declared:
        slots.by_name[name] = Slot(name, listed.inside(name), listed.slots.get(name, Policy()), tools)
    for name, model in listed.models.items():
        if model.slot is None:
            slots.by_name[name] = Slot(name, {name: model}, Policy(), tools)
        slot = slots.by_name[model.slot or name]
        for called in (name, *model.aliases):
            slots.offers[called] = slot, name
    return slots

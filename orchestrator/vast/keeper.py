"""Keep one rented machine: what starts and stops it, by command or because nobody uses it.

off ── power_on ─▶ starting ── healthy ─▶ on ── power_off, or nobody uses it ─▶ stopping ─▶ off

What vast.ai says is what counts, see `sight`: a session is closed also when the machine was stopped in vast.ai's
console, or while no orchestrator ran. Commands are carried out one after the other.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx2

from orchestrator.errors import Conflict, NotStarted, NotStopped, OrchestratorError, RentalError, RentalUnknown
from orchestrator.models import Rental
from orchestrator.replicas import Replicas
from orchestrator.settings import Vast
from orchestrator.store import Store
from orchestrator.vast.api import open_api
from orchestrator.vast.idle import idle_minutes, is_due
from orchestrator.vast.instance import Instance, Status, url_of
from orchestrator.vast.ledger import SYSTEM, Kind, Ledger, Stop
from orchestrator.vast.sight import NAME, Sight

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """By which port within the instance, and which path, its health is asked for."""

    port: int
    path: str


@dataclass(frozen=True)
class Started:
    """What has become of a start. `health_url` None: vast.ai gives no address yet."""

    status: Status
    endpoint: str | None
    health_url: str | None
    message: str


@dataclass
class Start:
    """A start that is under way. `accepted`: vast.ai has been told."""

    check: Check
    task: "asyncio.Task[Started]"
    accepted: asyncio.Event


@dataclass
class Keeper:
    """`client` is for health checks and has a short time limit. `settle`: seconds for which a start may look hopeless,
    because vast.ai still shows how it was before. `stop_seconds`: for a stop, until vast.ai says that it is done.
    `serve_seconds`: from when it is healthy until its models are known. `drain`: for how long what was asked before it
    is stopped may be answered."""

    sight: Sight
    client: httpx2.AsyncClient
    drain: timedelta
    settle: float = 30
    stop_seconds: float = 60
    serve_seconds: float = 10
    _commanding: asyncio.Lock = field(default_factory=asyncio.Lock)
    _start: Start | None = None

    @property
    def settings(self) -> Vast:
        return self.sight.settings

    @property
    def ledger(self) -> Ledger:
        return self.sight.ledger

    async def close(self, *tasks: "asyncio.Task[Any]") -> None:
        """End these, and the start that is under way."""
        ending = {*tasks} if self._start is None else {*tasks, self._start.task}
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)

    async def run(self) -> None:
        """The loop, until cancelled."""
        resumed = False
        while True:
            try:
                if not resumed:
                    await self._resume()
                    resumed = True
                await self.turn()
            except OrchestratorError as exc:
                log.warning("the rented machine: %s", exc)
            except Exception:
                # The top of the loop: a turn that failed must not keep the machine from being stopped by a later one.
                log.exception("a turn of the rented machine's keeper failed")
            await asyncio.sleep(self.settings.check_seconds)

    async def turn(self) -> None:
        """Look at it, and stop it when nobody uses it."""
        await self.sight.look()
        rental = await self.ledger.open()
        if rental is not None and is_due(self.settings, self.sight.used_at(rental), self.sight.clock()):
            await self._shut_down()

    # Starting

    async def power_on(self, check: Check, *, wait: bool, actor: str) -> Started:
        """Start it, or join a start that is under way. With `wait` until it is healthy, else until vast.ai knows.

        Raises RentalError, RentalUnknown, NotStarted, and Conflict for a start that was called off or is asked for its
        health in another way.
        """
        async with self._commanding:
            if self._start is None or self._start.task.done():
                await self.sight.note(Kind.POWER_ON_REQUESTED, {"wait_for_health": wait}, actor)
                self._begin(check)
            start = self._start
        assert start is not None
        if start.check != check:
            raise Conflict(f"it is being started with the health check {start.check.path} on port {start.check.port}")
        told_so = asyncio.ensure_future(start.accepted.wait())
        try:
            await asyncio.wait({start.task} if wait else {start.task, told_so}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told_so.cancel()
        if not start.task.done():
            return self.started(
                await self.sight.look(), check, "Start requested; GET /infra/vast/status tells how it goes on"
            )
        if start.task.cancelled():
            raise Conflict("it was switched off before it was healthy")
        return start.task.result()

    def _begin(self, check: Check) -> None:
        accepted = asyncio.Event()
        task = asyncio.create_task(self._carry_out(check, accepted))
        task.add_done_callback(_say)
        self._start = Start(check, task, accepted)

    async def _resume(self) -> None:
        """Follow a start that a crash has interrupted to its end. What vast.ai has not been told of is not started."""
        last = await self.ledger.last()
        window = timedelta(seconds=self.settings.wait_timeout_s)
        if last is None or last.kind != Kind.POWER_ON_REQUESTED or self.sight.clock() - last.at >= window:
            return
        async with self._commanding:
            if self._start is None and (await self.sight.look()).wanted == "running":
                self._begin(Check(self.settings.health_port, self.settings.health_path))

    async def _carry_out(self, check: Check, accepted: asyncio.Event) -> Started:
        instance = await self.sight.look()
        if instance.status is Status.NOT_FOUND:
            raise RentalError(instance.message or "")
        if instance.wanted != "running" or instance.status is Status.EXITED:
            await self.sight.api.wish("running")
        accepted.set()
        self.sight.used()
        instance = await self._until_healthy(check)
        words = "Instance running and healthy"
        if missing := await self._unserved():
            words += f", but its models are not served here yet ({missing})"
        self.sight.used()
        started = self.started(instance, check, words)
        await self.sight.note(
            Kind.POWER_ON_COMPLETE, {"instance_id": instance.id, "endpoint": started.endpoint}, SYSTEM
        )
        return started

    async def _until_healthy(self, check: Check) -> Instance:
        """Raises NotStarted."""
        seconds = self.settings.wait_timeout_s
        troubles: list[str] = []
        try:
            async with asyncio.timeout(seconds):
                return await self._healthy(check, troubles)
        except (TimeoutError, NotStarted) as exc:
            why = str(exc) or f"not healthy within {seconds:g} s ({troubles[-1] if troubles else 'no answer'})"
            await self.sight.note(
                Kind.POWER_ON_HEALTH_TIMEOUT, {"instance_id": self.settings.instance_id, "reason": why}, SYSTEM
            )
            text = f"Health check timeout: {why}. It may cost money all the same: POST /infra/vast/power/off stops it"
            raise NotStarted(text) from exc

    async def _healthy(self, check: Check, troubles: list[str]) -> Instance:
        """The instance, once it is healthy; until then what it lacks is appended to `troubles`.

        Raises NotStarted for one that never will be. That vast.ai does not answer now and then says nothing of that.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                instance = await self.sight.look()
                if instance.status is Status.RUNNING:
                    await self._ask(url_of(self.sight.place_of(instance, check.port), check.path))
                    return instance
                troubles.append(f"it is {instance.status}" + (f": {instance.message}" if instance.message else ""))
                if instance.meaning.hopeless and loop.time() - began >= self.settle:
                    raise NotStarted(f"it will not become healthy by itself, {troubles[-1]}")
            except RentalError as exc:
                troubles.append(str(exc))
            await asyncio.sleep(self.settings.poll_seconds)

    async def _unserved(self) -> str:
        """Why its models are not at /v1, "" once they are: the watcher asks for them, a moment after us."""
        if not self.sight.replicas.of(NAME):
            return f"its port {self.settings.engine_port} is not mapped"
        if await _becomes(lambda: self.sight.replicas.answers(NAME), self.serve_seconds):
            return ""
        return "; ".join(r.problem for r in self.sight.replicas.of(NAME))

    async def _ask(self, url: str) -> None:
        """Raises RentalError when what is at the URL is not healthy."""
        headers = {"authorization": f"Bearer {self.sight.engine_key}"} if self.sight.engine_key else {}
        try:
            answer = await self.client.get(url, headers=headers)
        except httpx2.HTTPError as exc:
            raise RentalError(f"{url} does not answer ({type(exc).__name__})") from exc
        if answer.status_code != 200:
            raise RentalError(f"{url} answers {answer.status_code}")

    # Stopping

    async def power_off(self, *, actor: str) -> Rental | None:
        """Stop it, and whatever start is under way. The session that this has closed, None when it did not run.

        Raises RentalError, RentalUnknown, and NotStopped when vast.ai does not say in time that it is done.
        """
        async with self._commanding:
            if self._start is not None and not self._start.task.done():
                self._start.task.cancel()
                await asyncio.wait({self._start.task})
            await self._is_stopped()  # for the record: until now it ran, or did not
            return await self._stop(Stop.POWER_OFF, {}, actor)

    async def _shut_down(self) -> None:
        """Stop it if still nobody uses it. From the last look at that on it gets no further request."""
        async with self._commanding:
            if self._start is not None and not self._start.task.done():
                return
            rental, now = await self.ledger.open(), self.sight.clock()
            if rental is None or not is_due(self.settings, self.sight.used_at(rental), now):
                return
            idle = idle_minutes(self.sight.used_at(rental), now)
            log.info("the rented machine has not been used for %.0f minutes: stopping it", idle)
            await self._stop(Stop.AUTO_SHUTDOWN, {"inactive_minutes": round(idle, 1)}, SYSTEM)

    async def _stop(self, stop: Stop, meta: dict[str, Any], actor: str) -> Rental | None:
        with self._drained():
            rental = await self.ledger.stopping(stop, meta, at=self.sight.clock(), actor=actor)
            await self.sight.export()
            await self._answered()
            try:
                await self.sight.api.wish("stopped")
            except RentalUnknown:
                raise
            except RentalError:
                await self.ledger.goes_on()
                raise
            await self._until_stopped()
        if rental is None or rental.id is None:
            await self.sight.note(stop.done, {"instance_id": self.settings.instance_id}, SYSTEM)
            return None
        return await self.ledger.session(rental.id)

    @contextmanager
    def _drained(self) -> Iterator[None]:
        """It gets no further requests; again if it was not stopped."""
        self.sight.replicas.drain(NAME)
        try:
            yield
        except BaseException:
            self.sight.replicas.drain(NAME, wanted=False)
            raise

    async def _answered(self) -> None:
        """Wait for what was asked before, but not for ever."""

        def idle() -> bool:
            return not any(replica.in_flight for replica in self.sight.replicas.of(NAME))

        if not await _becomes(idle, self.drain.total_seconds()):
            log.warning("the rented machine is stopped with requests under way")

    async def _until_stopped(self) -> None:
        self.sight.ending = True
        try:
            async with asyncio.timeout(self.stop_seconds):
                while True:
                    if await self._is_stopped():
                        return
                    await asyncio.sleep(self.settings.poll_seconds)
        except TimeoutError as exc:
            raise NotStopped(
                f"vast.ai has taken the wish, but has not stopped instance {self.settings.instance_id} within "
                f"{self.stop_seconds:g} s; its session goes on until it does: look at /infra/vast/status"
            ) from exc
        finally:
            self.sight.ending = False

    async def _is_stopped(self) -> bool:
        try:
            return (await self.sight.look()).meaning.costs is False
        except RentalError as exc:
            log.warning("while it is being stopped: %s", exc)
            return False

    def started(self, instance: Instance, check: Check, message: str) -> Started:
        health = self.sight.url(instance, check.port, check.path)
        return Started(instance.status, self.sight.endpoint(instance), health, message)


async def _becomes(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true in time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        if loop.time() >= end:
            return False
        await asyncio.sleep(0.05)
    return True


def _say(task: "asyncio.Task[Started]") -> None:
    """How a start has ended, for the log: perhaps nobody waits for it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("starting the rented machine: %s", error)


@asynccontextmanager
async def open_keeper(
    settings: Vast, store: Store, replicas: Replicas, clock: Callable[[], datetime], drain: timedelta
) -> AsyncIterator[Keeper | None]:
    """The keeper and its loop, None where nothing is rented. When it is closed the machine goes on, as jobs do."""
    if settings.api_key is None or settings.instance_id is None:
        yield None
        return
    async with (
        open_api(settings) as api,
        httpx2.AsyncClient(timeout=5, follow_redirects=False, trust_env=False) as client,
    ):
        sight = Sight(settings, api, Ledger(store, settings.instance_id), replicas, clock)
        keeper = Keeper(sight, client, drain)
        loop = asyncio.create_task(keeper.run())
        try:
            yield keeper
        finally:
            await keeper.close(loop)

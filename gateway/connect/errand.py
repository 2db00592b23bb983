"""One connection's worth of it: from the login to the orchestrator's health. Each step is told as it is taken."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from gateway import survey
from gateway.connect import starting
from gateway.connect.bundle import Bundle
from gateway.connect.host import Failed, Host, state_of
from gateway.connect.plan import Step, Wanted, steps
from gateway.connect.standing import Standing, Told
from gateway.connect.starting import Choice, How
from gateway.connect.supply import Chosen, Supply, kind_of
from gateway.connect.wheel import running
from gateway.kept import Kept
from gateway.link import LinkState, Unreached
from gateway.screen import Screen
from gateway.survey import Survey
from gateway.terminal import Terminal
from gateway.trunk import Trunk

_SURVEY_SECONDS = 90.0
_HEALTH_SECONDS = 30.0  # for the orchestrator to answer through the connection, once it has its socket
_FOUND_SECONDS = 10.0  # for the engines to be found by a new orchestrator, while requests wait
_LOOK_SECONDS = 0.3
_QUEUE_SECONDS = 1800.0  # for the orchestrator's own job to be started
_QUESTION = "Write this file there? It is yours to change afterwards. [Y/n] "

Quiet = Callable[[], AbstractAsyncContextManager[None]]
"""Around the replacement of an orchestrator: no request is under way within it, and those that come wait."""


class Declined(Exception):
    """The person does not want it, or nobody could be asked; the text says what to do."""


@dataclass(frozen=True)
class Wishes:
    """`site`: a site file to be used in place of one made of what is found. `yes`: nobody is to be asked."""

    yes: bool = False
    site: Path | None = None
    how: How | None = None
    python: str | None = None  # a path there


@dataclass(frozen=True)
class Arrived:
    """`did`: the steps that were needed. `name`: the version's that runs there now."""

    name: str
    did: tuple[Step, ...]


class Errand:
    """`link` is entered, and stays so. `quiet` is for whoever has requests under way (see `Quiet`)."""

    def __init__(self, link: Kept, wishes: Wishes, screen: Screen, terminal: Terminal, quiet: Quiet) -> None:
        self._link, self._wishes, self._screen, self._terminal, self._quiet = link, wishes, screen, terminal, quiet
        self._host = Host(link, state_of(link.settings.remote_socket))
        self._supply = Supply(self._host, screen, link.cluster)

    async def run(self) -> Arrived:
        """Raises Failed, Refused, Declined, NotHad, NotInstalled, Unreached: each says what to do."""
        wheel = await asyncio.to_thread(running)
        await self._log_in()
        found = await self._survey()
        there = await self._host.standing()
        chosen = await self._supply.python(found, there, self._wishes.python)
        bundle = Bundle(wheel, kind_of(found, chosen.python))
        wanted = await asyncio.to_thread(lambda: bundle.wanted)
        whole = await self._is_whole(there, wanted)
        needed = steps(there, wanted, whole=whole, speaks=await self._speaks() if there.running == "yes" else "")
        # Neither an upgrade nor the end of its job takes it out of the job that somebody wanted for it.
        kept = How.JOB if there.job or there.before == How.JOB else None
        how = starting.choice(await self._sessions(found, needed), self._wishes.how or kept)
        self._tell(needed, how)
        site = self._site(found) if Step.SITE in needed else None
        if site is not None:
            await self._confirm(site)
        await self._take(needed, bundle, wanted, chosen, found, how, site)
        await self._verify(wanted)
        return Arrived(wanted.name, tuple(needed))

    # Looking

    async def _log_in(self) -> None:
        """The only login. What goes wrong ends it here: who has typed the command sees it, and types it again."""
        self._screen.say(f"Logging in to {self._link.cluster}.")
        while (status := self._link.status).state is not LinkState.UP:
            if status.error and status.state is not LinkState.CONNECTING:
                raise Failed(status.error)
            await self._link.changed()

    async def _survey(self) -> Survey:
        with self._screen.waiting(f"Looking around on {self._link.cluster}"):
            found = survey.read(await self._host.script(survey.SCRIPT, _SURVEY_SECONDS))
        if not found.complete:
            raise Failed(
                "the login node was not understood: " + ("; ".join(found.trouble) or "its shell printed nothing")
            )
        for line in survey.summary(found):
            self._screen.say(f"  {line}")
        return found

    async def _is_whole(self, there: Standing, wanted: Wanted) -> bool:
        if wanted.name not in there.present:
            return True
        try:
            await self._host.manage("check", wanted.name)
        except Failed as exc:
            self._screen.say(f"What is installed there is damaged, and is installed again: {exc}")
            return False
        return True

    async def _speaks(self) -> str:
        """The version that the running orchestrator tells of itself, "" where it does not answer."""
        try:
            return str((await self._health()).get("version", ""))
        except Unreached:
            return ""

    async def _sessions(self, found: Survey, needed: list[Step]) -> starting.Sessions:
        """What the site does with processes. Where lingering is not on it is asked for: most sites let their users."""
        lingers = found.sessions.lingers
        if found.sessions.systemd_user and not lingers and {Step.START, Step.REPLACE} & set(needed):
            lingers = (await self._host.manage("linger")).last("lingers") == "yes"
        slurm = found.slurm is not None and found.slurm.answers
        return starting.Sessions(
            found.sessions.systemd_user, lingers, found.sessions.kills, found.limits.cpu_seconds, slurm
        )

    # Asking

    def _tell(self, needed: list[Step], how: Choice) -> None:
        for step in needed:
            self._screen.say(f"To do: {step}.")
        if {Step.START, Step.REPLACE} & set(needed):
            self._screen.say(f"It is started {_WORDS[how.how]}: {how.reason}.")
            if how.warning:
                self._screen.say(f"Note: {how.warning}.")

    def _site(self, found: Survey) -> str:
        return self._wishes.site.read_text("utf-8") if self._wishes.site is not None else survey.site_file(found)

    async def _confirm(self, site: str) -> None:
        """Raises Declined."""
        self._screen.say(f"\n{self._host.state}/site.toml on {self._link.cluster} will be:\n")
        self._screen.say("".join(f"    {line}\n" for line in site.splitlines()))
        if self._wishes.yes:
            return
        if not self._terminal.present:
            raise Declined("nobody can be asked whether this is right: give --yes, or a file of yours by --site FILE")
        answer = await self._terminal.ask(_QUESTION, echo=True)
        if answer.strip().lower() not in ("", "y", "yes"):
            raise Declined("nothing was changed there. Write a site file yourself, and connect with --site FILE")

    # Doing

    async def _take(
        self, needed: list[Step], bundle: Bundle, wanted: Wanted, chosen: Chosen, found: Survey, how: Choice,
        site: str | None,
    ) -> None:  # fmt: skip
        if needed:
            await self._host.manage("tidy")
        if Step.INSTALL in needed:
            await self._host.push(bundle.incoming, "", "incoming")
        if Step.PACKAGES in needed:
            await self._supply.packages(bundle, wanted, chosen, found)
        if Step.INSTALL in needed:
            path = found.login_path if found.needs_login_shell else ""
            words = (wanted.name, chosen.python.path, wanted.packages, chosen.libraries, path)
            with self._screen.waiting(f"Installing {wanted.name} under {chosen.python.named}"):
                await self._host.manage("install", *words, seconds=300)
        if site is not None:
            await self._host.put_site(site)
        if Step.SWITCH in needed:
            await self._host.manage("switch", wanted.name)
        if Step.START in needed:
            with self._screen.waiting("Starting the orchestrator"):
                told = await self._host.manage("start", how.how)
            await self._come(told)
        if Step.REPLACE in needed:
            await self._replace(wanted, how)

    async def _replace(self, wanted: Wanted, how: Choice) -> None:
        with self._screen.waiting("Replacing the orchestrator"):
            async with self._quiet():
                served = await self._running()
                await self._come(await self._host.manage("replace", wanted.name, how.how))
                await self._answers()
                await self._serve_again(served)

    async def _come(self, told: Told) -> None:
        """Until Slurm has started the orchestrator's job, where it is one. Raises Failed when that takes too long."""
        deadline = asyncio.get_running_loop().time() + _QUEUE_SECONDS
        said = ""
        while why := told.last("waits"):
            job = told.last("job")
            if why != said:
                self._screen.say(f"The orchestrator's job {job} waits: {why}.")
                said = why
            if asyncio.get_running_loop().time() > deadline:
                raise Failed(
                    f"the orchestrator's job {job} has waited for {_QUEUE_SECONDS / 60:g} minutes: {why}. It stays "
                    "in the queue: connect again later, or choose another way by --how detached"
                )
            told = await self._host.manage("start", "again")

    async def _running(self) -> set[str]:
        """The services that answer. A list that cannot be had is an empty one: nothing is waited for then."""
        try:
            status, body = await self._ask(b"/api/services?status=running&limit=1000")
            return {str(service["id"]) for service in json.loads(body)} if status == HTTPStatus.OK else set()
        except (Unreached, ValueError):
            return set()

    async def _serve_again(self, served: set[str]) -> None:
        """Until the new orchestrator has found the engines of those that answered; one that has ended meanwhile is not
        waited for longer than requests wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FOUND_SECONDS):
                while not served <= await self._running():  # noqa: ASYNC110 (what another process sees)
                    await asyncio.sleep(_LOOK_SECONDS)

    # Verifying

    async def _verify(self, wanted: Wanted) -> None:
        """Raises Failed unless the orchestrator answers through the connection, and is this version."""
        with self._screen.waiting("Asking the orchestrator through the connection"):
            health = await self._answers()
        if health.get("version") != wanted.version:
            raise Failed(f"the orchestrator there is {health.get('version')}, not {wanted.version}; connect again")
        await self._host.manage("prune")
        via = f" by {self._link.status.via}" if self._link.status.via else ""
        self._screen.say(f"The orchestrator {wanted.version} on {self._link.cluster} answers{via}.")

    async def _answers(self) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _HEALTH_SECONDS
        while True:
            try:
                return await self._health()
            except Unreached as exc:
                if loop.time() > deadline:
                    raise Failed(
                        f"the orchestrator was started, but does not answer through the connection: {exc}"
                    ) from exc
            await asyncio.sleep(_LOOK_SECONDS)

    async def _health(self) -> dict[str, object]:
        """Raises Unreached."""
        try:
            health = json.loads((await self._ask(b"/health"))[1])
        except ValueError as exc:
            raise Unreached("what answers at its socket is no orchestrator") from exc
        return health if isinstance(health, dict) else {}

    async def _ask(self, path: bytes) -> tuple[int, bytes]:
        """A question to the orchestrator: the answer's status and body. Raises Unreached."""
        trunk = Trunk(self._link, connect_seconds=self._link.settings.connect_seconds)
        try:
            return await trunk.ask(b"GET", path)
        finally:
            trunk.close()


_WORDS = {
    How.SYSTEMD: "by your own systemd there",
    How.DETACHED: "as a process of its own",
    How.JOB: "as a small Slurm job of its own",
}

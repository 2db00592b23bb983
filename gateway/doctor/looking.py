"""Looking: each stage adds to what has been seen. Nothing is changed anywhere.

A login of our own is made where it needs no question, or where the user wants to be asked (`--login`). It is used for
what the gateway cannot tell, and for everything where no gateway runs.
"""

import asyncio
import shlex
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal, Self

import httpx2

from gateway.doctor import network, questions
from gateway.doctor.questions import Asked, Gateway, NoAnswer, OwnLogin
from gateway.doctor.reading import age, mapping
from gateway.doctor.seen import Answers, Here, Login, Seen
from gateway.kept import Kept
from gateway.link import Link, LinkState, LocalLink, Unreached
from gateway.openssh import OpenSsh
from gateway.settings import Settings, SettingsError, address, read_settings
from gateway.survey import SCRIPT, Survey, read
from gateway.terminal import Terminal
from gateway.trunk import Trunk
from orchestrator import __version__

_SURVEY_SECONDS = 90.0
_PERSON_SECONDS = 180.0  # for a login with a person's answer in it
_NOBODY = -1  # no terminal's file descriptor
_HOPELESS = (LinkState.AUTH_REQUIRED, LinkState.HOST_KEY_CHANGED, LinkState.HOST_KEY_UNKNOWN)


@dataclass
class Looking:
    """Opened by `async with`, which closes the connections. `alias`: another cluster than that of the settings."""

    alias: str | None
    asked_login: bool = False
    url: str | None = None
    clock: Callable[[], float] = time.time
    health_seconds: float = 12.0  # for an orchestrator's first answer over our own login

    async def __aenter__(self) -> Self:
        self._opened = AsyncExitStack()
        self._own: OwnLogin | None = None
        self._http: httpx2.AsyncClient | None = None
        self._key: str | None = None
        self._health: Any = None  # over our own login
        self._no_health = ""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._opened.aclose()

    async def here(self) -> Seen:
        """The settings, with the cluster that was named."""
        try:
            settings = read_settings()
            url, self._key = address()
        except SettingsError as exc:
            return Seen(Here(None, str(exc), version=__version__), self.alias, self.clock())
        if self.alias is not None:
            settings = settings.model_copy(update={"cluster": self.alias})
        files = [settings.config] if settings.config else []
        here = Here(settings, files=files, url=self.url or url, version=__version__)
        return Seen(here, settings.cluster, self.clock(), self.asked_login)

    async def door(self, seen: Seen) -> Seen:
        """What answers at the gateway's address."""
        if seen.here.settings is None:
            return seen
        headers = {} if self._key is None else {"X-API-Key": self._key}
        nearby = httpx2.URL(seen.here.url).host in ("localhost", "127.0.0.1", "::1")
        self._http = await self._opened.enter_async_context(
            httpx2.AsyncClient(base_url=seen.here.url, headers=headers, trust_env=not nearby)
        )
        return replace(seen, door=await questions.door(self._http))

    async def way(self, seen: Seen) -> Seen:
        if seen.here.settings is None or seen.alias is None:
            return seen
        return replace(seen, way=await network.way(seen.here.settings, seen.alias))

    # A login of our own

    async def login(self, seen: Seen) -> Seen:
        why_not = not_to_be_tried(seen)
        settings = seen.here.settings
        if why_not or settings is None:
            return replace(seen, login=Login(not_tried=why_not))
        return replace(seen, login=await self._log_in(settings))

    async def _log_in(self, settings: Settings) -> Login:
        terminal = Terminal() if self.asked_login else Terminal(_NOBODY, _NOBODY)
        link = await self._opened.enter_async_context(link_for(settings, terminal))
        await settled(link, _PERSON_SECONDS if self.asked_login else settings.connect_seconds + 5)
        status = link.status
        state = None if settings.cluster is None else status.state
        if status.state is not LinkState.UP:
            wants_person = isinstance(link, Kept) and link.wants_person
            return Login(state=state, error=status.error or "it takes too long", by_question=wants_person)
        trunk = Trunk(link, connect_seconds=settings.connect_seconds, hold_seconds=0)
        self._opened.callback(trunk.close)
        self._own = OwnLogin(trunk)
        await self._prove(self._own)
        return replace(await self._survey(link, settings), state=state, via=link.status.via)

    async def _prove(self, own: OwnLogin) -> None:
        """The first request shows which way to the socket there is; none, while nobody listens there."""
        try:
            async with asyncio.timeout(self.health_seconds):
                self._health, self._no_health = (await own.ask("GET", "/health"))[1], ""
        except TimeoutError:
            self._health, self._no_health = None, f"no answer within {self.health_seconds:g} s"
        except NoAnswer as exc:
            self._health, self._no_health = None, str(exc)

    async def _survey(self, link: Link, settings: Settings) -> Login:
        state = PurePosixPath(settings.remote_socket if settings.cluster else str(settings.local_socket)).parent
        before = self.clock()
        try:
            said = await link.execute(f"sh -s brief {shlex.quote(str(state))}", SCRIPT.encode(), _SURVEY_SECONDS)
        except Unreached as exc:
            return Login(no_survey=f"the login node could not be looked at: {exc}")
        found = read(said.out)
        if not found.user:
            return Login(no_survey=f"the login node did not say what there is: {said.err.strip()[-200:] or 'no words'}")
        return Login(survey=found, clock=ahead(found, before, self.clock()))

    # What runs there

    async def answers(self, seen: Seen) -> Seen:
        asked, by, health, error = self._whom(seen)
        if asked is None or health is None or by == "nobody":
            return replace(seen, answers=Answers(error=error))
        slurm = seen.survey.slurm if seen.survey else None
        without_gpus = slurm is not None and slurm.answers and not any(one.gpus for one in slurm.partitions)
        found = await questions.answers(asked, by, health, with_gpu=not without_gpus)
        return replace(seen, answers=replace(found, clock=in_the_future(health, self.clock())))

    def _whom(self, seen: Seen) -> tuple[Asked | None, Literal["gateway", "own login", "nobody"], Any, str]:
        """The running gateway where the orchestrator answers through it, else our own login."""
        told = seen.door.health.get("orchestrator") if seen.door and seen.leads_here else None
        if isinstance(told, dict) and told.get("answered") and self._http is not None:
            return Gateway(self._http), "gateway", told, ""
        if self._own is not None:
            health = self._health if isinstance(self._health, dict) else None
            return self._own, "own login", health, self._no_health
        return None, "nobody", None, str(told.get("advice", "")) if isinstance(told, dict) else ""


def link_for(settings: Settings, terminal: Terminal) -> Link:
    """The gateway's own way to the orchestrator, with this terminal for questions."""
    if settings.cluster is None:
        assert settings.local_socket is not None  # of read_settings
        return LocalLink(settings.local_socket)
    if settings.transport == "openssh":
        return OpenSsh(settings, terminal=terminal)
    from gateway.tunnel import Tunnel  # as in gateway.app: a third of a second

    return Tunnel(settings, terminal=terminal)


async def settled(link: Link, seconds: float) -> None:
    """Until the link is up, or has failed for the first time; at most so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            while link.status.state is LinkState.CONNECTING:
                await link.changed()
    except TimeoutError:
        return


def not_to_be_tried(seen: Seen) -> str:
    """Why no login is made, "" where one is."""
    if seen.here.settings is None:
        return "not without settings"
    if seen.alias is None:
        return ""
    way = seen.way
    if way is not None and way.trouble:
        return "not with this SSH configuration"
    if way is not None and not way.by_command and way.milliseconds is None and not way.addresses:
        return "the login node has no address"
    if way is not None and not way.by_command and way.milliseconds is None:
        return "the login node takes no connection"
    if seen.tunnel.get("state") in _HOPELESS and not seen.asked_login:
        return "the gateway's own login was refused, and a second try would be too; --login tries, and asks you"
    return ""


def ahead(found: Survey, before: float, after: float) -> float | None:
    """How far the login node's clock is ahead: it was read at some time between `before` and `after`."""
    if found.clock is None:
        return None
    if found.clock > after:
        return found.clock - after
    return min(0.0, found.clock + 1 - before)  # whole seconds


def in_the_future(health: Any, now: float) -> float | None:
    """How far the orchestrator's clock is ahead at least, from its last look at the scheduler; None: nobody knows."""
    since = age(mapping(mapping(health).get("watcher")).get("last_look"), now)
    return None if since is None else max(0.0, -since)

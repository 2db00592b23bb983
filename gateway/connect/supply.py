"""What the login node lacks, brought there: a Python, and the packages of the program. Each way is tried."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.connect import python
from gateway.connect.bundle import Bundle, python_for
from gateway.connect.host import Failed, Host
from gateway.connect.packages import Kind, NotHad, here, in_memory, program
from gateway.connect.plan import Wanted
from gateway.connect.python import Python
from gateway.connect.standing import Standing
from gateway.screen import Screen
from gateway.survey import Survey


@dataclass(frozen=True)
class Chosen:
    """`libraries`: the LD_LIBRARY_PATH that this Python needs, "" for none."""

    python: Python
    libraries: str = ""


class Supply:
    """`cluster` is its name, for words."""

    def __init__(self, host: Host, screen: Screen, cluster: str) -> None:
        self._host, self._screen, self._cluster = host, screen, cluster

    async def python(self, found: Survey, there: Standing, wished: str | None) -> Chosen:
        """The Python to run under. One that is there, else one that is brought. Raises NotHad, Failed."""
        if wished is not None:
            return await self._asked(wished)
        known = [Python(one.path, one.version, one.module) for one in found.pythons if one.whole]
        brought = [(await self._asked(path)).python for path in there.pythons]
        best = python.choice(known, brought, here().python)
        if best is None:
            best = await self._bring(found, python.too_old(known))
        if best.module:
            init = found.modules.init if found.modules else ""
            told = await self._host.manage("module", best.module, init)
            return Chosen(
                Python(told.last("python"), numbers(told.last("version")), best.module), told.last("libraries")
            )
        return Chosen(best)

    async def _asked(self, path: str) -> Chosen:
        told = await self._host.manage("version", path)
        return Chosen(Python(told.last("python"), numbers(told.last("version"))))

    async def _bring(self, found: Survey, instead: str) -> Python:
        """One by uv: by that of the login node, by this machine's run there, or fetched here. Raises NotHad."""
        oldest = "{}.{}".format(*python.OLDEST)
        self._screen.say(f"Python {oldest} or newer is needed on {self._cluster}; {instead}. Bringing one by uv.")
        tried = []
        for name, way in self._ways_of_uv(found).items():
            try:
                with self._screen.waiting(f"Python {python.BROUGHT}: {name}"):
                    path = await way()
                return (await self._asked(path)).python
            except (Failed, NotHad) as exc:
                tried.append(f"- {name}: {exc}")
        raise NotHad(
            f"there is no Python {oldest} on {self._cluster} ({instead}), and none could be brought:\n"
            + "\n".join(tried)
            + "\nLoad or install one there, and name it: sluice connect --python PATH"
        )

    def _ways_of_uv(self, found: Survey) -> Mapping[str, Callable[[], Awaitable[str]]]:
        ways: dict[str, Callable[[], Awaitable[str]]] = {}
        if found.uv is not None:
            at = found.uv.path
            ways["by uv there"] = lambda: self._brought(at)
        elif (here().system, here().machine) == ("linux", found.machine) and program("uv"):
            ways["by this machine's uv, sent there"] = self._brought_by_ours
        ways["fetched on this machine, sent there"] = lambda: self._sent(found.machine)
        return ways

    async def _brought(self, uv: str) -> str:
        return (await self._host.manage("bring", uv, python.BROUGHT, seconds=600)).last("python")

    async def _brought_by_ours(self) -> str:
        """uv is one file that needs no library."""
        await self._host.push(in_memory({"uv": Path(program("uv") or "").read_bytes()}), "", "uv")
        return await self._brought((await self._host.manage("program", "uv/uv")).last("program"))

    async def _sent(self, machine: str) -> str:
        archive = await asyncio.to_thread(python_for, machine, python.BROUGHT)
        await self._host.push(archive, "python", f"cpython-{python.BROUGHT}")
        return f"{self._host.state}/python/cpython-{python.BROUGHT}/bin/python3"

    async def packages(self, bundle: Bundle, wanted: Wanted, chosen: Chosen, found: Survey) -> None:
        """By the first of three ways that goes. Raises NotHad with what each said."""
        tried = []
        for name, way in self._ways_of_packages(bundle, wanted, chosen, found).items():
            try:
                with self._screen.waiting(f"Packages: {name}"):
                    await way()
                return
            except (Failed, NotHad) as exc:
                tried.append(f"- {name}: {exc}")
        raise NotHad(
            f"the packages for {bundle.kind} could not be had:\n"
            + "\n".join(tried)
            + "\nGive this machine or the login node a way to a package index (pip's or uv's own settings), and again"
        )

    def _ways_of_packages(
        self, bundle: Bundle, wanted: Wanted, chosen: Chosen, found: Survey
    ) -> Mapping[str, Callable[[], Awaitable[None]]]:
        ways: dict[str, Callable[[], Awaitable[None]]] = {}
        index = found.index is not None and found.index.reachable
        if index:
            uv = found.uv.path if found.uv is not None else ""

            async def by_index() -> None:
                await self._host.manage("index", wanted.packages, chosen.python.path, uv, seconds=900)

            ways["by the index that the login node reaches"] = by_index
        if not bundle.why_not_copied:

            async def by_copy() -> None:
                await self._host.push(await asyncio.to_thread(bundle.copied), "packages", wanted.packages)

            ways["copied from this machine, which is of the same kind"] = by_copy

        async def by_fetching() -> None:
            await self._host.push(await asyncio.to_thread(bundle.fetched), "packages", wanted.packages)

        ways[f"fetched on this machine for {bundle.kind}, sent there"] = by_fetching
        return ways


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def kind_of(found: Survey, chosen: Python) -> Kind:
    libc = (found.glibc or (0, 0))[:2]
    return Kind((chosen.version[0], chosen.version[1]), found.machine, (libc[0], libc[1]))

"""Models that a laptop sends into the jobs' cache, where this machine cannot reach the hub.

Nothing is kept of a push but what has come of its files, so it may break off anywhere and be begun again: `begin` says
what is missing, `write` takes the next bytes of a content, and the `begin` that misses nothing makes the snapshot.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlmodel.ext.asyncio.session import AsyncSession

from orchestrator.errors import Conflict, not_written
from orchestrator.hub import check_model_id
from orchestrator.model_cache import CachedFile, ModelCache, check_names, transfer_of
from orchestrator.models import Event
from orchestrator.store import Store


@dataclass(frozen=True)
class Begun:
    """`missing`: the files whose contents are not here, each with the bytes of it that have come."""

    missing: tuple[tuple[CachedFile, int], ...]
    snapshot: Path | None


@dataclass(frozen=True)
class Pushes:
    """`cache` is that of the jobs; `home` names whose the parts of files are. `clock` gives aware datetimes."""

    cache: ModelCache
    home: Path
    store: Store
    clock: Callable[[], datetime]

    @property
    def transfer(self) -> str:
        return transfer_of("push", self.home)

    async def begin(self, model: str, revision: str, commit: str, files: Sequence[CachedFile], *, actor: str) -> Begun:
        """Raises BadRequest and Invalid for names that cannot be, StateFull where the files would not fit."""
        check_model_id(model)
        check_names(revision, commit, files)
        return await asyncio.to_thread(self._look, model, files) or await self._finish(
            model, revision, commit, files, actor
        )

    def _look(self, model: str, files: Sequence[CachedFile]) -> Begun | None:
        missing = {file.blob: file for file in self.cache.missing(model, files)}
        if not missing:
            return None
        came = [(file, self.cache.size_of_part(model, file.blob, self.transfer)) for file in missing.values()]
        self.cache.check_space(model, sum(file.size - had for file, had in came))
        return Begun(tuple(came), None)

    async def _finish(self, model: str, revision: str, commit: str, files: Sequence[CachedFile], actor: str) -> Begun:
        snapshot = await asyncio.to_thread(self.cache.finish, model, revision, commit, files)
        event = {"name": model, "revision": revision, "bytes": sum(file.size for file in files)}

        async def work(session: AsyncSession) -> None:
            session.add(Event(at=self.clock(), actor=actor, kind="model.pushed", subject=model[:100], detail=event))

        await self.store.within(work)
        return Begun((), snapshot)

    async def write(self, model: str, file: CachedFile, offset: int, data: bytes) -> int:
        """The next bytes of a content; how many have come. With the last ones it is checked, and takes its place.

        Raises Conflict where other bytes are due, Invalid for a content that is not what its name says.
        """
        check_model_id(model)
        check_names("main", "0" * 40, [file])
        return await asyncio.to_thread(self._write, model, file, offset, data)

    def _write(self, model: str, file: CachedFile, offset: int, data: bytes) -> int:
        part = self.cache.part(model, file.blob, self.transfer)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("ab") as content:
                if content.tell() != offset:
                    raise Conflict(f"{content.tell()} bytes of {file.path} have come, so go on there, not at {offset}")
                content.write(data[: file.size - offset])
                there = content.tell()
        except OSError as exc:
            raise not_written(part, exc) from exc
        if there == file.size:
            self.cache.place(model, file, self.transfer)
        return there

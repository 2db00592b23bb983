"""What is downloaded on this machine before jobs need it: models of the hub, container images.

queued ─▶ running ─▶ done | failed | cancelled

Each has a file HOME/pulls/<id>.json, and only this module writes it, so that a pull survives the orchestrator: what was
running is queued again, and goes on with what has come. The work is done by `orchestrator.fetch`, a process of its own.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError
from sqlmodel.ext.asyncio.session import AsyncSession

from orchestrator.child import Child
from orchestrator.errors import BadRequest, Conflict, Invalid, NotFound, OrchestratorError, StateFull, not_written
from orchestrator.fetch import Failed, ImageTask, ModelTask, Task, last_words
from orchestrator.hub import Hub, check_model_id
from orchestrator.images import DEFAULT_GB, NEEDS, check_reference, file_of
from orchestrator.model_cache import CachedFile, ModelCache, check_names, chosen, free_at, in_gb, transfer_of
from orchestrator.models import Event
from orchestrator.private import put
from orchestrator.settings import Settings
from orchestrator.store import Store

log = logging.getLogger(__name__)

AT_ONCE = 2  # downloads; the others wait
KEPT = 100  # that have ended; the oldest are forgotten
MEASURED_EVERY = 1.0  # seconds
_SPEED_SECONDS = 10.0  # over which a speed is taken
_ID = "pull_"


Kind = Literal["model", "image"]


class PullState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (self.QUEUED, self.RUNNING)


class Pull(BaseModel):
    """One download. `name`: a model's id or an image's reference. `total`: bytes; None where nobody knows before."""

    id: str
    kind: Kind
    name: str
    revision: str = ""
    commit: str = ""
    files: list[CachedFile] = []
    target: Path
    total: int | None
    actor: str
    state: PullState = PullState.QUEUED
    error: str = ""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass
class Progress:
    """How far a pull is: bytes that are there, and in a second; `text` is what the one who does it says."""

    done: int = 0
    speed: float | None = None
    text: str = ""
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, seconds: float, done: int) -> None:
        """What is there at a moment of a steady clock."""
        self.samples.append((seconds, done))
        while len(self.samples) > 2 and seconds - self.samples[0][0] > _SPEED_SECONDS:
            self.samples.popleft()
        (began, before), self.done = self.samples[0], done
        self.speed = (done - before) / (seconds - began) if seconds > began else None

    def eta(self, total: int | None) -> float | None:
        """Seconds until all is there, at this speed."""
        return None if total is None or not self.speed or self.speed <= 0 else max(0, total - self.done) / self.speed


@dataclass
class Pulls:
    """`cache` is that of the jobs. `clock` gives aware datetimes, `steady` seconds."""

    settings: Settings
    hub: Hub
    store: Store
    cache: ModelCache
    clock: Callable[[], datetime]
    steady: Callable[[], float] = time.monotonic
    _known: dict[str, Pull] = field(default_factory=dict)  # the oldest first
    _progress: dict[str, Progress] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _soon: asyncio.Event = field(default_factory=asyncio.Event)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def folder(self) -> Path:
        return self.settings.home / "pulls"

    @property
    def transfer(self) -> str:
        """Whose the parts of files are: a later pull of the same model goes on with them."""
        return transfer_of("pull", self.settings.home)

    async def run(self) -> None:
        """Do what is queued, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for pull in self._due():
                    self._tasks[pull.id] = group.create_task(self._carry_out(pull))
                try:
                    await self._measure()
                except Exception:
                    # The top of the loop: a look at files that failed must not end the downloads.
                    log.exception("how far downloads are could not be seen")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(MEASURED_EVERY):
                        await self._soon.wait()
                self._soon.clear()

    def restore(self) -> None:
        """Know what an earlier orchestrator has left. What was running begins again with what has come."""
        found = sorted((p for p in map(_read, self.folder.glob("*.json")) if p), key=lambda pull: pull.created_at)
        self._known = {pull.id: pull for pull in found}
        for pull in found:
            if pull.state is PullState.RUNNING:
                self._known[pull.id] = pull.model_copy(update={"state": PullState.QUEUED})

    def every(self) -> list[Pull]:
        """The newest first."""
        return list(reversed(self._known.values()))

    def find(self, pull_id: str, kind: Kind) -> Pull:
        """Raises NotFound."""
        if (found := self._known.get(pull_id)) is None or found.kind != kind:
            raise NotFound(f"there is no pull {pull_id[:100]!r}; GET /api/v1/{kind}s/pulls lists them")
        return found

    def progress(self, pull: Pull) -> Progress:
        if pull.state is PullState.DONE:
            return Progress(done=pull.total or 0)
        return self._progress.get(pull.id, Progress())

    async def model(self, model: str, revision: str, patterns: Sequence[str], *, actor: str) -> Pull:
        """Download a model, or those files of it that `patterns` match. The pull that is under way where there is one.

        Raises BadRequest, Invalid, NotFound for a model that is not there or gated, NotReady for a hub that is not, and
        StateFull where the files would not fit.
        """
        check_model_id(model)
        check_names(revision, "0" * 40, ())
        async with self._asking:  # so that of two who ask for one model the second sees the first
            if (same := self._under_way("model", model)) is not None:
                if same.revision != revision:
                    raise Conflict(
                        f"{model} is being pulled at {same.revision}, by {same.id}; wait, or cancel that one"
                    )
                return same
            listing = await self.hub.listing(model, revision)
            files = chosen(listing.files, patterns)
            check_names(revision, listing.commit, files)
            if not files:
                raise Invalid(f"no file of {model} matches {', '.join(patterns)}")
            missing = await asyncio.to_thread(self.cache.missing, model, files)
            self.cache.check_space(model, sum(file.size for file in missing), reserved=self._reserved())
            about = {"revision": revision, "commit": listing.commit, "files": files, "target": self.cache.folder(model)}
            return await self._add("model", model, actor, total=sum(file.size for file in files), **about)

    async def image(self, image: str, size_gb: float | None, *, actor: str) -> Pull:
        """Make a file of an image, by apptainer. `size_gb`: about how large it is, for the look at the disk."""
        check_reference(image)
        if (folder := self.settings.site.image_folder) is None:
            raise BadRequest("no folder is named for images; set [site] image_dir, on a file system that jobs see")
        async with self._asking:
            if (same := self._under_way("image", image)) is not None:
                return same
            needed, free = int((size_gb or DEFAULT_GB) * NEEDS * 1e9), free_at(folder)
            if needed > free:
                raise StateFull(
                    f"{image} needs about {in_gb(needed)} on the way, and {in_gb(free)} are free at {folder}; if it is "
                    f"smaller than {size_gb or DEFAULT_GB:g} GB, say so with size_gb",
                    "the folder of images",
                )
            return await self._add("image", image, actor, total=None, target=file_of(folder, image))

    async def cancel(self, pull_id: str, kind: Kind, *, actor: str) -> Pull:
        """What has come is removed; what is complete stays. One that has ended stays as it is."""
        pull = self.find(pull_id, kind)
        if pull.state.ended:
            return pull
        if (task := self._tasks.get(pull.id)) is not None:
            task.cancel()
            await asyncio.wait({task})
        pull = self.find(pull_id, kind)  # it may have come to its end meanwhile
        if pull.state.ended:
            return pull
        await asyncio.to_thread(self._tidy, pull)
        pull = self._set(pull, state=PullState.CANCELLED, ended_at=self.clock())
        await self._note(f"{pull.kind}.pull_cancelled", pull, actor)
        return pull

    async def _add(self, kind: Kind, name: str, actor: str, **about: object) -> Pull:
        identity = f"{_ID}{uuid.uuid4().hex}"
        pull = Pull.model_validate(
            {"id": identity, "kind": kind, "name": name, "actor": actor, "created_at": self.clock(), **about}
        )
        self._write(pull)
        self._known[pull.id] = pull
        for old in [p for p in self._known.values() if p.state.ended][:-KEPT]:
            del self._known[old.id]
            self._path(old.id).unlink(missing_ok=True)
        await self._note(f"{kind}.pull_requested", pull, actor)
        self._soon.set()
        return pull

    def _reserved(self) -> int:
        """Bytes that other pulls have yet to bring."""
        open_ones = [pull for pull in self._known.values() if not pull.state.ended]
        return sum(max(0, (pull.total or 0) - self.progress(pull).done) for pull in open_ones)

    def _under_way(self, kind: str, name: str) -> Pull | None:
        named = (pull for pull in self._known.values() if (pull.kind, pull.name) == (kind, name))
        return next((pull for pull in named if not pull.state.ended), None)

    def _due(self) -> list[Pull]:
        free = AT_ONCE - len(self._tasks)
        queued = [p for p in self._known.values() if p.state is PullState.QUEUED and p.id not in self._tasks]
        return queued[: max(0, free)]

    async def _carry_out(self, pull: Pull) -> None:
        try:
            pull = self._set(pull, state=PullState.RUNNING, started_at=pull.started_at or self.clock())
            error = await self._fetch(pull)
        except OrchestratorError as exc:
            error = str(exc)
        except Exception as exc:
            # The top of a pull: it has failed, and the others go on.
            log.exception("pull %s of %s failed", pull.id, pull.name)
            error = f"an unexpected error, {type(exc).__name__}; the orchestrator's log has it"
        finally:
            self._tasks.pop(pull.id, None)
            self._soon.set()
        await self._end(pull, error)

    async def _fetch(self, pull: Pull) -> str:
        """Why it has failed, "" when it has not."""
        async with Child("orchestrator.fetch", self._task(pull).model_dump_json()) as child:
            status, said = await child.words()
        if status == 0:
            return ""
        try:
            return Failed.model_validate(json.loads(said[-1])).detail
        except (IndexError, ValueError):
            return f"the program that downloads ended with {status}; ask again, and look at this machine's memory"

    def _task(self, pull: Pull) -> Task:
        site = self.settings.site
        if pull.kind == "image":
            image = ImageTask(
                image=pull.name, target=pull.target, scratch=self._scratch(pull), modules=site.modules,
                module_init=site.module_init or "",
            )  # fmt: skip
            return Task(task=image)
        model = ModelTask(
            root=self.cache.root, transfer=self.transfer, endpoint=self.hub.endpoint, token=self.hub.token,
            model=pull.name, revision=pull.revision, commit=pull.commit, files=pull.files,
        )  # fmt: skip
        return Task(task=model)

    async def _end(self, pull: Pull, error: str) -> None:
        try:
            await self._measure_one(pull)
            if pull.kind == "image":
                await asyncio.to_thread(self._tidy, pull)
            state = PullState.FAILED if error else PullState.DONE
            total = pull.total if pull.total is not None or error else self.progress(pull).done
            pull = self._set(pull, state=state, error=error, total=total, ended_at=self.clock())
            await self._note(f"{pull.kind}.pull_{'failed' if error else 'complete'}", pull, "pulls")
        except OrchestratorError as exc:
            log.error("the end of pull %s could not be recorded: %s", pull.id, exc)

    def _scratch(self, pull: Pull) -> Path:
        return pull.target.parent / f".{pull.id}"

    def _tidy(self, pull: Pull) -> None:
        """Remove what is of no use once nobody goes on with a pull. Blocks."""
        if pull.kind == "image":
            shutil.rmtree(self._scratch(pull), ignore_errors=True)
        else:
            self.cache.discard(pull.name, pull.files, self.transfer)

    async def _measure(self) -> None:
        for pull_id in list(self._tasks):
            await self._measure_one(self._known[pull_id])

    async def _measure_one(self, pull: Pull) -> None:
        """What a pull has brought so far, from its files: whoever writes them."""
        progress = self._progress.setdefault(pull.id, Progress())
        if pull.kind == "image":
            scratch = self._scratch(pull)
            done = await asyncio.to_thread(_weigh, pull.target if pull.target.is_file() else scratch)
            progress.text = await asyncio.to_thread(last_words, scratch)
        else:
            done = await asyncio.to_thread(self.cache.arrived, pull.name, pull.files, self.transfer)
        progress.add(self.steady(), done)

    def _set(self, pull: Pull, **changes: object) -> Pull:
        changed = self._known[pull.id] = pull.model_copy(update=changes)
        self._write(changed)
        return changed

    def _write(self, pull: Pull) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            put(self._path(pull.id), pull.model_dump_json())
        except OSError as exc:
            raise not_written(self._path(pull.id), exc) from exc

    def _path(self, pull_id: str) -> Path:
        return self.folder / f"{pull_id}.json"

    async def _note(self, kind: str, pull: Pull, actor: str) -> None:
        """A line of the audit."""
        detail = {"name": pull.name, "revision": pull.revision, "bytes": pull.total, "error": pull.error}
        kept = {name: value for name, value in detail.items() if value}

        async def work(session: AsyncSession) -> None:
            session.add(Event(at=self.clock(), actor=actor, kind=kind, subject=pull.id, detail=kept))

        await self.store.within(work)


def _read(path: Path) -> Pull | None:
    try:
        return Pull.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        log.warning("what %s says of a pull cannot be read: %s", path, exc)
        return None


def _weigh(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    sizes = 0
    for one in path.rglob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            sizes += one.lstat().st_size if not one.is_dir() else 0
    return sizes

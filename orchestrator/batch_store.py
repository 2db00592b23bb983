"""Batches and files in the database; the same rules as in `orchestrator.store`. What is in the files: see `files`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlmodel import col, select

from orchestrator.access import Caller
from orchestrator.errors import Invalid, NotFound
from orchestrator.models import Batch, BatchState, Event, StoredFile
from orchestrator.store import Tables, whole

_ENDED = [state for state in BatchState if state.ended]


class BatchStore(Tables):
    """Batches, and the files that clients and batches have made."""

    @whole
    async def add_file(self, file: StoredFile) -> None:
        async with self._writing() as session:
            session.add(file)
            detail = {"filename": file.filename, "bytes": file.size}
            session.add(
                Event(at=file.created_at, actor=file.actor, kind="file.created", subject=file.id, detail=detail)
            )
            await session.commit()

    @whole
    async def file(self, file_id: str, caller: Caller) -> StoredFile:
        """Raises NotFound."""
        query = select(StoredFile).where(StoredFile.id == file_id, *_own(StoredFile.actor, caller))
        async with self._session() as session:
            found = (await session.exec(query)).first()
        if found is None:
            raise NotFound(f"There is no file {file_id[:100]!r}; GET /v1/files lists what there is")
        return found

    @whole
    async def files(
        self, caller: Caller, *, purpose: str | None, after: str | None, limit: int
    ) -> Sequence[StoredFile]:
        """The newest first; `after`: those behind this one. Raises Invalid when that one is not there."""
        query = select(StoredFile).where(*_own(StoredFile.actor, caller))
        if purpose is not None:
            query = query.where(StoredFile.purpose == purpose)
        async with self._session() as session:
            if after is not None:
                last = await session.get(StoredFile, after)
                if last is None:
                    raise Invalid(f"after is {after[:100]!r}, but there is no such file")
                query = query.where(_behind(StoredFile.created_at, StoredFile.id, last.created_at, last.id))
            order = col(StoredFile.created_at).desc(), col(StoredFile.id).desc()
            return (await session.exec(query.order_by(*order).limit(limit))).all()

    @whole
    async def delete_file(self, file_id: str, *, at: datetime, actor: str) -> None:
        async with self._writing() as session:
            file = await session.get(StoredFile, file_id)
            if file is not None:
                await session.delete(file)
                session.add(Event(at=at, actor=actor, kind="file.deleted", subject=file_id, detail={}))
                await session.commit()

    @whole
    async def bytes_of_files(self) -> int:
        async with self._session() as session:
            return int((await session.exec(select(func.coalesce(func.sum(StoredFile.size), 0)))).one())

    @whole
    async def ids_of_files(self) -> set[str]:
        async with self._session() as session:
            return set((await session.exec(select(StoredFile.id))).all())

    @whole
    async def add(self, batch: Batch) -> None:
        async with self._writing() as session:
            session.add(batch)
            detail = {"endpoint": batch.endpoint, "input_file": batch.input_file}
            session.add(_event(batch.created_at, batch.actor, "batch.created", batch.id, detail))
            await session.commit()

    @whole
    async def find(self, batch_id: str, caller: Caller) -> Batch:
        """Raises NotFound."""
        query = select(Batch).where(Batch.id == batch_id, *_own(Batch.actor, caller))
        async with self._session() as session:
            found = (await session.exec(query)).first()
        if found is None:
            raise NotFound(f"There is no batch {batch_id[:100]!r}; GET /v1/batches lists what there is")
        return found

    @whole
    async def batches(self, caller: Caller, *, after: str | None, limit: int) -> Sequence[Batch]:
        """The newest first; `after`: those behind this one. Raises Invalid when that one is not there."""
        query = select(Batch).where(*_own(Batch.actor, caller))
        async with self._session() as session:
            if after is not None:
                last = await session.get(Batch, after)
                if last is None:
                    raise Invalid(f"after is {after[:100]!r}, but there is no such batch")
                query = query.where(_behind(Batch.created_at, Batch.id, last.created_at, last.id))
            order = col(Batch.created_at).desc(), col(Batch.id).desc()
            return (await session.exec(query.order_by(*order).limit(limit))).all()

    @whole
    async def open_batches(self) -> Sequence[Batch]:
        query = select(Batch).where(col(Batch.state).not_in(_ENDED)).order_by(col(Batch.created_at))
        async with self._session() as session:
            return (await session.exec(query)).all()

    @whole
    async def change(
        self,
        batch_id: str,
        before: Sequence[BatchState],
        changes: dict[str, Any],
        *,
        at: datetime,
        actor: str,
        files: Sequence[StoredFile] = (),
    ) -> Batch:
        """Write what has become of a batch, with the files that it has made, if it is in one of the states `before`."""
        async with self._writing() as session:
            batch = await session.get_one(Batch, batch_id)
            if batch.state in before:
                for name, value in changes.items():
                    setattr(batch, name, value)
                session.add_all(files)
                session.add(_event(at, actor, f"batch.{batch.state.value}", batch.id, {}))
                await session.commit()
            return batch


def _own(actor: Any, caller: Caller) -> list[ColumnElement[bool]]:
    return [] if caller.sees_all else [col(actor) == caller.actor]


def _behind(created_at: Any, identity: Any, last_at: datetime, last_id: str) -> ColumnElement[bool]:
    """What a list shows behind its entry `last`."""
    return (col(created_at) < last_at) | ((col(created_at) == last_at) & (col(identity) < last_id))


def _event(at: datetime, actor: str, kind: str, subject: str, detail: dict[str, Any]) -> Event:
    return Event(at=at, actor=actor, kind=kind, subject=subject, detail=detail)

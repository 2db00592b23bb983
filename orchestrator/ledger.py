"""What the database is asked of uses and of events, as statements: `orchestrator.store` runs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import Select, SelectOfScalar

from orchestrator.costs import Use
from orchestrator.models import Event, Job, Service


@dataclass(frozen=True)
class Sought:
    """Which events are wanted. `subject` is a submission id, or a service's id; `until` is exclusive."""

    actor: str | None = None
    event: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        exact = {Event.actor: self.actor, Event.kind: self.event}
        found = [col(column) == value for column, value in exact.items() if value is not None]
        if self.subject is not None:
            named = select(col(Service.submission_id)).where(col(Service.id) == self.subject.removeprefix("sg-"))
            found.append(or_(col(Event.subject) == self.subject, col(Event.subject).in_(named)))
        if self.since is not None:
            found.append(col(Event.at) >= self.since)
        if self.until is not None:
            found.append(col(Event.at) < self.until)
        return found


@dataclass(frozen=True)
class Entry:
    """An event, with the id by which users know its service, where it is about one."""

    event: Event
    service_id: str | None


def entries(sought: Sought, limit: int, offset: int) -> Select[Event, str | None]:
    """The newest first."""
    return (
        select(Event, col(Service.id))
        .outerjoin(Service, col(Service.submission_id) == col(Event.subject))
        .where(*sought.conditions)
        .order_by(col(Event.id).desc())
        .limit(limit)
        .offset(offset)
    )


def number(sought: Sought) -> SelectOfScalar[int]:
    return select(func.count(col(Event.id))).where(*sought.conditions)


_PLAN = col(Service.plan)
_WHO: tuple[Any, ...] = (
    col(Service.actor).label("actor"),
    col(Service.recipe_name).label("recipe"),
    _PLAN["served_model_name"].as_string().label("model"),
    _PLAN["resources"]["nodes"].as_integer().label("nodes"),
    _PLAN["resources"]["gpu"].as_integer().label("gpu"),
    _PLAN["gpu_type"].as_string().label("gpu_type"),
    _PLAN["resources"]["cpu"].as_integer().label("cpu"),
    _PLAN["price"].as_float().label("price"),
)
_JOB: tuple[Any, ...] = (
    *(Service.submission_id, Service.id, Job.job_id, Job.started_at, Job.ended_at, Job.earlier_runs),
    *_WHO,
)


def jobs(since: datetime | None = None, service: str | None = None) -> Select[Any]:
    """All that may have run at or after `since`, the oldest first; with `service`, its submission id, only its own."""
    statement = select(*_JOB).join(Job, col(Job.service) == col(Service.submission_id))
    if since is not None:
        statement = statement.where(or_(col(Job.ended_at).is_(None), col(Job.ended_at) > since))
    if service is not None:
        statement = statement.where(col(Job.service) == service)
    ordered: Select[Any] = statement.order_by(col(Job.recorded_at), col(Job.submission_id))
    return ordered


def cut_or_open(since: datetime | None) -> Select[Any]:
    """Of `jobs` those that `sums` does not have: those that have not ended, or began before `since`."""
    open_ones = col(Job.ended_at).is_(None)
    return jobs(since).where(open_ones if since is None else or_(open_ones, col(Job.recorded_at) < since))


def sums(since: datetime | None) -> Select[Any]:
    """What the jobs have used that were recorded at or after `since` and have ended, added up by the database.

    The names in the inner statement make it the same expression in all places, also where it has parameters.
    """
    ended = [col(Job.ended_at).is_not(None), col(Job.used_seconds) > 0]
    if since is not None:
        ended.append(col(Job.recorded_at) >= since)
    columns = (*_WHO, col(Job.used_seconds).label("used"))
    inner = select(*columns).join(Job, col(Job.service) == col(Service.submission_id)).where(*ended).subquery()
    names = tuple(inner.c[column.name] for column in _WHO)
    every: tuple[Any, ...] = (*names, func.sum(inner.c.used))
    added: Select[Any] = select(*every).group_by(*names)
    return added


def use_in(row: Sequence[Any]) -> Use:
    """A row of `jobs`. A plan that is older than a field has null there."""
    service, service_id, job_id, started, ended, earlier, actor, recipe, model, nodes, gpu, gpu_type, cpu, price = row
    gpus, cores = (gpu or 0) * (nodes or 1), (cpu or 0) * (nodes or 1)
    who = (service, service_id, actor, recipe, model, gpus, gpu_type, cores)
    return Use(*who, job_id, started, ended, earlier, price=price)


def use_of_several(row: Sequence[Any]) -> Use:
    """A row of `sums`."""
    return use_in(("", None, None, None, None, (), *row[:-1]))._replace(seconds=row[-1])


class News(NamedTuple):
    """An event, as far as it says what has changed."""

    number: int
    kind: str
    subject: str
    detail: dict[str, Any]


async def newest(session: AsyncSession) -> int:
    """The number of the newest event, 0 where there is none."""
    return (await session.exec(select(func.max(Event.id)))).one() or 0


async def news(session: AsyncSession, after: int, limit: int) -> list[News]:
    """The first events behind a number: a look at these alone, however many there are before them."""
    query = select(Event.id, Event.kind, Event.subject, Event.detail).where(col(Event.id) > after)
    rows = await session.exec(query.order_by(col(Event.id)).limit(limit))
    return [News(number or 0, kind, subject, dict(detail)) for number, kind, subject, detail in rows]

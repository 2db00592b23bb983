"""How alembic reaches the database: the URL, or the open transaction, that `orchestrator.database` hands over."""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection, create_engine
from sqlmodel import SQLModel

from orchestrator import models  # noqa: F401 - fills SQLModel.metadata


@contextmanager
def connected() -> Iterator[Connection]:
    given = context.config.attributes.get("connection")
    if given is not None:
        yield given
        return
    engine = create_engine(context.config.attributes["url"])
    with engine.connect() as connection:
        yield connection
    engine.dispose()


with connected() as connection:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()

"""How alembic reaches the database: the URL that `orchestrator.sqlite` hands over."""

from alembic import context
from sqlalchemy import create_engine
from sqlmodel import SQLModel

from orchestrator import models  # noqa: F401 - fills SQLModel.metadata

engine = create_engine(context.config.attributes["url"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()

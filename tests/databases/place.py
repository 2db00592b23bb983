"""Where a store of the tests keeps its tables."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tests.databases.server import execute


@dataclass(frozen=True)
class Place:
    """An SQLite in `path`, or a PostgreSQL at `url`."""

    path: Path
    url: SecretStr | None = None

    @property
    def kind(self) -> str:
        return "sqlite" if self.url is None else "postgres"

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Beside the store, in a transaction of its own; the rows."""
        if self.url is not None:
            return execute(self.url.get_secret_value(), statement)
        with closing(sqlite3.connect(self.path / "orchestrator.db")) as database, database:
            return database.execute(statement).fetchall()

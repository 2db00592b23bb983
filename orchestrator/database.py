"""What a store works on, and the form that it has: its migrations, and how they are run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.errors import OrchestratorError

# The newest migration in orchestrator/migrations/versions.
HEAD = "0006"
MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class Database:
    """`told` gives what a user is told of an error of the driver, None when the fault is ours. `seconds` is how long
    one question may take; None where the database sees to that itself."""

    reading: AsyncEngine
    writing: AsyncEngine
    told: Callable[[BaseException | None], OrchestratorError | None]
    seconds: float | None = None


def migrate(place: str | Connection, migrations: Path, head: str) -> None:
    """Bring the database at a URL, or in an open transaction, to the form of `head`."""
    # Imported here: needed once in the life of a release, and it costs 100 ms and 5 MB.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations))
    config.attributes["url" if isinstance(place, str) else "connection"] = place
    command.upgrade(config, head)


def knows(revision: str, migrations: Path) -> bool:
    """Whether a database of this revision can be brought up from where it is."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(migrations))
    return any(script.revision == revision for script in ScriptDirectory.from_config(config).walk_revisions())

"""The database's form: which migrations there are, and how they are run."""

from pathlib import Path

# The newest migration in orchestrator/migrations/versions.
HEAD = "0003"
MIGRATIONS = Path(__file__).parent / "migrations"

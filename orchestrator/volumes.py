"""Volumes: folders that outlive the jobs which use them, HOME/volumes/<engine>/<name>, 0700.

They lie in ORCHESTRATOR_HOME because that is on a file system which the compute nodes see.
"""

from pathlib import Path

from orchestrator.errors import not_written


def volume_path(home: Path, engine: str, name: str) -> Path:
    return home / "volumes" / engine / name


def make_volume(path: Path) -> None:
    """Make the folder where it does not exist, for its owner only. Raises StateFull, or NotReady."""
    try:
        for folder in (path.parent.parent, path.parent, path):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise not_written(path, exc) from exc

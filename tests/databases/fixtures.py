"""pytest fixtures for tests on both kinds of database."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.databases.place import Place
from tests.databases.server import Server, missing, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One for the whole test run. Where none can be, CI fails; anywhere else the test is skipped and says why."""
    if reason := missing():
        absent = f"NO POSTGRESQL, so this is not tested: {reason}"
        if os.environ.get("CI") == "true":
            pytest.fail(absent)
        pytest.skip(absent)
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return Place(tmp_path)
    server: Server = request.getfixturevalue("postgres")
    return Place(tmp_path, SecretStr(server.emptied()))

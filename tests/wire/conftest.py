"""These tests run in asyncio's own event loop; those of whole processes in uvloop's."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"

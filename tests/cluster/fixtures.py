"""pytest fixtures for tests on the cluster. Load them as a plugin: `-p tests.cluster.fixtures`."""

import os
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, down, laptop_namespace, missing, up


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster for the whole test run. Where none can be, CI fails; anywhere else the test is skipped and says why."""
    if reason := missing():
        absent = f"NO SLURM CLUSTER, so this is not tested: {reason}"
        if os.environ.get("CI") == "true":
            pytest.fail(absent)
        pytest.skip(absent)
    one = up()
    try:
        yield one
    finally:
        down(one)


@pytest.fixture
def laptop(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with the test (this thread, and what it starts) on the laptop's network: only login is in reach."""
    with laptop_namespace(cluster):
        yield cluster

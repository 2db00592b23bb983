"""pytest fixtures for tests on the cluster. Load them as a plugin: `-p tests.cluster.fixtures`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.cluster import Cluster, down, laptop_namespace, missing, up


@contextmanager
def brought_up(*, min_job_age: int = 60, slurmd_timeout: int = 300) -> Iterator[Cluster]:
    """A cluster. Where none can be, CI fails; anywhere else the test is skipped and says why."""
    if reason := missing():
        absent = f"NO SLURM CLUSTER, so this is not tested: {reason}"
        if os.environ.get("CI") == "true":
            pytest.fail(absent)
        pytest.skip(absent)
    one = up(min_job_age=min_job_age, slurmd_timeout=slurmd_timeout)
    try:
        yield one
    finally:
        down(one)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One for the whole test run."""
    with brought_up() as one:
        yield one


@pytest.fixture
def laptop(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with the test (this thread, and what it starts) on the laptop's network: only login is in reach."""
    with laptop_namespace(cluster):
        yield cluster

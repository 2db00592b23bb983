"""Fixtures of the end-to-end tests: one cluster, one vLLM, an orchestrator and a gateway for each test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clients import environments
from tests.cluster.cluster import Cluster, laptop_namespace
from tests.e2e.deployment import Api, Deployment, laptop_api, shared_python, site_config, unpacked_wheel, wait_for
from tests.vllm import make
from tests.vllm.fixtures import VllmEnvironment


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> tuple[Path, Path]:
    """A Python and the unpacked wheel, for every user of the cluster."""
    return shared_python(make.cache()), unpacked_wheel(cluster.root)


@pytest.fixture(scope="session")
def clients() -> list[str]:
    """Those that can run here, made before the test is on the laptop's network, which ends at login."""
    found = []
    for client in environments.ALL:
        reason = environments.missing(client)
        if reason and os.environ.get("CI") == "true":
            pytest.fail(reason)
        if not reason:
            environments.command(client)
            found.append(client)
    return found


@contextmanager
def torn_down(one: Deployment) -> Iterator[Deployment]:
    """Afterwards no process, no job and no state is left."""
    try:
        yield one
    finally:
        one.stop_gateway()
        one.stop_orchestrator()
        one.cluster.run("login", ["scancel", f"--user={one.cluster.user}"])
        wait_for(lambda: not one.cluster.run("login", ["squeue", "-h"]).stdout.strip(), "no job is left")
        one.cluster.run("login", ["rm", "-rf", str(one.home)], user=True)


@pytest.fixture
def deployment(laptop: Cluster, installed: tuple[Path, Path]) -> Iterator[Deployment]:
    """Orchestrator and gateway, not started yet, with the fake engine as vLLM."""
    with torn_down(Deployment.of(laptop, installed)) as one:
        yield one


@pytest.fixture
def api(deployment: Deployment) -> Iterator[Api]:
    """A running deployment, seen from the laptop."""
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as one:
        wait_for(one.ready, "the gateway is ready")
        yield one


@pytest.fixture(scope="module")
def shared_laptop(cluster: Cluster) -> Iterator[Cluster]:
    """As `laptop`, for all tests of a module."""
    with laptop_namespace(cluster):
        yield cluster


@pytest.fixture(scope="module")
def shared_deployment(shared_laptop: Cluster, installed: tuple[Path, Path]) -> Iterator[Deployment]:
    """As `deployment`, for all tests of a module."""
    with torn_down(Deployment.of(shared_laptop, installed)) as one:
        yield one


@pytest.fixture
def vllm_config(laptop: Cluster, vllm_environment: VllmEnvironment) -> str:
    """The site file with the real vLLM."""
    command = [str(vllm_environment.python), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    environment = """
VLLM_CPU_KVCACHE_SPACE = "1"
VLLM_CPU_OMP_THREADS_BIND = "nobind"
OMP_NUM_THREADS = "1"
HF_HUB_OFFLINE = "1"
"""
    return site_config(laptop, command, environment)

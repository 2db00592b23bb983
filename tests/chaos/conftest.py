"""Fixtures of the chaos tests, and the table of what they have counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, laptop_namespace
from tests.cluster.fixtures import brought_up
from tests.e2e.conftest import torn_down
from tests.e2e.deployment import Api, Deployment, laptop_api, shared_python, unpacked_wheel, wait_for
from tests.vllm import make


@dataclass
class Figures:
    """What has been counted, a line for each fault."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, fault: str, **counted: object) -> None:
        self.rows.append((fault, ", ".join(f"{name.replace('_', ' ')} {_shown(n)}" for name, n in counted.items())))


_FIGURES = pytest.StashKey[Figures]()


def _shown(number: object) -> str:
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (figures := config.stash.get(_FIGURES, None)) is None:
        return
    terminalreporter.section("what each fault did")
    width = max((len(fault) for fault, _ in figures.rows), default=0)
    for fault, counted in figures.rows:
        terminalreporter.write_line(f"{fault:<{width}}  {counted}")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    return request.config.stash.setdefault(_FIGURES, Figures())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One for all of them, which forgets ended jobs after 2 s, as others do after 5 minutes."""
    with brought_up(min_job_age=2) as one:
        yield one


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> tuple[Path, Path]:
    """A Python and the unpacked wheel, for every user of the cluster."""
    return shared_python(make.cache()), unpacked_wheel(cluster.root)


@pytest.fixture
def deployment(laptop: Cluster, installed: tuple[Path, Path]) -> Iterator[Deployment]:
    """Orchestrator and gateway, not started yet, with the fake engine as vLLM."""
    with torn_down(Deployment.of(laptop, installed)) as one:
        yield one


@contextmanager
def seen_from_the_laptop(deployment: Deployment) -> Iterator[Api]:
    """Start both processes; their API once it is ready."""
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as one:
        wait_for(one.ready, "the gateway is ready")
        yield one


@pytest.fixture
def api(deployment: Deployment) -> Iterator[Api]:
    with seen_from_the_laptop(deployment) as one:
        yield one


@contextmanager
def of_its_own(installed: tuple[Path, Path], slurmd_timeout: int = 300) -> Iterator[tuple[Deployment, Api]]:
    """A cluster for one test, whose Slurm is broken beyond what the next test could use."""
    with (
        brought_up(slurmd_timeout=slurmd_timeout) as cluster,
        laptop_namespace(cluster),
        torn_down(Deployment.of(cluster, installed)) as deployment,
        seen_from_the_laptop(deployment) as api,
    ):
        yield deployment, api

"""The terminal recordings of the documentation: the same commands show the same lines, but for times."""

from collections.abc import Iterator

import pytest

from scripts.recordings import FOLDER, RECORDINGS, Stage, staged, without_times
from tests.e2e.deployment import Deployment

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def stage(shared_deployment: Deployment) -> Iterator[Stage]:
    with staged(shared_deployment) as one:
        yield one


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_recording_is_what_is_shown(stage: Stage, name: str) -> None:
    recorded = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert without_times(RECORDINGS[name](stage)) == without_times(recorded), "run `make recordings`"

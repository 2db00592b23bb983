"""Engines break, or the node below them: requests go to the other replica, and what users see is bounded in time."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.conftest import Figures, of_its_own
from tests.chaos.traffic import prompting, prompting_at, streaming, traffic
from tests.cluster.cluster import Cluster, end, kill, read_pid, residents
from tests.e2e.deployment import Api, Deployment, wait_for
from tests.e2e.test_groups import STALL_SECONDS, engine_at, healthy

pytestmark = pytest.mark.chaos

TWO = {"gpu": 2, "cpu": 1, "memory": "1G"}
VICTIM = "8002"


def _two_replicas(api: Api, deployment: Deployment) -> str:
    environment = {"FAKE_BROKEN": str(_broken(deployment))}
    config = {"resources": TWO, "environment": environment}
    group = str(api.start("inference/vllm-replicas", config)["id"])
    wait_for(lambda: healthy(api, group) == 2, "both replicas answer", 40)
    return group


def _broken(deployment: Deployment) -> Path:
    """Where a file named like a port breaks the engine there."""
    return deployment.cluster.home / "broken"


def _stop(deployment: Deployment) -> Callable[[], None]:
    """The engine hangs; what is returned mends it."""
    pid = engine_at(deployment.cluster, VICTIM)
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def _kill(deployment: Deployment) -> Callable[[], None]:
    os.kill(engine_at(deployment.cluster, VICTIM), signal.SIGKILL)
    return lambda: None  # the job's own script starts it again


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("break_it", "bound"), [(_stop, STALL_SECONDS), (_kill, 12)], ids=["SIGSTOP", "SIGKILL"])
def test_an_engine_under_traffic_gets(
    api: Api,
    deployment: Deployment,
    figures: Figures,
    break_it: Callable[[Deployment], Callable[[], None]],
    bound: float,
    request: pytest.FixtureRequest,
) -> None:
    group = _two_replicas(api, deployment)
    with traffic(prompting(group, "delay 0.02 hello"), clients=4) as prompted, traffic(streaming(group)) as streamed:
        wait_for(lambda: len(streamed.outcomes) > 4, "streams run")
        mend = break_it(deployment)
        noticed = wait_for(lambda: healthy(api, group) == 1, "one replica does not answer", STALL_SECONDS)
        mend()
        recovered = wait_for(lambda: healthy(api, group) == 2, "it answers again", 40)
        prompted.more(50)
    figures.add(
        f"engine: {request.node.callspec.id}",
        prompts=len(prompted.outcomes),
        failed=len(prompted.failed()),
        longest_s=prompted.worst(),
        streams=streamed.words(),
        longest_stream_s=streamed.worst(),
        noticed_s=noticed,
        recovered_s=recovered,
    )
    assert prompted.failed() == []
    assert prompted.worst() < bound and streamed.worst() < bound + 5
    assert set(streamed.words()) <= {"ok", "shown"}, "a cut stream shows it"


@pytest.mark.timeout(120)
def test_an_engine_that_answers_500_with_a_green_health(api: Api, deployment: Deployment, figures: Figures) -> None:
    _broken(deployment).mkdir()
    group = _two_replicas(api, deployment)
    with traffic(prompting(group), clients=4) as prompted, traffic(streaming(group)) as streamed:
        wait_for(lambda: any(f"port={VICTIM}" in outcome.text for outcome in prompted.outcomes), "both are asked")
        (_broken(deployment) / VICTIM).touch()
        prompted.more(300)
        of_both = healthy(api, group)
        (_broken(deployment) / VICTIM).unlink()
        at = len(prompted.outcomes)
        back = wait_for(
            lambda: any(f"port={VICTIM}" in o.text for o in prompted.outcomes[at:]), "it is asked again", 40
        )
    _broken(deployment).rmdir()
    figures.add(
        "engine: 500s, /health green",
        prompts=len(prompted.outcomes),
        failed=len(prompted.failed()),
        longest_s=prompted.worst(),
        streams=streamed.words(),
        asked_again_s=back,
    )
    assert of_both == 2, "its health check passes"
    assert prompted.failed() == [] and streamed.failed() == []
    assert prompted.worst() < 5
    assert back < 20


@pytest.mark.timeout(240)
def test_a_node_fails_under_one_of_two_services(installed: tuple[Path, Path], figures: Figures) -> None:
    """Two services of one model, each on a node of its own: slurmd and all that runs there is gone at once."""
    with of_its_own(installed, slurmd_timeout=10) as (deployment, api):
        config = {"resources": TWO | {"gpu": 4}, "model": "chaos/model"}
        ids = [api.start("vllm-single-node", config)["id"] for _ in range(2)]
        for service_id in ids:
            api.until(service_id, "running")
        node = str(api.show(ids[0])["nodes"][0])
        with traffic(prompting_at("/v1/chat/completions", model="chaos/model"), clients=4) as prompted:
            prompted.more(50)
            _fail(deployment.cluster, node)
            noticed = wait_for(lambda: api.status(ids[0]) != "running", "its end is noticed", 40)
            failed = wait_for(lambda: api.status(ids[0]) in ("pending", "node_fail"), "Slurm has noticed it", 90)
            shown = api.show(ids[0])
            prompted.more(50)
            other = api.status(ids[1])
        figures.add(
            "slurmd: killed with its node",
            prompts=len(prompted.outcomes),
            failed=len(prompted.failed()),
            longest_s=prompted.worst(),
            not_running_after_s=noticed,
            then=f"{shown['status']} after {failed:.3g} s",
            restarts=shown["job"]["restarts"],
        )
        assert other == "running"
        # Slurm queues it again, and lets it wait for two minutes: the same id, and no endpoint while there is none.
        assert shown["status"] == "node_fail" or shown["job"]["restarts"] == 1, shown
        assert shown["endpoint"] is None
        assert prompted.failed() == []
        assert prompted.worst() < STALL_SECONDS


def _fail(cluster: Cluster, node: str) -> None:
    """End slurmd, then whatever else lives on the node."""
    end(read_pid(cluster, f"slurmd-{node}"), signal.SIGKILL)
    network = cluster.netns(node).stat().st_ino
    for pid, inode in residents(cluster):
        if inode == network:
            kill(pid, inode)

"""The two processes themselves: replaced under traffic, and started twice."""

import dataclasses
import shutil
import time
from pathlib import Path

import pytest

from orchestrator import __version__
from orchestrator.database import HEAD
from tests.chaos.conftest import Figures
from tests.chaos.test_link import unanswered
from tests.chaos.traffic import getting, prompting, streaming, traffic
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for
from tests.e2e.test_lifecycle import small
from tests.test_migrations import NEXT

pytestmark = pytest.mark.chaos

UPGRADES = 3
LATER = f"{__version__}.post1"


def next_release(deployment: Deployment) -> Path:
    """What a user installs in the place of this one: another version, whose database has a revision more."""
    site = deployment.cluster.root / "later"
    shutil.copytree(deployment.site, site)
    package = site / "orchestrator"
    (package / "migrations/versions/9999_next.py").write_text(NEXT.format(head=HEAD, then="pass"))
    for file, old, new in (("__init__.py", __version__, LATER), ("database.py", f'HEAD = "{HEAD}"', 'HEAD = "9999"')):
        text = (package / file).read_text()
        assert text.count(old) == 1
        (package / file).write_text(text.replace(old, new))
    return site


@pytest.mark.timeout(180)
def test_the_orchestrator_is_upgraded_under_traffic(api: Api, deployment: Deployment, figures: Figures) -> None:
    """Ended by SIGTERM and started again, as the next release from the first time on."""
    service_id = str(api.start("vllm-single-node", small())["id"])
    api.until(service_id, "running")
    away, ended, later = [], [], next_release(deployment)
    assert api.get("/health")["orchestrator"]["version"] == __version__
    with (
        traffic(getting(f"/api/v1/services/{service_id}/status")) as looked,
        traffic(prompting(service_id, "delay 0.03 hello")) as prompted,
        traffic(streaming(service_id, "delay 2 " + "word " * 12), clients=4) as streamed,
    ):
        for _ in range(UPGRADES):
            prompted.more(50)
            began = time.monotonic()
            deployment.stop_orchestrator()
            ended.append(time.monotonic() - began)
            deployment.site = later
            deployment.start_orchestrator()
            away.append(wait_for(lambda: looked.outcomes[-1].word == prompted.outcomes[-1].word == "ok", "it serves"))
        api.until(service_id, "running")
    last = api.http.post(f"/api/v1/services/{service_id}/v1/completions", json={"prompt": "x"}).json()["id"]
    generated = int(last.rpartition("-")[2]) - 1  # it numbers its answers
    reached = [o for o in [*prompted.outcomes, *streamed.outcomes] if o.status != 503]
    requests = [*looked.outcomes, *prompted.outcomes]
    figures.add(
        "orchestrator: upgraded under traffic",
        upgrades=UPGRADES,
        requests=len(requests),
        failed=len(unanswered(requests)),
        told_to_come_back=sum(o.status == 503 for o in requests),
        doubled=max(generated - len(reached), 0),
        streams=streamed.words(),
        SIGTERM_to_end_s=max(ended),
        serves_again_s=max(away),
    )
    assert api.get("/health")["orchestrator"]["version"] == LATER
    assert unanswered(requests) == []
    assert generated == len(reached), "the engine has answered another number of requests than were sent"
    assert "truncated" not in streamed.words() and {"shown", "broken"} & set(streamed.words()), "a cut stream shows it"
    assert unanswered([o for o in streamed.outcomes if o.word == "refused"]) == []


def test_two_gateways_on_one_orchestrator(api: Api, deployment: Deployment, figures: Figures) -> None:
    other = dataclasses.replace(
        deployment, orchestrator=None, gateway=None, gateway_environment={"GATEWAY_PORT": "8002"}
    )
    other.start_gateway()
    try:
        with laptop_api(8002) as second:
            wait_for(second.ready, "the second gateway is ready")
            mine, theirs = (one.start("vllm-single-node", small())["id"] for one in (api, second))
            for one in (api, second):
                for service_id in (mine, theirs):
                    one.until(service_id, "running")
            with (
                traffic(prompting(mine), prompting(theirs)) as here,
                traffic(prompting(mine), prompting(theirs), port=8002) as there,
            ):
                wait_for(lambda: min(len(here.outcomes), len(there.outcomes)) > 200, "both answer 200 prompts", 90)
            assert [s["id"] for s in api.get("/api/v1/services")] == [s["id"] for s in second.get("/api/v1/services")]
            second.cancel(mine)
            assert api.status(mine) == "cancelled"
    finally:
        other.stop_gateway()
    figures.add(
        "two gateways at once",
        prompts=len(here.outcomes) + len(there.outcomes),
        failed=len(here.failed()) + len(there.failed()),
    )
    assert here.failed() == [] and there.failed() == []


def test_two_orchestrators_on_one_home(api: Api, deployment: Deployment, figures: Figures) -> None:
    """The second refuses and names the first, which does not notice."""
    service_id = str(api.start("vllm-single-node", small())["id"])
    api.until(service_id, "running")
    assert deployment.orchestrator is not None
    with traffic(prompting(service_id)) as prompted:
        prompted.more(20)
        said_before = len(deployment.log.read_text())
        second = dataclasses.replace(deployment, orchestrator=None)
        second.start_orchestrator(wait=False)
        assert second.orchestrator is not None
        status = second.orchestrator.wait(15)
        prompted.more(20)
    said = deployment.log.read_text()[said_before:]
    figures.add(
        "two orchestrators on one home",
        second_exit=status,
        prompts=len(prompted.outcomes),
        failed=len(prompted.failed()),
    )
    assert status == 2, said
    assert f"{deployment.home} is in use by process {deployment.orchestrator.pid} on login" in said
    assert prompted.failed() == []

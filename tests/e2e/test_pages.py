"""Every command of the pages, as a reader types it, but for those of which tests/pages.py says where or why not."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for
from tests.e2e.surroundings import CONTROL_KEY, surround
from tests.e2e.walking import JOB, Reader
from tests.pages import PAGES, ROOT, WALKED, Block, blocks_of, walked

pytestmark = pytest.mark.cluster

SMALL: dict[str, Any] = {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}}
NAMES = ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"]  # by which the pages ask
VLLM, QDRANT = "3652098", "3642875"  # what the pages write in place of an id
TO_WALK = [page for page in PAGES if page.name not in WALKED and any(walked(block) for block in blocks_of(page))]


def model_list() -> str:
    """That of docs/slots.md, within the time that the cluster's partition allows."""
    (block,) = (one for one in blocks_of(ROOT / "docs" / "slots.md") if one.language == "yaml")
    return block.text.replace("time_limit: 480", "time_limit: 60")


@pytest.fixture(scope="module")
def running(shared_deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, Api]]:
    """A reader before both halves: with a model, a vector database, a model list, a hub, a vast.ai and a TCP port."""
    one = shared_deployment
    one.embed_qdrant()
    with ExitStack() as stack:
        surround(one, stack)
        models = one.cluster.home / "models.yaml"
        models.write_text(model_list())
        one.environment |= {"ORCHESTRATOR_MODELS": str(models), "ORCHESTRATOR_HOST": "0.0.0.0"}
        one.command_in(one.cluster.root / "bin")
        there = {"PATH": f"{one.cluster.root}/bin:/usr/bin:/bin", "ORCHESTRATOR_HOME": str(one.home)}
        here = {"CONTROL_API_KEY": CONTROL_KEY}
        reader = Reader(one.cluster, tmp_path_factory.mktemp("home"), here=here, there=there)
        reader.at_home()
        first = ["sluice", "keys", "create", "first", "--orchestrator"]  # or there would be no TCP port
        one.cluster.run("login", first, user=True, env=there, check=True)
        one.cluster.run("login", ["ln", "-s", str(one.home), ".sluicegate"], user=True, check=True)
        stack.callback(one.cluster.run, "login", ["rm", ".sluicegate"], user=True)
        one.start_orchestrator()
        one.start_gateway()
        api = stack.enter_context(laptop_api())
        wait_for(api.ready, "the gateway is ready")
        reader.ids |= {VLLM: started(api), QDRANT: str(api.start("vector-db/qdrant", {"volume": "a"} | SMALL)["id"])}
        api.until(reader.ids[QDRANT], "running")
        yield reader, api


def started(api: Api) -> str:
    """A model that answers to all names of the pages."""
    identity = str(api.start("inference/vllm-single-node", SMALL | {"model": "gpt2", "aliases": NAMES})["id"])
    api.until(identity, "running")
    return identity


def failed(api: Api) -> str:
    dying = SMALL | {"environment": {"FAKE_EXIT_AFTER": "0.1"}}
    identity = str(api.start("inference/vllm-single-node", dying)["id"])
    wait_for(lambda: api.status(identity) == "failed", "it has failed")
    return identity


@pytest.mark.parametrize("page", TO_WALK, ids=lambda page: page.name)
def test_every_command_of_the_page(running: tuple[Reader, Api], page: Path) -> None:
    reader, api = running
    for block in blocks_of(page):
        with_ids(reader, api, block)
        if block.title == JOB:
            wait_for(lambda: key_is_known(reader), "the orchestrator has seen the key that was made")
        reader.type(walked(block), block.title)


def key_is_known(reader: Reader) -> bool:
    """Keys that were made a moment ago are seen within a second."""
    asked = "printf 'X-API-Key: %s' \"$(cat ~/.sluice-key)\" | curl -sf -o /dev/null -H @- http://login1:8010/v1/models"
    return reader.run(asked, JOB).returncode == 0


def with_ids(reader: Reader, api: Api, block: Block) -> None:
    """A service as the block needs it in place of the documents' id."""
    if "/retry" in block.text:
        reader.ids[VLLM] = failed(api)
    elif VLLM in block.text and api.status(reader.ids[VLLM]) != "running":
        reader.ids[VLLM] = started(api)

"""Every curl of the documents, as a reader copies it: the real program on the laptop, the real cluster behind it.

The commands of a document run in their order, as later ones may need what earlier ones have made.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.curls import DOCUMENTS, Curl, curls
from tests.e2e.deployment import Deployment, laptop_api, wait_for
from tests.e2e.promises import OURS, PLACE, Call, promise_of
from tests.e2e.surroundings import surround

pytestmark = pytest.mark.cluster

CURLS = [curl for document in DOCUMENTS for curl in curls(document.name, document.read_text())]
ENTRY = {
    "source": {"type": "huggingface_repo", "value": "gpt2"},
    "config": {"resources": {"gpu": None, "cpu": 1, "memory": "1G"}},
    "slot": "main",
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "group": ("inference/vllm-replicas", {"model": "gpt2", "resources": {"gpu": 2, "cpu": 2, "memory": "2G"}}),
    "vllm": ("inference/vllm-single-node", {"model": "gpt2", "resources": {"gpu": None, "cpu": 1, "memory": "1G"}}),
    "qdrant": ("vector-db/qdrant", {"volume": "curls", "resources": {"cpu": 1, "memory": "1G"}}),
}


@pytest.fixture(scope="module")
def reader(shared_deployment: Deployment) -> Iterator[Call]:
    """What a reader has: a gateway, a hub and a vast.ai that the login node reaches, and a service of each kind.

    The group first: its replicas have the ports of the documents.
    """
    one = shared_deployment
    one.embed_qdrant()
    one.bring_apptainer()
    with ExitStack() as stack:
        surround(one, stack)
        models = one.cluster.home / "models.yaml"
        models.write_text(json.dumps({"models": dict.fromkeys(("qwen3-30b", "gpt-oss120"), ENTRY)}))
        one.environment["ORCHESTRATOR_MODELS"] = str(models)
        one.start_orchestrator()
        one.make_startable()
        one.start_gateway()
        api = stack.enter_context(laptop_api())
        wait_for(api.ready, "the gateway is ready")
        stack.callback(api.http.post, "/orchestrator/stop")  # which may be another one than was started here
        call = Call(CURLS[0], api, one.cluster, {})
        yield replace(call, running={kind: started(call, kind) for kind in CONFIGS})


def started(call: Call, kind: str) -> str:
    """A service of a kind, of which all answers."""
    identity = str(call.api.start(*CONFIGS[kind])["id"])
    call.api.until(identity, "running")
    if kind == "group":
        health = f"/api/v1/service-groups/{identity}/status"
        wait_for(lambda: call.api.get(health)["overall_status"] == "healthy", "all replicas answer")
    return identity


def kinds(curl: Curl) -> tuple[str, ...]:
    """The kinds of service that the command's id may be of; ("",) where it names none."""
    place = PLACE.search(curl.path)
    if place and (place["alias"] or place["port"]):
        return ("group",)
    try:
        return promise_of(curl).targets
    except LookupError:
        return ("",)  # the test itself fails


def name(curl: Curl, kind: str) -> str:
    return f"{curl.document}:{curl.line} {curl.method} {curl.path}{' ' if kind else ''}{kind}"


@pytest.mark.parametrize(
    ("curl", "kind"), [pytest.param(curl, kind, id=name(curl, kind)) for curl in CURLS for kind in kinds(curl)]
)
def test_it_does_what_the_document_says(reader: Call, curl: Curl, kind: str) -> None:
    promise = promise_of(curl)
    call = replace(reader, curl=curl)
    if place := PLACE.search(curl.path):
        identity = started(call, kind) if promise.ends else reader.running[kind]
        call = replace(call, id=f"{identity}{place['port'] or ''}")
    if promise.before:
        promise.before(call)
    promise.check(call, call.run(promise.during))


def test_on_the_cluster_the_orchestrators_socket_answers_the_same_paths(
    reader: Call, shared_deployment: Deployment
) -> None:
    """Those that ask and do not wait; the collections are gone by now."""
    curl = ["curl", "-q", "-sS", "--fail-with-body", "--unix-socket", str(shared_deployment.socket)]
    asked = [c for c in CURLS if c.method == "GET" and c.path.startswith("/api/v1/") and "follow" not in c.query]
    asked = [c for c in asked if "/collections/" not in c.path and not OURS.search(c.path)]
    assert len(asked) > 15
    for one in asked:
        identity = reader.running.get(kinds(one)[0])
        url = PLACE.sub(rf"\g<alias>{identity}\g<port>", one.url)
        reader.cluster.run("login", [*curl, url], user=True, check=True)

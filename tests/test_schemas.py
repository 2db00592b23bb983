"""Both processes against their documents in openapi/: whatever is sent, the answer is one of those documented.

Schemathesis makes the requests, right ones and wrong ones, the same in each run. Half of the ids are those of services
that exist, so that the requests reach an engine, a Qdrant, a queue.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis import Case, Config
from schemathesis.core import NOT_SET
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema

from tests.halves import (
    ASLEEP,
    BATCH,
    COLLECTION,
    ENDED,
    FILE,
    GROUP,
    JOB,
    MORE_FILES,
    PENDING,
    PENDING_GROUP,
    PULLS,
    QDRANT,
    SLOT,
    STARTS,
    VLLM,
    Halves,
    halves,
)
from tests.renting import CONTROL
from tests.unix_http import UnixAdapter

pytestmark = [pytest.mark.system, pytest.mark.beside]

OPENAPI = Path(__file__).parents[1] / "openapi"
SECONDS = 30  # for one answer, on a machine that does much besides
EXPECTED = ["2xx", "3xx", "4xx", "502", "503"]
SERVED = "Qwen/Qwen2.5-0.5B-Instruct"  # by the services that run
NAMES = {
    "path.service_id": [VLLM, GROUP, QDRANT, ENDED, PENDING, f"sg-{GROUP}"],
    "path.group_id": [GROUP, f"sg-{GROUP}", PENDING_GROUP, VLLM],
    "path.collection": [COLLECTION, "more"],
    "path.category": ["inference", "vector-db"],
    "path.name": ["vllm-replicas", "qdrant", SLOT],
    "path.model_id": ["Qwen/Qwen2.5-7B-Instruct", "meta-llama/gated", SERVED],
    "path.job_id": [JOB],
    "path.file_id": MORE_FILES[:1],  # which may be deleted
    "path.batch_id": [BATCH],
    "path.pull_id": list(PULLS.values()),
    "body.input_file_id": [FILE],
    "body.model": [SERVED],  # a stream for one that sleeps waits as long as it takes
    "query.architecture": ["Qwen2ForCausalLM"],
    "query.recipe": ["qdrant", "vllm-single-node"],
    "body.recipe_name": [recipe for recipe, _ in STARTS],
    "body.status": ["cancelled"],
}


POINTS = {"points": [{"id": 2, "vector": [0.5, 1], "payload": {"title": "Ulysses"}}]}
PUSHED = {"path": "config.json", "size": 2, "blob": "9e26dfeeb6e641a33dae4961196235bdb965b21b"}
# Bodies for which the answer is a success, by the end of the path.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/services"): {"recipe_name": "vllm-single-node"},
    ("POST", "/services/start"): {"recipe_name": "vllm-single-node"},
    ("POST", "/retry"): {"changes": {"max_model_len": 512}},
    ("POST", "/preflight"): {"model": "Qwen/Qwen2.5-7B-Instruct"},
    ("POST", "/render"): {"recipe_name": "vllm-single-node"},
    ("POST", "/switch"): {"model": ASLEEP},
    ("POST", "/status"): {"status": "cancelled"},
    ("POST", "/power/on"): {"wait_for_health": True, "health_path": "/health", "health_port": 8001},
    ("POST", "/power/off"): {},
    ("POST", "/prompt"): {"prompt": "say hello"},
    ("POST", "/chat/completions"): {"model": SERVED, "messages": [{"role": "user", "content": "say hello"}]},
    ("POST", "/responses"): {"model": SERVED, "input": "say hello"},
    ("POST", "/messages"): {"model": SERVED, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    ("POST", "/embeddings"): {"model": SERVED, "input": ["say", "hello"]},
    ("POST", "/rerank"): {"model": SERVED, "query": "say", "documents": ["say", "hello"]},
    ("POST", "/score"): {"model": SERVED, "text_1": "say", "text_2": ["say", "hello"]},
    ("POST", "/tokenize"): {"model": SERVED, "prompt": "say hello"},
    ("POST", "/detokenize"): {"model": SERVED, "tokens": [1, 2]},
    ("POST", "/transcriptions"): {"model": SERVED, "file": b"RIFF"},
    ("POST", "/completions"): {"model": SERVED, "prompt": "say hello"},
    ("POST", "/files"): {"file": b"{}", "purpose": "batch"},
    ("POST", "/batches"): {
        "input_file_id": FILE,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    },
    ("POST", "/models/pulls"): {"model": "tiny/whole"},
    ("POST", "/images/pulls"): {"image": "docker://some/image:1", "size_gb": 0.001},
    ("PUT", "/pushes/content"): b"{}",
    ("POST", "/models/pushes"): {
        "model": "me/mine",
        "commit": "7ae557604adf67be50417f59c2c2f167def9a775",
        "files": [PUSHED],
    },
    ("PUT", "/{collection}"): {"vector_size": 2},
    ("PUT", "/points"): POINTS,
    ("POST", "/search"): {"query_vector": [1, 1]},
}


def bound(names: dict[str, list[str]], probability: float) -> dict[str, Any]:
    return {where: {"dictionary": where, "probability": probability} for where in names}


def config() -> Config:
    return Config.from_dict(
        {
            "seed": 1,
            "generation": {"deterministic": True, "max-examples": 25, "database": "none"},
            "phases": {"stateful": {"enabled": False}},  # the services are there already
            "checks": {
                # 502 and 503 are an engine's and the scheduler's fault, and are documented.
                "not_a_server_error": {"expected-statuses": EXPECTED},
                # What a recipe takes, which models there are: no schema knows it, so a valid request may be a 422.
                "positive_data_acceptance": {"enabled": False},
            },
            "dictionaries": {where: {"values": values} for where, values in NAMES.items()},
            "parameters": bound(NAMES, 0.5),
            "operations": [
                # 504 is vast.ai's fault, or that of what is asked for its health there.
                {
                    "include-path-regex": "^/infra/vast/",
                    "parameters": {"header.X-API-Key": CONTROL},
                    "checks": {"not_a_server_error": {"expected-statuses": [*EXPECTED, "504"]}},
                },
                # What is asked for may be larger than any disk.
                {
                    "include-path-regex": "/(models|images)/(pulls|pushes)$",
                    "checks": {"not_a_server_error": {"expected-statuses": [*EXPECTED, "507"]}},
                },
                # An ended one only: of those that live, follow=true has no end.
                {"include-path-regex": "/logs$", "parameters": {"path.service_id": ENDED}},
                # The one that the others search is kept.
                {
                    "include-path-regex": "/collections/{collection}$",
                    "include-method": "DELETE",
                    "parameters": {"path.collection": "more"},
                },
                # GET and DELETE lead to /services/{service_id}, where nothing is called so: Allow has them too.
                {
                    "include-path-regex": "/services/(targets|start)$",
                    "checks": {"allow_header_conformance": {"enabled": False}},
                },
            ],
        }
    )


def document(name: str) -> BaseSchema:
    return schemathesis.openapi.from_path(OPENAPI / f"{name}-openapi.json", config=config())


ORCHESTRATOR, GATEWAY = document("orchestrator"), document("server")
# They would end the orchestrator that all the others are sent to.
GATEWAY = GATEWAY.exclude(path=["/orchestrator/start", "/orchestrator/stop"])


@pytest.fixture(scope="module")
def both() -> Iterator[Halves]:
    with halves() as both:
        yield both


@pytest.fixture(scope="module")
def session(both: Halves) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://orchestrator", UnixAdapter(both.socket))
        yield session


@ORCHESTRATOR.parametrize()
def test_the_orchestrator_answers_as_documented(case: Case[Any], both: Halves, session: requests.Session) -> None:
    case.call_and_validate(base_url="http://orchestrator", session=session, timeout=SECONDS)


@GATEWAY.parametrize()
def test_the_gateway_answers_as_documented(case: Case[Any], both: Halves, session: requests.Session) -> None:
    case.call_and_validate(base_url=both.url, session=session, timeout=SECONDS)


@pytest.mark.parametrize("half", ["orchestrator", "gateway"])
def test_every_operation_can_succeed_and_does_it_as_documented(
    half: str, both: Halves, session: requests.Session
) -> None:
    document, url = {"orchestrator": (ORCHESTRATOR, "http://orchestrator"), "gateway": (GATEWAY, both.url)}[half]
    operations = [result.ok() for result in document.get_all_operations() if isinstance(result, Ok)]
    # A collection is made before it is used, and deleted at the end.
    operations.sort(key=lambda operation: ["PUT", "POST", "GET", "DELETE"].index(operation.method.upper()))
    # A start with another health check may be under way still.
    assert both.direct.post("/infra/vast/power/off", headers={"X-API-Key": CONTROL}).status_code == 200
    for operation in operations:
        method, path = operation.method.upper(), operation.path
        body = next((body for (m, end), body in BODIES.items() if m == method and path.endswith(end)), NOT_SET)
        kind = "multipart/form-data" if "/audio/" in path or path == "/v1/files" else "application/json"
        pushes = path.endswith("/pushes/content")
        kind, query = ("application/octet-stream", PUSHED | {"model": "me/mine"}) if pushes else (kind, {})
        headers = {"X-API-Key": CONTROL} if path.startswith("/infra/vast/") else None
        case = operation.Case(
            path_parameters=real(half, method, path), body=body, media_type=kind, headers=headers, query=query
        )
        answer = case.call_and_validate(base_url=url, session=session, timeout=SECONDS)
        later = path.endswith("/switch") or (method, path[-6:]) == ("POST", "/pulls")
        assert answer.status_code == (202 if later else 200), (method, path, answer.text)
    assert len(operations) > 50


def real(half: str, method: str, path: str) -> dict[str, str]:
    """What the parameters of a path may be for the operation to succeed."""
    changes = method == "DELETE" or path.endswith("/stop/{service_id}") or (method, path[-7:]) == ("POST", "/status")
    collection = "made" if path.endswith("/{collection}") and method != "GET" else COLLECTION
    service = QDRANT if "/vector-db/" in path else PENDING if changes else ENDED if path.endswith("/retry") else VLLM
    group = PENDING_GROUP if changes else GROUP
    values = {
        "service_id": service,
        "group_id": group,
        "collection": collection,
        "model_id": SERVED if path.startswith("/v1/") else "Qwen/Qwen2.5-7B-Instruct",
    }
    to_delete = MORE_FILES[1 + ["orchestrator", "gateway"].index(half)]
    values |= {"job_id": JOB, "file_id": to_delete if method == "DELETE" else FILE, "batch_id": BATCH}
    values |= {"category": "inference", "name": SLOT if path.startswith("/slots/") else "vllm-replicas"}
    values |= {"pull_id": PULLS["image" if "/images/" in path else "model"]}
    return {name: value for name, value in values.items() if f"{{{name}}}" in path}

"""A vector database as a Slurm job: qdrant-client on the laptop, through gateway, SSH and orchestrator."""

import threading
from collections.abc import Iterator

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse

from tests.e2e.deployment import Api, Deployment, laptop_api, run_example, wait_for

pytestmark = pytest.mark.cluster

SMALL = {"resources": {"cpu": 1, "memory": "1G"}}


@pytest.fixture
def qdrant_api(deployment: Deployment) -> Iterator[Api]:
    """A deployment whose Qdrant is the embedded engine."""
    deployment.embed_qdrant()
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        yield api


def running(api: Api) -> str:
    service_id = str(api.start("vector-db/qdrant", SMALL)["id"])
    api.until(service_id, "running")
    return service_id


def client_of(service_id: str) -> QdrantClient:
    """Unmodified. Returns when it has asked for the version, which it does in a thread."""
    client = QdrantClient(url=f"http://localhost:8001/api/v1/vector-db/{service_id}/qdrant", timeout=30)
    for thread in threading.enumerate():
        if "_check_compatibility" in thread.name:
            thread.join()
    return client


def test_qdrant_client_works_unmodified_and_the_data_outlive_the_job(qdrant_api: Api, deployment: Deployment) -> None:
    service_id = running(qdrant_api)
    assert qdrant_api.show(service_id)["nodes"] == ["node1"]
    client = client_of(service_id)
    assert client.create_collection("documents", vectors_config=m.VectorParams(size=4, distance=m.Distance.COSINE))
    points = [
        m.PointStruct(id=i, vector=[i, 1.0, 0.5, 0.0], payload={"colour": "red" if i % 2 else "blue", "i": i})
        for i in range(1, 21)
    ]
    assert client.upsert("documents", points, wait=True).status == m.UpdateStatus.COMPLETED
    red = m.Filter(must=[m.FieldCondition(key="colour", match=m.MatchValue(value="red"))])
    assert client.create_payload_index("documents", "colour", m.PayloadSchemaType.KEYWORD).status == "completed"
    found = client.query_points("documents", [1.0, 1.0, 0.5, 0.0], query_filter=red, limit=3).points
    assert [point.id for point in found] == [1, 3, 5]
    first, offset = client.scroll("documents", limit=15)
    rest, end = client.scroll("documents", limit=15, offset=offset)
    assert ([point.id for point in [*first, *rest]], end) == (list(range(1, 21)), None)
    client.delete("documents", red)
    assert client.count("documents").count == 10
    client.close()

    qdrant_api.cancel(service_id)
    wait_for(lambda: qdrant_api.show(service_id)["job"]["state"] == "CANCELLED", "the job has ended")
    again = client_of(running(qdrant_api))
    assert again.count("documents").count == 10
    again.close()
    secret = next((deployment.home / "runs").glob("*/secrets.env"))
    assert secret.stat().st_mode & 0o077 == 0


def test_the_engines_own_400_reaches_the_laptop(qdrant_api: Api) -> None:
    service_id = running(qdrant_api)
    base = f"/api/v1/vector-db/{service_id}/collections/my_documents"
    assert qdrant_api.http.put(base, json={"vector_size": 384, "distance": "Cosine"}).status_code == 200
    points = {"points": [{"id": 1, "vector": [0.1, 0.2, 0.3, 0.4], "payload": {"text": "First document"}}]}
    refused = qdrant_api.http.put(f"{base}/points", json=points)
    assert (refused.status_code, refused.json()["success"]) == (400, False)
    assert "expected dim: 384, got 4" in refused.json()["error"]
    client = client_of(service_id)
    with pytest.raises(UnexpectedResponse) as caught:
        client.upsert("my_documents", [m.PointStruct(id=1, vector=[0.1, 0.2, 0.3, 0.4])])
    assert (caught.value.status_code, "expected dim: 384, got 4" in str(caught.value)) == (400, True)
    client.close()


def test_a_volume_in_use_is_refused(qdrant_api: Api) -> None:
    first = str(qdrant_api.start("vector-db/qdrant", SMALL)["id"])
    second = qdrant_api.http.post("/api/v1/services", json={"recipe_name": "vector-db/qdrant", "config": SMALL})
    assert (second.status_code, f"used by service {first}" in second.json()["detail"]) == (409, True)


@pytest.mark.parametrize("name", ["qdrant_simple_example.py", "qdrant_simple_example_with_metrics.py"])
def test_the_examples_run_unchanged_on_the_cluster(qdrant_api: Api, name: str) -> None:
    done = run_example(name, "--wait", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("stopped\n")

#!/usr/bin/env python3
"""The same as qdrant_simple_example.py, and the database's own metrics. Needs nothing but Python 3.11.

    python3 examples/qdrant_simple_example_with_metrics.py
    python3 examples/qdrant_simple_example_with_metrics.py --recipe vector-db/qdrant-embedded

The vectors are made up, of four numbers; yours would come from an embedding model. The exit code is 0 only when the
nearest document is the right one and the metrics count the documents. The collection is deleted afterwards.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

DOCUMENTS = [
    {"id": 1, "vector": [0.9, 0.1, 0.1, 0.0], "payload": {"text": "About boats and rivers"}},
    {"id": 2, "vector": [0.1, 0.9, 0.0, 0.1], "payload": {"text": "About bread and butter"}},
    {"id": 3, "vector": [0.0, 0.1, 0.9, 0.1], "payload": {"text": "About stars and planets"}},
]
QUESTION = [0.8, 0.2, 0.1, 0.1]  # nearest to the boats


def call(method: str, url: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
    """One request. Ends the program with the server's own words when it refuses."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {url}: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"cannot reach {url}: {error}. Is the gateway running? Try: sluice demo")


def start(api: str, recipe: str, volume: str) -> dict[str, Any]:
    body = {"recipe_name": recipe, "config": {"volume": volume}}
    # With this header the request may be sent again after a broken connection without starting a second job.
    service: dict[str, Any] = call("POST", f"{api}/services", body, **{"Idempotency-Key": str(uuid.uuid4())})
    print(f"started {service['name']}")
    return service


def wait(api: str, service_id: str, seconds: float) -> None:
    """Follow a service until it runs, telling what it waits for."""
    deadline = time.monotonic() + seconds
    told = None
    while time.monotonic() < deadline:
        service = call("GET", f"{api}/services/{service_id}")
        status, reason = service["status"], service["reason"]
        if (status, reason) != told:
            print(f"{status}{': ' + reason if reason else ''}")
            told = (status, reason)
        if status == "running":
            return
        if status not in ("pending", "configuring"):
            logs = call("GET", f"{api}/services/{service_id}/logs?tail=20")["logs"]
            sys.exit(f"the service ended before it answered:\n{logs}")
        time.sleep(0.5)
    sys.exit(f"the service did not answer within {seconds:g} s; it goes on: {api}/services/{service_id}")


def metrics(database: str) -> str:
    """The database's Prometheus text."""
    try:
        with urllib.request.urlopen(f"{database}/metrics", timeout=60) as response:
            return str(response.read().decode())
    except OSError as error:
        sys.exit(f"cannot read {database}/metrics: {error}")


def find_documents(database: str, collection: str) -> tuple[list[dict[str, Any]], str]:
    """Make a collection, fill it, search it and delete it; the points found, the nearest first, and the metrics."""
    place = f"{database}/collections/{collection}"
    call("PUT", place, {"vector_size": 4, "distance": "Cosine"})
    try:
        upserted = call("PUT", f"{place}/points", {"points": DOCUMENTS})
        print(f"{upserted['num_points']} points in {collection}")
        found: list[dict[str, Any]] = call("POST", f"{place}/points/search", {"query_vector": QUESTION, "limit": 2})[
            "results"
        ]
        measured = metrics(database)
    finally:
        call("DELETE", place)
    return found, measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8001", help="the gateway")
    parser.add_argument("--recipe", default="vector-db/qdrant")
    parser.add_argument("--volume", default="default", help="where the database keeps its data")
    parser.add_argument("--wait", type=float, default=1800, help="seconds to wait for the database")
    options = parser.parse_args()
    api = f"{options.url.rstrip('/')}/api/v1"

    service = start(api, options.recipe, options.volume)
    try:
        wait(api, service["id"], options.wait)
        found, measured = find_documents(f"{api}/vector-db/{service['id']}", f"example-{uuid.uuid4().hex[:8]}")
        for point in found:
            print(f"{point['score']:.3f}  {point['payload']['text']}")
        told = [line for line in measured.splitlines() if line.startswith("collection")]
        print("\n".join(told))
    finally:
        call("POST", f"{api}/services/{service['id']}/status", {"status": "cancelled"})
        print("stopped")
    return 0 if found and found[0]["id"] == 1 and told else 1


if __name__ == "__main__":
    sys.exit(main())

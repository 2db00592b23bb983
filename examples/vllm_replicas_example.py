#!/usr/bin/env python3
"""Start a group of replicas, send it many prompts at once, show which replica answered each. Needs only Python 3.11.

    python3 examples/vllm_replicas_example.py --gpus 4 --gpus-per-replica 2 --prompts 20

The exit code is 0 only when every prompt was answered.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any


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
        sys.exit(f"cannot reach {url}: {error}. Is the gateway running?")


def wait(api: str, group: str, seconds: float) -> None:
    """Until every replica answers, telling how many do."""
    deadline = time.monotonic() + seconds
    told = None
    while time.monotonic() < deadline:
        state = call("GET", f"{api}/service-groups/{group}/status")
        line = f"{state['overall_status']}: {state['healthy_replicas']} of {state['total_replicas']} replicas answer"
        if line != told:
            print(line)
            told = line
        if state["overall_status"] == "healthy":
            return
        if state["overall_status"] == "failed":
            logs = call("GET", f"{api}/services/{group}/logs?tail=20")["logs"]
            sys.exit(f"the group ended before it answered:\n{logs}")
        time.sleep(1)
    sys.exit(f"not all replicas answered within {seconds:g} s; the group goes on: {api}/service-groups/{group}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8001", help="the gateway")
    parser.add_argument("--model", help="a model of the Hugging Face Hub, or a folder on the cluster")
    parser.add_argument("--gpus", type=int, default=4, help="GPUs of the job")
    parser.add_argument("--gpus-per-replica", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--wait", type=float, default=1800, help="seconds to wait for the replicas")
    options = parser.parse_args()
    api = f"{options.url.rstrip('/')}/api/v1"

    config: dict[str, Any] = {"resources": {"gpu": options.gpus}, "gpu_per_replica": options.gpus_per_replica}
    if options.model:
        config["model"] = options.model
    body = {"recipe_name": "inference/vllm-replicas", "config": config}
    group = call("POST", f"{api}/services", body, **{"Idempotency-Key": str(uuid.uuid4())})["id"]
    print(f"started group {group}")
    try:
        wait(api, group, options.wait)

        def ask(number: int) -> str:
            question = {"prompt": f"Write one sentence about the number {number}.", "max_tokens": 40}
            return str(call("POST", f"{api}/vllm/{group}/prompt", question)["routed_to"])

        with ThreadPoolExecutor(16) as pool:
            answered = Counter(pool.map(ask, range(options.prompts)))
        for replica, count in sorted(answered.items()):
            print(f"{replica} answered {count}")
    finally:
        call("POST", f"{api}/service-groups/{group}/status", {"status": "cancelled"})
        print("stopped")
    return 0 if answered.total() == options.prompts else 1


if __name__ == "__main__":
    sys.exit(main())

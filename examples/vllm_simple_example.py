#!/usr/bin/env python3
"""Start a model, wait until it answers, ask it something, stop it. Needs nothing but Python 3.11.

    python3 examples/vllm_simple_example.py
    python3 examples/vllm_simple_example.py --model gpt2 --gpus 1 --prompt "Once upon a time"

Uses a model that is running already if there is one, and leaves that one running. The exit code is 0 only when the
model has answered.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
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
        sys.exit(f"cannot reach {url}: {error}. Is the gateway running? Try: sluice demo")


def running(api: str) -> dict[str, Any] | None:
    """A service that answers prompts now."""
    services = call("GET", f"{api}/vllm/services")["vllm_services"]
    return next((service for service in services if service["status"] == "running"), None)


def start(api: str, options: argparse.Namespace) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if options.model:
        config["model"] = options.model
    if options.gpus is not None:
        config["resources"] = {"gpu": options.gpus or None}
    body = {"recipe_name": options.recipe, "config": config}
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
        time.sleep(1)
    sys.exit(f"the service did not answer within {seconds:g} s; it goes on: {api}/services/{service_id}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8001", help="the gateway")
    parser.add_argument("--recipe", default="inference/vllm-single-node")
    parser.add_argument("--model", help="a model of the Hugging Face Hub, or a folder on the cluster")
    parser.add_argument("--gpus", type=int, help="0 for a model on processors")
    parser.add_argument("--prompt", default="Which city is the capital of France?")
    parser.add_argument("--wait", type=float, default=1800, help="seconds to wait for the model")
    options = parser.parse_args()
    api = f"{options.url.rstrip('/')}/api/v1"

    found = running(api)
    service = found or start(api, options)
    try:
        wait(api, service["id"], options.wait)
        question = {"prompt": options.prompt, "max_tokens": 60, "temperature": 0}
        answer = call("POST", f"{api}/vllm/{service['id']}/prompt", question)
        print(f"> {options.prompt}\n{answer['text'].strip()}")
    finally:
        if found is None:
            call("POST", f"{api}/services/{service['id']}/status", {"status": "cancelled"})
            print("stopped")
    return 0 if answer["success"] and answer["text"].strip() else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Ask a model that runs already, and show what its engine counted meanwhile. Needs nothing but Python 3.11.

    python3 examples/vllm_simple_example_with_metrics.py
    python3 examples/vllm_simple_example_with_metrics.py --service 3652098 --prompt "Once upon a time"

Start a model first, for example with vllm_simple_example.py or `sluice demo`. The exit code is 0 only when the model
has answered and its engine's metrics were there.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
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


def metrics(api: str, service_id: str) -> dict[str, float]:
    """The engine's samples by name with labels, as Prometheus would read them."""
    request = urllib.request.Request(f"{api}/services/{service_id}/metrics")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            lines = response.read().decode().splitlines()
    except OSError as error:
        sys.exit(f"no metrics of service {service_id}: {error}")
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8001", help="the gateway")
    parser.add_argument("--service", help="the service to ask; the first one that runs where it is not given")
    parser.add_argument("--prompt", default="Which city is the capital of France?")
    options = parser.parse_args()
    api = f"{options.url.rstrip('/')}/api/v1"

    service = options.service or running(api)
    before = metrics(api, service)
    question = {"prompt": options.prompt, "max_tokens": 60, "temperature": 0}
    begin = time.monotonic()
    answer = call("POST", f"{api}/vllm/{service}/prompt", question)
    print(
        f"> {options.prompt}\n{answer['text'].strip()}\nin {time.monotonic() - begin:.2f} s, usage {answer['usage']}\n"
    )

    after = metrics(api, service)
    changed = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    print("What the engine counted meanwhile:")
    for name, difference in sorted(changed.items()):
        print(f"  {name}  +{difference:g}" if difference > 0 else f"  {name}  {difference:g}")
    engines_own = [name for name in after if not name.startswith(("service_status_info", "sluice_"))]
    return 0 if answer["success"] and answer["text"].strip() and engines_own else 1


def running(api: str) -> str:
    """The first service that answers prompts now. Ends the program when there is none."""
    services = call("GET", f"{api}/vllm/services")["vllm_services"]
    ids = [str(service["id"]) for service in services if service["status"] == "running"]
    return ids[0] if ids else sys.exit("no model runs; start one with examples/vllm_simple_example.py or sluice demo")


if __name__ == "__main__":
    sys.exit(main())

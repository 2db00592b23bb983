"""vast.ai's own client: what it shows of an instance, and what it says when it is to start or stop it.

    vastai_program.py URL KEY <cases.json >seen.json

A case is {"name", "do": "show" | "start" | "stop", "id"}. What was seen is what the
client returns, or the status of its error.
"""

import json
import sys
from typing import Any

import requests
from vastai.api import instances
from vastai.api.client import VastClient
from vastai.data.instance import Instance

DO = {"show": instances.show_instance, "start": instances.start_instance, "stop": instances.stop_instance}


def seen(client: VastClient, case: dict[str, Any]) -> Any:
    try:
        found = DO[case["do"]](client, case["id"])
    except requests.HTTPError as exc:
        assert exc.response is not None
        return {"status": exc.response.status_code, "said": exc.response.json()}
    if case["do"] == "show" and found is not None:
        read = Instance.from_dict(found)
        return {name: getattr(read, name) for name in ("id", "actual_status", "intended_status", "cur_state", "ports")}
    return found


def main() -> None:
    client = VastClient(api_key=sys.argv[2], server_url=sys.argv[1], timeout=10)
    json.dump({case["name"]: seen(client, case) for case in json.load(sys.stdin)}, sys.stdout)


if __name__ == "__main__":
    main()

"""What the client programs have in common: cases in, what was seen out. Standard library only.

    program.py BASE_URL <cases.json >seen.json

A case is {"name", "do", "model", …}; what was seen of it is {"text", …} or {"error": {"kind", "status", "text"}}. The
exit code is 0 when every case has been carried out, whether it was answered or refused.
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Case = dict[str, Any]
Seen = dict[str, Any]
QUESTION = "What is the capital of France? Answer in one sentence."


def main(make: Callable[[str], dict[str, Callable[[Case], Seen]]]) -> None:
    """`make` is given the base URL and returns what the client can do."""
    actions = make(sys.argv[1])
    cases = json.load(sys.stdin)
    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(lambda case: carry_out(actions[case["do"]], case), cases))
    json.dump({case["name"]: one for case, one in zip(cases, seen, strict=True)}, sys.stdout)


def carry_out(action: Callable[[Case], Seen], case: Case) -> Seen:
    try:
        return action(case)
    except Exception as exc:  # noqa: BLE001 - what is raised is what a user of the client sees
        response = getattr(exc, "response", None)
        status = getattr(exc, "status_code", None)
        headers = dict(response.headers) if response is not None else {}
        kinds = [kind.__name__ for kind in type(exc).__mro__]
        return {"error": {"kind": kinds, "status": status, "text": str(exc)[:2000], "headers": headers}}


def messages(case: Case) -> list[dict[str, str]]:
    return [{"role": "user", "content": case.get("prompt", QUESTION)}]

"""endpoints.json and exit.json, which a user's job can write. What is believed is in its range."""

import json
from typing import Any

from orchestrator.runs import Endpoints, parse_endpoints, parse_exit, together
from tests.fuzz.target import Target


def _run(data: bytes) -> None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    found = parse_endpoints(content)
    if found is not None:
        _check(found, content)
    ended = parse_exit(content)
    if ended is not None:
        assert 0 <= ended.exit_code <= 255 and ended.ended_at.tzinfo is not None
    parts = [parse_endpoints(part) for part in content] if isinstance(content, list) else []
    joined = together([part for part in parts if part is not None])
    assert joined is None or together([joined]) == joined


def _check(found: Endpoints, content: Any) -> None:
    for endpoint in found.all:
        assert 1 <= endpoint.port <= 65535, endpoint
        assert endpoint.node == str(content["node"])
    assert len(found.all) == len(content["endpoints"])
    joined = together([found])
    assert joined is not None and sorted(joined.all, key=repr) == sorted(found.all, key=repr)
    str(found)  # as a log would have it


_ENDPOINT = {"port": 8001, "replica": 0, "gpus": "0,1", "starts": 1, "state": "up"}
_ENDPOINTS = {"job_id": "7", "node": "node1", "restarts": 0, "endpoints": [_ENDPOINT, _ENDPOINT | {"replica": 1}]}
_EXIT = {"job_id": "7", "exit_code": 143, "signal": "TERM", "ended_at": 1795274371}
TARGET = Target(
    _run,
    seeds=[
        *(json.dumps(content).encode() for content in (_ENDPOINTS, _EXIT, [_ENDPOINTS, _ENDPOINTS], {}, [])),
        b'{"node": ' + b"[" * 900 + b"]" * 900 + b', "job_id": 1, "endpoints": []}',
    ],
    words=[
        *(b'"%s"' % name.encode() for name in [*_ENDPOINTS, *_ENDPOINT, *_EXIT]),
        b"NaN", b"Infinity", b"1e400", b"null", b"true", b'"\\ud800"', b"65536", b"-1", b"9" * 30, b"{}", b"[]",
    ],
)  # fmt: skip

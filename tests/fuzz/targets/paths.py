"""The gateway's paths. What is passed on stays below what is relayed, however it is read, and can be read backwards."""

import posixpath
from urllib.parse import unquote, unquote_to_bytes

from gateway.paths import RELAYED, PathError, check, is_relayed, to_client, to_orchestrator
from tests.fuzz.target import Target

_METHODS = ("GET", "POST", "DELETE", "HEAD")


def _run(data: bytes) -> None:
    method, path = _METHODS[len(data) % 4], data.decode("latin-1")
    try:
        check(path)
    except PathError:
        return
    there_method, there = to_orchestrator(method, path)
    assert is_relayed(path) == is_relayed(there)
    if not is_relayed(path):
        return
    for read in (there, unquote(there), unquote(there).replace("//", "/")):
        assert "\\" not in read and "\x00" not in read
        assert _is_below(posixpath.normpath(read)), read
    assert not set(unquote_to_bytes(there)) & {0}
    if path.startswith("/api/v1/") and not f"{there}/".startswith("/api/v1/"):  # those it answers as they are
        assert to_orchestrator(*to_client(there_method, there)) == (there_method, there)


def _is_below(path: str) -> bool:
    return any(path == known or path.startswith(known + "/") for known in RELAYED)


TARGET = Target(
    _run,
    seeds=[
        b"/api/v1/services", b"/api/v1/services/42", b"/api/v1/services/42:8001/logs", b"/api/v1/vllm/42/prompt",
        b"/api/v1/vector-db/7/collections/c", b"/v1/models/Qwen%2FQwen2.5", b"/jobs/1", b"/api/v1",
        b"/infra/vast/start",
        b"/api/services/stop/42", b"/api/v1/services/4/v1/models/a%2Fb", b"/v1/models/..%2F..%2Fx",
    ],
    words=[
        b"/..", b"/.", b"%2e", b"%2F", b"%5c", b"%00", b"%252e", b"/api/v1/", b"/v1/models/", b"/services", b"//",
        b"\\",
        b"/vllm", b"/vector-db", b"..%2f", b"%", b";", b"?", b"#",
    ],
)  # fmt: skip

"""The gateway's paths and the orchestrator's: one table, read in both directions, on raw (still encoded) paths.

gateway                                        orchestrator
POST   /api/v1/services                        POST /api/services/start
DELETE /api/v1/services/{id}                   POST /api/services/stop/{id}
*      /api/v1/vllm/…, /api/v1/vector-db/…     *    /api/services/vllm/…, /api/services/vector-db/…
*      /api/v1/X                               *    /api/X
*      what is in RELAYED                      *    the same
"""

import re

RELAYED = (
    "/api",
    "/v1",
    "/jobs",
    "/queue",
    "/slots",
    "/status",
    "/infra/vast",
    "/version",
    "/tokenize",
    "/detokenize",
    "/rerank",
    "/v2/rerank",
    "/score",
    "/pooling",
    "/classify",
)
"""What is passed on: these paths and everything below them. Clients of an OpenAI base URL also call those from /version
on, beside it."""

# Below these a model's name with its slash is one segment: openai and huggingface_hub send it as %2F.
_NAMES = re.compile(
    r"(/v1/models|/api/v1/vllm/model-info|/api/services/vllm/model-info|/api(/v1)?/services/[^/%]+/v1/models)/"
)

# Its answer has the address by which the client asked.
TARGETS = "/api/services/targets"

_START = ("POST", "/api/services/start")
_STOP = "/api/services/stop/"


class PathError(Exception):
    """The path cannot be passed on; the text names the part that is refused."""


def is_relayed(path: str) -> bool:
    """True for paths that the orchestrator answers."""
    return any(path == prefix or path.startswith(prefix + "/") for prefix in RELAYED)


def check(path: str) -> None:
    """Refuse what two programs could read differently. Raises PathError.

    `path` is raw: what stands in the request line, without the query.
    """
    if not all("!" <= char <= "~" for char in path):
        raise PathError("the path has characters that must be percent-encoded in a URL")
    lowered = path.lower()
    slash = () if _NAMES.match(lowered) else ("%2f",)
    for refused in ("\\", "%2e", "%00", "%5c", *slash):
        if refused in lowered:
            raise PathError(f"the path contains {refused!r}, which is not passed on: send it decoded, or without it")
    if any(segment in (".", "..") for segment in lowered.replace("%2f", "/").split("/")):
        raise PathError("the path contains the segment '.' or '..': send the path that it stands for")


def to_orchestrator(method: str, path: str) -> tuple[str, str]:
    """The orchestrator's method and path for the gateway's."""
    if not (path == "/api/v1" or path.startswith("/api/v1/")):
        return method, path
    rest = path.removeprefix("/api/v1")
    head, _, tail = rest.removeprefix("/").partition("/")
    if method == "POST" and rest == "/services":
        return _START
    if method == "DELETE" and head == "services" and tail and "/" not in tail:
        return "POST", _STOP + tail
    if head in ("vllm", "vector-db"):
        return method, "/api/services" + rest
    return method, "/api" + rest


def to_client(method: str, path: str) -> tuple[str, str]:
    """The gateway's method and path for the orchestrator's: the inverse, for documentation.

    The orchestrator answers the gateway's own paths as well; those stay as they are.
    """
    if path == "/api/v1" or path.startswith("/api/v1/") or not (path == "/api" or path.startswith("/api/")):
        return method, path
    if (method, path) == _START:
        return "POST", "/api/v1/services"
    if method == "POST" and path.startswith(_STOP):
        return "DELETE", "/api/v1/services/" + path.removeprefix(_STOP)
    for kind in ("vllm", "vector-db"):
        if path == f"/api/services/{kind}" or path.startswith(f"/api/services/{kind}/"):
            return method, "/api/v1" + path.removeprefix("/api/services")
    return method, "/api/v1" + path.removeprefix("/api")

"""The files that pages load: in memory, below an address that has their hash, so that browsers may keep them.

One hash for all of them: modules of JavaScript name each other by their places, and must find each other below it.
"""

import hashlib
import mimetypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.guard import STATIC

FOLDER = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}  # whatever this machine's tables say
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
_KEPT = _HEADERS | {"Cache-Control": "public, max-age=31536000, immutable"}


@cache
def files() -> Mapping[str, tuple[str, bytes]]:
    """Address below STATIC, beginning with the hash of all contents, to media type and contents."""
    contents = {path: path.read_bytes() for path in sorted(FOLDER.rglob("*")) if path.is_file()}
    of_all = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents.values()))
    found = {}
    for path, content in contents.items():
        media_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
        found[f"{of_all.hexdigest()[:16]}/{path.relative_to(FOLDER).as_posix()}"] = media_type, content
    return found


@cache
def static(name: str) -> str:
    """The address of a file. Raises KeyError for one that there is not."""
    return STATIC + {address.partition("/")[2]: address for address in files()}[name]


async def _serve(request: Request) -> Response:
    found = files().get(request.path_params["address"])
    if found is None:
        return Response("there is no such file; reload the page\n", 404, _HEADERS, "text/plain")
    media_type, content = found
    return Response(content, 200, _KEPT, media_type)


ROUTE = Route(STATIC + "{address:path}", _serve)

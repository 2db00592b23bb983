"""What asks for the engine's key, inside the engine: vLLM's own check leaves some paths out, /invocations among them.

A job's script writes this file into the run folder, and vLLM loads it by `--middleware sluicegate_guard.Guard`. It runs
under vLLM's interpreter, whichever that is: the standard library only. The key is VLLM_API_KEY.
"""

import hmac
import os

OPEN = "/health"  # says nothing but whether the engine serves
REFUSED = b'{"error":"Unauthorized"}'
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(REFUSED)),
    (b"www-authenticate", b"Bearer"),
]


class Guard:
    """An ASGI middleware. Every path but /health wants `Authorization: Bearer` and the key, by every method."""

    def __init__(self, app):
        self.app = app
        self.key = os.environ.get("VLLM_API_KEY", "").encode()
        if not self.key:
            raise RuntimeError("VLLM_API_KEY is not set: this engine would answer everybody who reaches its port")

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or self._open(scope) or self._knows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": HEADERS})
            await send({"type": "http.response.body", "body": REFUSED})

    def _open(self, scope):
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return scope["type"] == "http" and path == OPEN

    def _knows(self, scope):
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self.key)

"""Both halves as child processes in a private folder, with what was started through them; nothing outlives it."""

import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import httpx2

from gateway.child import Child, end_all_in
from gateway.settings import cache_folder, environment_of_a_child
from orchestrator.models import JobState

_END_SECONDS = 20.0  # for the services' jobs to end once they are cancelled
_LOOK_SECONDS = 0.1


class StageError(Exception):
    """A request failed; the text is the answer's own."""


class Stage:
    """Opened by `with`: an orchestrator with the local scheduler, and a gateway before it on 127.0.0.1:`port`.

    At the end: the gateway, the services, the orchestrator, whatever still runs in the folder, and the folder.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            # /tmp and not $TMPDIR, which may be too long for a UNIX socket's 107 bytes
            home = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="sluice-demo-", dir="/tmp")))
            opened.callback(end_all_in, home)
            environment, socket = self._environment(home), home / "orchestrator.sock"
            self._orchestrator = opened.enter_context(Child("orchestrator", environment, home / "orchestrator.stderr"))
            behind = httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), base_url="http://o", timeout=10)
            opened.callback(_end_services, opened.enter_context(behind))
            self._gateway = opened.enter_context(Child("gateway", environment, home / "gateway.stderr"))
            self._client = opened.enter_context(httpx2.Client(base_url=self.url, trust_env=False, timeout=10))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._opened.close()

    def _environment(self, home: Path) -> dict[str, str]:
        return environment_of_a_child(
            ORCHESTRATOR_HOME=str(home),
            ORCHESTRATOR_SCHEDULER="local",
            ORCHESTRATOR_SITE=json.dumps({"cache_dir": str(cache_folder())}),
            GATEWAY_PORT=str(self._port),
            GATEWAY_LOOPBACK_OPEN="true",  # the user's keys are for the user's own gateway
            GATEWAY_LOCAL_SOCKET=str(home / "orchestrator.sock"),
            GATEWAY_MODELS_FILE=str(home / "models.json"),
        )

    def check(self) -> None:
        """Raises ChildError when one of the halves has ended by itself."""
        self._orchestrator.check()
        self._gateway.check()

    def is_ready(self) -> bool:
        """Does the gateway's /ready say yes? Raises ChildError."""
        self.check()
        try:
            return self._client.get("/ready").status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False

    def ask(self, method: str, path: str, *, timeout: float = 10, **request: Any) -> dict[str, Any]:
        """The JSON object of an answer. Raises StageError for an error or no answer, ChildError without a half."""
        try:
            answer = self._client.request(method, path, timeout=timeout, **request)
            body = answer.json()
        except (httpx2.TransportError, ValueError) as exc:
            self.check()
            raise StageError(f"{method} {path} was not answered: {exc or type(exc).__name__}") from exc
        if answer.is_error:
            raise StageError(f"{method} {path} was answered {answer.status_code}: {body.get('detail', body)}")
        return dict(body)


def _end_services(orchestrator: httpx2.Client) -> None:
    """Cancel what runs and wait for its end, at most `_END_SECONDS`. An orchestrator that is gone cannot be asked."""
    deadline = time.monotonic() + _END_SECONDS
    with contextlib.suppress(httpx2.TransportError, ValueError):
        running = [service["id"] for service in orchestrator.get("/api/services").json()]
        for service in running:
            orchestrator.post(f"/api/services/{service}/status", json={"status": "cancelled"})
        while running and time.monotonic() < deadline:
            running = [service for service in running if not _has_ended(orchestrator, service)]
            time.sleep(_LOOK_SECONDS if running else 0)


def _has_ended(orchestrator: httpx2.Client, service: str) -> bool:
    """A cancelled service is `cancelled` at once; its job's processes end a little later."""
    return JobState(orchestrator.get(f"/api/services/{service}").json()["job"]["state"]).ended

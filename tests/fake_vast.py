"""A program that looks like vast.ai's REST API: GET and PUT of /api/v0/instances/{id}/, for one instance of one user.
It answers GET /health too, and so can stand in for what runs on the instance.

What it says of the instance changes with each GET, along `starting` and `stopping`, so that nothing depends on time.
The shape of its answers is held against the vastai package by test_fake_vast.py.

    python fake_vast.py PORT ENGINE_PORT     the instance's port 8001 is ENGINE_PORT outside
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

JSON = dict[str, Any]
Mood = Literal["well", "busy", "broken", "hangs", "login page", "sends us away", "refuses", "forgets", "cuts"]
KEY = "vast-right-0123456789abcdef"
ID = 12345
# actual_status, cur_state: how an instance looks on its way, as seen at the real one.
Step = tuple[str | None, str]
STARTING: tuple[Step, ...] = (("exited", "stopped"), ("loading", "running"), ("running", "running"))
STOPPING: tuple[Step, ...] = (("running", "stopped"), ("exited", "stopped"))
STOPPED: Step = ("exited", "stopped")


@dataclass
class FakeVast:
    """`wishes`: the states that were asked for. `times`: for how many requests `mood` lasts, None for ever. `ports`:
    those of the instance, outside by within. Change what you like at any time."""

    ports: dict[int, int] = field(default_factory=dict)
    starting: tuple[Step, ...] = STARTING
    stopping: tuple[Step, ...] = STOPPING
    steps: list[Step] = field(default_factory=lambda: [STOPPED])  # the first one is the present
    intended: str | None = "stopped"
    address: str | None = "127.0.0.1\n"  # with the line's end that vast.ai sends
    price: float = 0.45
    message: str | None = None
    mood: Mood = "well"
    times: int | None = None
    retry_after: str = "0"
    url: str = ""
    wishes: list[str] = field(default_factory=list)
    looks: int = 0
    asked: list[str] = field(default_factory=list)  # methods and targets
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def runs(self) -> None:
        """Somebody has started it, in vast.ai's console perhaps, and it is up already."""
        self.steps, self.intended = [("running", "running")], "running"

    def stopped(self) -> None:
        """Somebody has stopped it there."""
        self.steps, self.intended = [STOPPED], "stopped"

    @property
    def own_port(self) -> int:
        return urlsplit(self.url).port or 0

    def becomes(self, mood: Mood, times: int | None = None) -> None:
        self.mood, self.times = mood, times

    def mood_now(self) -> Mood:
        mood = self.mood
        if self.times is not None:
            self.times -= 1
            if self.times < 0:
                self.mood, self.times = "well", None
                return "well"
        return mood

    def row(self) -> JSON:
        """What GET says of the instance; the next one says the next step."""
        actual, given = self.steps[0]
        if len(self.steps) > 1:
            self.steps.pop(0)
        up = actual == "running"
        return {
            "id": ID,
            "machine_id": 4711,
            "actual_status": actual,
            "intended_status": self.intended,
            "cur_state": given,
            "next_state": self.intended,
            "status_msg": self.message,
            "label": None,
            "num_gpus": 1,
            "gpu_name": "RTX 3090",
            "gpu_util": None,
            "cpu_cores_effective": 8.0,
            "cpu_ram": 64000,
            "disk_space": 150.0,
            "ssh_host": "ssh5.vast.ai",
            "ssh_port": 12344,
            "dph_total": self.price,
            "image_uuid": "vllm/vllm-openai:latest",
            "inet_up": 500.0,
            "inet_down": 500.0,
            "reliability2": 0.99,
            "public_ipaddr": self.address,
            "start_date": 1705312200.0,
            "extra_env": [["OPEN_BUTTON_PORT", "8001"]],
            "ports": self.mapped() if up else None,
        }

    def mapped(self) -> JSON:
        outside = {f"{inner}/tcp": str(outer) for inner, outer in self.ports.items()}
        hosts = ("0.0.0.0", "::")
        return {name: [{"HostIp": host, "HostPort": port} for host in hosts] for name, port in outside.items()}

    def wish(self, state: str) -> None:
        """It goes to another state only from another one, as the real one."""
        self.wishes.append(state)
        if state != self.intended:
            self.intended = state
            self.steps = list(self.starting if state == "running" else self.stopping)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vast: FakeVast

    def do_GET(self) -> None:
        self._serve("GET")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        vast = self.vast
        if self.path == "/health":
            self._send(200, "")
            return
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        with vast.lock:
            vast.asked.append(f"{method} {self.path}")
            mood = vast.mood_now()
            answer = None if mood == "hangs" else self._moody(mood) or self._answer(method, body, mood)
        if answer is None:
            vast.ended.wait(60)
            self.close_connection = True
        else:
            self._send(*answer)

    def _moody(self, mood: Mood) -> tuple[int, Any] | None:
        match mood:
            case "busy":
                return 429, {"success": False, "error": "too_many_requests", "msg": "API requests too frequent"}
            case "broken":
                return 500, {"success": False, "error": "internal", "msg": "our database is away"}
            case "login page":
                return 200, "<html>Log in</html>"
            case "sends us away":
                return 302, ""
            case "cuts":
                self.close_connection = True
                return 200, None
        return None

    def _answer(self, method: str, body: bytes, mood: Mood) -> tuple[int, Any]:
        if self.headers.get("authorization") != f"Bearer {KEY}":
            given = self.headers.get("authorization", "")
            return 401, {"success": False, "error": "auth_error", "msg": f"Invalid user key {given[7:]}"}
        url = urlsplit(self.path)
        wanted = url.path.removeprefix("/api/v0/instances/").rstrip("/")
        there = url.path == f"/api/v0/instances/{ID}/" and mood != "forgets"
        if method == "GET" and wanted.isdigit():
            if parse_qs(url.query).get("owner") != ["me"]:
                return 400, {"success": False, "error": "invalid_args", "msg": "owner must be me"}
            self.vast.looks += there
            return 200, {"instances": self.vast.row() if there else None}
        if not there:
            return 404, {"success": False, "error": "no_such_instance", "msg": f"Instance {wanted[:20]} not found."}
        return self._wish(body, mood)

    def _wish(self, body: bytes, mood: Mood) -> tuple[int, Any]:
        state = json.loads(body).get("state")
        if state not in ("running", "stopped"):
            return 400, {"success": False, "error": "invalid_args", "msg": "state must be running or stopped"}
        if mood == "refuses":
            return 200, {"success": False, "error": "insufficient_credit", "msg": "Your account lacks credit."}
        self.vast.wish(state)
        return 200, {"success": True}

    def _send(self, status: int, content: Any) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "text/html" if isinstance(content, str) else "application/json")
        self.send_header("content-length", str(len(data) + (content is None)))
        if status == 429:
            self.send_header("retry-after", self.vast.retry_after)
        if status == 302:
            self.send_header("location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nobody reads it."""


@contextmanager
def fake_vast(port: int = 0, **more: Any) -> Iterator[FakeVast]:
    """Served on loopback from ready to closed."""
    vast = FakeVast(**more)
    handler = type("Handler", (Handler,), {"vast": vast})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.daemon_threads = True
        vast.url = f"http://127.0.0.1:{server.server_address[1]}/api/v0"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield vast
        finally:
            vast.ended.set()
            server.shutdown()
            thread.join(10)


if __name__ == "__main__":
    with fake_vast(int(sys.argv[1]), ports={8001: int(sys.argv[2])}) as served:
        print(served.url, flush=True)
        threading.Event().wait()

"""The programs of which chains are made, each ours or somebody else's, in front of whatever it is told of."""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from bench import native
from bench.peers import LITELLM, NGINX, VLLM_ROUTER
from bench.processes import BESIDE, UNDER_TEST, on_core, running, tree
from gateway.child import end_all_in
from gateway.settings import environment_of_a_child
from tests.gateway.sshd import Sshd, free_port

MODEL = "bench"
KEY = "sk-bench"
PYTHON = (sys.executable, "-m")
_CIPHER = "aes128-gcm@openssh.com"
_START_SECONDS = 60.0

Pids = Callable[[], Sequence[int]]


@dataclass(frozen=True)
class Part:
    """A program that listens at `to`: host:port, or the path of a UNIX socket."""

    to: str
    pids: Pids


class NotStarted(Exception):
    """A program did not come to answer; the text has its last words."""


@dataclass(frozen=True)
class Place:
    """Where a chain is put up: a folder of its own, the replicas, and the login node."""

    folder: Path
    replicas: Sequence[str]
    sshd: Sshd
    ssh_config: Path
    python: Sequence[str] = PYTHON  # how modules of ours are run
    engine_options: Sequence[str] = ()  # of the engines that the orchestrator starts

    def sshd_sessions(self) -> list[int]:
        return tree(self.sshd.pid)[1:]


@contextmanager
def placed(*, python: Sequence[str] = PYTHON, engine_options: Sequence[str] = ()) -> Iterator[Place]:
    """A login node and two replicas, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sg-bench-", dir="/tmp") as name, replicas(Path(name)) as started:
        folder = Path(name)
        (folder / "sshd").mkdir()
        sshd = Sshd(folder / "sshd")
        with on_core(UNDER_TEST):
            sshd.start()
        try:
            yield Place(folder, started, sshd, sshd.configure(folder), python, engine_options)
        finally:
            sshd.stop()


@contextmanager
def replicas(folder: Path) -> Iterator[tuple[str, str]]:
    with _replica(folder, "one") as one, _replica(folder, "two") as two:
        yield one, two


@contextmanager
def _replica(folder: Path, name: str) -> Iterator[str]:
    port, log = free_port(), folder / f"replica-{name}.log"
    with running([native.replica(), "--port", str(port)], log, core=BESIDE):
        _until_it_listens(f"127.0.0.1:{port}", log)
        yield f"127.0.0.1:{port}"


@contextmanager
def nginx(place: Place, upstreams: Sequence[str], *, name: str = "nginx", unix: bool = False) -> Iterator[Part]:
    to = str(place.folder / f"{name}.sock") if unix else f"127.0.0.1:{free_port()}"
    lines = [
        "daemon off;", "worker_processes 1;", f"pid {place.folder}/{name}.pid;", "error_log stderr;",
        "user root;" if os.geteuid() == 0 else "",
        "events { worker_connections 8192; }",
        "http {", "access_log off;", "keepalive_requests 100000000;", "client_max_body_size 100m;",
        *(f"{kind}_temp_path {place.folder}/{name}-{kind};" for kind in _NGINX_KINDS),
        "upstream behind {", *(f"server {upstream};" for upstream in upstreams),
        "keepalive 128;", "keepalive_requests 100000000;", "}",
        f"server {{ listen {'unix:' if unix else ''}{to};", "location / {", "proxy_pass http://behind;",
        "proxy_http_version 1.1;", 'proxy_set_header Connection "";', "proxy_buffering off;",
        "proxy_read_timeout 600s;", "} } }",
    ]  # fmt: skip
    configuration = place.folder / f"{name}.conf"
    configuration.write_text("\n".join(lines) + "\n")
    log = place.folder / f"{name}.log"
    with running([NGINX.program(), "-c", configuration, "-e", "stderr"], log) as process:
        _until_it_listens(to, log)
        yield Part(to, lambda: tree(process.pid))


_NGINX_KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def vllm_router(place: Place, upstreams: Sequence[str]) -> Iterator[Part]:
    port, log = free_port(), place.folder / "vllm-router.log"
    urls = [f"http://{upstream}" for upstream in upstreams]
    command: list[str | Path] = [
        VLLM_ROUTER.program(), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls,
        "--policy", "round_robin", "--log-level", "warning", "--prometheus-port", str(free_port()),
    ]  # fmt: skip
    with running(command, log, environment=_plain_environment()) as process:
        _until_it_listens(f"127.0.0.1:{port}", log)
        yield Part(f"127.0.0.1:{port}", lambda: tree(process.pid))


@contextmanager
def litellm(place: Place, upstreams: Sequence[str]) -> Iterator[Part]:
    port, log = free_port(), place.folder / "litellm.log"
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"http://{upstream}/v1", "api_key": "none"},
        }
        for upstream in upstreams
    ]
    configuration = place.folder / "litellm.yaml"
    configuration.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": KEY}}))
    command: list[str | Path] = [LITELLM.program(), "--config", configuration, "--host", "127.0.0.1"]
    environment = _plain_environment() | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with running([*command, "--port", str(port), "--num_workers", "1"], log, environment=environment) as process:
        _until_it_listens(f"127.0.0.1:{port}", log)
        yield Part(f"127.0.0.1:{port}", lambda: tree(process.pid))


@contextmanager
def forward(place: Place, upstream: str) -> Iterator[Part]:
    """`ssh -L`, started again when it ends. A command runs on its connection, without which Nagle would stay on."""
    port, log = free_port(), place.folder / "ssh.log"
    ssh = (
        f"ssh -F {place.ssh_config} -c {_CIPHER} -o ExitOnForwardFailure=yes -o ServerAliveInterval=15 "
        f"-L 127.0.0.1:{port}:{upstream} login 'exec cat'"
    )
    with running(["bash", "-c", f"while :; do {ssh}; done"], log) as process:
        _until_it_listens(f"127.0.0.1:{port}", log)
        yield Part(f"127.0.0.1:{port}", lambda: tree(process.pid))


@contextmanager
def orchestrator(place: Place) -> Iterator[Part]:
    """Ours, with two replicas that it has started itself; started anew beside them, as after an update."""
    home = place.folder / "orchestrator"
    to, log = place.folder / "o.sock", place.folder / "orchestrator.log"
    engine = ["taskset", "-c", str(BESIDE), str(native.replica()), *place.engine_options]
    environment = environment_of_a_child(
        ORCHESTRATOR_HOME=str(home),
        ORCHESTRATOR_SOCKET=str(to),
        ORCHESTRATOR_SCHEDULER="local",
        ORCHESTRATOR_LOG_LEVEL="warning",
        ORCHESTRATOR_SITE=json.dumps({"engines": {"vllm": {"command": engine}}}),
        HF_HUB_OFFLINE="1",
        BENCH_COUNTED=str(place.folder),
    )
    command = [*place.python, "orchestrator"]
    try:
        with running(command, log, environment=environment) as process:
            _until_it_listens(str(to), log)
            _start_replicas(to, log)
            for pid in tree(process.pid)[1:]:
                os.sched_setaffinity(pid, {BESIDE})  # the job's script: its turns are not the orchestrator's work
            process.terminate()
            process.wait()
        with running(command, log, environment=environment) as process:
            yield Part(str(to), lambda: [process.pid])
    finally:
        end_all_in(home)


def _start_replicas(to: Path, log: Path) -> None:
    config = {"gpu": 2, "model": MODEL, "base_port": free_port(), "max_restarts": 20}
    asked = {"recipe_name": "inference/vllm-replicas", "config": config}
    transport = httpx2.HTTPTransport(uds=str(to))
    with httpx2.Client(transport=transport, base_url="http://orchestrator", timeout=20) as client:
        made = client.post("/api/services", json=asked)
        if made.status_code != 200:
            raise NotStarted(f"the orchestrator did not start the replicas: {made.text}")
        job = made.json()["id"]
        _until(lambda: _ready(client, job), log)


def _ready(client: httpx2.Client, job: str) -> bool:
    return str(client.get(f"/api/service-groups/{job}/status").json()["overall_status"]) == "healthy"


@contextmanager
def gateway(place: Place, orchestrator: Part, **settings: str) -> Iterator[Part]:
    """Ours, with a key; `settings` say how it reaches the orchestrator."""
    port, log = free_port(), place.folder / "gateway.log"
    environment = environment_of_a_child(
        GATEWAY_PORT=str(port),
        GATEWAY_API_KEY=KEY,
        GATEWAY_LOG_LEVEL="warning",
        GATEWAY_MODELS_FILE=str(place.folder / "models.json"),
        BENCH_COUNTED=str(place.folder),
        **settings,
    )
    with running([*place.python, "gateway"], log, environment=environment) as process:
        yield Part(f"127.0.0.1:{port}", lambda: tree(process.pid))


def through_ssh(place: Place, orchestrator: Part) -> dict[str, str]:
    return {
        "GATEWAY_CLUSTER": "login",
        "GATEWAY_SSH_CONFIG": str(place.ssh_config),
        "GATEWAY_REMOTE_SOCKET": orchestrator.to,
    }


def _plain_environment() -> dict[str, str]:
    return environment_of_a_child(NO_PROXY="*", PYTHONUNBUFFERED="1")


# Waiting


def reach(to: str, seconds: float = 5) -> socket.socket:
    """A connection. Raises OSError."""
    if ":" not in to:
        local = socket.socket(socket.AF_UNIX)
        try:
            local.settimeout(seconds)
            local.connect(to)
        except OSError:
            local.close()
            raise
        return local
    host, _, port = to.rpartition(":")
    return socket.create_connection((host, int(port)), seconds)


def _until_it_listens(to: str, log: Path) -> None:
    def listens() -> bool:
        try:
            reach(to).close()
        except OSError:
            return False
        return True

    _until(listens, log)


def _until(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise NotStarted(f"{log.stem} does not answer after {_START_SECONDS:g} s:\n{log.read_text()[-2000:]}")
        time.sleep(0.002)

"""Both halves as processes of their own, in front of a Slurm whose jobs are harmless, with services of every kind.

What is started through them waits in the fake Slurm's queue for ever. Only the services made here run: their scripts
are started as a node would start them. They cannot be cancelled, since scancel refuses.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import create_engine
from sqlmodel import Session, SQLModel

from gateway.child import Child
from gateway.settings import environment_of_a_child
from orchestrator.models import Batch, BatchState, StoredFile, TaskState
from orchestrator.sqlite import prepare
from orchestrator.task_store import new_task
from tests.fake_hub import TINY, fake_hub, whole
from tests.fake_slurm import PATH, FakeSlurm
from tests.fake_vast import fake_vast
from tests.orchestrating import FAKE_ENGINE, until
from tests.renting import CONTROL, rented_in_the_environment

ROOT = Path(__file__).parents[1]
QDRANT_ENGINE = [sys.executable, str(ROOT / "recipes/vector-db/qdrant-embedded/serve.py")]
SITE = {"engines": {"vllm": {"command": FAKE_ENGINE}, "qdrant": {"command": QDRANT_ENGINE}}}

# The fake Slurm counts from 100, so that these ids are known before anything runs.
VLLM, GROUP, QDRANT, ENDED, PENDING, PENDING_GROUP = "100", "101", "102", "103", "104", "105"
COLLECTION = "books"
# A model that nothing ever loads, since the fake Slurm's queue does not move.
SLOT, ASLEEP = "main", "asleep"
MODELS = {"models": {ASLEEP: {"recipe": "inference/llamacpp-cpu", "slot": SLOT}}}
PULLS = {"model": f"pull_{'1' * 32}", "image": f"pull_{'2' * 32}"}
# Of a request that was queued and answered, of files, of a batch that is complete: in the database from the beginning.
JOB, BATCH = f"job_{0:032x}", f"batch_{0:032x}"
FILE, *MORE_FILES = (f"file-{number:032x}" for number in range(4))
STARTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("vllm-single-node", {"gpu": None}),
    ("vllm-replicas", {"gpu": 2}),
    ("vector-db/qdrant", {"volume": "books"}),
    ("vllm-single-node", {"gpu": None}),
    ("vllm-single-node", {"gpu": None}),
    ("vllm-replicas", {"gpu": 2}),
)
_KEPT = f"""
case "${{!#}}" in {VLLM}|{GROUP}|{QDRANT}) echo "scancel: error: Access/permission denied" >&2; exit 1 ;; esac
"""


@dataclass(frozen=True)
class Halves:
    """`socket` is the orchestrator's, `port` the gateway's on loopback; `direct` and `through` are clients of them."""

    socket: Path
    port: int
    direct: httpx2.Client
    through: httpx2.Client
    processes: tuple[Child, Child]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def check(self) -> None:
        """Both processes live and answer."""
        for process in self.processes:
            process.check()
        for client in (self.direct, self.through):
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (200, "healthy"), health.text


@contextlib.contextmanager
def halves() -> Iterator[Halves]:
    """From ready to closed. Nothing of it is left."""
    with contextlib.ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="sg-", dir="/tmp")))
        slurm, port = FakeSlurm(home), free_port()
        (home / "models.yaml").write_text(json.dumps(MODELS))
        _record(home / "o")
        hub = opened.enter_context(fake_hub())
        hub.models.append(whole("tiny/whole", TINY))
        environment = _environment(home, port, hub.url)
        environment |= _rented(opened)
        orchestrator = opened.enter_context(Child("orchestrator", environment, home / "orchestrator.log"))
        gateway = opened.enter_context(Child("gateway", environment, home / "gateway.log"))
        uds = httpx2.HTTPTransport(uds=str(home / "o.sock"))
        direct = opened.enter_context(httpx2.Client(transport=uds, base_url="http://orchestrator", timeout=20))
        through = opened.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20))
        both = Halves(home / "o.sock", port, direct, through, (orchestrator, gateway))
        _until(lambda: _answers(both))
        _start_services(both, slurm, opened)
        yield both
        _explain_silence(both)


def _explain_silence(both: Halves) -> None:
    """An orchestrator that does not answer at the end is a failure, which says where each of its threads stands."""
    try:
        both.direct.get("/health")
    except httpx2.TransportError as exc:
        orchestrator, _ = both.processes
        with contextlib.suppress(ProcessLookupError):
            os.kill(orchestrator.pid, signal.SIGABRT)  # see PYTHONFAULTHANDLER
        _until(lambda: not Path(f"/proc/{orchestrator.pid}/exe").exists())
        raise AssertionError(f"the orchestrator does not answer: {orchestrator.tail(200)}") from exc


def _pull(kind: str) -> str:
    """What is known of a download that is over, as JSON."""
    about = {"id": PULLS[kind], "kind": kind, "name": "me/mine", "target": "/tmp/mine", "total": 3, "actor": "me"}
    return json.dumps(about | {"state": "done", "created_at": datetime.now(UTC).isoformat()})


def _record(home: Path) -> None:
    """A state folder as an orchestrator has left it that had answered a queued request and a batch."""
    home.mkdir(mode=0o700)
    (home / "files").mkdir(mode=0o700)
    prepare(home / "orchestrator.db")
    (home / "pulls").mkdir(mode=0o700)
    for kind, identity in PULLS.items():
        (home / "pulls" / f"{identity}.json").write_text(_pull(kind))
    now, later = datetime.now(UTC), datetime.now(UTC) + timedelta(days=1)
    task = new_task(actor="me", target="/v1/completions", model="m", body=b"{}", at=now, expires_at=later)
    task.id, task.state, task.status, task.result = JOB, TaskState.DONE, 200, b"{}"
    rows: list[SQLModel] = [task]
    for identity in (FILE, *MORE_FILES):
        (home / "files" / identity).write_bytes(b"{}\n")
        rows.append(StoredFile(id=identity, created_at=now, actor="me", filename="a", purpose="batch", size=3))
    rows.append(
        Batch(
            id=BATCH, created_at=now, actor="me", endpoint="/v1/completions", completion_window="24h", input_file=FILE,
            state=BatchState.COMPLETED, expires_at=later, ended_at=now,
        )
    )  # fmt: skip
    engine = create_engine(f"sqlite:///{home / 'orchestrator.db'}")
    with Session(engine) as session:
        session.add_all(rows)
        session.commit()
    engine.dispose()


def _environment(home: Path, port: int, hub: str) -> dict[str, str]:
    inherited = environment_of_a_child(
        ORCHESTRATOR_HOME=str(home / "o"),
        ORCHESTRATOR_SOCKET=str(home / "o.sock"),
        ORCHESTRATOR_SITE=json.dumps(SITE | {"image_dir": str(home / "images")}),
        ORCHESTRATOR_MODELS=str(home / "models.yaml"),
        ORCHESTRATOR_WAKE_HOLD_SECONDS="0.1",
        ORCHESTRATOR_POLL_SECONDS="0.2",
        ORCHESTRATOR_PROBE_SECONDS="0.2",
        GATEWAY_PORT=str(port),
        GATEWAY_LOCAL_SOCKET=str(home / "o.sock"),
        GATEWAY_MODELS_FILE=str(home / "models.json"),
    )
    return inherited | {"HOME": str(home), "PATH": PATH, "HF_ENDPOINT": hub, "NO_PROXY": "*", "PYTHONFAULTHANDLER": "1"}


def _rented(opened: contextlib.ExitStack) -> dict[str, str]:
    """A machine that is rented at a vast.ai. Its engine's own port is not mapped, so that there is no model more."""
    vast = opened.enter_context(fake_vast(starting=(("running", "running"),)))
    vast.ports = {8001: vast.own_port}
    vast.runs()
    return rented_in_the_environment(vast, CONTROL) | {"VAST_ENGINE_PORT": "8000", "VAST_WAIT_TIMEOUT_S": "2"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _until(condition: Callable[[], bool]) -> None:
    asyncio.run(until(condition, seconds=60))


def _answers(both: Halves) -> bool:
    for process in both.processes:
        process.check()
    try:
        return both.through.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


def _start_services(both: Halves, slurm: FakeSlurm, opened: contextlib.ExitStack) -> None:
    for recipe, config in STARTS:
        made = both.direct.post("/api/services", json={"recipe_name": recipe, "config": config})
        assert made.status_code == 200, made.text
    slurm.change(ENDED, state="FAILED", reason="NonZeroExitCode", exit_code="256")
    for job in (VLLM, GROUP, QDRANT):
        opened.enter_context(_node(slurm, job))
    for job in (VLLM, GROUP, QDRANT):
        _until(lambda job=job: _status(both, job) == "running")  # type: ignore[misc]
    _until(lambda: _status(both, ENDED) == "failed")
    _until(lambda: both.direct.get(f"/api/service-groups/{GROUP}/status").json()["overall_status"] == "healthy")
    slurm.behave("scancel", _KEPT)
    path = f"/api/vector-db/{QDRANT}/collections/{COLLECTION}"
    assert both.direct.put(path, json={"vector_size": 2}).status_code == 200
    points = {"points": [{"id": 1, "vector": [0.5, 0.25], "payload": {"title": "Faust"}}]}
    assert both.direct.put(f"{path}/points", json=points).status_code == 200


def _status(both: Halves, job: str) -> str:
    return str(both.direct.get(f"/api/services/{job}/status").json()["status"])


@contextlib.contextmanager
def _node(slurm: FakeSlurm, job: str) -> Iterator[None]:
    """This machine as the node on which a job runs."""
    with (slurm.home / f"{job}.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", str(slurm.state / "scripts" / job)],
            env={"PATH": os.environ["PATH"], "HOME": str(slurm.home), "SLURM_JOB_ID": job}
            | {"SLURMD_NODENAME": "localhost", "CUDA_VISIBLE_DEVICES": "0,1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        slurm.change(job, state="RUNNING", reason="None", nodelist="localhost", starttime="1795274373")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

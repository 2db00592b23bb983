"""This machine as a cluster of one node: its processors by their load, its GPUs as nvidia-smi tells them."""

import os
import subprocess
from collections import Counter
from collections.abc import Mapping

from orchestrator.schedulers import Cpus, Gpus, NodeGroup, NodeState

PARTITION = "local"
_SECONDS = 5.0  # for each question to nvidia-smi; a driver that hangs must not hold a thread
_THERE = ("nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader")
_BUSY = ("nvidia-smi", "--query-compute-apps=gpu_uuid", "--format=csv,noheader")


def machine(environment: Mapping[str, str]) -> NodeGroup:
    """Blocks for as long as nvidia-smi does. `environment` says where that is found."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return described(cores, load, _said(_THERE, environment), _said(_BUSY, environment))


def _said(command: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """What nvidia-smi has printed; nothing where there is none, or no driver."""
    try:
        done = subprocess.run(
            command, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def described(cores: int, load: float, there: str, busy: str) -> NodeGroup:
    """`load`: processes that ran or wanted to, in the mean of the last minute. A GPU is in use while a process has
    something on it."""
    used = min(cores, round(load))
    gpus = parse_gpus(there, busy)
    taken, total = (sum(g.in_use for g in gpus), sum(g.total for g in gpus)) if gpus else (used, cores)
    state = NodeState.IDLE if taken == 0 else NodeState.ALLOCATED if taken == total else NodeState.MIXED
    cpus = Cpus(total=cores, in_use=used, free=cores - used, down=0)
    return NodeGroup(PARTITION, state, number=1, nodes="localhost", cpus=cpus, gpus=gpus, default=True)


def parse_gpus(there: str, busy: str) -> tuple[Gpus, ...]:
    """Lines such as `GPU-5c2f…, NVIDIA A100-SXM4-40GB`, and of those in use the first column alone."""
    rows = [line.partition(",") for line in there.splitlines()]
    names = {identity.strip(): name.strip() for identity, comma, name in rows if comma and identity.startswith("GPU-")}
    using = {line.strip() for line in busy.splitlines()}
    total = Counter(names.values())
    taken = Counter(name for identity, name in names.items() if identity in using)
    return tuple(Gpus(name, many, taken[name]) for name, many in total.items())

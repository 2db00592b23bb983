"""`make bench-prefix`: what routing by prefix gains on two real vLLMs; the table goes into docs/performance.md.

Many questions about a few long documents, through gateway and orchestrator. The caches of both engines together hold
all documents, that of one does not: so it matters which engine a question goes to.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx2

from bench import table
from bench.processes import end_well_when_told, running
from gateway.child import end_all_in
from gateway.settings import environment_of_a_child
from tests.gateway.sshd import free_port
from tests.vllm import make

POLICIES = ("round-robin", "prefix")
BEGIN, END = "<!-- prefix: begin -->", "<!-- prefix: end -->"
_DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
_DOCUMENTS, _QUESTIONS, _CLIENTS = 12, 10, 2
_WORDS = 900  # of a document: about 1,000 tokens, and more than the 2 KiB that the policy looks at
_BLOCKS = 64  # of 128 tokens in each engine's cache: about eight documents
_START_SECONDS = 300.0
_TOKENS = re.compile(r"^vllm:prefix_cache_(hits|queries)_total(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Gain:
    """`hits`: the share of prompt tokens that the engines had in their caches. Times in milliseconds."""

    policy: str
    hits: float
    first_p50: float
    first_p90: float
    seconds: float  # for all questions


def main() -> int:
    end_well_when_told()
    vllm = json.loads(subprocess.run([sys.executable, make.__file__], stdout=subprocess.PIPE, check=True).stdout)
    with tempfile.TemporaryDirectory(prefix="sg-prefix-", dir="/tmp") as folder, gateway(Path(folder), vllm) as http:
        gains = [measured(http, policy, vllm["model"]) for policy in POLICIES]
    text = rendered(gains, table.machine())
    print(text)
    table.put_into(_DOCUMENT, text, BEGIN, END)
    return 0


@contextmanager
def gateway(folder: Path, vllm: dict[str, str]) -> Iterator[httpx2.Client]:
    """A client of a gateway with an orchestrator behind it, both of this machine."""
    home, socket, port = folder / "home", folder / "o.sock", free_port()
    command = [vllm["python"], "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    one_core = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    site = {"engines": {"vllm": {"command": command}}, "environment": one_core | {"HF_HUB_OFFLINE": "1"}}
    orchestrator = environment_of_a_child(
        ORCHESTRATOR_HOME=str(home),
        ORCHESTRATOR_SOCKET=str(socket),
        ORCHESTRATOR_SCHEDULER="local",
        ORCHESTRATOR_SITE=json.dumps(site),
    )
    kept = str(folder / "models.json")
    ours = environment_of_a_child(GATEWAY_PORT=str(port), GATEWAY_LOCAL_SOCKET=str(socket), GATEWAY_MODELS_FILE=kept)
    log, cores = folder / "log", os.sched_getaffinity(0)
    try:
        with (
            running([sys.executable, "-m", "orchestrator"], log, environment=orchestrator) as behind,
            running([sys.executable, "-m", "gateway"], log, environment=ours) as front,
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
        ):
            for process in (behind, front):
                os.sched_setaffinity(process.pid, cores)  # `running` binds to one, and engines inherit it
            _until(lambda: _ready(http), "the gateway is ready", log)
            yield http
    finally:
        end_all_in(home)


def _ready(http: httpx2.Client) -> bool:
    try:
        return http.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


def measured(http: httpx2.Client, policy: str, model: str) -> Gain:
    """Both engines are started anew, with empty caches."""
    config = {
        "model": model,
        "served_model_name": policy,
        "routing": policy,
        "max_model_len": 2048,
        "base_port": free_port(),
        "vllm_args": ["--enable-prefix-caching", "--num-gpu-blocks-override", str(_BLOCKS), "--max-num-seqs", "2"],
        "resources": {"gpu": 2, "cpu": 2, "memory": "16G", "time_limit": 60},
    }
    started = http.post("/api/v1/services", json={"recipe_name": "inference/vllm-replicas", "config": config})
    started.raise_for_status()
    service = str(started.json()["id"])

    def both_answer() -> bool:
        told = http.get(f"/api/v1/service-groups/{service}/status").json()
        return int(told["healthy_replicas"]) == 2

    _until(both_answer, f"two vLLMs of service {service} answer", None)
    before, began = _cached(http, service), time.monotonic()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        waited = sorted(clients.map(lambda asked: _first(http, policy, asked), questions(Random(7))))
    seconds, after = time.monotonic() - began, _cached(http, service)
    http.post(f"/api/v1/services/{service}/status", json={"status": "cancelled"}).raise_for_status()
    hits, queries = (after[name] - before[name] for name in ("hits", "queries"))
    return Gain(policy, hits / queries, statistics.median(waited), waited[int(len(waited) * 0.9)], seconds)


def questions(random: Random) -> list[str]:
    """Each document with each question, in an order that is the same for all policies."""
    documents = [" ".join(random.choice(_VOCABULARY) for _ in range(_WORDS)) for _ in range(_DOCUMENTS)]
    asked = [f"{document}\nQuestion {n}: what is the text about?" for document in documents for n in range(_QUESTIONS)]
    random.shuffle(asked)
    return asked


_VOCABULARY = (
    "river", "mountain", "signal", "copper", "window", "garden", "letter", "engine", "winter", "harbour", "paper",
    "forest", "morning", "bridge", "castle", "market", "silver", "island", "summer", "valley", "thunder", "candle",
    "mirror", "village", "journey", "shadow", "feather", "planet", "ocean", "desert",
)  # fmt: skip


def _first(http: httpx2.Client, model: str, text: str) -> float:
    """Milliseconds to the first token."""
    asked: dict[str, Any] = {"model": model, "stream": True, "max_tokens": 4, "temperature": 0}
    asked["messages"] = [{"role": "user", "content": text}]
    began = time.monotonic()
    first = 0.0
    with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not first and line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                first = (time.monotonic() - began) * 1000
    if not first:
        raise ValueError(f"the answer of {model} had no token")
    return first


def _cached(http: httpx2.Client, service: str) -> dict[str, float]:
    """Prompt tokens that both engines were asked for, and had, by their own metrics."""
    sums = {"hits": 0.0, "queries": 0.0}
    for replica in http.get(f"/api/v1/service-groups/{service}").json()["node_jobs"][0]["replicas"]:
        told = http.get(f"/api/v1/vllm/{replica['id']}/metrics").raise_for_status().text
        for name, number in _TOKENS.findall(told):
            sums[name] += float(number)
    return sums


def _until(condition: Callable[[], bool], what: str, log: Path | None) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {_START_SECONDS:g} s: {what}\n{log.read_text()[-3000:] if log else ''}")
        time.sleep(0.5)


def rendered(gains: Sequence[Gain], machine: dict[str, Any]) -> str:
    first, last = gains[0], gains[-1]
    return "\n".join(
        [
            f"Measured on {machine['processor']}, {machine['cores']} cores: {make.VLLM}, {make.MODEL}, {_DOCUMENTS} "
            f"documents of {_WORDS} words, each asked {_QUESTIONS} questions in a random order, {_CLIENTS} at a time; "
            f"an engine's cache holds {_BLOCKS} blocks of 128 tokens.",
            "",
            "| routing | prompt tokens found in a cache | first token p50 ms | p90 ms | all questions s |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {one.policy} | {one.hits:.0%} | {one.first_p50:.0f} | {one.first_p90:.0f} | {one.seconds:.0f} |"
                for one in gains
            ),
            f"| ratio | {last.hits / first.hits:.2f} | {last.first_p50 / first.first_p50:.2f} "
            f"| {last.first_p90 / first.first_p90:.2f} | {last.seconds / first.seconds:.2f} |",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

"""A real vLLM with a real model runs as a Slurm job and answers login."""

import json
import re
import shlex
from pathlib import Path

import pytest

from scripts.dashboards import ALL
from scripts.grafana import rendered
from tests.cluster.cluster import Cluster, wait_for
from tests.vllm.fixtures import VllmEnvironment

pytestmark = [pytest.mark.cluster, pytest.mark.vllm, pytest.mark.timeout(300)]
JOB = Path(__file__).with_name("job.sh")
KEY = "a-key-of-this-test"
QUESTION = {
    "model": "small",
    "temperature": 0,
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


def ask(cluster: Cluster, path: str, *options: str) -> str:
    """What node1's port 8001 answers to login; empty when it does not, or with an error."""
    url = f"http://node1:8001{path}"
    return cluster.run("login", ["curl", "-sf", "--noproxy", "*", *options, url], user=True, timeout=60).stdout


def test_a_job_answers(cluster: Cluster, vllm_environment: VllmEnvironment) -> None:
    environment = f"PYTHON={vllm_environment.python},MODEL={vllm_environment.model},NAME=small,PORT=8001"
    words = [
        "sbatch",
        "--parsable",
        "-w",
        "node1",
        "--mem=8G",
        "--gres=gpu:1",
        "-o",
        "vllm.out",
        "--export",
        environment,
    ]
    secret = cluster.home / "key"
    cluster.ssh("umask 077; cat >key", input=f"export VLLM_API_KEY={KEY}\n")
    assert secret.stat().st_mode & 0o777 == 0o600
    done = cluster.ssh(shlex.join(words), input=JOB.read_text())
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    try:
        running = ("RUNNING", "PENDING", "CONFIGURING")
        wait_for(lambda: "small" in models(cluster) or state(cluster, job) not in running, "vLLM answers", cluster, 240)
        assert "small" in models(cluster), (cluster.home / "vllm.out").read_text()[-3000:]
        assert ask(cluster, "/v1/models") == "", "without the key"
        headers = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
        answer = json.loads(ask(cluster, "/v1/chat/completions", *headers, "-d", json.dumps(QUESTION)))
        assert "Paris" in answer["choices"][0]["message"]["content"]
        shown = set(re.findall(r"vllm:\w+", "".join(map(rendered, ALL))))
        told = ask(cluster, "/metrics")
        assert {name for name in shown if not re.search(rf"^{name}[{{ ]", told, re.MULTILINE)} == set(), "on dashboards"
    finally:
        cluster.ssh("scancel", job)
    wait_for(lambda: state(cluster, job) == "CANCELLED", "the job is cancelled", cluster)


def models(cluster: Cluster) -> str:
    """What vLLM says it serves; empty while it does not answer."""
    return ask(cluster, "/v1/models", "-H", f"Authorization: Bearer {KEY}")


def state(cluster: Cluster, job: str) -> str:
    """A job's state in Slurm's words."""
    rows = [line.split("|") for line in cluster.squeue().splitlines()]
    return next((row[2] for row in rows if row[0] == job), "")

"""Another user of the cluster gets nowhere; a job with a key reaches the models from inside."""

import json
import stat
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for

pytestmark = pytest.mark.cluster

SMALL = {"resources": {"gpu": 2, "cpu": 1, "memory": "1G"}}
MODEL = "tests/access"

# Asks a URL, with a key from a file or none, and prints the status and the answer.
ASK = """
import json, sys, urllib.error, urllib.request
url, model, key_file = sys.argv[1:]
headers = {"Content-Type": "application/json"}
if key_file:
    headers["Authorization"] = "Bearer " + open(key_file).read().strip()
body = {"model": model, "messages": [{"role": "user", "content": "hello"}]} if model else None
request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        print(json.dumps([answer.status, json.load(answer)]))
except urllib.error.HTTPError as exc:
    print(json.dumps([exc.code, exc.read().decode()]))
"""
CONNECT = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    print("connected")
except OSError as exc:
    print(type(exc).__name__)
"""


def keys(deployment: Deployment, *words: str) -> str:
    """`sluice keys … --orchestrator` as the user on the login node; what it says on stdout."""
    program = "from gateway.cli import main; main()"
    environment = {"PYTHONPATH": str(deployment.site), "ORCHESTRATOR_HOME": str(deployment.home)}
    command = [str(deployment.python), "-c", program, "keys", *words, "--orchestrator"]
    told = deployment.cluster.run("login", command, user=True, env=environment)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


@pytest.fixture
def secret(deployment: Deployment) -> str:
    """A key for jobs, made before the orchestrator starts, as it must be."""
    deployment.environment["ORCHESTRATOR_HOST"] = "0.0.0.0"
    return keys(deployment, "create", "jobs")


@pytest.fixture
def reached(deployment: Deployment, secret: str) -> Iterator[tuple[Api, str, str]]:
    """A service that runs: the API, the orchestrator's TCP address, the engine's."""
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        made = api.start("vllm-single-node", SMALL | {"model": MODEL})
        api.until(made["id"], "running")
        # Where the orchestrator does not answer /health in time, the gateway's has nothing of it.
        wait_for(lambda: "tcp" in api.get("/health")["orchestrator"], "the orchestrator says its address")
        tcp = api.get("/health")["orchestrator"]["tcp"]
        yield api, tcp, api.show(made["id"])["endpoint"]


def ask(cluster: Cluster, host: str, user: str, url: str, model: str = MODEL, key_file: str = "") -> tuple[int, str]:
    told = cluster.run(host, ["/usr/bin/python3", "-c", ASK, url, model, key_file], user=user)
    assert told.returncode == 0, told.stderr
    status, answer = json.loads(told.stdout)
    return status, json.dumps(answer)


@pytest.mark.parametrize("host", ["login", "node1", "node2"])
def test_another_user_gets_nowhere(
    reached: tuple[Api, str, str], deployment: Deployment, secret: str, host: str
) -> None:
    cluster, (_, tcp, engine) = deployment.cluster, reached
    assert stat.S_IMODE(deployment.socket.stat().st_mode) == 0o600
    for user, result in ((cluster.other, "PermissionError"), (cluster.user, "connected")):
        if user == cluster.other or host == "login":  # a UNIX socket is its machine's own
            told = cluster.run(host, ["/usr/bin/python3", "-c", CONNECT, str(deployment.socket)], user=user)
            assert told.stdout.strip() == result, told
    # vLLM's own key guards the first of the engine's alone.
    prompts = [f"{engine}{path}" for path in ("/v1/chat/completions", "/invocations", "/tokenize", "/metrics")]
    for url in (f"{tcp}/v1/chat/completions", *prompts):
        status, answer = ask(cluster, host, cluster.other, url)
        assert (status, secret in answer) == (401, False), (url, answer)
    assert ask(cluster, host, cluster.other, f"{tcp}/api/services", "")[0] == 401
    assert ask(cluster, host, cluster.other, f"{tcp}/health", "")[0] == 200
    looked = cluster.run(host, ["cat", str(deployment.home / "keys.json")], user=cluster.other)
    assert "Permission denied" in looked.stderr


def test_a_job_with_a_key_chats_through_the_orchestrator(
    reached: tuple[Api, str, str], deployment: Deployment, secret: str
) -> None:
    """As docs/access.md has it: the key in a private file, the address from /health; until the key is revoked."""
    cluster, (_, tcp, _) = deployment.cluster, reached
    assert tcp == "http://login:8010"
    status, answer = in_a_job(deployment, secret, f"{tcp}/v1/chat/completions")
    assert status == 200, answer
    assert json.loads(answer)["choices"][0]["message"]["content"]
    keys(deployment, "revoke", "jobs")
    wait_for(lambda: refused_on(cluster, deployment, tcp), "the key is refused", 5)
    status, answer = in_a_job(deployment, secret, f"{tcp}/v1/chat/completions")
    assert (status, "'jobs' was revoked" in answer) == (401, True), answer


def refused_on(cluster: Cluster, deployment: Deployment, tcp: str) -> bool:
    return ask(cluster, "node1", cluster.user, f"{tcp}/v1/models", "", str(cluster.home / "key"))[0] == 401


def in_a_job(deployment: Deployment, secret: str, url: str) -> tuple[int, str]:
    """What a batch job of the user on node1 is answered."""
    cluster = deployment.cluster
    key_file, program, output = (cluster.home / name for name in ("key", "ask.py", "asked.txt"))
    program.write_text(ASK)
    write = ["sh", "-c", 'umask 077; printf %s "$1" > "$2"', "sh", secret, str(key_file)]
    assert cluster.run("login", write, user=True).returncode == 0
    line = f"exec /usr/bin/python3 {program} {url} {MODEL} {key_file}"
    submit = ["sbatch", "--wait", "-w", "node1", "-n1", "--mem=100M", f"--output={output}", "--wrap", line]
    done = cluster.run("login", submit, user=True, timeout=60)
    assert done.returncode == 0, (done.stderr, output.read_text() if output.exists() else "no output")
    status, answer = json.loads(output.read_text())
    return status, json.dumps(answer)

"""Secrets are planted wherever a user can have some, and looked for by another user of the same cluster."""

import json
import secrets
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cluster.cluster import Cluster
from tests.e2e.deployment import REPOSITORY, Api, Deployment, laptop_api, wait_for

pytestmark = pytest.mark.cluster

SMALL = {"gpu": 1, "cpu": 1, "memory": "1G"}
SNOOP = REPOSITORY / "tests" / "e2e" / "snoop.py"


@contextmanager
def planted(deployment: Deployment) -> Iterator[tuple[Api, dict[str, str]]]:
    """A deployment where every kind of secret is one that we know: in a file, by the site, by the user, of the gateway.

    Started within it. The engine's own key is made by the orchestrator.
    """
    words = {
        "token file": f"hf_{secrets.token_hex(17)}",
        "site": f"planted-{secrets.token_hex(16)}",
        "user": f"planted-{secrets.token_hex(16)}",
        "gateway": f"planted-{secrets.token_hex(16)}",
    }
    token = deployment.cluster.home / "token"
    token.write_text(words["token file"])
    token.chmod(0o644)  # its folder is closed, and more is not promised for files that we did not make
    deployment.config += f'\n[site.environment]\nSITE_API_KEY = "{words["site"]}"\n'
    deployment.config = deployment.config.replace("[site]\n", f'[site]\ntoken_file = "{token}"\n', 1)
    deployment.gateway_environment["GATEWAY_API_KEY"] = words["gateway"]
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        api.http.headers["X-API-Key"] = words["gateway"]
        wait_for(api.ready, "the gateway is ready")
        yield api, words


def snoop(cluster: Cluster, host: str, words: dict[str, str], folders: list[str], since: float, sock: Path) -> Any:
    """What the other user finds on a host."""
    asked = {"words": words, "folders": folders, "since": since, "socket": str(sock)}
    program = cluster.root / "snoop.py"
    program.write_bytes(SNOOP.read_bytes())
    program.chmod(0o755)
    done = subprocess.run(
        cluster.command(host, ["/usr/bin/python3", str(program)], cluster.other),
        env=cluster.environment(cluster.other), cwd="/", input=json.dumps(asked), capture_output=True, text=True,
        timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def careless(cluster: Cluster, word: str) -> Iterator[None]:
    """What a user should not do: a secret in a command line and in a file for everybody. So the search can fail."""
    file = Path("/tmp") / f"sg-careless-{cluster.id}"
    file.write_text(f"KEY={word}\n")
    file.chmod(0o644)
    process = cluster.popen("node1", ["/bin/sh", "-c", "read -r line", word], user=True, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        process.communicate()
        file.unlink()


def run_folders(deployment: Deployment) -> list[Path]:
    return sorted((deployment.home / "runs").iterdir())


def answers(api: Api, service_id: str, words: dict[str, str]) -> list[str]:
    """All that can be asked about a service, and errors whose cause holds a secret."""
    paths = (
        "services", f"services/{service_id}", f"services/{service_id}/logs", f"services/{service_id}/metrics",
        "service-groups", "recipes", "metrics", f"vllm/{service_id}/models", "orchestrator/metrics",
    )  # fmt: skip
    told = [api.http.get(f"/api/v1/{path}") for path in paths] + [api.http.get(path) for path in ("/health", "/ready")]
    user = words["user"]
    wrong: list[dict[str, Any]] = [
        {"environment": {"USER_TOKEN": f"{user}\n"}},
        {"environment": {"USER_TOKEN": [user]}},
        {"environment": f"USER_TOKEN={user}"},
        {"environment": {f"USER_TOKEN={user}": "x"}},
        {"environment": {"USER_TOKEN": user}, "resources": {"gpu": 64}},
        {"environment": {"USER_TOKEN": user}, "gpu": -1},
    ]
    for config in wrong:
        told.append(api.http.post("/api/v1/services", json={"recipe_name": "vllm-single-node", "config": config}))
        assert told[-1].status_code in (422, 502), told[-1].text
    told.append(api.http.post("/api/v1/services", json={"recipe_name": "vllm", "USER_TOKEN": user}))
    told.append(api.http.get("/api/v1/services", params={"api_key": words["user"]}))
    told.append(api.http.get("/v1/models", headers={"X-API-Key": f"{words['gateway']}x"}))
    assert [answer.status_code for answer in told[-3:]] == [422, 422, 401]
    return [f"{answer.headers} {answer.text}" for answer in told]


def test_no_secret_is_found_by_another_user_or_in_what_is_shown(deployment: Deployment) -> None:
    since, cluster = time.time() - 1, deployment.cluster
    with planted(deployment) as (api, words):
        config = {"resources": SMALL, "environment": {"USER_TOKEN": words["user"]}}
        made = api.start("vllm-single-node", config, **{"Idempotency-Key": "once"})
        assert made["config"]["environment"] == {"USER_TOKEN": "***"}
        service_id = made["id"]
        api.until(service_id, "running")
        (folder,) = run_folders(deployment)
        job = environment_of_the_job(folder)
        assert (job["USER_TOKEN"], job["HF_TOKEN"]) == (words["user"], words["token file"])
        assert job["SITE_API_KEY"] == words["site"]
        words["engine"] = job["VLLM_API_KEY"]
        told = answers(api, service_id, words)
        assert [label for label, word in words.items() if any(word in text for text in told)] == []
        assert api.start("vllm-single-node", config, **{"Idempotency-Key": "once"})["id"] == service_id
        other = api.http.post(
            "/api/v1/services", headers={"Idempotency-Key": "once"},
            json={"recipe_name": "vllm-single-node", "config": config | {"environment": {"USER_TOKEN": "another"}}},
        )  # fmt: skip
        assert (other.status_code, "was used for another request" in other.json()["detail"]) == (422, True)
        by_others(deployment, api.show(service_id), words, since)
        by_the_owner(deployment, words)
        assert cluster.squeue()


def environment_of_the_job(folder: Path) -> dict[str, str]:
    """What the engine of a run folder has; root may read it."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder and b"fake_engine" in (process / "cmdline").read_bytes():
                pairs = (process / "environ").read_bytes().split(b"\0")
                return dict(pair.decode().partition("=")[::2] for pair in pairs)
        except OSError:
            continue
    raise AssertionError(f"no engine works in {folder}")


def by_others(deployment: Deployment, shown: dict[str, Any], words: dict[str, str], since: float) -> None:
    """Nothing on the login node nor on the service's own node; what a careless user shows is found there."""
    cluster = deployment.cluster
    folders = ["/tmp", "/var", "/run", "/dev/shm", str(cluster.root), str(cluster.home), str(deployment.home)]
    decoy = f"decoy-{secrets.token_hex(16)}"
    (node,) = shown["nodes"]
    with careless(cluster, decoy):
        for host in ("login", node):
            report = snoop(cluster, host, words | {"decoy": decoy}, folders, since, deployment.socket)
            assert [place for label, place in report["found"] if label != "decoy"] == []
            places = [place for _, place in report["found"]]
            assert f"/tmp/sg-careless-{cluster.id}" in places
            assert any(place.endswith("/cmdline") for place in places)
            assert {"ps axwwe -o user,pid,args"} <= set(places)
            assert report["looked"]["scontrol"] == 2 and report["looked"]["squeue"] == 1
            assert report["refused"] == ["connect", "list"]
        for path in ("/v1/models", "/invocations", "/tokenize", "/metrics", "/version", "/nothing"):
            assert engine_status(cluster, node, shown["endpoint"] + path) == "401", path
        assert engine_status(cluster, node, shown["endpoint"] + "/health") == "200"


def engine_status(cluster: Cluster, host: str, url: str) -> str:
    """What the engine answers somebody without its key."""
    code = (
        "import sys, urllib.request as u, urllib.error as e\n"
        "try:\n    print(u.urlopen(sys.argv[1]).status)\nexcept e.HTTPError as exc:\n    print(exc.code)\n"
    )
    done = cluster.run(host, ["/usr/bin/python3", "-c", code, url], user=cluster.other, check=True)
    return done.stdout.strip()


def by_the_owner(deployment: Deployment, words: dict[str, str]) -> None:
    """All files of the state folder are the owner's alone, and the secrets are in one of them."""
    modes: dict[str, str] = {}
    paths = (deployment.home, *deployment.home.rglob("*"))
    for path in paths:
        try:
            about = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(about.st_mode) and path.name != "secrets.env" else b""
        except FileNotFoundError:
            continue  # the orchestrator runs, and renames what it has written
        wanted = 0o700 if stat.S_ISDIR(about.st_mode) else 0o600
        if stat.S_IMODE(about.st_mode) != wanted:
            modes[str(path)] = oct(about.st_mode)
        assert [label for label, word in words.items() if word.encode() in content] == [], path
    assert modes == {}
    assert deployment.home / "orchestrator.db" in paths
    with sqlite3.connect(f"file:{deployment.home}/orchestrator.db?mode=ro", uri=True) as database:
        details = [row[0] for row in database.execute("SELECT detail FROM event")]
    database.close()
    assert any('"USER_TOKEN": "***"' in detail for detail in details)
    lines = [json.loads(line) for line in (deployment.home / "orchestrator.log").read_text().splitlines()]
    assert any(line["logger"] == "orchestrator.journal" and line.get("request") for line in lines)
    for log in (deployment.log, deployment.cluster.root / "gateway.log"):
        text = log.read_text()
        assert [label for label, word in words.items() if word in text] == []


def test_a_request_has_one_id_in_both_journals(api: Api, deployment: Deployment) -> None:
    refused = api.http.post(
        "/api/v1/services", json={"recipe_name": "nothing"}, headers={"X-Request-Id": "find-me-again"}
    )
    assert refused.status_code == httpx2.codes.NOT_FOUND
    for log in (deployment.home / "orchestrator.log", deployment.cluster.root / "gateway.log"):
        wait_for(lambda log=log: "find-me-again" in log.read_text(), f"{log} has the request")  # type: ignore[misc]

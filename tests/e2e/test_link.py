"""The link on real parts: a site that forbids forwarding, a host to jump over, a network that goes away."""

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cluster.cluster import PATH, Cluster, login_listens
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for

pytestmark = pytest.mark.cluster

ONE = {"resources": {"gpu": 1, "cpu": 1, "memory": "1G"}}
SECOND_PORT = 2222
WORDS = " ".join(f"word{n}" for n in range(40))


@pytest.fixture(params=["asyncssh", "openssh"])
def through(request: pytest.FixtureRequest, deployment: Deployment) -> Deployment:
    """With each of the two who speak SSH."""
    deployment.gateway_environment["GATEWAY_TRANSPORT"] = str(request.param)
    return deployment


@contextmanager
def another_sshd(cluster: Cluster, *first: str) -> Iterator[None]:
    """A second sshd on login, at another port, with lines that come before those of the first one."""
    text = (cluster.root / "etc" / "sshd_config").read_text().replace("Port 22\n", f"Port {SECOND_PORT}\n")
    config = cluster.root / "etc" / "second_sshd_config"
    config.write_text("\n".join(first) + "\n" + text)
    program = shutil.which("sshd", path=PATH) or "sshd"
    with cluster.log("second-sshd").open("ab") as log:
        process = cluster.popen("login", [program, "-D", "-e", "-f", str(config)], stderr=log.fileno())
    try:
        address = cluster.hosts["login"]
        wait_for(lambda: login_listens(cluster, address, SECOND_PORT), "the second sshd listens")
        yield
    finally:
        process.terminate()
        process.wait(10)


def configured(cluster: Cluster, name: str, *, port: int = 22, more: str = "", before: str = "") -> Path:
    """An ssh_config of its own: the cluster's, with another port and further lines."""
    known = (cluster.root / "laptop" / "known_hosts").read_text()
    address, key = known.split(" ", 1)
    files = cluster.root / "laptop" / f"{name}_known_hosts", cluster.root / "laptop" / f"{name}_config"
    files[0].write_text(f"{known}[{address}]:{port} {key}")
    text = cluster.ssh_config.read_text().replace("Port 22\n", f"Port {port}\n")
    files[1].write_text(before + text.replace(f"{cluster.root}/laptop/known_hosts", str(files[0])) + more)
    return files[1]


def streamed(api: Api, prompt: str, model: str) -> Iterator[str]:
    """The text of a streamed answer, as it comes; fails when it does not end as it should."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": 100}
    with api.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        last = ""
        for line in filter(None, answer.iter_lines()):
            last = line
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                yield event["choices"][0]["delta"].get("content") or ""
        assert last == "data: [DONE]"


def tunnel(api: Api) -> dict[str, Any]:
    told: dict[str, Any] = api.get("/health")["tunnel"]
    return told


def running(api: Api) -> tuple[str, str]:
    """A service that answers, and its model."""
    service = str(api.start("inference/vllm-single-node", ONE)["id"])
    api.until(service, "running")
    return service, str(api.get("/v1/models")["data"][0]["id"])


def test_the_main_job_where_forwarding_is_forbidden(through: Deployment) -> None:
    """`sluice` is on no PATH there, and the login shell greets with more than one line."""
    cluster = through.cluster
    noise = cluster.home / ".bashrc"
    noise.write_text('echo "Welcome."; seq 500; echo "Quota: 93 %" >&2\n')
    config = configured(cluster, "strict", port=SECOND_PORT)
    through.gateway_environment["GATEWAY_SSH_CONFIG"] = str(config)
    through.start_orchestrator()
    try:
        with another_sshd(cluster, "DisableForwarding yes"):
            through.start_gateway()
            with laptop_api() as api:
                wait_for(api.ready, "the gateway is ready")
                assert tunnel(api)["via"] == "bridge"
                service, model = running(api)
                assert api.prompt(service, "say seventeen")["text"]
                arrived = [time.monotonic() for text in streamed(api, f"delay 0.05 {WORDS}", model) if text]
                assert arrived[-1] - arrived[0] > 0.5, "tokens come as they are made"
            through.stop_gateway()
            wait_for(lambda: not _bridges(cluster), "no bridge is left on the login node")
    finally:
        noise.unlink()


def _bridges(cluster: Cluster) -> list[str]:
    shown = cluster.run("login", ["pgrep", "-u", cluster.user, "-af", "base64.b64decode"]).stdout
    return [line for line in shown.splitlines() if "pgrep" not in line]


def test_over_a_host_to_jump_over(through: Deployment) -> None:
    """The first sshd is the host on the way, the second one the login node's."""
    cluster = through.cluster
    jump = configured(cluster, "jump").read_text().replace(f"Host {cluster.alias}\n", "Host way\n")
    config = configured(cluster, "jumping", port=SECOND_PORT, more="    ProxyJump way\n", before=jump)
    through.gateway_environment["GATEWAY_SSH_CONFIG"] = str(config)
    through.start_orchestrator()
    with another_sshd(cluster):
        through.start_gateway()
        with laptop_api() as api:
            wait_for(api.ready, "the gateway is ready")
            assert tunnel(api)["via"] == "unix-socket"
            service, _ = running(api)
            assert api.prompt(service, "say seventeen")["text"]
        through.stop_gateway()


def test_a_network_that_goes_away(through: Deployment) -> None:
    """The dead link is seen within its bound, a request that was not sent waits, one that was sent ends and is not
    repeated, and nothing needs a hand."""
    through.gateway_environment |= {"GATEWAY_KEEPALIVE_SECONDS": "1", "GATEWAY_KEEPALIVE_COUNT": "2"}
    through.start_orchestrator()
    through.start_gateway()
    cluster = through.cluster
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        service, model = running(api)
        tokens = streamed(api, f"delay 0.3 {WORDS}", model)
        assert next(tokens) is not None
        waiting = Later(api, service)
        with no_network(cluster):
            cut = time.monotonic()
            wait_for(lambda: tunnel(api)["state"] != "up", "the dead link is seen", 8)
            assert time.monotonic() - cut < 8
            with pytest.raises((httpx2.TransportError, AssertionError)):
                list(tokens)
            waiting.start()
            wait_for(lambda: "tunnel" in api.http.get("/health").json(), "the health is told at once", 2)
            assert waiting.answer is None
        assert waiting.wait().status_code == 200
        wait_for(api.ready, "it is up again")
        assert api.status(service) == "running"


def test_a_killed_session_is_replaced_under_requests(through: Deployment) -> None:
    """Nothing that has not been sent fails: the session dies again and again while clients ask one after the other."""
    through.start_orchestrator()
    through.start_gateway()
    cluster = through.cluster
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        for _ in range(3):
            before = _reconnects(api)
            _kill_sessions(cluster)
            assert api.http.get("/api/v1/services").status_code == 200
            assert _reconnects(api) > before
        assert tunnel(api)["state"] == "up"


def _reconnects(api: Api) -> float:
    """How often the gateway has opened the tunnel again."""
    (told,) = re.findall(r"(?m)^sluice_gateway_tunnel_reconnects_total (\S+)$", api.http.get("/metrics").text)
    return float(told)


def _kill_sessions(cluster: Cluster) -> None:
    assert cluster.run("login", ["pkill", "-KILL", "-u", cluster.user, "-x", "sshd"]).returncode == 0


@contextmanager
def no_network(cluster: Cluster) -> Iterator[None]:
    """What login sends to the laptop is lost, without a word."""
    route = ["blackhole", f"{cluster.hosts['laptop']}/32"]
    cluster.run("login", ["ip", "route", "add", *route], check=True)
    try:
        yield
    finally:
        cluster.run("login", ["ip", "route", "del", *route], check=True)


class Later:
    """A prompt in a thread of its own, which is on the laptop's network as the one that makes it."""

    def __init__(self, api: Api, service: str) -> None:
        self.answer: httpx2.Response | None = None
        self._thread = threading.Thread(target=self._ask, args=(api, service), daemon=True)

    def _ask(self, api: Api, service: str) -> None:
        self.answer = api.http.post(f"/api/v1/vllm/{service}/prompt", json={"prompt": "say seventeen"})

    def start(self) -> None:
        self._thread.start()

    def wait(self) -> httpx2.Response:
        self._thread.join(60)
        assert self.answer is not None
        return self.answer

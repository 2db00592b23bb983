"""The link between laptop and login node breaks: it comes back by itself, or says why it must not."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.conftest import Figures
from tests.chaos.traffic import Outcome, Traffic, getting, holds, prompting, streaming, traffic
from tests.cluster.cluster import Cluster, call, end, ip, login_listens, network_of, read_pid, residents, start
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for
from tests.e2e.test_lifecycle import small

pytestmark = pytest.mark.chaos

# Longer than the 45 s within which a dead link is detected.
LINK_SECONDS = max(float(os.environ.get("CHAOS_LINK_SECONDS") or 60), 50)
LONG = "delay 0.5 " + " ".join(f"word{n}" for n in range(12))


@pytest.fixture
def service(deployment: Deployment) -> Iterator[tuple[Api, str]]:
    """A running service, behind a gateway with the link's settings as `deployment` has them."""
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        service_id = str(api.start("vllm-single-node", small())["id"])
        api.until(service_id, "running")
        yield api, service_id


def sessions(cluster: Cluster) -> list[int]:
    """sshd's processes for the connections that are open."""
    login = cluster.netns("login").stat().st_ino
    listener = read_pid(cluster, "sshd")
    found = [pid for pid, inode in residents(cluster) if inode == login and pid != listener]
    return [pid for pid in found if _name(pid).startswith("sshd")]


def _name(pid: int) -> str:
    """A process's name, "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def send(number: signal.Signals, pids: Sequence[int]) -> None:
    """To those that are there: a session's processes end with one another."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def unanswered(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that have neither their answer nor a refusal that says when to come back."""
    return [o for o in outcomes if o.word != "ok" and not (o.status == 503 and o.retry_after)]


def good_again(api: Api, ran: Traffic) -> float:
    """Seconds until the gateway is ready and a request of now has been answered."""
    now = time.monotonic()
    return wait_for(lambda: api.ready() and ran.ok_since(now) > 0, "the gateway serves again", 30)


@pytest.mark.timeout(120)
def test_the_sshd_session_is_killed(service: tuple[Api, str], deployment: Deployment, figures: Figures) -> None:
    api, service_id = service
    looks = getting(f"/api/v1/services/{service_id}/status")
    with (
        traffic(looks) as looked,
        traffic(prompting(service_id)) as prompted,
        traffic(streaming(service_id, LONG)) as streamed,
    ):
        prompted.more(50)
        killed = sessions(deployment.cluster)
        assert killed, "there is no session to kill"
        send(signal.SIGKILL, killed)
        wait_for(lambda: streamed.failed() != [], "the streams have ended")
        recovered = good_again(api, looked)
        wait_for(lambda: streamed.outcomes[-1].word == "ok", "a stream is complete again")
    requests = looked.outcomes + prompted.outcomes
    figures.add(
        "sshd: session killed",
        requests=len(requests),
        answers_lost=len(unanswered(requests)),
        told_to_come_back=sum(o.status == 503 for o in requests),
        streams=streamed.words(),
        recovered_s=recovered,
    )
    assert unanswered(looked.outcomes) == [], "what may be repeated is"
    assert len(unanswered(prompted.outcomes)) <= 2, "more than were under way"
    assert "truncated" not in streamed.words()
    assert recovered < 5


@pytest.mark.timeout(120)
def test_the_sshd_session_hangs(deployment: Deployment, figures: Figures, request: pytest.FixtureRequest) -> None:
    """A link that is dead and does not say so."""
    deployment.gateway_environment |= {"GATEWAY_KEEPALIVE_SECONDS": "2", "GATEWAY_KEEPALIVE_COUNT": "2"}
    api, service_id = request.getfixturevalue("service")
    with (
        traffic(getting(f"/api/v1/services/{service_id}/status")) as looked,
        traffic(streaming(service_id, LONG)) as streamed,
    ):
        looked.more(50)
        stopped = sessions(deployment.cluster)
        assert stopped, "there is no session to stop"
        send(signal.SIGSTOP, stopped)
        try:
            wait_for(lambda: streamed.failed() != [], "the streams have ended")
            recovered = good_again(api, looked)
        finally:
            send(signal.SIGKILL, stopped)
    figures.add(
        "sshd: session SIGSTOPped, keep-alive 2 x 2 s",
        requests=len(looked.outcomes),
        failed=len(looked.failed()),
        longest_s=looked.worst(),
        streams=streamed.words(),
        recovered_s=recovered,
    )
    assert unanswered(looked.outcomes) == []
    assert looked.worst() < 15
    assert "truncated" not in streamed.words()


@pytest.mark.timeout(120)
def test_sshd_comes_back_with_another_host_key(
    service: tuple[Api, str], deployment: Deployment, figures: Figures
) -> None:
    api, service_id = service
    cluster, key = deployment.cluster, deployment.cluster.root / "secret" / "host_key"
    old = {path: path.read_bytes() for path in (key, key.with_suffix(".pub"))}
    for path in old:
        path.unlink()
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "another", "-f", str(key))
    try:
        restart_sshd(cluster)
        noticed = wait_for(lambda: _tunnel(api) == "host_key_changed", "the state is host_key_changed")
        attempts = _connections(cluster)
        holds(lambda: _connections(cluster) == attempts, "nothing tries to connect again", 10)
        answer = api.http.get(f"/api/v1/services/{service_id}")
    finally:
        for path, content in old.items():
            path.write_bytes(content)
        restart_sshd(cluster)
    figures.add("sshd: another host key", noticed_s=noticed, attempts=attempts, attempts_in_the_next_10_s=0)
    assert attempts == 1, "one look at the key is enough"
    assert answer.status_code == 503
    assert "known_hosts" in answer.json()["detail"]


def restart_sshd(cluster: Cluster) -> None:
    """With an empty log."""
    argv = Path(f"/proc/{read_pid(cluster, 'sshd')}/cmdline").read_text()
    open_ones = sessions(cluster)
    end(read_pid(cluster, "sshd"), signal.SIGTERM)
    for pid in open_ones:
        if network_of(pid):
            os.kill(pid, signal.SIGKILL)
    cluster.log("sshd").write_text("")
    root = cluster.root
    assert f"{root}/etc/sshd_config" in argv
    start(cluster, "sshd", "login", ["/usr/sbin/sshd", "-D", "-e", "-f", f"{root}/etc/sshd_config"])
    wait_for(lambda: login_listens(cluster, cluster.hosts["login"], 22), "sshd listens")


def _connections(cluster: Cluster) -> int:
    """How often the laptop has connected, by sshd's log."""
    return cluster.log("sshd").read_text(errors="replace").count(f"Connection from {cluster.hosts['laptop']} ")


def _tunnel(api: Api) -> str:
    return str(api.get("/health")["tunnel"]["state"])


@pytest.mark.timeout(120 + LINK_SECONDS)
def test_the_laptops_link_is_down_under_streams(
    deployment: Deployment, figures: Figures, request: pytest.FixtureRequest
) -> None:
    """For longer than it takes to notice: four times the interval of the keep-alives."""
    deployment.gateway_environment |= {"GATEWAY_KEEPALIVE_SECONDS": "10"}
    api, service_id = request.getfixturevalue("service")
    link = f"sg{deployment.cluster.id}-out"
    with (
        traffic(getting(f"/api/v1/services/{service_id}/status")) as looked,
        traffic(streaming(service_id, LONG), clients=8) as streamed,
    ):
        wait_for(lambda: len(streamed.outcomes) >= 8, "streams run")
        ip("laptop", [f"link set {link} down"], deployment.cluster)
        try:
            cut = wait_for(lambda: len(streamed.failed()) >= 8, "all streams have ended", LINK_SECONDS)
            holds(lambda: not api.ready(), "the gateway says that it is not ready", LINK_SECONDS - cut)
        finally:
            ip("laptop", [f"link set {link} up"], deployment.cluster)
        recovered = good_again(api, looked)
        wait_for(lambda: streamed.outcomes[-1].word == "ok", "a stream is complete again")
    figures.add(
        f"laptop's link: down for {LINK_SECONDS:g} s",
        streams=streamed.words(),
        cut_after_s=cut,
        requests=len(looked.outcomes),
        failed=len(unanswered(looked.outcomes)),
        longest_s=looked.worst(),
        recovered_s=recovered,
    )
    assert "truncated" not in streamed.words()
    assert unanswered(looked.outcomes) == []
    assert looked.worst() < 50, "what it took to notice counts as waiting"
    assert recovered < 10

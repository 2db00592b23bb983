"""The state folder's disk is full: users are told so in a sentence, nothing is lost, and space is all it needs."""

import errno
import pwd
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.conftest import Figures
from tests.chaos.test_crash import BODY, accepted
from tests.chaos.test_link import restart_sshd
from tests.chaos.traffic import prompting, traffic
from tests.cluster.cluster import NODES, Cluster, call, end, node_states, read_pid, start
from tests.e2e.conftest import torn_down
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for

pytestmark = pytest.mark.chaos

SIZE = "2m"


@pytest.fixture
def confined(laptop: Cluster, installed: tuple[Path, Path]) -> Iterator[Deployment]:
    """A deployment whose home is a small file system of its own, for login and nodes."""
    one = Deployment.of(laptop, installed)
    with _file_system(laptop, one.home), torn_down(one):
        yield one


@contextmanager
def _file_system(cluster: Cluster, path: Path) -> Iterator[None]:
    user = pwd.getpwnam(cluster.user)
    path.mkdir()
    options = f"size={SIZE},mode=0700,uid={user.pw_uid},gid={user.pw_gid}"
    call("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path))
    try:
        _restart_daemons(cluster)
        yield
    finally:
        call("umount", "--lazy", str(path))
        _restart_daemons(cluster)
        path.rmdir()


def _restart_daemons(cluster: Cluster) -> None:
    """Each command on a host sees what was mounted when it began."""
    restart_sshd(cluster)
    for node in NODES:
        end(read_pid(cluster, f"slurmd-{node}"), signal.SIGTERM)
        start(cluster, f"slurmd-{node}", node, ["slurmd", "-D", "-N", node, "-f", str(cluster.slurm_conf)])
    wait_for(lambda: node_states(cluster) == ["idle"] * len(NODES), "both nodes are idle")


def _fill(path: Path) -> None:
    """Write until there is no space."""
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError as exc:
                assert exc.errno == errno.ENOSPC
                return


def _integrity(deployment: Deployment) -> str:
    database = sqlite3.connect(deployment.home / "orchestrator.db")
    try:
        return str(database.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        database.close()


def _start(api: Api, key: str) -> tuple[int, str]:
    answer = api.http.post("/api/v1/services", json=BODY, headers={"Idempotency-Key": key})
    return answer.status_code, answer.text


@pytest.mark.timeout(150)
def test_the_disk_of_the_state_folder_is_full(confined: Deployment, figures: Figures) -> None:
    confined.start_orchestrator()
    confined.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        kept, ending = (str(api.start("vllm-single-node", BODY["config"])["id"]) for _ in range(2))
        for service_id in (kept, ending):
            api.until(service_id, "running")
        before, filler = accepted(confined), confined.home / "filler"
        with traffic(prompting(kept)) as prompted:
            _fill(filler)
            answers = [_start(api, f"key-{n}") for n in range(10)]
            cancelled = api.http.post(f"/api/v1/services/{ending}/status", json={"status": "cancelled"})
            listed = api.http.get("/api/v1/services")
            prompted.more(50)
        folders = len(list((confined.home / "runs").iterdir()))
        jobs, intact = accepted(confined) - before, [_integrity(confined)]
        _crash(confined, api)
        api.until(kept, "running")
        assert api.prompt(kept, "still there")["success"] is True, "it serves on a full disk"
        filler.unlink()
        recovered = wait_for(lambda: _start(api, "key-0")[0] == 200, "a service can be started again")
        api.until(_id(api, "key-0"), "running")
        # Its script found no space for the exit file either, and Slurm may have purged it: then it is lost.
        api.cancel(ending)
        wait_for(lambda: api.status(ending) in ("cancelled", "lost"), "the cancelled one has ended")
        wait_for(lambda: api.http.get("/ready").status_code == 200, "it is ready")
        intact.append(_integrity(confined))
    figures.add(
        "disk: state folder full",
        starts=len(answers),
        in_a_sentence=sum(status == 507 for status, _ in answers),
        jobs_without_a_record=jobs,
        prompts=len(prompted.outcomes),
        failed=len(prompted.failed()),
        integrity=" ".join(intact),
        recovered_s=recovered,
    )
    assert {status for status, _ in answers} == {507}, answers
    assert all("the state folder is full" in text and "quota" in text for _, text in answers)
    assert jobs == 0, "Slurm was given what could not be recorded"
    assert folders == 2, "a refused request leaves its folder"
    assert cancelled.status_code in (200, 507), cancelled.text
    assert listed.status_code == 200
    assert prompted.failed() == []
    assert intact == ["ok", "ok"]


def _crash(deployment: Deployment, api: Api) -> None:
    deployment.stop_orchestrator(signal.SIGKILL)
    deployment.start_orchestrator()
    wait_for(lambda: api.http.get("/api/v1/services").status_code == 200, "it answers again")


def _id(api: Api, key: str) -> str:
    answer = api.http.post("/api/v1/services", json=BODY, headers={"Idempotency-Key": key})
    return str(answer.json()["id"])

"""The test cluster is what it says it is."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.cluster import (
    Cluster,
    ClusterError,
    describe,
    down,
    laptop_namespace,
    residents,
    stale_runs,
    up,
    wait_for,
)

pytestmark = pytest.mark.cluster
BATCH = "sbatch --parsable --mem=100 --gres=gpu:2"


def submit(cluster: Cluster, name: str, command: str, options: str = "") -> str:
    """Submit a job from the laptop; its output goes to NAME.out in the user's home. The job's id."""
    done = cluster.ssh(f"{BATCH} -J {name} -o {name}.out {options} --wrap '{command}'")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def output(cluster: Cluster, name: str, lines: int) -> list[str]:
    """What a job has written, once it is so many lines."""
    path = cluster.home / f"{name}.out"
    wait_for(lambda: path.exists() and path.read_text().count("\n") >= lines, f"{path} has {lines} lines", cluster)
    return path.read_text().split()


def left(cluster: Cluster) -> list[str]:
    """What is still there of a run."""
    found = [f"process {pid}" for pid, _ in residents(cluster)]
    found += [f"user {entry.pw_name}" for entry in pwd.getpwall() if entry.pw_name in (cluster.user, cluster.other)]
    found += [f"namespace {path}" for path in Path("/run/netns").glob(f"sg-{cluster.id}-*")]
    found += [f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if cluster.id in line]
    found += [f"file {path}" for folder in ("/tmp", "/dev/shm") for path in Path(folder).glob(f"{cluster.user}*")]
    return found + ([f"folder {cluster.root}"] if cluster.root.exists() else [])


def test_both_nodes_are_idle_and_have_gpus(cluster: Cluster) -> None:
    done = cluster.run("login", ["sinfo", "-h", "-N", "-o", "%N %T %G"], user=True, check=True)
    assert done.stdout.split() == ["node1", "idle", "gpu:4", "node2", "idle", "gpu:4"]


def test_jobs_on_one_node_get_gpus_of_their_own(laptop: Cluster) -> None:
    command = "hostname; id -un; echo $CUDA_VISIBLE_DEVICES; sleep 60"
    jobs = [submit(laptop, name, command, "-w node1") for name in ("first", "second")]
    assert output(laptop, "first", 3) == ["node1", laptop.user, "0,1"]
    assert output(laptop, "second", 3) == ["node1", laptop.user, "2,3"]
    assert laptop.ssh(f"scancel {' '.join(jobs)}").returncode == 0
    wait_for(lambda: laptop.squeue().count("CANCELLED") == 2, "both jobs are cancelled", laptop)


def test_the_laptop_reaches_login_only(laptop: Cluster) -> None:
    with socket.create_connection((laptop.hosts["login"], 22), timeout=5) as login:
        assert login.recv(4) == b"SSH-"
    for address in (laptop.hosts["node1"], laptop.hosts["node2"], "192.0.2.1"):
        with pytest.raises(OSError, match="unreachable"):
            socket.create_connection((address, 22), timeout=5)


def test_login_reaches_the_nodes_by_name(cluster: Cluster) -> None:
    serve = ["/usr/bin/python3", "-m", "http.server", "8001"]
    server = cluster.popen("node2", serve, user=True, stderr=subprocess.DEVNULL)
    try:
        curl = ["curl", "-sf", "--noproxy", "*", "http://node2:8001/"]
        wait_for(lambda: cluster.run("login", curl, user=True).returncode == 0, "node2 answers login", cluster)
        assert cluster.run("laptop", curl).returncode != 0
        assert cluster.run("node1", ["curl", "-sf", "--noproxy", "*", "http://localhost:8001/"]).returncode != 0
    finally:
        server.terminate()
        server.wait(10)


def test_only_the_user_may_log_in_and_look(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_TEST_SECRET", "1")
    done = cluster.run("laptop", ["ssh", "-F", str(cluster.ssh_config), "-l", cluster.other, cluster.alias, "true"])
    assert done.returncode == 255 and "Permission denied" in done.stderr
    assert cluster.run("login", ["ls", str(cluster.home)], user=cluster.other).returncode != 0
    assert cluster.run("login", ["ls", str(cluster.ssh_config.parent)], user=True).returncode != 0
    assert "SLUICE_TEST_SECRET" not in cluster.run("login", ["env"], user=True).stdout


def test_a_job_outlives_the_controller(cluster: Cluster) -> None:
    job = submit(cluster, "long", "echo up; sleep 120")
    output(cluster, "long", 1)
    for crash in (False, True):
        cluster.stop_controller(crash=crash)
        with pytest.raises(ClusterError, match="does not run"):
            cluster.stop_controller()
        cluster.start_controller()
        assert f"{job}|long|RUNNING" in cluster.squeue()
    assert cluster.ssh("scancel", job).returncode == 0


def test_a_command_that_hangs_is_ended(cluster: Cluster) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.run("node2", ["sleep", "321"], timeout=0.5)
    assert all("321" not in Path(f"/proc/{pid}/cmdline").read_text() for pid in cluster.pids())


def test_two_at_once_and_nothing_is_left(cluster: Cluster) -> None:
    second = up(min_job_age=2)
    try:
        assert second.root != cluster.root and second.user != cluster.user
        first_job = submit(cluster, "mine", "hostname; sleep 30")
        submit(second, "yours", "hostname; sleep 30")
        assert "yours" not in cluster.squeue() and "mine" not in second.squeue()
        output(second, "yours", 1)
        scatter = f"mkdir /tmp/{second.user} && touch /tmp/{second.user}/file /dev/shm/{second.user}"
        assert second.ssh(scatter).returncode == 0
        with laptop_namespace(second), pytest.raises(OSError, match="unreachable"):
            socket.create_connection((cluster.hosts["login"], 22), timeout=5)
    finally:
        down(second)
    assert left(second) == []
    down(second)
    assert first_job in cluster.squeue()
    assert cluster.ssh("scancel", first_job).returncode == 0


def test_what_a_killed_run_left_is_removed(cluster: Cluster) -> None:
    """A process brings a cluster up and is killed; that one is stale then, the cluster of this test run is not."""
    code = "import sys; from tests.cluster.cluster import up; print(up().id, flush=True); sys.stdin.read()"
    root = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, cwd=root, text=True) as owner:
        assert owner.stdout is not None
        orphan = describe(owner.stdout.readline().strip())
        assert orphan not in stale_runs()
        os.kill(owner.pid, signal.SIGKILL)
    assert orphan in stale_runs() and cluster not in stale_runs()
    clean = [sys.executable, "tests/cluster/cluster.py", "down", "--all-stale"]
    subprocess.run(clean, cwd=root, check=True, timeout=60)
    assert left(orphan) == [] and left(cluster) != []


def test_as_a_program(tmp_path: Path, cluster: Cluster) -> None:
    """`up` stays up after its end, belongs to nobody, and `run` and `down` need its id only."""
    program = [sys.executable, str(Path(__file__).with_name("cluster.py"))]
    one = describe(f"p{os.getpid() % 100000}")
    try:
        subprocess.run([*program, "up", "--id", one.id], check=True, capture_output=True, timeout=60, cwd=tmp_path)
        run = [*program, "run", "--id", one.id, "node1", "--user", "--", "sh", "-c", "hostname; id -un; exit 7"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60)
        assert (done.stdout.split(), done.returncode) == (["node1", one.user], 7)
        assert one not in stale_runs()
    finally:
        subprocess.run([*program, "down", "--id", one.id], check=True, timeout=60)
    assert left(one) == []


def test_starting_is_quick() -> None:
    began = time.monotonic()
    one = up()
    took = time.monotonic() - began
    down(one)
    assert took < 15, "seconds until both nodes are idle; 0.5 on an idle machine"


@pytest.mark.parametrize("name", ["", "x", "axx", "UP", "a/b", "..", "123456789", "a b"])
def test_an_id_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ClusterError):
        describe(name)

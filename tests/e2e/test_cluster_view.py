"""The cluster as its real Slurm tells it: nodes, GPUs, the queue of everybody, and places in it."""

import pytest

from orchestrator.cluster import GpuCount, all_gpus, partitions, turns
from orchestrator.schedulers import Cpus, NodeState, Queue
from orchestrator.schedulers.sinfo import SINFO, parse_sinfo
from orchestrator.schedulers.squeue import SCONTROL, hides_jobs, new_mark, parse_queue, squeue
from tests.cluster.cluster import Cluster
from tests.e2e.deployment import Api, wait_for

pytestmark = pytest.mark.cluster

WHOLE = {"model": "gpt2", "resources": {"gpu": 4, "cpu": 1, "memory": "1G", "time_limit": 5}}


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest) -> None:
    """Slurm is asked about the cluster every second. Before the orchestrator is started."""
    if "api" in request.fixturenames:
        request.getfixturevalue("deployment").environment["ORCHESTRATOR_CLUSTER_SECONDS"] = "1"


def told(cluster: Cluster, *argv: str) -> str:
    """What a command of Slurm's prints to the user, with the environment that the orchestrator gives it."""
    done = cluster.run("login", ["env", "LC_ALL=C", "SLURM_TIME_FORMAT=%s", *argv], user=True)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def queue_of(cluster: Cluster) -> Queue:
    mark = new_mark()
    return Queue(parse_queue(told(cluster, *squeue(mark)), mark, int(told(cluster, "id", "-u"))))


def test_places_and_gpus_while_jobs_run_and_wait(api: Api, laptop: Cluster) -> None:
    """Both nodes are full, then two jobs wait; another user's job is first among them."""
    running = [str(api.start("inference/vllm-single-node", WHOLE)["id"]) for _ in range(2)]
    for one in running:
        api.until(one, "running")
    sleeps = ["sbatch", "--parsable", "--gres=gpu:4", "--mem=100", "--time=5", "--wrap", "sleep 300"]
    name = "line\nbreak\x1f"
    theirs = laptop.run(
        "login", [*sleeps[:-2], f"--job-name={name}", "--output=/dev/null", *sleeps[-2:]]
    ).stdout.strip()
    waiting = [str(api.start("inference/vllm-single-node", WHOLE)["id"]) for _ in range(2)]
    try:
        for place, one in enumerate(waiting, start=2):
            wait_for(lambda one=one, place=place: api.show(one)["queue_position"] == place, f"{one} is number {place}")  # type: ignore[misc]
        found = api.get("/api/v1/cluster")
        (partition,) = found["partitions"]
        assert partition["gpus"] == [{"type": "", "total": 8, "in_use": 8, "free": 0, "down": 0}]
        assert (partition["running"], partition["pending"]) == (2, 3)
        jobs = {job["id"]: job for job in found["jobs"]}
        assert [jobs[one]["queue_position"] for one in waiting] == [2, 3]
        assert all(jobs[one]["gpus"] == 4 and jobs[one]["state"] == "RUNNING" for one in running)
        assert theirs not in jobs
        known = turns(queue_of(laptop))
        assert [known.places[one] for one in waiting] == [2, 3]
        assert {job.job_id: job.gpus for job in known.mine} == dict.fromkeys((*running, *waiting), 4)
    finally:
        laptop.run("login", ["scancel", theirs])
    wait_for(lambda: api.show(waiting[0])["queue_position"] == 1, "the other job is gone")


def test_a_node_that_is_drained_is_down(api: Api, laptop: Cluster) -> None:
    laptop.run("login", ["scontrol", "update", "nodename=node2", "state=drain", "reason=test"], check=True)
    try:
        wait_for(lambda: api.get("/api/v1/cluster")["partitions"][0]["nodes"]["down"] == 1, "node2 is down", seconds=40)
        groups = parse_sinfo(told(laptop, *SINFO))
        assert all_gpus(groups) == [GpuCount("", total=8, in_use=0, free=4, down=4)]
        (one,) = partitions(groups)
        assert (one.cpus, one.nodes[NodeState.DOWN]) == (Cpus(total=32, in_use=0, free=16, down=16), 1)
    finally:
        laptop.run("login", ["scontrol", "update", "nodename=node2", "state=resume"], check=True)


def test_the_site_says_whether_it_hides_jobs(cluster: Cluster) -> None:
    assert hides_jobs(told(cluster, *SCONTROL)) is False

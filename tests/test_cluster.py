"""The whole cluster: what sinfo and squeue print, read; places in the queue; one question for all who look."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orchestrator.app import create_app
from orchestrator.cluster import GpuCount, all_gpus, partitions, turns
from orchestrator.errors import SchedulerUnknown
from orchestrator.models import JobState
from orchestrator.own_job import NAME
from orchestrator.question import Question
from orchestrator.schedulers import Cpus, Gpus, NodeGroup, NodeState, Queue, QueuedJob
from orchestrator.schedulers.local import Local
from orchestrator.schedulers.machine import described
from orchestrator.schedulers.sinfo import SEPARATOR, parse_gres, parse_node_state, parse_sinfo
from orchestrator.schedulers.squeue import FIELDS, hides_jobs, parse_gpus, parse_queue
from orchestrator.schedulers.words import parse_limit
from orchestrator.settings import Settings
from tests.fake_slurm import FakeSlurm
from tests.orchestrating import RECIPE, Clock, fake_engine_site, until

# Pasted from the test cluster, Slurm 22.05.8: jobs with 3 GPUs run on node1, node2 is drained; "~" stands for \x1f.
NODES = """\
gpu*~up~2:00:00~drained~1~0/0/16/16~gpu:4~gpu:0~node2~
gpu*~up~2:00:00~mixed~1~2/14/0/16~gpu:4~gpu:3~node1~
"""
# In the form of the manual page, from larger clusters of later releases.
LARGE = """\
*** Maintenance on 2026-12-24 ***
gpu*~up~2-00:00:00~mixed~3~96/96/0/192~gpu:a100:4(S:0-1)~gpu:a100:3(IDX:0-2)~gpu[001-003]~
gpu*~up~2-00:00:00~idle~2~0/128/0/128~gpu:a100:4(S:0-1)~gpu:a100:0(IDX:N/A)~gpu[004-005]~
gpu*~up~2-00:00:00~draining~1~32/0/32/64~gpu:a100:4(S:0-1)~gpu:a100:2(IDX:0,3)~gpu006~
gpu*~up~2-00:00:00~down*~1~0/0/64/64~gpu:a100:4(S:0-1)~gpu:a100:0(IDX:N/A)~gpu007~
both~up~infinite~idle~2~0/128/0/128~gpu:a100:4(S:0-1)~gpu:a100:0(IDX:N/A)~gpu[004-005]~
both~up~infinite~allocated~1~64/0/0/64~gpu:h100:8,nvme:1~gpu:h100:8(IDX:0-7),nvme:0~big1~
cpu~drain~30:00~planned~10~0/1280/0/1280~(null)~gpu:0~c[1-10]~
empty~up~1:00:00~n/a~0~0/0/0/0~(null)~(null)~~
"""
# Pasted from there too; "~" stands for the mark.
QUEUE = """\
1~gpu~RUNNING~1007~None~1~1~cpu=1,mem=100M,node=1,billing=1~gres:gpu:2~N/A~1795782371~1795782372~1795782672~sluice-a~
2~gpu~RUNNING~1007~None~1~1~cpu=1,mem=100M,node=1,billing=1~N/A~gres:gpu:1~1795782371~1795782372~1795782672~by-job~
3~gpu~PENDING~0~Resources~1~1~cpu=1,mem=100M,node=1,billing=1~gres:gpu:4~N/A~1795782371~1795782672~1795782972~theirs~
4~gpu~PENDING~1007~Priority~1~1~cpu=1,mem=100M,node=1,billing=1~gres:gpu:4~N/A~1795782371~1795782960~1795783260~a|b é
new~
5_[1-3]~gpu~PENDING~1007~Priority~1~1~cpu=1,mem=100M,node=1,billing=1~gres:gpu:4~N/A~1795782371~1795783860~\
1795784160~array~
7~gpu~PENDING~1007~Dependency~1~1~cpu=1,mem=100M,node=1,billing=1~gres:gpu:1~N/A~1795782371~N/A~N/A~after~
6~gpu~PENDING~1007~JobHeldUser~1~1~cpu=1,mem=100M,node=1,billing=1~N/A~N/A~1795782371~N/A~N/A~held~
"""
US = 1007
ROW = dict.fromkeys(FIELDS, "") | {"Partition": "gpu", "State": "PENDING", "UserID": "7", "Reason": "Priority"}


def row(job_id: str, **columns: str) -> str:
    line = ROW | {"JobArrayID": job_id} | {name.replace("_", "-"): value for name, value in columns.items()}
    return "".join(f"{value}~" for value in line.values()) + "\n"


def queue(*rows: str) -> list[QueuedJob]:
    return parse_queue("".join(rows).replace("~", "\x1fmark"), "\x1fmark", US)


def groups(text: str) -> list[NodeGroup]:
    return parse_sinfo(text.replace("~", SEPARATOR))


# What Slurm prints


def test_what_the_real_sinfo_printed_is_understood() -> None:
    (one,) = partitions(groups(NODES))
    assert (one.name, one.default, one.available, one.time_limit) == ("gpu", True, "up", timedelta(hours=2))
    assert one.nodes == {NodeState.DOWN: 1, NodeState.MIXED: 1}
    assert one.cpus == Cpus(total=32, in_use=2, free=14, down=16)
    assert one.gpus == all_gpus(groups(NODES)) == [GpuCount("", total=8, in_use=3, free=1, down=4)]


def test_what_the_real_squeue_printed_is_understood() -> None:
    jobs = queue(QUEUE)
    assert [(job.job_id, job.mine, job.gpus) for job in jobs] == [
        ("1", True, 2), ("2", True, 1), ("3", False, None), ("4", True, 4), ("5_[1-3]", True, 4), ("7", True, 1),
        ("6", True, 0),
    ]  # fmt: skip
    first, fourth = jobs[0], jobs[3]
    submitted = datetime.fromtimestamp(1795782371, UTC)
    assert (first.name, first.state, first.reason, first.nodes, first.cpus) == ("sluice-a", JobState.RUNNING, "", 1, 1)
    assert (first.submitted_at, first.starts_at) == (submitted, None)
    assert (first.started_at, first.ends_at) == (submitted + timedelta(seconds=1), submitted + timedelta(seconds=301))
    assert (fourth.name, fourth.reason) == ("a|b é\nnew", "Priority")
    assert (fourth.started_at, fourth.starts_at) == (None, datetime.fromtimestamp(1795782960, UTC))
    assert turns(Queue(jobs)).places == {"4": 2, "5_[1-3]": 3}


def test_what_sinfo_prints_of_a_large_cluster_is_understood() -> None:
    gpu, both, cpu, empty = partitions(groups(LARGE))
    assert (gpu.name, gpu.default, gpu.available, gpu.time_limit) == ("gpu", True, "up", timedelta(days=2))
    assert gpu.nodes == {NodeState.MIXED: 3, NodeState.IDLE: 2, NodeState.DOWN: 2}
    assert gpu.cpus == Cpus(total=448, in_use=128, free=224, down=96)
    assert gpu.gpus == [GpuCount("a100", total=28, in_use=11, free=11, down=6)]
    assert (both.time_limit, both.default) == (None, False)
    assert both.gpus == [GpuCount("a100", 8, 0, 8, 0), GpuCount("h100", 8, 8, 0, 0)]
    assert (cpu.available, cpu.time_limit, cpu.nodes, cpu.gpus) == ("drain", timedelta(minutes=30), {"idle": 10}, [])
    assert (empty.name, sum(empty.nodes.values())) == ("empty", 0)


def test_a_node_in_two_partitions_counts_once_for_the_cluster() -> None:
    assert all_gpus(groups(LARGE)) == [GpuCount("a100", 28, 11, 11, 6), GpuCount("h100", 8, 8, 0, 0)]


@pytest.mark.parametrize("text", ["", "\n", "gpu up idle", "~~~~~~~~~", "gpu~up~1:00~idle~x~0/1/0/1~~~n1~"])
def test_what_is_no_line_of_sinfo_is_passed_over(text: str) -> None:
    assert groups(text) == []


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("idle", NodeState.IDLE), ("idle~", NodeState.IDLE), ("idle#", NodeState.IDLE), ("planned", NodeState.IDLE),
        ("mixed", NodeState.MIXED), ("mixed-", NodeState.MIXED), ("allocated+", NodeState.ALLOCATED),
        ("completing", NodeState.ALLOCATED), ("idle*", NodeState.DOWN), ("mixed$", NodeState.DOWN),
        ("down*", NodeState.DOWN), ("draining", NodeState.DOWN), ("drained", NodeState.DOWN),
        ("reserved", NodeState.DOWN), ("inval", NodeState.DOWN), ("a state of the future", NodeState.DOWN),
    ],
)  # fmt: skip
def test_what_a_node_can_do(word: str, state: NodeState) -> None:
    assert parse_node_state(word) is state


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu:4", {"": 4}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:a100:2(IDX:0,3),nvme:1", {"a100": 2}),
        ("gpu:(null):0(IDX:N/A)", {"": 0}),
        ("gpu:4090:2,gpu:l40s:1", {"4090": 2, "l40s": 1}),
        ("gpu:a100_1g.5gb:7", {"a100_1g.5gb": 7}),
        ("lustre:2", {}),
        ("(null)", {}),
        ("gpu", {}),
        ("", {}),
    ],
)
def test_generic_resources(text: str, found: dict[str, int]) -> None:
    assert parse_gres(text) == found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("cpu=8,mem=64G,node=1,billing=8,gres/gpu=2,gres/gpu:a100=2", 2),
        ("cpu=1,gres/gpu:a100=3,gres/gpu:v100=1", 4),
        ("gres:gpu:a100:2", 2),
        ("gres/gpu:4", 4),
        ("N/A", 0),
        ("", 0),
    ],
)
def test_the_gpus_of_a_job(text: str, number: int) -> None:
    assert parse_gpus(text) == number


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("2-00:00:00", timedelta(days=2)),
        ("1-12:30:00", timedelta(days=1, hours=12, minutes=30)),
        ("2:00:00", timedelta(hours=2)),
        ("30:00", timedelta(minutes=30)),
        ("infinite", None),
        ("n/a", None),
        ("", None),
    ],
)
def test_time_limits(text: str, limit: timedelta | None) -> None:
    assert parse_limit(text) == limit


def test_nobody_can_write_a_line_of_squeues_into_the_name_of_a_job() -> None:
    """Names of jobs may hold anything, also line breaks; the mark is another one in each call."""
    forged = row("666", UserID=str(US), Name="forged").replace("~", "\x1f")
    assert [job.job_id for job in queue(row("5", UserID=str(US), Name=f"a\n{forged}\n"), row("6"))] == ["5", "6"]


def test_a_banner_and_jobs_that_have_ended_are_passed_over() -> None:
    rows = ["Welcome to the cluster\n", row("5"), row("6", State="COMPLETED"), row("7", State="RUNNING")]
    assert [job.job_id for job in queue(*rows)] == ["5", "7"]


def test_private_data() -> None:
    assert hides_jobs("PluginDir = /x\nPrivateData             = none\n") is False
    assert hides_jobs("PrivateData             = jobs,usage\n") is True
    assert hides_jobs("PrivateData             = nodes,usage\n") is False
    assert hides_jobs("") is None


# Places


def job(
    job_id: str, partition: str = "gpu", *, mine: bool = False, reason: str = "Priority", waits: bool = True
) -> QueuedJob:
    state = JobState.PENDING if waits else JobState.RUNNING
    return QueuedJob(job_id, partition, state, mine, reason=reason)


def test_a_place_counts_the_jobs_that_wait_for_their_turn_in_the_same_partition() -> None:
    known = turns(
        Queue(
            [
                job("1", waits=False),
                job("2"),
                job("3", "cpu"),
                job("4", reason="Dependency"),
                job("5", mine=True),
                job("6", "cpu", mine=True),
                job("7", mine=True, reason="JobHeldUser"),
                job("8"),
                job("9", mine=True),
            ]
        )
    )
    assert known.places == {"5": 2, "6": 2, "9": 4}
    assert (known.pending, known.running) == ({"gpu": 6, "cpu": 2}, {"gpu": 1})
    assert [one.job_id for one in known.mine] == ["5", "6", "7", "9"]


def test_of_several_partitions_the_best_place_counts_and_the_job_is_there_once() -> None:
    known = turns(Queue([job("1", "a"), job("2", "a"), job("3", "a", mine=True), job("3", "b", mine=True)]))
    assert known.places == {"3": 1}
    assert [(one.job_id, one.partition) for one in known.mine] == [("3", "a")]


def test_where_the_jobs_of_others_are_hidden_there_are_no_places() -> None:
    known = turns(Queue([job("1", mine=True)], whole=False))
    assert (known.places, known.whole, len(known.mine)) == ({}, False, 1)


# The machine without a scheduler


def test_this_machine_as_a_cluster_of_one_node() -> None:
    there = "GPU-1, NVIDIA A100-SXM4-40GB\nGPU-2, NVIDIA A100-SXM4-40GB\nGPU-3, NVIDIA T4\n"
    one = described(16, 3.6, there, "GPU-2\nGPU-2\n")
    assert one.gpus == (Gpus("NVIDIA A100-SXM4-40GB", 2, 1), Gpus("NVIDIA T4", 1, 0))
    assert (one.cpus, one.state, one.default) == (Cpus(16, 4, 12, 0), NodeState.MIXED, True)
    assert described(2, 9.0, "", "").state is NodeState.ALLOCATED
    assert described(2, 0.1, "No devices were found\n", "").gpus == ()


def test_nvidia_smi_is_asked_where_there_is_one(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$*" in *uuid,name*) echo "GPU-1, NVIDIA L4" ;; *) echo GPU-1 ;; esac\n')
    program.chmod(0o755)
    with_one = Local(tmp_path, environment={"PATH": f"{tmp_path}:/bin"})
    (group,) = asyncio.run(with_one.nodes())
    assert group.gpus == (Gpus("NVIDIA L4", 1, 1),)
    (group,) = asyncio.run(Local(tmp_path, environment={"PATH": "/nonexistent"}).nodes())
    assert (group.gpus, group.number, group.cpus.total >= 1) == ((), 1, True)


# One question for all


class Asked:
    """Something that counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0
        self.silent = False

    async def __call__(self) -> int:
        self.times += 1
        if self.silent:
            raise SchedulerUnknown("squeue did not answer within 30 s")
        return self.times


def test_a_question_is_put_once_for_all_and_not_again_within_the_interval() -> None:
    async def work() -> None:
        asked = Asked()
        question = Question(asked, Clock(), seconds=3600)
        loop = asyncio.create_task(question.run())
        await asyncio.gather(*(question.fresh() for _ in range(20)))
        await asyncio.gather(*(question.fresh() for _ in range(20)))
        assert (asked.times, question.answer, question.silent_since) == (1, 1, None)
        loop.cancel()

    asyncio.run(work())


def test_nobody_looks_so_nothing_is_asked() -> None:
    async def work() -> None:
        asked = Asked()
        question = Question(asked, Clock(), seconds=0.001)
        loop = asyncio.create_task(question.run())
        await question.fresh()
        before = asked.times
        for _ in range(50):
            await asyncio.sleep(0)
        assert asked.times == before
        loop.cancel()

    asyncio.run(work())


def test_while_there_is_no_answer_the_last_one_stays_and_says_since_when() -> None:
    async def work() -> None:
        asked, clock = Asked(), Clock()
        question = Question(asked, clock, seconds=15)
        await question.ask()
        told, asked.silent = clock(), True
        clock.advance(20)
        await question.ask()
        since = clock()
        clock.advance(20)
        await question.ask()
        assert (question.answer, question.answered_at, question.stale_since) == (1, told, since)
        assert "did not answer" in question.trouble
        assert question.recent == 1
        clock.advance(60)
        assert question.recent is None  # a place in a queue is not told for ever
        asked.silent = False
        await question.ask()
        assert (question.stale_since, question.trouble, question.recent) == (None, "", 4)

    asyncio.run(work())


# The route


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    one = FakeSlurm(tmp_path)
    one.show_nodes(LARGE)
    return one


@pytest.fixture
def http(slurm: FakeSlurm) -> Iterator[TestClient]:
    settings = Settings(home=slurm.home / "o", site=fake_engine_site(), poll_seconds=0.1, cluster_seconds=0.1)
    settings.home.mkdir(mode=0o700)
    with TestClient(create_app(settings, slurm.scheduler()), base_url="http://localhost") as client:
        yield client


def waits_until(http: TestClient, path: str, name: str, value: object) -> None:
    asyncio.run(until(lambda: http.get(path).json()[name] == value))


@pytest.mark.system
def test_the_cluster_as_users_see_it(http: TestClient, slurm: FakeSlurm) -> None:
    slurm.queue_of_others(row("90", State="RUNNING") + row("91") + row("92", Partition="cpu"))
    slurm.change("99", name="train", state="PENDING", reason="Resources")
    made = http.post("/api/services", json={"recipe_name": RECIPE, "config": {"model": "gpt2", "gpu": 2}}).json()
    path = f"/api/v1/services/{made['id']}"
    waits_until(http, path, "queue_position", 2)
    waits_until(http, "/api/v1/cluster", "jobs_total", 2)
    told = http.get("/api/cluster").json()
    assert (told["scheduler"], told["stale_since"], told["trouble"]) == ("slurm", None, "")
    assert datetime.now(UTC) - datetime.fromisoformat(told["as_of"]) < timedelta(minutes=1)
    assert told["gpus"][1] == {"type": "h100", "total": 8, "in_use": 8, "free": 0, "down": 0}
    first = told["partitions"][0]
    assert (first["name"], first["time_limit"], first["running"], first["pending"]) == ("gpu", 2880, 1, 3)
    assert first["nodes"] == {"total": 7, "idle": 2, "mixed": 3, "allocated": 0, "down": 2}
    ours, other = told["jobs"]
    assert (ours["service_id"], ours["model"], ours["gpus"], ours["queue_position"]) == (made["id"], "gpt2", 2, 2)
    assert (other["id"], other["name"], other["service_id"], other["state"]) == ("99", "train", None, "PENDING")


@pytest.mark.system
def test_an_orchestrator_in_a_job_of_its_own_is_no_service(http: TestClient, slurm: FakeSlurm) -> None:
    """It is among the user's jobs, by its name, and neither adopted nor ended with a service."""
    slurm.change("17", name=NAME, state="RUNNING")
    made = http.post("/api/services", json={"recipe_name": RECIPE, "config": {"model": "gpt2", "gpu": 2}}).json()
    waits_until(http, "/api/v1/cluster", "jobs_total", 2)
    told = {job["id"]: job for job in http.get("/api/cluster").json()["jobs"]}
    assert (told["17"]["name"], told["17"]["service_id"]) == (NAME, None)
    assert [one["id"] for one in http.get("/api/v1/services").json()] == [made["id"]]
    http.post(f"/api/v1/services/{made['id']}/status", json={"status": "cancelled"})
    waits_until(http, f"/api/v1/services/{made['id']}", "status", "cancelled")
    waits_until(http, "/api/v1/cluster", "jobs_total", 1)
    assert http.get("/api/cluster").json()["jobs"][0]["id"] == "17"


@pytest.mark.system
def test_a_slurm_that_is_silent_is_shown_with_what_it_said_last(http: TestClient, slurm: FakeSlurm) -> None:
    assert http.get("/api/cluster").json()["stale_since"] is None
    for command in ("sinfo", "squeue"):
        slurm.behave(command, "echo 'Unable to contact slurm controller' >&2; exit 1")
    asyncio.run(until(lambda: http.get("/api/cluster").json()["stale_since"] is not None))
    told = http.get("/api/cluster").json()
    assert "Unable to contact" in told["trouble"]
    assert len(told["partitions"]) == 4


@pytest.mark.system
def test_a_slurm_that_has_never_answered_is_a_503_in_its_words(http: TestClient, slurm: FakeSlurm) -> None:
    for command in ("sinfo", "squeue"):
        slurm.behave(command, "echo 'Unable to contact slurm controller' >&2; exit 1")
    answer = http.get("/api/cluster")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "Unable to contact slurm controller" in answer.json()["detail"]


@pytest.mark.system
@pytest.mark.parametrize("private", ["none", "jobs"])
def test_alone_on_a_cluster_the_place_is_known_unless_jobs_are_hidden(
    http: TestClient, slurm: FakeSlurm, private: str
) -> None:
    slurm.behave("scontrol", f"PRIVATE={private}")
    made = http.post("/api/services", json={"recipe_name": RECIPE}).json()
    asyncio.run(until(lambda: http.get("/api/cluster").json()["jobs"][0]["partition"] == "gpu"))
    told = http.get("/api/cluster").json()
    known = private == "none"
    assert told["jobs"][0]["queue_position"] == (1 if known else None)
    assert told["partitions"][0]["pending"] == (1 if known else None)
    assert http.get(f"/api/services/{made['id']}").json()["queue_position"] == (1 if known else None)


@pytest.mark.system
def test_a_key_that_may_only_use_models_sees_the_jobs_of_services_alone(http: TestClient, slurm: FakeSlurm) -> None:
    slurm.change("99", name="train", state="RUNNING")
    for scope, number in (("manage", 1), ("use", 0)):
        told = http.get("/api/cluster", headers={"x-sluice-actor": "ann", "x-sluice-scope": scope}).json()
        assert told["jobs_total"] == number

"""Slurm breaks: a lost answer, a controller that is gone or has forgotten everything, jobs that it has purged."""

import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import Figures, of_its_own
from tests.chaos.test_crash import BODY, accepted
from tests.chaos.traffic import getting, holds, p99, prompting, traffic
from tests.cluster.cluster import Cluster, controller_answers, read_pid
from tests.e2e.deployment import Api, Deployment, laptop_api, wait_for
from tests.e2e.test_lifecycle import small, submissions

pytestmark = pytest.mark.chaos

# Slurm's own commands give up after 9 s and ours after 30 s, so a shorter outage would hardly be seen.
OUTAGE_SECONDS = max(float(os.environ.get("CHAOS_OUTAGE_SECONDS") or 120), 40)

# What stands for sbatch on PATH: Slurm's takes the job, and the answer never comes.
HANGING_SBATCH = """#!/bin/sh
/usr/bin/sbatch "$@" > "$HOME/answer-that-was-lost"
exec sleep 600
"""


@pytest.mark.timeout(120)
def test_an_sbatch_that_times_out_although_it_was_accepted(deployment: Deployment, figures: Figures) -> None:
    folder = deployment.cluster.root / "bin"
    folder.mkdir(exist_ok=True)
    sbatch = folder / "sbatch"
    sbatch.write_text(HANGING_SBATCH)
    sbatch.chmod(0o755)
    path = deployment.cluster.environment(deployment.cluster.user)["PATH"]
    deployment.environment |= {"PATH": f"{folder}:{path}", "ORCHESTRATOR_COMMAND_SECONDS": "8"}
    deployment.start_orchestrator()
    deployment.start_gateway()
    before, key = accepted(deployment), {"Idempotency-Key": "once"}
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        began = time.monotonic()
        answer = api.http.post("/api/v1/services", json=BODY, headers=key)
        took = time.monotonic() - began
        assert answer.status_code == 502
        assert "sbatch did not answer within 8 s" in answer.json()["detail"]
        adopted = wait_for(
            lambda: api.http.post("/api/v1/services", json=BODY, headers=key).status_code == 200, "found"
        )
        service_id = api.http.post("/api/v1/services", json=BODY, headers=key).json()["id"]
        assert service_id == (deployment.cluster.home / "answer-that-was-lost").read_text().strip()
        api.until(service_id, "running")
        assert [service["id"] for service in api.get("/api/v1/services")] == [service_id]
    taken = accepted(deployment) - before
    figures.add("sbatch: times out, accepted", error_after_s=took, adopted_after_s=adopted, jobs=taken)
    assert taken == 1, "the job was submitted again"


@pytest.mark.timeout(120)
def test_a_submission_that_waits_in_a_stopped_slurmctld_is_adopted(deployment: Deployment, figures: Figures) -> None:
    """sbatch gives up, the grace is long over, and when slurmctld goes on it takes the request from its socket."""
    deployment.grace_seconds = 5
    deployment.environment["ORCHESTRATOR_COMMAND_SECONDS"] = "8"
    deployment.start_orchestrator()
    deployment.start_gateway()
    before, key = accepted(deployment), {"Idempotency-Key": "waits"}
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        pid = read_pid(deployment.cluster, "slurmctld")
        os.kill(pid, signal.SIGSTOP)
        try:
            answer = api.http.post("/api/v1/services", json=BODY, headers=key)
            assert answer.status_code == 502, answer.text
            (shown,) = api.get("/api/v1/services")
            wait_for(lambda: _stale(api, shown["id"]), "staleness is shown")
            holds(lambda: api.status(shown["id"]) == "pending", "nothing is concluded", deployment.grace_seconds + 1)
        finally:
            _bring_back(deployment.cluster, pid, signal.SIGSTOP)
        adopted = wait_for(
            lambda: api.http.post("/api/v1/services", json=BODY, headers=key).status_code == 200, "found"
        )
        service_id = api.http.post("/api/v1/services", json=BODY, headers=key).json()["id"]
        api.until(service_id, "running")
        assert [service["id"] for service in api.get("/api/v1/services")] == [service_id]
        assert [line.split("|")[0] for line in deployment.cluster.squeue().splitlines()] == [service_id]
    taken = accepted(deployment) - before
    figures.add("slurmctld: stopped while a job is submitted", adopted_after_s=adopted, jobs=taken)
    assert taken == 1, "Slurm has taken another number of jobs than were asked for"


@pytest.mark.timeout(90 + 2 * OUTAGE_SECONDS)
@pytest.mark.parametrize(
    ("number", "outage"),
    [(signal.SIGSTOP, OUTAGE_SECONDS), (signal.SIGKILL, max(OUTAGE_SECONDS / 2, 40))],
    ids=["stopped", "killed"],
)
def test_slurmctld_is_away_under_traffic(
    api: Api, deployment: Deployment, figures: Figures, number: signal.Signals, outage: float
) -> None:
    service_id = api.start("vllm-single-node", small())["id"]
    api.until(service_id, "running")
    wait_for(lambda: api.show(service_id)["job"]["ready_at"] is not None, "the first answer is recorded")
    _save(deployment.cluster, service_id)
    changes = _changes(deployment)
    looks = [getting(f"/api/v1/services/{service_id}"), getting("/api/v1/services"), getting("/health")]
    pid = read_pid(deployment.cluster, "slurmctld")
    with traffic(prompting(service_id)) as usual, traffic(*looks, clients=1) as calm:
        calm.more(200)  # on this machine as it is
    with traffic(*looks, clients=1) as looked, traffic(prompting(service_id)) as prompted:
        os.kill(pid, number)
        try:
            stale_after = wait_for(lambda: _stale(api, service_id), "staleness is shown", 60)
            honest = lambda: _stale(api, service_id) and api.status(service_id) == "running"  # noqa: E731
            holds(honest, "the service is stale, and it runs", outage - stale_after)
        finally:
            _bring_back(deployment.cluster, pid, number)
        recovered = wait_for(lambda: not _stale(api, service_id), "the controller's answer is noticed", 60)
    before, latency = p99(calm.outcomes), p99(looked.outcomes)
    figures.add(
        f"slurmctld: {number.name} for {outage:g} s",
        prompts=len(prompted.outcomes),
        failed=len(prompted.failed()),
        API_calls=len(looked.outcomes),
        API_failed=len(looked.failed()),
        API_p99_ms=latency * 1000,
        before_ms=before * 1000,
        stale_after_s=stale_after,
        fresh_after_s=recovered,
    )
    assert len(prompted.outcomes) > outage and len(looked.outcomes) > outage
    assert prompted.failed() == [] and looked.failed() == [] and usual.failed() == []
    assert _changes(deployment) == changes, "a state changed although Slurm said nothing"
    assert latency < 0.1, f"the API's p99; under the same prompts with a controller it was {before:.3f} s"


def _save(cluster: Cluster, service_id: str) -> None:
    """Have slurmctld write down what it knows now: a killed one forgets younger jobs, and ends them."""
    saved, now = cluster.root / "state" / "job_state", time.time()
    cluster.run("login", ["scontrol", "update", f"JobId={service_id}", "Comment=saved"], check=True)
    wait_for(lambda: saved.exists() and saved.stat().st_mtime > now, "slurmctld has saved its state")


def _stale(api: Api, service_id: str) -> bool:
    return api.show(service_id)["stale_since"] is not None


def _changes(deployment: Deployment) -> list[Any]:
    """All that was ever recorded of jobs, and what is."""
    database = sqlite3.connect(f"file:{deployment.home}/orchestrator.db?mode=ro", uri=True)
    try:
        events = list(database.execute("SELECT kind, subject, detail FROM event"))
        return events + list(database.execute("SELECT job_id, state, reason, restarts FROM job"))
    finally:
        database.close()


def _bring_back(cluster: Cluster, pid: int, number: signal.Signals) -> None:
    if number is signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    else:
        cluster.start_controller()
    wait_for(lambda: controller_answers(cluster), "slurmctld answers")


@pytest.mark.timeout(180)
def test_slurmctld_that_has_lost_its_state_gives_ids_again(installed: tuple[Path, Path], figures: Figures) -> None:
    """Services 1 and 2 run; then id 1 is a stranger's job and id 2 another service."""
    with of_its_own(installed) as (deployment, api):
        first, second = (api.start("vllm-single-node", small() | {"model": f"old/{n}"})["id"] for n in (1, 2))
        for service_id in (first, second):
            api.until(service_id, "running")
        deployment.cluster.stop_controller(crash=True)
        shutil.rmtree(deployment.cluster.root / "state")
        (deployment.cluster.root / "state").mkdir(mode=0o755)
        deployment.cluster.start_controller()
        began = time.monotonic()
        stranger = ["sbatch", "--parsable", "--mem=100", "-J", "stranger", "-o", "/dev/null", "--wrap", "sleep 300"]
        assert deployment.cluster.run("login", stranger, user=True, check=True).stdout.strip() == first
        assert api.start("vllm-single-node", small() | {"model": "new/2"})["id"] == second
        api.until(second, "running")
        texts = [api.http.post(f"/api/v1/services/{second}/v1/completions", json={"prompt": "who"}) for _ in range(20)]
        simple = [api.prompt(second, "who")["text"] for _ in range(20)]
        wait_for(lambda: api.status(first) not in ("pending", "configuring", "running"), "service 1 has ended", 60)
        ended = time.monotonic() - began
        answer = api.http.post(f"/api/v1/services/{first}/status", json={"status": "cancelled"})
        assert answer.status_code == 200, answer.text
        shown = {s["config"]["model"]: s["status"] for s in api.get("/api/v1/services")}
        queue = deployment.cluster.squeue()
        wrong = sum("new/2" not in text.text for text in texts) + sum("new/2" not in text for text in simple)
        figures.add(
            "slurmctld: state lost, ids given again",
            reused=2,
            prompts=len(texts) + len(simple),
            to_the_wrong_engine=wrong,
            old_ended_after_s=ended,
        )
        assert wrong == 0, "an answer came from the engine of the id's former service"
        assert f"{first}|stranger|RUNNING" in queue, "a stranger's job was ended"
        assert shown["new/2"] == "running"
        assert not {shown["old/1"], shown["old/2"]} & {"pending", "configuring", "running"}, shown


@pytest.mark.timeout(120)
def test_jobs_that_were_purged_while_the_orchestrator_was_off(
    api: Api, deployment: Deployment, figures: Figures
) -> None:
    """squeue no longer lists them when it is back: they end by their own evidence, the exit file."""
    deployment.stop_orchestrator()
    deployment.grace_seconds = 3
    deployment.start_orchestrator()
    wait_for(api.ready, "the orchestrator is back")
    cancelled, traceless = (api.start("vllm-single-node", small())["id"] for _ in range(2))
    failed = api.start("vllm-single-node", small(FAKE_EXIT_CODE="7", FAKE_EXIT_AFTER="6"))["id"]
    for service_id in (failed, cancelled, traceless):
        api.until(service_id, "running")
    folders = {row[0]: deployment.home / "runs" / row[1] for row in submissions(deployment)}
    deployment.stop_orchestrator()
    deployment.cluster.run("login", ["scancel", cancelled, traceless], user=True, check=True)
    wait_for(lambda: deployment.cluster.squeue() == "", "Slurm has forgotten the jobs", 60)
    (folders[traceless] / "exit.json").unlink()
    deployment.start_orchestrator()
    wait_for(api.ready, "the orchestrator is back")
    read = wait_for(lambda: api.status(cancelled) not in ("configuring", "running"), "the exit file is read")
    assert (api.status(cancelled), api.status(failed)) == ("cancelled", "failed")
    assert api.show(failed)["job"]["exit_code"] == 7
    lost = wait_for(lambda: api.status(traceless) == "lost", "no evidence after the grace")
    assert "no longer knows" in api.show(traceless)["reason"]
    assert "starting vllm" in api.logs(traceless)
    figures.add("job: purged while the orchestrator was off", jobs=3, ended_by_evidence_s=read, lost_after_s=lost)

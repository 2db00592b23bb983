"""What the pages of the cluster and the charts are made of, without a browser."""

import json
import re
from typing import Any

import pytest

from gateway.dashboard.charts import NAMES, columns
from gateway.dashboard.cluster import ORCHESTRATOR, limit, parts
from gateway.dashboard.history import Bin
from orchestrator.own_job import NAME

GPUS: dict[str, Any] = {"type": "a100", "total": 6, "in_use": 3, "free": 2, "down": 1}
PARTITION: dict[str, Any] = {
    "name": "gpu", "default": True, "state": "up", "time_limit": None, "gpus": [GPUS], "running": None, "pending": None,
    "nodes": {"total": 2, "idle": 0, "mixed": 1, "allocated": 0, "down": 1},
    "cpus": {"total": 8, "in_use": 1, "free": 3, "down": 4},
}  # fmt: skip
JOB: dict[str, Any] = {
    "id": "12_[1-3]", "name": "<script>", "service_id": None, "recipe_name": None, "model": None, "partition": "gpu",
    "state": "PENDING", "reason": "Priority", "nodes": 1, "gpus": None, "submitted_at": "2026-11-21T12:00:00Z",
    "started_at": None, "ends_at": None, "estimated_start": None, "queue_position": 3,
}  # fmt: skip


def cluster(**more: Any) -> dict[str, str]:
    told = {"scheduler": "slurm", "as_of": "2026-11-21T12:00:00Z", "stale_since": None, "trouble": "", "gpus": [GPUS]}
    return parts(told | {"partitions": [PARTITION], "jobs": [JOB], "jobs_total": 1} | more)


def test_a_bar_has_a_mark_for_each_gpu_and_words_beside_it() -> None:
    html = cluster()["cluster-gpus"]
    assert [len(re.findall(f'class="bar-{kind}"', html)) for kind in ("use", "free", "down")] == [3, 2, 1]
    assert "3 in use" in html and "2 free" in html and "1 on nodes that take no jobs" in html
    many = cluster(gpus=[GPUS | {"total": 600, "in_use": 300, "free": 300, "down": 0}])["cluster-gpus"]
    assert [len(re.findall(f'class="bar-{kind}"', many)) for kind in ("use", "free", "down")] == [1, 1, 0]


def test_what_the_site_hides_is_said_and_names_are_escaped() -> None:
    html = cluster()
    assert "hidden by the site" in html["cluster-partitions"]
    assert "&lt;script&gt;" in html["cluster-jobs"] and "<script>" not in html["cluster-jobs"]
    assert "2 ahead" in html["cluster-jobs"]


def test_the_orchestrator_in_a_job_of_its_own_is_known_by_its_name() -> None:
    html = cluster(jobs=[JOB, JOB | {"id": "17", "name": NAME}])["cluster-jobs"]
    assert ORCHESTRATOR == NAME
    assert html.count("not a service") == 1 and "the orchestrator" in html.partition('id="job-17"')[2]


def test_a_cluster_that_shows_nothing_is_no_error() -> None:
    html = cluster(gpus=[], partitions=[], jobs=[], jobs_total=0, as_of=None, stale_since="2026-11-21T12:00:00Z")
    assert "has not answered since" in html["cluster-state"]
    assert "no partitions" in html["cluster-partitions"] and "no jobs" in html["cluster-jobs"]


def test_the_columns_of_a_chart_are_of_one_length() -> None:
    found = columns([Bin(at=15), Bin(30, 1.0, 0.0, 2.0, None, None, (0.1, 0.25), (None, None))])
    assert set(found) == {"at", *NAMES}
    assert {len(column) for column in found.values()} == {2}
    assert (found["at"], found["requests"], found["latency95"]) == ([15, 30], [None, 1.0], [None, 0.25])
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (None, "none"),
        (30, "30 min"),
        (90, "1 h 30 min"),
        (1440, "1 day"),
        (2880, "2 days"),
        (2190, "1 day 12 h 30 min"),
    ],
)
def test_a_time_limit_in_words(minutes: int | None, words: str) -> None:
    assert limit(minutes) == words

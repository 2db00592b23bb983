"""examples/observability: its dashboards, rules and configuration, read as they stand; and before both real halves."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from scripts.dashboards import ALL
from scripts.grafana import SCHEMA, rendered
from tests.gateway.serving import short_folder
from tests.orchestrating import RECIPE
from tests.test_prometheus import CPU, GROUP, ask, binary, free_port, halves, prometheus, start, until

__all__ = ["binary"]

KIT = Path(__file__).parents[1] / "examples" / "observability"
DASHBOARDS = sorted((KIT / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((KIT / "prometheus" / "rules").glob("*.yml"))
PANELS = {"timeseries", "stat", "gauge", "bargauge", "state-timeline"}
# Grafana's own, as they are when the last minute is shown.
GRAFANAS = {"$__rate_interval": "1m", "$__range": "1m"}

Json = dict[str, Any]


def read(path: Path) -> Json:
    return dict(json.loads(path.read_text()))


def all_of(name: str) -> Iterator[str]:
    """What stands in fields of this name, in all dashboards."""

    def within(content: Any) -> Iterator[str]:
        if isinstance(content, dict):
            yield from (value for key, value in content.items() if key == name)
        for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
            yield from within(inner)

    return (found for path in DASHBOARDS for found in within(read(path)))


def test_the_dashboards_are_those_that_are_described() -> None:
    """`make dashboards` writes them."""
    assert {path.name: path.read_text() for path in DASHBOARDS} == {f"{one.uid}.json": rendered(one) for one in ALL}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_what_grafana_asks_for(path: Path) -> None:
    board = read(path)
    assert (board["uid"], board["schemaVersion"], board["tags"]) == (path.stem, SCHEMA, ["sluicegate"])
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    assert board["title"] and board["time"] == {"from": "now-6h", "to": "now"}
    source, *choices = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    for choice in choices:
        assert choice["type"] == "query" and choice["allValue"] == ".*"
        assert any(f'=~"${choice["name"]}"' in target["expr"] for one in board["panels"] for target in one["targets"])
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) > 0
    for panel in board["panels"]:
        assert panel["type"] in PANELS and panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references == [*map(chr, range(65, 65 + len(references)))] != []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_no_two_panels_lie_on_each_other(path: Path) -> None:
    places = [panel["gridPos"] for panel in read(path)["panels"]]
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)


def test_dashboards_are_told_apart_and_name_no_host() -> None:
    boards = [read(path) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards)
    for path in DASHBOARDS:
        assert not re.search(r"https?://|localhost|\b\d+\.\d+\.\d+\.\d+\b", path.read_text()), path
    assert set(all_of("uid")) == {"${datasource}", *(board["uid"] for board in boards)}


def test_grafana_finds_the_dashboards_and_prometheus() -> None:
    (provider,) = yaml.safe_load((KIT / "grafana/provisioning/dashboards/sluicegate.yml").read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "${SLUICE_DASHBOARDS}")
    (source,) = yaml.safe_load((KIT / "grafana/provisioning/datasources/sluicegate.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://localhost:9090")
    told = (KIT / "README.md").read_text()
    for named in ("grafana/provisioning", "grafana/dashboards", "prometheus/prometheus.yml"):
        assert f"examples/observability/{named}" in told and (KIT / named).exists()


def test_the_kit_scrapes_what_the_page_says() -> None:
    (page,) = re.findall(
        r"^```yaml\n(.*?)^```", (KIT.parents[1] / "docs/metrics.md").read_text(), re.MULTILINE | re.DOTALL
    )
    ours = yaml.safe_load((KIT / "prometheus/prometheus.yml").read_text())
    assert ours["scrape_configs"] == yaml.safe_load(page)["scrape_configs"]


# With Debian's programs


@pytest.fixture(scope="module")
def promtool() -> str:
    if found := shutil.which("promtool"):
        return found
    reason = "NO PROMTOOL, so the rules are not tested: apt-get install prometheus"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def called(promtool: str, *words: str, told: str | None = None) -> tuple[int, str]:
    done = subprocess.run([promtool, *words], input=told, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_promtool_finds_no_fault(promtool: str) -> None:
    status, told = called(promtool, "check", "config", str(KIT / "prometheus/prometheus.yml"))
    assert status == 0 and "2 rule files found" in told, told
    status, told = called(promtool, "test", "rules", str(KIT / "prometheus/tests.yml"))
    assert status == 0, told


def test_each_alert_is_shown_to_fire_and_to_be_silent() -> None:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    shown = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for test in yaml.safe_load((KIT / "prometheus/tests.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {name for name, fires in shown if fires} == {name for name, fires in shown if not fires} == alerts.keys()
    page = (KIT.parents[1] / "docs/observability.md").read_text()
    for name, alert in alerts.items():
        assert f"`{name}`" in page
        assert alert["labels"]["severity"] in ("info", "warning", "critical"), name
        assert alert["annotations"].keys() == {"summary", "action"}, name


def test_the_tests_of_the_rules_can_fail(promtool: str, tmp_path: Path) -> None:
    shutil.copytree(KIT / "prometheus", tmp_path / "kit")
    alerts = tmp_path / "kit/rules/alerts.yml"
    alerts.write_text(alerts.read_text().replace("sluice_scheduler_answer_age_seconds > 120", "vector(0) > 120"))
    status, told = called(promtool, "test", "rules", str(tmp_path / "kit/tests.yml"))
    assert status != 0 and "SluiceSchedulerSilent" in told


# Before both halves

SMALL = {"source": {"type": "local_path", "value": "/nowhere/small"}, "config": {"resources": CPU | {"gpu": None}}}
MODELS = {"models": {"small": SMALL | {"slot": "main"}}}
BUDGETS = [{"name": "team", "period": "month", "gpu_hours": 1000}]


def configured(folder: Path, port: int) -> str:
    """The kit's configuration, for a gateway at another port and in a hurry. Its rules lie in `folder`."""
    shutil.copytree(KIT / "prometheus/rules", folder / "rules")
    told = (KIT / "prometheus/prometheus.yml").read_text()
    assert told.count("localhost:8001") == 4
    return told.replace("localhost:8001", f"localhost:{port}").replace("15s", "1s")


def status(gateway: httpx2.Client, service: str) -> str:
    return str(gateway.get(f"/api/v1/services/{service}/status").json()["status"])


def use(gateway: httpx2.Client) -> None:
    """All that a dashboard shows: services of each kind, requests, one that fails, a slot, a queued request."""
    single, group = start(gateway, RECIPE, {"gpu": None}), start(gateway, GROUP, {"gpu": 2})
    dying = {"FAKE_EXIT_AFTER": "0.1", "FAKE_EXIT_CODE": "3"}
    body = {"recipe_name": RECIPE, "config": {"resources": CPU | {"gpu": None}, "environment": dying}}
    failing = str(gateway.post("/api/v1/services", json=body).json()["id"])
    for service, wanted in ((single, "running"), (group, "running"), (failing, "failed")):
        until(lambda s=service, w=wanted: status(gateway, s) == w, 30, lambda s=service: status(gateway, s))  # type: ignore[misc]
    words = {"model": "small", "messages": [{"role": "user", "content": "one two three"}]}
    assert gateway.post("/v1/chat/completions", json=words, timeout=30).status_code == 200
    queued = gateway.post("/v1/chat/completions", json=words | {"async": True})
    assert queued.status_code == 202, queued.text
    job = f"/jobs/{queued.json()['job_id']}"
    until(lambda: gateway.get(job).json()["status"] == "done", 30, lambda: gateway.get(job).text)


def ask_models(gateway: httpx2.Client) -> None:
    """Again and again: what is shown is mostly how much a counter has grown."""
    for service in gateway.get("/api/v1/services", params={"status": "running"}).json():
        for words in ("one two three", "status 500"):
            asked = {"prompt": words, "max_tokens": 5}
            gateway.post(f"/api/v1/vllm/{service['id']}/prompt", json=asked)
    later = {"model": "small", "prompt": "one sleep 2", "async": True}
    assert gateway.post("/v1/completions", json=later).status_code == 202
    for stream in (True, False):
        asked = {"model": "small", "stream": stream, "prompt": "one two three"}
        assert gateway.post("/v1/completions", json=asked).status_code == 200


def filled(expression: str) -> str:
    for name, value in GRAFANAS.items():
        expression = expression.replace(name, value)
    return re.sub(r'=~"\$\w+"', '=~".*"', expression)


def has_data(watching: httpx2.Client, expression: str) -> bool:
    """Whether there is a number. The query itself must be one."""
    answer = watching.get("/api/v1/query", params={"query": filled(expression)}).json()
    assert answer["status"] == "success", (expression, answer)
    return any(not math.isnan(float(series["value"][1])) for series in answer["data"]["result"])


@pytest.mark.system
@pytest.mark.beside
def test_each_panel_shows_what_the_halves_say(binary: str, promtool: str, tmp_path: Path) -> None:
    port = free_port()
    queries = {(path.stem, panel["title"], target["expr"]) for path in DASHBOARDS
               for panel in read(path)["panels"] for target in panel["targets"]}  # fmt: skip
    with short_folder() as home:
        (home / "models.yaml").write_text(json.dumps(MODELS))
        settings = {"ORCHESTRATOR_BUDGETS": json.dumps(BUDGETS), "ORCHESTRATOR_MODELS": str(home / "models.yaml")}
        with (
            halves(home, port, **settings) as gateway,
            prometheus(binary, tmp_path, configured(tmp_path, port)) as watching,
        ):
            until(
                lambda: has_data(watching, "sluice_service_failures_total"),
                30,
                lambda: watching.get("/api/v1/targets").text,
            )
            use(gateway)
            lacking = set(queries)

            def all_have_data() -> bool:
                ask_models(gateway)
                lacking.difference_update([one for one in lacking if has_data(watching, one[2])])
                return not lacking

            until(all_have_data, 40, lambda: lacking)
            for query in set(all_of("definition")):
                metric, label = re.fullmatch(r"label_values\((\S+), (\S+)\)", query).groups()  # type: ignore[union-attr]
                found = watching.get(f"/api/v1/label/{label}/values", params={"match[]": metric}).json()
                assert found["data"], query
            assert ask(watching, "model:sluice_gpu_hours:increase1d")
            failed = ask(watching, "sluice_service_failures_total > 0")
            assert [(labels["rule"], value) for labels, value in failed] == [("unknown", "1")], "no rule knows its code"
            for path in ("/metrics", "/api/v1/orchestrator/metrics"):
                status, told = called(promtool, "check", "metrics", told=gateway.get(path).text)
                assert (status, told) == (0, ""), told
            page = (KIT.parents[1] / "docs/metrics.md").read_text()
            names = re.findall(r"^# TYPE (sluice_\w+)", gateway.get(path).text, re.MULTILINE)
            assert len(names) > 30 and [name for name in names if name not in page] == []

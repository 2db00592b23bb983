"""A dashboard as Grafana wants it: what is shown in, JSON out. Pure."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = 39  # of Grafana 10.4 and later, which read older ones as well
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24  # columns of a dashboard

Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """`queries`: expressions, each with the legend of its series. `kind`: Grafana's type of panel, `unit` its unit.
    `names`: words for numbers. `latest`: the value of now, not its course."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    words: str = ""
    width: int = 12
    height: int = 8
    stacked: bool = False
    most: float | None = None
    names: tuple[tuple[float, str, str], ...] = ()

    @property
    def latest(self) -> bool:
        return self.kind in ("stat", "gauge", "bargauge", "table")


@dataclass(frozen=True)
class Choice:
    """A variable, with the values that a label of a metric has."""

    name: str
    label: str
    metric: str
    of: str


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    words: str
    panels: tuple[Panel, ...]
    choices: tuple[Choice, ...] = ()


def rendered(dashboard: Dashboard) -> str:
    """The JSON of a dashboard."""
    return json.dumps(_dashboard(dashboard), indent=2) + "\n"


def _dashboard(one: Dashboard) -> Json:
    source = {
        "name": "datasource", "type": "datasource", "label": "Data source", "query": "prometheus", "refresh": 1,
        "current": {}, "hide": 0, "includeAll": False, "multi": False, "options": [], "regex": "",
    }  # fmt: skip
    others = {
        "type": "dashboards", "title": "Sluicegate", "tags": ["sluicegate"], "asDropdown": True, "includeVars": True,
        "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": "",
    }  # fmt: skip
    return {
        "uid": one.uid,
        "title": one.title,
        "description": one.words,
        "tags": ["sluicegate"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # the same moment in all panels
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "timezone": "",
        "annotations": {"list": []},
        "links": [others],
        "templating": {"list": [source, *map(_choice, one.choices)]},
        "panels": list(_panels(one.panels)),
    }


def _choice(one: Choice) -> Json:
    query = f"label_values({one.metric}, {one.of})"
    return {
        "name": one.name, "label": one.label, "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": one.name}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}, "hide": 0, "options": [], "regex": "",
    }  # fmt: skip


def _panels(panels: Sequence[Panel]) -> Iterator[Json]:
    """Each in its place: from left to right, a new row where one does not fit any more."""
    x = y = tallest = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _WIDTH:
            x, y, tallest = 0, y + tallest, 0
        yield _panel(number, panel) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height}}
        x, tallest = x + panel.width, max(tallest, panel.height)


def _panel(number: int, panel: Panel) -> Json:
    targets = [
        {
            "refId": chr(ord("A") + at), "datasource": SOURCE, "editorMode": "code", "expr": expression,
            "legendFormat": legend or "__auto", "instant": panel.latest, "range": not panel.latest,
        }
        for at, (expression, legend) in enumerate(panel.queries)
    ]  # fmt: skip
    defaults: Json = {"unit": panel.unit, "min": 0, "mappings": _mappings(panel), "custom": _custom(panel)}
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.words,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": targets,
    }


def _mappings(panel: Panel) -> list[Json]:
    named = {f"{value:g}": {"text": text, "color": color, "index": at}
             for at, (value, text, color) in enumerate(panel.names)}  # fmt: skip
    return [{"type": "value", "options": named}] if named else []


def _custom(panel: Panel) -> Json:
    if panel.kind == "state-timeline":
        return {"fillOpacity": 70, "lineWidth": 0}
    if panel.kind != "timeseries":
        return {}
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    return {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if panel.stacked else 5, "stacking": stacking,
            "showPoints": "never", "spanNulls": False}  # fmt: skip


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "state-timeline":
        return {"showValue": "auto", "mergeValues": True, "legend": {"displayMode": "list", "placement": "bottom"}}
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return {"reduceOptions": last, "orientation": "auto"}

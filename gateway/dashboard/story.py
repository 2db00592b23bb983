"""How a service stands, for people: the steps on its way, what it waits for, what has happened. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.console.progress import length, phase
from gateway.dashboard.words import seconds_between
from gateway.shapes import ServiceDetail

UNDER_WAY = ("pending", "configuring", "running", "suspended")
FAILED = ("failed", "timeout", "preempted", "node_fail", "out_of_memory", "lost")


def kind(status: str) -> str:
    """Which of the looks the status of a service or a replica has: pending, configuring, running, failed or ended."""
    status = {"suspended": "pending", "starting": "configuring"}.get(status, status)
    return status if status in UNDER_WAY else "failed" if status in FAILED else "ended"


@dataclass(frozen=True)
class Step:
    """`state`: done, now or ahead, or `failed` where it ended. `at`: when it began. `took`: in words, of one that is
    done."""

    label: str
    state: str
    at: str | None = None
    took: str = ""


def steps(service: ServiceDetail) -> list[Step]:
    """Queued, loading, answering: and where it is. Of what has ended, how far it came."""
    job = service["job"]
    moments = [job["submitted_at"] or service["created_at"], job["started_at"], job["ready_at"]]
    ends = [*moments[1:], job["ended_at"]]
    labels = ("Queued", "Loading", "Answering")
    now = {"queued": 0, "suspended": 0, "starting": 1, "loading": 1, "ready": 2}.get(phase(service))
    result = []
    for place, (label, began) in enumerate(zip(labels, moments, strict=True)):
        if began is None and place != now:
            result.append(Step(label, "ahead"))
            continue
        over = next((moment for moment in ends[place:] if moment), None)
        took = seconds_between(began, over)
        state = "now" if place == now else "done"
        result.append(Step(label, state, began, length(took) if took is not None and state == "done" else ""))
    return result if now is not None else [*result, _end(service)]


def _end(service: ServiceDetail) -> Step:
    word = service["status"].replace("_", " ").capitalize()
    return Step(word, "failed" if service["status"] in FAILED else "done", service["job"]["ended_at"])


def replicas(service: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a group, each with its node; none of a single service."""
    return [replica | {"node": part["node"]} for part in service.get("node_jobs") or () for replica in part["replicas"]]


def answering(service: Mapping[str, Any]) -> str:
    """Of a group, how many of its replicas answer; "" of a single service."""
    all_ = replicas(service)
    ready = sum(replica["status"] == "running" for replica in all_)
    return f"{ready} of {len(all_)} replicas" if all_ else ""


@dataclass(frozen=True)
class Change:
    """One value of a `config`, before and after."""

    key: str
    before: str
    after: str


def proposed(service: ServiceDetail) -> list[Change]:
    """What a retry would change, by the diagnosis."""
    diagnosis = service["diagnosis"]
    return [
        Change(key, _shown(_given(service["config"], key)), _shown(value))
        for key, value in _flat(diagnosis["changes"] if diagnosis else {})
    ]


def _flat(changes: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in changes.items():
        if key in ("environment", "resources") and isinstance(value, Mapping):
            yield from value.items()
        else:
            yield key, value


def _given(config: Mapping[str, Any], key: str) -> Any:
    places = [config, *(config[part] for part in ("resources", "environment") if isinstance(config.get(part), Mapping))]
    return next((place[key] for place in places if key in place), None)


def _shown(value: Any) -> str:
    if value is None:
        return "the recipe's"
    return " ".join(str(word) for word in value) if isinstance(value, list) else str(value)


_EVENTS = {
    "service.created": "Asked for",
    "job.accepted": "Taken by the scheduler",
    "job.refused": "Refused by the scheduler",
    "job.submit_unanswered": "The scheduler did not answer",
    "job.state": "The job's state changed",
    "job.replacing": "The next job is submitted",
    "service.ready": "The engine answers",
    "service.cancelled": "Stopped",
    "service.handover": "Another job took over",
    "service.let_go": "No further job",
    "service.idle_warning": "Idle, will be ended soon",
    "service.idle_shutdown": "Ended, because idle",
    "service.budget_stop": "Ended, because a budget is used up",
}


@dataclass(frozen=True)
class Happening:
    at: str
    words: str
    detail: str
    actor: str


def happened(entries: Iterable[Mapping[str, Any]]) -> list[Happening]:
    """Entries of the audit as `GET /api/v1/audit` has them."""
    return [
        Happening(entry["ts"], _EVENTS.get(entry["event"], entry["event"]), _detail(entry["meta"]), entry["actor"])
        for entry in entries
    ]


def _detail(meta: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in meta.items() if isinstance(value, str | int | float) and value != ""}
    return ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in plain.items())[:300]

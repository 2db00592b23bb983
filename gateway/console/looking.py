"""The commands that show something, or end it: one call, one table."""

import webbrowser
from collections.abc import Sequence
from typing import Any

from gateway.client import ApiError
from gateway.console.desk import FAILED, USAGE, Desk, status_of
from gateway.console.tables import FIELDS, Column, pairs
from gateway.console.wanted import Options, UsageError, wanted

ALIVE = ("pending", "suspended", "configuring", "running")  # in the order in which they follow each other
_SERVICES = (
    Column("id", "id"), Column("status", "status"), Column("recipe", "recipe_name"),
    Column("model", lambda row: _model(row["config"])), Column("started", "created_at"),
)  # fmt: skip
_SERVICE = ("id", "name", "status", "reason", "diagnosis", "advice", "changes", "recipe_name", "model", "endpoint",
            "nodes", "created_at", "estimated_start", "started_at", "ends_at", "idle_shutdown_at", "stale_since",
            "config")  # fmt: skip
_RECIPES = (Column("recipe", "path"), Column("engine", "engine"), Column("description", "description"))
_PARAMETERS = (
    Column("parameter", "name"), Column("type", "type"), Column("default", "default"),
    Column("description", "description"),
)  # fmt: skip
_MODELS = (Column("model", "id"), Column("state", "state"), Column("slot", "slot"))
_FOUND = (
    Column("model", "id"), Column("vllm", "vllm_compatible"), Column("downloads", "downloads"),
    Column("likes", "likes"), Column("architecture", "architecture"),
)  # fmt: skip
_VERDICTS = (
    Column("check", "check"), Column("level", "level"), Column("message", "message"), Column("next step", "next_step"),
)  # fmt: skip
_COSTS = (
    Column("key", "key"), Column("gpu hours", "gpu_hours"), Column("cpu hours", "cpu_hours"),
    Column("cost", "total_cost"), Column("currency", "currency"), Column("sessions", "sessions_count"),
)  # fmt: skip
_SLOTS = (
    Column("slot", "name"), Column("phase", "phase"), Column("loaded", "loaded"),
    Column("models", lambda row: [f"{model['name']} ({model['state']})" for model in row["models"]]),
    Column("base url", "base_url"),
)  # fmt: skip
_JOBS = (
    Column("job", "job_id"), Column("status", "status"), Column("model", "model"), Column("path", "path"),
    Column("created", "created_at"), Column("error", "error"),
)  # fmt: skip
_JOB = ("job_id", "status", "model", "position", "reason", "error", "attempts", "created_at", "started_at", "ended_at")


def ps(desk: Desk, everything: bool, status: str | None, recipe: str | None, limit: int) -> None:
    """Those that have not ended; with `everything` or a `status` the others too."""
    wanted = (status,) if everything or status is not None else ALIVE
    services = [one for each in wanted for one in desk.client.services(status=each, recipe=recipe, limit=limit)]
    # One that changed its status between two of the questions is in both answers, or newer in the second.
    newest = {one["id"]: one for one in services}
    shown = sorted(newest.values(), key=lambda one: one["created_at"], reverse=True)[:limit]
    desk.give(shown, _SERVICES, shown)


def show(desk: Desk, service_id: str) -> None:
    service = desk.client.service(service_id)
    found = service["diagnosis"]
    told = (
        {}
        if found is None
        else {"diagnosis": found["sentence"], "advice": found["advice"], "changes": found["changes"]}
    )
    desk.give(service, FIELDS, pairs({**service, **told}, _SERVICE))


def logs(desk: Desk, service_id: str, follow: bool, tail: int | None) -> int:
    if follow and desk.as_json:
        desk.say("sluice logs: --follow streams text, which --json cannot show; leave one of them out")
        return USAGE
    if follow:
        for text in desk.client.follow(service_id, tail=tail):
            desk.write(text)
        return 0
    found = desk.client.logs(service_id, tail=tail)
    if desk.as_json:
        desk.give_json(found)
        return 0
    desk.write(found["logs"] if found["logs"].endswith("\n") or not found["logs"] else found["logs"] + "\n")
    if found["note"]:
        desk.say(found["note"])
    return 0


def stop(desk: Desk, service_ids: Sequence[str]) -> int:
    """All of them, also where one is refused: then the status is that of the last refusal."""
    answers, status = [], 0
    for service_id in service_ids:
        try:
            answers.append(desk.client.cancel(service_id))
        except ApiError as exc:
            desk.say(f"sluice stop {service_id}: {exc}")
            status = status_of(exc)
    if answers:
        desk.give(answers if len(service_ids) > 1 else answers[0], (Column("message", "message"),), answers)
    return status


def recipes(desk: Desk, name: str | None) -> None:
    if name is None:
        found = desk.client.recipes()
        desk.give(found, _RECIPES, found)
        return
    recipe = desk.client.recipe(name)
    parameters = [{"name": parameter} | about for parameter, about in recipe["parameters"].items()]
    desk.give(recipe, _PARAMETERS, parameters)


def models(desk: Desk) -> None:
    found = desk.client.models()
    desk.give(found, _MODELS, found["data"])


def search_models(desk: Desk, query: str | None, architecture: str | None, limit: int, sort_by: str | None) -> None:
    found = desk.client.search_models(query, architecture=architecture, limit=limit, sort_by=sort_by)
    desk.give(found, _FOUND, found["models"])


def preflight(desk: Desk, what: str, options: Options, gpu_memory_gb: float | None) -> int:
    try:
        recipe, config = wanted(desk.client, what, options)
    except UsageError as exc:
        desk.say(f"sluice preflight: {exc}")
        return USAGE
    report = desk.client.preflight(recipe=recipe, config=config, gpu_memory_gb=gpu_memory_gb)
    desk.give(report, _VERDICTS, report["verdicts"])
    return 0 if report["ok"] else FAILED


def render(desk: Desk, what: str, options: Options) -> int:
    try:
        recipe, config = wanted(desk.client, what, options)
    except UsageError as exc:
        desk.say(f"sluice render: {exc}")
        return USAGE
    found = desk.client.render(recipe, config)
    if desk.as_json:
        desk.give_json(found)
    else:
        desk.write(found["script"])
    return 0


def costs(desk: Desk, service_id: str | None, by: str | None, since: str | None, until: str | None) -> None:
    if service_id is not None:
        of_one = desk.client.service_costs(service_id)
        desk.give(of_one, _COSTS, [of_one | {"key": service_id}])
        return
    found = desk.client.costs(since=since, until=until, group_by=by)
    rows: list[Any] = [*found["groups"], found | {"key": "total"}]
    desk.give(found, _COSTS, [row | {"currency": found["currency"]} for row in rows])


def slots(desk: Desk) -> None:
    found = desk.client.slots()
    desk.give(found, _SLOTS, found)


def switch_slot(desk: Desk, name: str, model: str | None) -> None:
    slot = desk.client.switch_slot(name, model)
    desk.give(slot, _SLOTS, [slot])


def jobs(desk: Desk, status: str | None, limit: int) -> None:
    found = desk.client.jobs(status=status, limit=limit)
    desk.give(found, _JOBS, found)


def job(desk: Desk, job_id: str) -> None:
    found = desk.client.job(job_id)
    desk.give(found, FIELDS, pairs(found, _JOB))


def job_result(desk: Desk, job_id: str) -> None:
    """The engine's own JSON, whatever it is."""
    desk.give_json(desk.client.job_result(job_id))


def cancel_job(desk: Desk, job_id: str) -> None:
    found = desk.client.cancel_job(job_id)
    desk.give_text(found, found["message"])


def open_page(desk: Desk) -> None:
    """Show the gateway's address, and on a terminal open it in the browser. Fails where no gateway is."""
    desk.client.health()
    url = f"{desk.client.url}/"
    desk.give_text({"url": url}, url)
    if desk.out.is_terminal:
        webbrowser.open(url)


def _model(config: dict[str, Any]) -> Any:
    return config.get("model") or (config.get("environment") or {}).get("VLLM_MODEL")

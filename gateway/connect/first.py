"""The first answer of a model, through the gateway that has just begun."""

from typing import Any

from gateway.console.desk import USAGE, Desk
from gateway.console.running import followed
from gateway.console.wanted import Options, UsageError, wanted
from gateway.shapes import Service

_ALIVE = ("running", "configuring", "pending")


def first_answer(desk: Desk, what: str, options: Options, question: str | None) -> int:
    """Start a model or a recipe, unless it is there already; with a question, its answer alone on stdout."""
    try:
        recipe, config = wanted(desk.client, what, options)
    except UsageError as exc:
        desk.say(f"sluice connect: {exc}")
        return USAGE
    service = there(desk, recipe, config) or desk.client.start(recipe, config)
    ready = followed(desk, service["id"])
    if question is None:
        desk.give_text(ready, ready["id"])
        return 0
    answer = desk.client.prompt(ready["id"], question, temperature=0)
    desk.give_text(answer, answer["text"])
    return 0


def there(desk: Desk, recipe: str, config: dict[str, Any]) -> Service | None:
    """One of this recipe and model that answers, or will."""
    for status in _ALIVE:
        for service in desk.client.services(status=status, recipe=recipe):
            if service["config"].get("model") == config.get("model"):
                return service
    return None

"""`sluice run` and `sluice retry`: start a service, and tell the truth about it until it answers."""

from collections.abc import Callable

import typer

from gateway.client.watching import answering
from gateway.console.desk import INTERRUPTED, USAGE, Desk
from gateway.console.progress import Story, about, length, told
from gateway.console.wanted import Options, UsageError, config_of, wanted
from gateway.screen import Screen
from gateway.shapes import Service, ServiceDetail


def run(desk: Desk, what: str, options: Options, detach: bool) -> int:
    """On stdout the service's id when it answers, or with `detach` at once."""
    try:
        recipe, config = wanted(desk.client, what, options)
    except UsageError as exc:
        desk.say(f"sluice run: {exc}")
        return USAGE
    return _begun(desk, lambda: desk.client.start(recipe, config), detach)


def retry(desk: Desk, service_id: str, options: Options, detach: bool) -> int:
    """The same for one that failed, with the changes of its diagnosis and those of `options`."""
    try:
        changes = config_of(options)
    except UsageError as exc:
        desk.say(f"sluice retry: {exc}")
        return USAGE
    return _begun(desk, lambda: desk.client.retry(service_id, changes), detach)


def _begun(desk: Desk, begin: Callable[[], Service], detach: bool) -> int:
    try:
        service = begin()
    except KeyboardInterrupt:
        desk.say("interrupted while it was being submitted; `sluice ps` says whether it was")
        return INTERRUPTED
    desk.say(f"{service['name']} is submitted.")
    if detach:
        desk.give_text(service, service["id"])
        return 0
    try:
        ready = followed(desk, service["id"])
    except KeyboardInterrupt:
        return _left(desk, service["id"])
    desk.give_text(ready, ready["id"])
    if desk.has_person:
        desk.say(f'Ask it: sluice prompt {ready["id"]} "Hello"    stop it: sluice stop {ready["id"]}')
    return 0


def followed(desk: Desk, service_id: str) -> ServiceDetail:
    """The service when it answers; what it waits for is told meanwhile. Raises Ended."""
    screen, story = Screen(desk.err), Story()
    with screen.waiting("submitted") as line:
        for look in desk.client.watch(service_id):
            over = story.look(look, line.seconds)
            if over is not None and desk.err.is_terminal:
                screen.say(over)
            line.show(told(look), about=about(look))
        took = line.seconds
    ready = answering(look)
    screen.say(f"{told(ready)}, after {length(took)}{story.told()}")
    return ready


def _left(desk: Desk, service_id: str) -> int:
    """Ctrl-C: a person is asked, a script leaves it running."""
    if desk.has_person and not _to_be_left(service_id):
        desk.say(desk.client.cancel(service_id)["message"])
    else:
        desk.say(
            f"Service {service_id} is left running. See it: sluice show {service_id}. End it: sluice stop {service_id}"
        )
    return INTERRUPTED


def _to_be_left(service_id: str) -> bool:
    try:
        return typer.confirm(f"\nLeave service {service_id} running?", default=True, err=True)
    except typer.Abort:  # a second Ctrl-C
        return True

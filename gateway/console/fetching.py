"""`sluice models pull` and `sluice images pull`: start a download on the cluster, and tell of it until it is there."""

import time
from collections.abc import Callable, Sequence

from gateway.client.errors import ApiError
from gateway.console.desk import FAILED, INTERRUPTED, Desk
from gateway.console.progress import amount, length
from gateway.console.tables import Column
from gateway.screen import Screen
from gateway.shapes import Pull

EVERY = 1.0  # seconds between two looks
_ENDED = ("done", "failed", "cancelled")
_PULLS = (
    Column("pull", "id"), Column("status", "status"), Column("name", "name"), Column("revision", "revision"),
    Column("how far", lambda row: told(row)), Column("error", "error"),
)  # fmt: skip


def pull_model(desk: Desk, model: str, include: Sequence[str], detach: bool) -> int:
    """On stdout the pull's id when the model is there, or with `detach` at once."""
    name, _, revision = model.partition("@")
    pull = desk.client.pull_model(name, revision=revision or None, include=include)
    return _followed(desk, pull, desk.client.model_pull, detach)


def pull_image(desk: Desk, image: str, size_gb: float | None, detach: bool) -> int:
    pull = desk.client.pull_image(image, size_gb=size_gb)
    return _followed(desk, pull, desk.client.image_pull, detach)


def pulls(desk: Desk, found: list[Pull]) -> None:
    desk.give(found, _PULLS, found)


def cancelled(desk: Desk, pull: Pull) -> None:
    desk.give_text(pull, f"{pull['id']} is {pull['status']}")


def told(pull: Pull) -> str:
    """How far a download is: "412.0 MB of 1.0 GB (41 %), 82.0 MB/s, 7 s left"."""
    done, total = amount(pull["bytes_done"]), pull["bytes_total"]
    if pull["status"] == "queued":
        return "queued behind other downloads"
    said = done if total is None else f"{done} of {amount(total)} ({pull['percent'] or 0:.0f} %)"
    if pull["status"] != "running":
        return said
    speed, eta = pull["bytes_per_second"], pull["eta_seconds"]
    pace = "" if not speed else f", {amount(speed)}/s"
    left = "" if eta is None else f", {length(eta)} left"
    return f"{said}{pace}{left}{': ' + pull['text'] if pull['text'] else ''}"


def _followed(desk: Desk, pull: Pull, look: Callable[[str], Pull], detach: bool) -> int:
    if not detach:
        try:
            pull = _watched(desk, pull, look)
        except KeyboardInterrupt:
            kind = pull["kind"]
            desk.say(
                f"\nIt goes on without us. See it: sluice {kind}s pulls. End it: sluice {kind}s cancel {pull['id']}"
            )
            return INTERRUPTED
    if pull["status"] in ("failed", "cancelled"):
        desk.say(f"sluice: {pull['name']}: {pull['error'] or pull['status']}")
        return FAILED
    desk.give_text(pull, pull["id"])
    return 0


def _watched(desk: Desk, pull: Pull, look: Callable[[str], Pull]) -> Pull:
    """Looks until it has ended. While the link to the cluster is down it is asked again."""
    screen = Screen(desk.err)
    with screen.waiting(f"{pull['name']}: {told(pull)}") as line:
        while pull["status"] not in _ENDED:
            time.sleep(EVERY)
            try:
                pull = look(pull["id"])
            except ApiError as exc:
                if exc.status != 503:
                    raise
                continue
            line.show(f"{pull['name']}: {told(pull)}", about=pull["status"])
        took = line.seconds
    screen.say(f"{pull['name']}: {pull['status']}, {told(pull)}, after {length(took)}")
    return pull

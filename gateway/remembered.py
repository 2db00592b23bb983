"""Which models there were, for when the orchestrator is away: clients list them when they start.

Asked for when the link comes up and now and then while it is, and kept in a private file from run to run.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.link import Link, LinkState, LinkStatus, Unreached
from gateway.trunk import Trunk
from orchestrator.private import put
from orchestrator.untrusted import open_regular

log = logging.getLogger(__name__)

MODELS = "/v1/models"
_EVERY_SECONDS = 30.0
_LOOK_SECONDS = 1.0  # at the link: whoever waits for its next change has it tried more often
_MOST_BYTES = 4 * 1024 * 1024
_VERSION = 1


@dataclass(frozen=True)
class Said:
    """A list of models in OpenAI's form, and each of them by its id. `at`: seconds since 1970."""

    models: dict[str, Any]
    by_id: Mapping[str, dict[str, Any]]
    at: float


def said(models: Any, at: float) -> Said | None:
    """None for what is no list of models."""
    cards = models.get("data") if isinstance(models, dict) else None
    if not isinstance(cards, list):
        return None
    by_id = {card["id"]: card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)}
    return Said(models, by_id, at)


class Remembered:
    """What the orchestrator has said last. `file` has it from run to run; `clock` gives seconds since 1970."""

    def __init__(self, file: Path, clock: Callable[[], float]) -> None:
        self._file, self._clock = file, clock
        self._said = _read(file)

    def find(self, model_id: str | None = None) -> dict[str, Any] | None:
        """The list, or one of its models; None where nothing is known."""
        if self._said is None:
            return None
        return self._said.models if model_id is None else self._said.by_id.get(model_id)

    @property
    def age(self) -> int:
        """Seconds since the orchestrator has said so."""
        return 0 if self._said is None else max(0, round(self._clock() - self._said.at))

    def take(self, body: bytes) -> None:
        """The orchestrator's list of models now."""
        try:
            new = said(json.loads(body), self._clock()) if len(body) <= _MOST_BYTES else None
        except (ValueError, RecursionError):
            new = None
        if new is None:
            log.warning("the orchestrator's list of models is none, or a very long one: %r", body[:100])
            return
        before, self._said = self._said, new
        if before is None or before.models != new.models:
            self.keep()

    def keep(self) -> None:
        """Write it down. A file that cannot be written costs the memory of the next run, and nothing else."""
        if self._said is None:
            return
        text = json.dumps({"version": _VERSION, "at": self._said.at, "models": self._said.models})
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            put(self._file, text)
        except OSError as exc:
            log.warning("cannot keep the list of models for the next run: %s", exc)


def _read(file: Path) -> Said | None:
    """What the last run has left. Nothing depends on it, so that a file that is none is passed over."""
    try:
        with open(open_regular(file), "rb") as opened:  # noqa: PTH123 - a descriptor
            content = json.loads(opened.read(2 * _MOST_BYTES))
        return said(content["models"], float(content["at"])) if content["version"] == _VERSION else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as exc:
        log.warning("the list of models of the last run cannot be read from %s: %r", file, exc)
        return None


async def follow(remembered: Remembered, trunk: Trunk, link: Link, seconds: float) -> None:
    """Ask for the models as long as this runs. An answer may take so many seconds."""
    loop = asyncio.get_running_loop()
    asked: tuple[LinkStatus, float] | None = None
    while True:
        if _is_due(link.status, asked, loop.time()):
            asked = link.status, loop.time()
            await _ask(remembered, trunk, seconds)
        await asyncio.sleep(_LOOK_SECONDS)


def _is_due(now: LinkStatus, asked: tuple[LinkStatus, float] | None, time: float) -> bool:
    """When it comes up, and every 30 s while it is. `asked`: how it stood the last time, and when that was."""
    if now.state is not LinkState.UP:
        return False
    return asked is None or asked[0].since != now.since or time - asked[1] >= _EVERY_SECONDS


async def _ask(remembered: Remembered, trunk: Trunk, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            status, body = await trunk.ask(b"GET", MODELS.encode())
    except (Unreached, TimeoutError) as exc:
        log.debug("the models could not be asked for: %s", exc or "no answer")
        return
    if status == 200:
        remembered.take(body)

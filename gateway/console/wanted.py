"""What `run` and `preflight` are asked for: a recipe and its config."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.client import ApiError, Client

MODELS_RECIPE = "inference/vllm-single-node"
"""What starts a model that is no recipe."""


class UsageError(ValueError):
    """An option that cannot be understood; its text is for the user."""


@dataclass(frozen=True)
class Options:
    """`gpus` 0: none. `minutes`: the time limit. `settings`: `K=V`."""

    gpus: int | None = None
    nodes: int | None = None
    minutes: int | None = None
    settings: Sequence[str] = ()
    name: str | None = None


def wanted(client: Client, what: str, options: Options) -> tuple[str, dict[str, Any]]:
    """The recipe called `what`, else the one for models with `what` as its model; and the config.

    Raises UsageError, and ApiError for what begins like a recipe and is none: a job is not spent on a slip.
    """
    config = config_of(options)
    try:
        return client.recipe(what)["path"], config
    except ApiError as exc:
        category, slash, _ = what.partition("/")
        if exc.status != 404 or (slash and category in {recipe["category"] for recipe in client.recipes()}):
            raise
        return MODELS_RECIPE, {"model": what} | config


def config_of(options: Options) -> dict[str, Any]:
    """A service's config. Raises UsageError for a setting that is not K=V."""
    config: dict[str, Any] = {}
    for setting in options.settings:
        _put(config, setting)
    if options.gpus is not None:
        config["gpu"] = options.gpus or None
    if options.nodes is not None:
        config["nodes"] = options.nodes
    if options.minutes is not None:
        config["time_limit"] = options.minutes
    if options.name is not None:
        config["aliases"] = [options.name]
    return config


def _put(config: dict[str, Any], setting: str) -> None:
    """`k=v` into the config, `a.b=v` into its `a`, `NAME=v` in capitals into its environment, as text."""
    key, separator, text = setting.partition("=")
    outer, _, inner = key.partition(".")
    if not separator or not outer or key.endswith("."):
        raise UsageError(f"--set {setting!r}: write KEY=VALUE, as in --set max_model_len=8192 or --set VLLM_PORT=8002")
    if key.isupper():
        outer, inner = "environment", key
    value = text if outer == "environment" else _value(text)
    if not inner:
        config[outer] = value
        return
    place = config.setdefault(outer, {})
    if not isinstance(place, dict):
        raise UsageError(f"--set {setting!r}: {outer} has been set to a value already")
    place[inner] = value


def _value(text: str) -> Any:
    """Numbers, true, false, null, lists and objects as JSON has them; everything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text

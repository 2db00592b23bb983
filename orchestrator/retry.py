"""A service started once more: what its `config` is with some of its values changed. Pure."""

from collections.abc import Mapping
from typing import Any

from orchestrator.models import Job, Service, ServiceStatus, status_of
from orchestrator.recipes import Recipe, Resources

_RESOURCES = frozenset(Resources.model_fields)


def failed(service: Service, job: Job) -> bool:
    """Whether a service has ended, and neither by itself nor because a user wanted it."""
    status = status_of(service, job, answers=False)
    return status.ended and status is not ServiceStatus.COMPLETED and service.cancelled_at is None


def amended(config: Mapping[str, Any], changes: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """`config` with `changes`, which are a part of one, in whichever of its spellings a value was given before.

    None takes a value back. What is wrong with a change `resolve` says.
    """
    result = dict(config)
    for key, value in changes.items():
        if key in ("environment", "resources") and isinstance(value, Mapping):
            for name, one in value.items():
                _forget(result, name, recipe)
                result[key] = _part(result, key) | {name: one}
        else:
            _forget(result, key, recipe)
            result[key] = value
    return result


def _forget(config: dict[str, Any], key: str, recipe: Recipe) -> None:
    """Take a value out of all places where it may stand."""
    names = _spellings(key, recipe)
    for place in ("environment", "resources"):
        if isinstance(config.get(place), Mapping):
            config[place] = {name: value for name, value in config[place].items() if name not in names}
    for name in names:
        config.pop(name, None)


def _spellings(key: str, recipe: Recipe) -> set[str]:
    """All names of what is called `key`."""
    if key in _RESOURCES:
        return {key}
    for name, parameter in recipe.parameters.items():
        names = {name, *parameter.also} | ({parameter.alias} if parameter.alias else set())
        if key in names:
            return names
    return {key}


def _part(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = config.get(key)
    return dict(part) if isinstance(part, Mapping) else {}

"""The gateway's OpenAPI document: the orchestrator's by the table of `paths`, and the gateway's own routes."""

from typing import Any

from gateway.paths import to_client

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def gateway_document(orchestrator_document: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` is an OpenAPI document too: its `info` and everything but `paths` and `components` win.

    Where the orchestrator documents a route under the gateway's path as well as under its own, the former is taken.
    The arguments are not changed.
    """
    paths: dict[str, dict[str, Any]] = {}
    native_first = sorted(orchestrator_document.get("paths", {}).items(), key=lambda item: "/v1/" not in item[0])
    for path, item in native_first:
        shared = {key: value for key, value in item.items() if key not in _METHODS}
        for method in (key for key in item if key in _METHODS):
            new_method, new_path = to_client(method.upper(), path)
            paths.setdefault(new_path, dict(shared)).setdefault(new_method.lower(), item[method])
    for path, item in own.get("paths", {}).items():
        paths[path] = paths.get(path, {}) | item
    document = orchestrator_document | own | {"paths": dict(sorted(paths.items()))}
    if components := _components(orchestrator_document, own):
        document["components"] = components
    return document


def _components(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    first, second = one.get("components", {}), other.get("components", {})
    return {kind: first.get(kind, {}) | second.get(kind, {}) for kind in {**first, **second}}

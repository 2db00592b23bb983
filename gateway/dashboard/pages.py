"""What a module of the dashboard adds: routes, places in the navigation, topics that are live."""

from dataclasses import dataclass

from starlette.routing import BaseRoute

from gateway.dashboard.hub import Topic


@dataclass(frozen=True)
class Entry:
    """A place in the navigation. `icon`: a symbol of `parts.html`. `needs`: method and path of the API call without
    which it is no use."""

    label: str
    path: str
    icon: str
    needs: tuple[str, str] | None = None


@dataclass(frozen=True)
class Page:
    routes: tuple[BaseRoute, ...]
    entries: tuple[Entry, ...] = ()
    topics: tuple[Topic, ...] = ()


def current(entries: list[Entry], path: str) -> str:
    """The path of the entry to which `path` belongs, "" for none."""
    above = [entry.path for entry in entries if path == entry.path or path.startswith(f"{entry.path}/")]
    return max(above, key=len, default="")

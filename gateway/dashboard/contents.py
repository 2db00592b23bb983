"""Which pages there are, in the order of the navigation: one line for each module."""

from starlette.routing import BaseRoute

from gateway.dashboard import (
    audit,
    banner,
    charts,
    chat,
    cluster,
    events,
    keys,
    service,
    services,
    sign_in,
    start,
    static_files,
    vector_search,
)
from gateway.dashboard.hub import Topic
from gateway.dashboard.pages import Entry, Page

PAGES: tuple[Page, ...] = (
    services.PAGE,
    start.PAGE,
    service.PAGE,
    chat.PAGE,
    vector_search.PAGE,
    cluster.PAGE,
    charts.PAGE,
    audit.PAGE,
    keys.PAGE,
    # A page more: here.
    sign_in.PAGE,
    banner.PAGE,
    events.PAGE,
    Page(routes=(static_files.ROUTE,)),
)


def routes() -> list[BaseRoute]:
    return [route for page in PAGES for route in page.routes]


def entries() -> tuple[Entry, ...]:
    return tuple(entry for page in PAGES for entry in page.entries)


def topics() -> tuple[Topic, ...]:
    return tuple(topic for page in PAGES for topic in page.topics)

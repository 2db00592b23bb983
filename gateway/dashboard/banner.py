"""How the link stands, on top of every page while something is wrong with it."""

import asyncio
from http import HTTPStatus

from gateway.dashboard.asking import Asker, Away, Refused
from gateway.dashboard.hub import Topic
from gateway.dashboard.pages import Page
from gateway.dashboard.templating import render
from gateway.link import LinkState, LinkStatus

TITLES = {
    LinkState.CONNECTING: "Connecting to the cluster",
    LinkState.UP: "The orchestrator does not answer",
    LinkState.DOWN: "The connection to the cluster is down",
    LinkState.AUTH_REQUIRED: "The cluster waits for you to sign in",
    LinkState.HOST_KEY_UNKNOWN: "The cluster's host key has to be accepted",
    LinkState.HOST_KEY_CHANGED: "The cluster's host key has changed",
}


def banner(link: LinkStatus, *, answers: bool) -> str:
    """The banner as HTML, empty while all is well. Of the same id always, so that it can be swapped."""
    wrong = link.state is not LinkState.UP or not answers
    return render("banner.html", link=link, title=TITLES[link.state] if wrong else "", wrong=wrong)


async def look(asker: Asker) -> dict[str, str]:
    link = asker.link.status
    return {"banner": banner(link, answers=link.state is LinkState.UP and await _answers(asker))}


async def _answers(asker: Asker) -> bool:
    try:
        async with asyncio.timeout(2):
            status, _ = await asker.ask("GET", "/health")
    except (Away, Refused, TimeoutError):
        return False
    return status == HTTPStatus.OK


PAGE = Page(routes=(), topics=(Topic("link", look, every=2.0),))

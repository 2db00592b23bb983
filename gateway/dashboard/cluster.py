"""The cluster: free GPUs by partition, the user's jobs, their places in the queue; live."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.dashboard.asking import Asker, asker_of
from gateway.dashboard.hub import Topic
from gateway.dashboard.pages import Entry, Page
from gateway.dashboard.templating import render
from gateway.dashboard.view import page
from orchestrator.keys import Scope

PATH = "/api/v1/cluster"
ORCHESTRATOR = "sluicegate-orchestrator"  # orchestrator.own_job.NAME; to import that takes a third of a second
SEPARATE = 48  # GPUs up to which each is a mark of its own in a bar


async def show(request: Request) -> Response:
    told = await asker_of(request).json("GET", PATH)
    return page(request, "cluster.html", pieces=parts(told))


async def look(asker: Asker) -> dict[str, str]:
    return parts(await asker.json("GET", PATH))


def parts(cluster: dict[str, Any]) -> dict[str, str]:
    """HTML by the id of its element. Apart, so that what has not changed stays as it is."""
    names = ("cluster-state", "cluster-gpus", "cluster-partitions", "cluster-jobs")
    return {
        name: render(
            f"{name.replace('-', '_')}.html", cluster=cluster, orchestrator=ORCHESTRATOR, separate=SEPARATE, limit=limit
        )
        for name in names
    }


def limit(minutes: int | None) -> str:
    """A time limit: 2880 → "2 days", 90 → "1 h 30 min"."""
    if minutes is None:
        return "none"
    days, rest = divmod(minutes, 24 * 60)
    parts = [(days, "day" if days == 1 else "days"), (rest // 60, "h"), (rest % 60, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 min"


PAGE = Page(
    entries=(Entry("Cluster", "/ui/cluster", icon="cluster", needs=("GET", PATH)),),
    routes=(Route("/ui/cluster", show),),
    # Not for keys that may only use models: they see no jobs but those of services, and the hub asks for all at once.
    topics=(Topic("cluster", look, every=5.0, scope=Scope.MANAGE),),
)

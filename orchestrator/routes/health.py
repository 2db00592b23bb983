"""What lives, what is ready."""

from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from orchestrator import __version__
from orchestrator.deps import App, Orchestrator

router = APIRouter(tags=["health"])


class Root(BaseModel):
    service: str
    version: str
    status: str
    docs: str


class WatcherHealth(BaseModel):
    """`late`: the last turn is older than three intervals (at least 10 s): nothing that is shown is up to date."""

    late: bool
    last_look: datetime | None
    stale_since: datetime | None
    trouble: str


class Health(BaseModel):
    """`tcp`: where jobs of the cluster reach this orchestrator with a key, null where they do not."""

    status: Literal["healthy", "degraded"]
    service: str
    version: str
    scheduler: str
    started_at: datetime
    tcp: str | None
    watcher: WatcherHealth


@router.get("/", summary="Name this service")
async def root() -> Root:
    return Root(service="Sluicegate orchestrator", version=__version__, status="running", docs="/docs")


@router.get("/health", summary="Tell how this orchestrator is")
async def health(app: App) -> Health:
    """Always 200 while the process lives; `status` is `degraded` while Slurm does not answer or the watcher is late."""
    watcher = app.watcher
    late = watcher.late
    return Health(
        status="degraded" if late or watcher.stale_since or watcher.unrecorded else "healthy",
        service="Sluicegate orchestrator",
        version=__version__,
        scheduler=app.settings.scheduler,
        started_at=app.started_at,
        tcp=app.settings.address,
        watcher=watcher_health(app),
    )


def watcher_health(app: Orchestrator) -> WatcherHealth:
    watcher = app.watcher
    return WatcherHealth(
        late=watcher.late,
        last_look=watcher.last_look,
        stale_since=watcher.stale_since,
        trouble=watcher.trouble or watcher.unrecorded,
    )


@router.get("/ready", summary="Tell whether services can be started now", responses={503: {"model": Health}})
async def ready(app: App, response: Response) -> Health:
    """200, or 503 with the reason."""
    answer = await health(app)
    if answer.status != "healthy" or app.watcher.last_look is None:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    return answer

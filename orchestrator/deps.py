"""What the lifespan opened, as annotated parameters: a route's signature lists what it touches."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

import httpx2
from fastapi import Depends, Header, Request

from orchestrator.errors import Invalid
from orchestrator.models import Job, Service, ServiceStatus, status_of
from orchestrator.recipes import RecipeBook
from orchestrator.replicas import Replicas
from orchestrator.services import Services
from orchestrator.settings import Settings
from orchestrator.store import Store
from orchestrator.watcher import Watcher


@dataclass(frozen=True)
class Orchestrator:
    """Everything that one running orchestrator has open."""

    settings: Settings
    recipes: RecipeBook
    store: Store
    services: Services
    replicas: Replicas
    watcher: Watcher
    engines: httpx2.AsyncClient  # to the engines, without a time limit on answers
    started_at: datetime

    def status(self, service: Service, job: Job) -> ServiceStatus:
        answers = self.replicas.answers(service.submission_id)
        return status_of(job, cancelled=service.cancelled_at is not None, answers=answers)


def _orchestrator(request: Request) -> Orchestrator:
    return cast(Orchestrator, request.app.state.orchestrator)


App = Annotated[Orchestrator, Depends(_orchestrator)]


def _idempotency_key(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
    if idempotency_key is not None and not re.fullmatch(r"[\x21-\x7e]{1,200}", idempotency_key):
        raise Invalid("Idempotency-Key must have 1 to 200 visible characters without spaces, e.g. a UUID")
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


def _actor(x_sluice_actor: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
    """Who asks, as the gateway says it; on the user's own socket that is the user."""
    return (x_sluice_actor or "user")[:100]


Actor = Annotated[str, Depends(_actor)]

"""Services that speak OpenAI's API: which there are, their models, a prompt."""

import asyncio
import json
from collections.abc import Coroutine, Mapping
from datetime import datetime
from typing import Any

import httpx2
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from orchestrator.deps import App, Orchestrator
from orchestrator.errors import BadRequest, Conflict, EngineError, NotReady
from orchestrator.models import Job, Service
from orchestrator.prompt import (
    CHAT,
    COMPLETIONS,
    Answer,
    ask,
    chat_body,
    completion_body,
    engine_words,
    lacks_chat_template,
)
from orchestrator.relay import Interrupted, RelayError, relay
from orchestrator.replicas import Replica
from orchestrator.routes.services import ServiceId
from orchestrator.routes.shapes import (
    Models,
    PromptAnswer,
    PromptRequest,
    VllmService,
    VllmServices,
    endpoint_of,
    public_id,
)
from orchestrator.services import plan_of

router = APIRouter(tags=["vllm"])


@router.get("/vllm/services", summary="List the services that answer prompts")
async def list_vllm_services(app: App) -> VllmServices:
    """All services of recipes that serve a model and have not ended."""
    rows = [(s, j) for s, j in await app.store.services() if plan_of(s).models and not app.status(s, j).ended]
    return VllmServices(
        vllm_services=[
            VllmService(
                id=public_id(service),
                name=service.name,
                recipe_name=service.recipe_name,
                endpoint=endpoint_of(app, service),
                status=app.status(service, job),
            )
            for service, job in rows
        ]
    )


@router.get("/vllm/{service_id}/models", summary="List the models that a service has loaded")
async def list_models(app: App, service_id: ServiceId) -> Models:
    service, job = await app.store.find(service_id)
    replica = pick(app, service, job)
    return Models(success=True, models=list(replica.models), service_id=public_id(service), endpoint=replica.url)


@router.post("/vllm/{service_id}/prompt", summary="Ask a service's model", response_model=PromptAnswer)
async def prompt(app: App, service_id: ServiceId, request: Request, asked: PromptRequest) -> PromptAnswer | Response:
    """Put as a chat message; as plain text for a model without a chat template. `stream: true` streams SSE."""
    service, job = await app.store.find(service_id)
    replica = pick(app, service, job)
    model = asked.model or (replica.models[0] if replica.models else plan_of(service).served_model_name or "")
    fields = asked.model_dump()
    if asked.stream:
        bodies = {
            CHAT: chat_body(asked.prompt, model, fields),
            COMPLETIONS: completion_body(asked.prompt, model, fields),
        }
        return Streamed(app.engines, replica, bodies, app.watcher.clock())
    with replica.lease(app.watcher.clock()):
        answer = await while_connected(request, ask(app.engines, replica, asked.prompt, model, fields))
    return PromptAnswer(
        success=True,
        text=answer.text,
        response=answer.text,
        service_id=public_id(service),
        endpoint=replica.url,
        endpoint_used=answer.endpoint_used,
        usage=answer.usage,
    )


class Streamed(Response):
    """An engine's answer, passed on as it comes. The replica is leased until its last byte.

    `bodies`: what to send, by path. The next one is tried where the engine has no chat template.
    """

    def __init__(
        self, client: httpx2.AsyncClient, replica: Replica, bodies: Mapping[str, dict[str, Any]], at: datetime
    ) -> None:
        super().__init__()
        self._client, self._replica, self._at = client, replica, at
        self._attempts = [(path, json.dumps(body | {"stream": True}).encode()) for path, body in bodies.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        words, refused = "", Refusable(send)
        with self._replica.lease(self._at):
            for path, content in self._attempts:
                refused = Refusable(send)
                await self._relay(scope, receive, refused, path, content)
                if refused.status is None:
                    return
                words = engine_words(httpx2.Response(refused.status, content=refused.body))
                if refused.status != 400 or not lacks_chat_template(words):
                    break
        raise EngineError(f"replica {self._replica.id}: {words}", upstream_status=refused.status)

    async def _relay(self, scope: Scope, receive: Receive, send: "Refusable", path: str, content: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in self._replica.headers.items()]
        try:
            await relay(
                self._client, scope, receive, send,
                url=self._replica.url, target=path.encode(), headers=headers, content=content,
            )  # fmt: skip
        except RelayError as exc:
            raise EngineError(f"replica {self._replica.id} gave no answer: {exc}") from exc
        except Interrupted:
            if send.status is None:
                raise


class Refusable:
    """An ASGI `send` that keeps back an answer which is an error."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self.status = message["status"]
        if self.status is None:
            await self._send(message)
        elif len(self.body) < 64 * 1024:
            self.body += message.get("body", b"")


async def while_connected(request: Request, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """Await an engine's answer, and give it up the moment the client leaves: that frees the GPU."""
    answering = asyncio.create_task(answer)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise BadRequest("the client closed the connection before the answer was there")
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.wait({answering, leaving})


def pick(app: Orchestrator, service: Service, job: Job) -> Replica:
    """A replica that answers. Raises NotReady with the status and what it waits for."""
    status = app.status(service, job)
    if status.ended:
        raise Conflict(f"Service {public_id(service)} has ended ({status}); start a new one")
    try:
        return app.replicas.pick(service.submission_id)
    except NotReady as exc:
        raise NotReady(f"Service {public_id(service)} is not ready yet (status: {status}): {exc}") from exc

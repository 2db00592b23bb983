"""Services that speak OpenAI's API: which there are, their models, a prompt."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

import httpx2
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from orchestrator.deps import App, Orchestrator, Wanted, check_ready, find
from orchestrator.errors import BadRequest, ReplicaFailed
from orchestrator.failover import first_answer, unless_lost
from orchestrator.prompt import (
    CHAT,
    COMPLETIONS,
    Answer,
    ask,
    chat_body,
    completion_body,
    lacks_chat_template,
    refusal,
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
from orchestrator.routes.strict import StrictRoute
from orchestrator.services import plan_of

router = APIRouter(tags=["vllm"], route_class=StrictRoute)

T = TypeVar("T")


@router.get("/vllm/services", summary="List the services that answer prompts")
async def list_vllm_services(app: App) -> VllmServices:
    """All services of recipes that serve a model and have not ended."""
    rows = [(s, j) for s, j in await app.store.open_services() if plan_of(s).models and not app.status(s, j).ended]
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
    wanted = await find(app, service_id)
    replica = check_answers_prompts(app, wanted)
    return Models(success=True, models=list(replica.models), service_id=wanted.id, endpoint=replica.url)


@router.post(
    "/vllm/{service_id}/prompt",
    summary="Ask a service's model",
    response_model=PromptAnswer,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def prompt(app: App, service_id: ServiceId, request: Request, asked: PromptRequest) -> PromptAnswer | Response:
    """Put as a chat message; as plain text for a model without a chat template. `stream: true` streams SSE.

    A group shares prompts out among its replicas that answer. When one fails before the first byte of its answer the
    next one is asked; `routed_to` says which one answered.
    """
    wanted = await find(app, service_id)
    check_answers_prompts(app, wanted)
    fields = asked.model_dump()
    if asked.stream:
        return Streamed(app, wanted, fields)

    async def attempt(replica: Replica) -> Answer:
        asking = ask(app.engines, replica, asked.prompt, model_of(replica, fields), fields)
        return await unless_lost(replica, asking, begun=lambda: False)

    replica, answer = await while_connected(request, answered(app, wanted, attempt))
    return PromptAnswer(
        success=True,
        text=answer.text,
        response=answer.text,
        service_id=wanted.id,
        endpoint=replica.url,
        endpoint_used=answer.endpoint_used,
        usage=answer.usage,
        **routed(wanted, replica),
    )


def answered(
    app: Orchestrator, wanted: Wanted, attempt: Callable[[Replica], Awaitable[T]]
) -> Coroutine[Any, Any, tuple[Replica, T]]:
    clock = app.watcher.clock
    return first_answer(app.replicas, wanted.service.submission_id, attempt, clock=clock, port=wanted.port)


def routed(wanted: Wanted, replica: Replica) -> dict[str, Any]:
    """The fields that only a group's answers have."""
    plan = plan_of(wanted.service)
    if plan.gpus_per_replica is None:
        return {}
    group = public_id(wanted.service)
    return {"routed_to": replica.id, "group_id": group, "total_replicas": plan.total_replicas}


def model_of(replica: Replica, fields: Mapping[str, Any]) -> str:
    """The model asked for, else the one that the replica serves."""
    return str(fields.get("model") or replica.models[0])


class Streamed(Response):
    """An engine's answer, passed on as it comes. The replica is leased until its last byte."""

    def __init__(self, app: Orchestrator, wanted: Wanted, fields: dict[str, Any]) -> None:
        super().__init__()
        self._app, self._wanted, self._fields = app, wanted, fields

    def _bodies(self, replica: Replica) -> Iterator[tuple[str, bytes]]:
        """What to send, and where: the second where the engine has no chat template."""
        for path, body in ((CHAT, chat_body), (COMPLETIONS, completion_body)):
            content = body(self._fields["prompt"], model_of(replica, self._fields), self._fields) | {"stream": True}
            yield path, json.dumps(content).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def attempt(replica: Replica) -> None:
            await self._attempt(replica, scope, receive, send)

        await answered(self._app, self._wanted, attempt)

    async def _attempt(self, replica: Replica, scope: Scope, receive: Receive, send: Send) -> None:
        for path, content in self._bodies(replica):
            refusable = Refusable(send)
            relaying = self._relay(replica, scope, receive, refusable, path, content)
            await unless_lost(replica, relaying, begun=lambda r=refusable: r.begun)  # type: ignore[misc]
            if refusable.status is None:
                return
            response = httpx2.Response(refusable.status, content=refusable.body)
            if refusable.status != 400 or not lacks_chat_template(response.text):
                raise refusal(replica, response)
        raise refusal(replica, response)

    async def _relay(
        self, replica: Replica, scope: Scope, receive: Receive, send: "Refusable", path: str, content: bytes
    ) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in replica.headers.items()]
        try:
            await relay(
                self._app.engines, scope, receive, send,
                url=replica.url, target=path.encode(), headers=headers, content=content,
            )  # fmt: skip
        except RelayError as exc:
            raise ReplicaFailed(f"replica {replica.id} gave no answer: {exc}") from exc
        except Interrupted:
            if send.status is None:
                raise


class Refusable:
    """An ASGI `send` that keeps back an answer which is an error."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None  # of an answer that is kept back
        self.body = b""
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self.status = message["status"]
        if self.status is None:
            self.begun = True
            await self._send(message)
        elif len(self.body) < 64 * 1024:
            self.body += message.get("body", b"")


async def while_connected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
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


def check_answers_prompts(app: Orchestrator, wanted: Wanted) -> Replica:
    """A replica with a model that answers now. Raises BadRequest for another kind of service, else as `check_ready`."""
    if plan_of(wanted.service).models is None:
        raise BadRequest(
            f"Service {wanted.id} is {wanted.service.recipe_name}, which serves no model; GET /vllm/services lists "
            "those that do"
        )
    return check_ready(app, wanted)

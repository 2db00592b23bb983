"""Services that speak OpenAI's API: which there are, their models, a prompt."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orchestrator.deps import App, Orchestrator, Wanted, check_ready, find
from orchestrator.envelope import event
from orchestrator.errors import BadRequest, ReplicaFailed
from orchestrator.inference import Group, Inferences
from orchestrator.prompt import Question, answering, ask
from orchestrator.replicas import Replica
from orchestrator.routes.services import ServiceId
from orchestrator.routes.shapes import (
    Failure,
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
from orchestrator.wire.http1 import end_to_end

_OF_A_TRACE = (b"traceparent", b"tracestate")
_REPLACED = frozenset({b"x-request-id"})  # by the server, for all answers

router = APIRouter(tags=["vllm"], route_class=StrictRoute)
_BUSY = {"model": Failure, "description": "The replicas have as much to do as they may; Retry-After says when to ask."}

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
    responses={200: {"content": {"text/event-stream": {}}}, 429: _BUSY},
)
async def prompt(app: App, service_id: ServiceId, request: Request, asked: PromptRequest) -> PromptAnswer | Response:
    """Put as a chat message; as plain text for a model without a chat template. `stream: true` streams SSE.

    A group shares prompts out among its replicas that answer, by its `routing`. When one fails before the first byte of
    its answer the next one is asked; `routed_to` says which one answered. A stream that breaks off ends with an error.
    """
    wanted = await find(app, service_id)
    question = question_of(wanted, check_answers_prompts(app, wanted), request, asked)
    if asked.stream:
        return Streamed(app.inferences, question)
    answer = await while_connected(request.receive, ask(app.inferences, question))
    if answer is None:
        raise BadRequest("the client closed the connection before the answer was there")
    return PromptAnswer(
        success=True,
        text=answer.text,
        response=answer.text,
        service_id=wanted.id,
        endpoint=answer.endpoint,
        endpoint_used=answer.endpoint_used,
        usage=answer.usage,
        **routed(wanted, answer.replica),
    )


def question_of(wanted: Wanted, replica: Replica, request: Request, asked: PromptRequest) -> Question:
    """The model is the one asked for, else the one that `replica`, and so each of the service's, serves."""
    headers = dict(request.scope["headers"])
    return Question(
        group=Group(wanted.service.submission_id, wanted.port),
        prompt=asked.prompt,
        model=asked.model or replica.models[0],
        stream=asked.stream,
        fields=asked.model_dump(),
        identity=headers.get(b"x-request-id", b""),
        session=headers.get(b"session", b""),
        trace=tuple((name, headers[name]) for name in _OF_A_TRACE if name in headers),
    )


def routed(wanted: Wanted, replica: str) -> dict[str, Any]:
    """The fields that only a group's answers have."""
    plan = plan_of(wanted.service)
    if plan.gpus_per_replica is None:
        return {}
    group = public_id(wanted.service)
    return {"routed_to": replica, "group_id": group, "total_replicas": plan.total_replicas}


class Streamed(Response):
    """An engine's answer, passed on as it comes."""

    def __init__(self, inferences: Inferences, question: Question) -> None:
        super().__init__()
        self._inferences, self._question = inferences, question

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        async with answering(self._inferences, self._question) as (_, incoming):
            response = await incoming.response()
            headers = end_to_end(response.headers, _REPLACED)
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            last = b""
            try:
                async for piece in incoming.pieces():
                    last = (last + piece)[-4:]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except ReplicaFailed as exc:
                if not response.events:
                    return  # without its last message, so that the server cuts it
                border = b"" if last.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
                await send({"type": "http.response.body", "body": border + event(502, str(exc)), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(receive: Receive, answer: Coroutine[Any, Any, T]) -> T | None:
    """Await an engine's answer, and give it up, for None, the moment the client leaves: that frees the GPU."""
    answering = asyncio.create_task(answer)
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
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

"""`sluice demo`: both halves and a small model on this machine, from nothing to an answer, and nothing left behind.

Only the model's weights stay, in the user's cache. What it waits for is bounded and shown.
"""

import contextlib
import json
import shlex
import socket
import sys
import time
import uuid

from gateway.child import ChildError
from gateway.interruption import Interruption, Interruptions
from gateway.screen import Screen
from gateway.settings import cache_folder
from gateway.stage import Stage, StageError
from orchestrator.errors import OrchestratorError
from orchestrator.models import ServiceStatus
from orchestrator.weights import ensure_weights

# So asked, a model of 135 M parameters in 4 bits knows it; asked "What is …?" it drifts into French.
QUESTION = "Which city is the capital of France?"
_RECIPE = "inference/llamacpp-cpu"
_PORT = 8001
_PORTS_TRIED = 50
_READY_SECONDS = 30.0
_RUNNING_SECONDS = 120.0
_ANSWER_SECONDS = 120.0
_LOOK_SECONDS = 0.2


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to try."""


def main(*, once: bool, question: str = QUESTION, port: int | None = None) -> int:
    """Run the demo. The exit status: 0, 1 after a failure, 128 + N when signal N came before the answer."""
    screen = Screen()
    with Interruptions() as interruptions:
        try:
            _play(screen, interruptions, port or _free_port(screen), question=question, once=once)
        except (DemoError, StageError, ChildError, OrchestratorError) as exc:
            sys.stderr.write(f"sluice demo: {exc}\n")
            return 1
        except Interruption as exc:
            screen.say(f"Ended by {exc}.")
            return 128 + exc.signum
    return 0


def _play(screen: Screen, interruptions: Interruptions, port: int, *, question: str, once: bool) -> None:
    with interruptions.allowed(), screen.waiting("Looking for the model (the first time it is fetched: 89 MB)"):
        ensure_weights(cache_folder())
    with Stage(port) as stage:
        try:
            with interruptions.allowed():
                _wait_until_ready(screen, stage)
                service = _start(screen, stage)
                _ask(screen, stage, service, question)
                if not once:
                    with contextlib.suppress(Interruption):  # the ordinary end from here on
                        _show_what_to_try(screen, stage, service)
                        _stay(stage)
        finally:
            screen.say("Ending the service and both halves.")


def _wait_until_ready(screen: Screen, stage: Stage) -> None:
    with screen.waiting("Starting the orchestrator and the gateway on this machine") as waiting:
        while not stage.is_ready():
            if waiting.seconds > _READY_SECONDS:
                why = stage.ask("GET", "/health")
                raise DemoError(f"not ready after {_READY_SECONDS:g} s: {json.dumps(why)}")
            time.sleep(_LOOK_SECONDS)
        screen.say(f"The gateway answers at {stage.url} after {waiting.seconds:.1f} s.")


def _start(screen: Screen, stage: Stage) -> str:
    """Start the service and wait until it runs; its id."""
    body = {"recipe_name": _RECIPE, "config": {}}
    key = {"Idempotency-Key": str(uuid.uuid4())}
    service = str(stage.ask("POST", "/api/v1/services", json=body, headers=key, timeout=60)["id"])
    with screen.waiting(f"Service {service} ({_RECIPE}): pending") as waiting:
        while (now := stage.ask("GET", f"/api/v1/services/{service}"))["status"] != ServiceStatus.RUNNING:
            status, reason = ServiceStatus(now["status"]), now.get("reason") or ""
            waiting.show(f"Service {service} ({_RECIPE}): {status}{': ' if reason else ''}{reason}")
            if status.ended or waiting.seconds > _RUNNING_SECONDS:
                raise DemoError(_why_not(stage, service, status, reason, waiting.seconds))
            time.sleep(_LOOK_SECONDS)
        screen.say(f"Service {service} runs {now.get('model') or _RECIPE} after {waiting.seconds:.1f} s.")
    return service


def _why_not(stage: Stage, service: str, status: ServiceStatus, reason: str, seconds: float) -> str:
    logs = stage.ask("GET", f"/api/v1/services/{service}/logs", params={"tail": 15})
    text = f"service {service} is {status}{f' ({reason})' if reason else ''} after {seconds:.0f} s"
    return f"{text}. Its log ends with:\n{logs['logs'] or logs.get('note') or 'nothing: it is empty'}"


def _ask(screen: Screen, stage: Stage, service: str, question: str) -> None:
    screen.say(f"\nQuestion: {question}")
    body = {"prompt": question, "max_tokens": 60, "temperature": 0}
    with screen.waiting("Waiting for the model") as waiting:
        answer = stage.ask("POST", f"/api/v1/vllm/{service}/prompt", json=body, timeout=_ANSWER_SECONDS)
        seconds = waiting.seconds
    screen.say(f"Answer:   {str(answer['text']).strip()}", style="bold")
    screen.say(f"          in {seconds:.2f} s, usage {json.dumps(answer.get('usage'))}\n")


def _show_what_to_try(screen: Screen, stage: Stage, service: str) -> None:
    prompt = shlex.quote(json.dumps({"prompt": "Name three rivers.", "max_tokens": 60}))
    json_header = "-H 'Content-Type: application/json'"
    for line in (
        "Try next:",
        f"  {stage.url}/docs in a browser",
        f"  curl {stage.url}/health",
        f"  curl {stage.url}/api/v1/services/{service}",
        f"  curl {stage.url}/api/v1/vllm/{service}/prompt {json_header} -d {prompt}",
        "Ctrl-C ends everything.",
    ):
        screen.say(line)


def _stay(stage: Stage) -> None:
    """Until a signal. Raises ChildError when a half dies meanwhile."""
    while True:
        stage.check()
        time.sleep(_LOOK_SECONDS)


def _free_port(screen: Screen) -> int:
    for port in range(_PORT, _PORT + _PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway does
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:
                continue
        if port != _PORT:
            screen.say(f"Port {_PORT} is taken, so this demo uses {port}.")
        return port
    raise DemoError(f"ports {_PORT} to {_PORT + _PORTS_TRIED - 1} are all taken; choose another one with --port")

"""The handler of the gateway's server: what is refused, what we answer ourselves, what goes to the orchestrator."""

import functools
import logging
from dataclasses import dataclass

from gateway import metrics, paths
from gateway.dashboard.sign_in import to_sign_in
from gateway.guard import Guard
from gateway.link import Crowded, Link, Replacing, Unreached
from gateway.problem import rendered
from gateway.remembered import MODELS
from gateway.trunk import REPEATABLE, Trunk
from orchestrator.access import CREDENTIALS, Refusal, acting, controlling
from orchestrator.keys import Key
from orchestrator.wire import Exchange, Reply
from orchestrator.wire.hosted import Application
from orchestrator.wire.http1 import Request, end_to_end, request_head
from orchestrator.wire.server import Answered

log = logging.getLogger(__name__)

_NOT_FURTHER = CREDENTIALS | {b"content-length", b"expect", b"host", b"x-forwarded-host", b"x-request-id"}


class Door:
    """What is concluded from a head is kept with it (`Head.memo`), for the next request with the same one, as long as
    the keys stay as they are (`Head.admitted`)."""

    def __init__(self, guard: Guard, application: Application, trunk: Trunk, link: Link) -> None:
        self._guard, self._application, self._trunk, self._link = guard, application, trunk, link
        self._keys = guard.keys

    def __call__(self, request: Request, reply: Reply) -> Exchange:
        head, generation = request.head, self._keys.generation
        passed: Passed | None = head.memo
        if passed is None or head.admitted != generation:
            path = request.path
            request.kind = metrics.kind_of(path)
            judged = self._guard.judge(request.method.decode(), path, request.headers)
            whose = None if isinstance(judged, Refusal) else judged
            answered = self._refused(request, reply, path, judged) or self._answered(request, reply, path, whose)
            if answered is not None:
                return answered
            passed = head.memo = Passed(request.kind, self._outgoing(request, path, whose))
            head.admitted = generation
        else:
            request.kind = passed.kind
        session = self._trunk.session
        if session is not None and request.head.method not in REPEATABLE:
            return session.open(request, passed.head, reply)
        return self._trunk.exchange(request, passed.head, reply, functools.partial(self._unreached, request))

    def _refused(self, request: Request, reply: Reply, path: str, judged: Key | Refusal | None) -> Exchange | None:
        if not isinstance(judged, Refusal):
            return None
        if judged.status == 401 and (sign_in := to_sign_in(request)):
            reply.write(sign_in)
            reply.finish()
            return Answered()
        headers = {"WWW-Authenticate": "Bearer"} if judged.status == 401 else {}
        return _refuse(reply, path, judged.status, judged.text, headers)

    def _answered(self, request: Request, reply: Reply, path: str, whose: Key | None) -> Exchange | None:
        """What is there for nobody, or answered by the gateway itself, whose pages are told whose request it is."""
        if request.kind == "own":
            allowed = metrics.methods_of(path)
            if path in metrics.OWN and request.method.decode() not in allowed:
                told = ", ".join(allowed)
                text = f"{path} answers {told}, not {request.method.decode()[:20]}; see /docs"
                return _refuse(reply, path, 405, text, {"Allow": told})
            request.head.headers = acting(request.headers, whose)
            return self._application.exchange(request, reply)
        if not paths.is_relayed(path):
            return _refuse(reply, path, 404, _what_there_is(path))
        try:
            paths.check(path)
        except paths.PathError as exc:
            return _refuse(reply, path, 400, str(exc))
        if (path == MODELS or path.startswith(MODELS + "/")) and request.method in (b"GET", b"HEAD"):
            return self._application.exchange(request, reply)  # which remembers them
        return None

    def _outgoing(self, request: Request, path: str, whose: Key | None) -> bytes:
        """The head as the orchestrator gets it, without the length of the body and the request's id."""
        method, target = request.method, request.target
        framing = [(b"host", b"orchestrator")]
        if path.startswith("/api/"):
            their_method, their_path = paths.to_orchestrator(method.decode(), path)
            method, query = their_method.encode(), target.partition(b"?")[2]
            target = their_path.encode() + (b"?" + query if query else b"")
        if request.length is None:
            framing.append((b"transfer-encoding", b"chunked"))
        if target.partition(b"?")[0] == paths.TARGETS.encode():
            framing.append((b"x-forwarded-host", request.header(b"host") or b""))
        headers = acting(end_to_end(request.headers, _NOT_FURTHER), whose) + controlling(path, request.headers)
        return request_head(method, target, headers + framing)

    def _unreached(self, request: Request, reply: Reply, why: Unreached) -> None:
        state = self._link.status
        words = "%s %s: not reached: %s"
        log.info(words, request.method.decode(), request.path[:200], why, extra={"request": request.id})
        text = str(why) if isinstance(why, Crowded | Replacing) else state.advice
        reply.write(rendered(request.path, 503, text, {"Retry-After": str(state.retry_after)}, state.code))
        reply.finish()


@dataclass(frozen=True, slots=True)
class Passed:
    """What is known of requests that go to the orchestrator: their kind, and the head with which they do."""

    kind: str
    head: bytes


def _refuse(reply: Reply, path: str, status: int, text: str, headers: dict[str, str] | None = None) -> Answered:
    reply.write(rendered(path, status, text, headers))
    reply.finish()
    return Answered()


def _what_there_is(path: str) -> str:
    relayed = ", ".join(
        f"{prefix}/…" if prefix in ("/api", "/v1", "/infra/vast") else prefix for prefix in paths.RELAYED
    )
    own = ", ".join(metrics.OWN)
    return f"there is nothing at {path}; there is {own}, {relayed}"

"""What is measured: the direct path, single proxies, and whole chains from a client to the replicas."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from bench import parts
from bench.parts import KEY, Part, Pids, Place
from bench.peers import LITELLM, NGINX, SSH, VLLM_ROUTER, Peer
from gateway.settings import Settings

_FIRST_SECONDS = 60.0


@dataclass(frozen=True)
class Chain:
    """One that is up. `parts` tells its processes apart; `started`: seconds until the front, started last, answered."""

    to: str
    parts: Mapping[str, Pids]
    loose: bool = False
    through_ssh: bool = False
    started: float = 0.0

    @property
    def headers(self) -> tuple[str, ...]:
        return (f"authorization: Bearer {KEY}",)


Put = Callable[[Place], AbstractContextManager[Chain]]


@dataclass(frozen=True)
class Contestant:
    """`why_not` says what it lacks on this machine, "" when it can be put up."""

    name: str
    put: Put
    peers: tuple[Peer, ...] = ()
    transport: str | None = None
    ours: bool = False

    def why_not(self) -> str:
        for peer in self.peers:
            if peer.found() is None:
                return f"{peer.name} is not installed: {peer.install}"
        if self.transport is not None and "transport" not in Settings.model_fields:
            return "this gateway has no setting GATEWAY_TRANSPORT"
        return ""


@contextmanager
def direct(place: Place) -> Iterator[Chain]:
    """To one replica: the driver has one address."""
    yield Chain(place.replicas[0], {})


@contextmanager
def nginx(place: Place, *, unix: bool = False) -> Iterator[Chain]:
    began = time.monotonic()
    with parts.nginx(place, place.replicas, unix=unix) as proxy:
        yield _answering(Chain(proxy.to, {"nginx": proxy.pids}), began)


@contextmanager
def nginx_unix(place: Place) -> Iterator[Chain]:
    with nginx(place, unix=True) as chain:
        yield chain


@contextmanager
def vllm_router(place: Place) -> Iterator[Chain]:
    began = time.monotonic()
    with parts.vllm_router(place, place.replicas) as proxy:
        yield _answering(Chain(proxy.to, {"vllm-router": proxy.pids}), began)


@contextmanager
def litellm(place: Place) -> Iterator[Chain]:
    began = time.monotonic()
    with parts.litellm(place, place.replicas) as proxy:
        yield _answering(Chain(proxy.to, {"litellm": proxy.pids}, loose=True), began)


@contextmanager
def orchestrator(place: Place) -> Iterator[Chain]:
    with parts.orchestrator(place) as ours:
        began = time.monotonic()
        yield _answering(Chain(ours.to, {"orchestrator": ours.pids}), began)


@contextmanager
def gateway_local(place: Place) -> Iterator[Chain]:
    with parts.orchestrator(place) as behind:
        _answering(Chain(behind.to, {}), 0)
        began = time.monotonic()
        with parts.gateway(place, behind, GATEWAY_LOCAL_SOCKET=behind.to) as front:
            yield _answering(Chain(front.to, {"gateway": front.pids, "orchestrator": behind.pids}), began)


@contextmanager
def ssh_nginx(place: Place) -> Iterator[Chain]:
    with parts.nginx(place, place.replicas) as proxy:
        began = time.monotonic()
        with parts.forward(place, proxy.to) as front:
            yield _answering(_over_ssh(place, front, {"nginx": proxy.pids}), began)


@contextmanager
def ssh_vllm_router(place: Place) -> Iterator[Chain]:
    with parts.vllm_router(place, place.replicas) as proxy:
        began = time.monotonic()
        with parts.forward(place, proxy.to) as front:
            yield _answering(_over_ssh(place, front, {"vllm-router": proxy.pids}), began)


@contextmanager
def nginx_ssh_nginx(place: Place) -> Iterator[Chain]:
    with parts.nginx(place, place.replicas, name="far") as far, parts.forward(place, far.to) as tunnel:
        began = time.monotonic()
        with parts.nginx(place, [tunnel.to]) as front:
            more = {"ssh": tunnel.pids, "sshd": place.sshd_sessions, "far nginx": far.pids}
            yield _answering(Chain(front.to, {"nginx": front.pids, **more}, through_ssh=True), began)


@contextmanager
def litellm_ssh_vllm_router(place: Place) -> Iterator[Chain]:
    with parts.vllm_router(place, place.replicas) as far, parts.forward(place, far.to) as tunnel:
        began = time.monotonic()
        with parts.litellm(place, [tunnel.to]) as front:
            more = {"ssh": tunnel.pids, "sshd": place.sshd_sessions, "vllm-router": far.pids}
            chain = Chain(front.to, {"litellm": front.pids, **more}, loose=True, through_ssh=True)
            yield _answering(chain, began)


def ours_over(transport: str | None) -> Put:
    """The product. `transport`: GATEWAY_TRANSPORT, None for a gateway that has no such setting."""

    @contextmanager
    def put(place: Place) -> Iterator[Chain]:
        with parts.orchestrator(place) as far:
            _answering(Chain(far.to, {}), 0)
            settings = parts.through_ssh(place, far)
            if transport is not None:
                settings["GATEWAY_TRANSPORT"] = transport
            began = time.monotonic()
            with parts.gateway(place, far, **settings) as front:
                ends = {"gateway": lambda: front.pids()[:1], "orchestrator": far.pids}
                tunnel: dict[str, Pids] = {"sshd": place.sshd_sessions}
                if transport == "openssh":
                    tunnel["ssh"] = lambda: front.pids()[1:]
                yield _answering(Chain(front.to, {**ends, **tunnel}, through_ssh=True), began)

    return put


def _over_ssh(place: Place, front: Part, behind: Mapping[str, Pids]) -> Chain:
    return Chain(front.to, {"ssh": front.pids, "sshd": place.sshd_sessions, **behind}, through_ssh=True)


def _answering(chain: Chain, began: float) -> Chain:
    """The chain, when it has given its first answer."""
    return replace(chain, started=first_answer(chain) - began)


QUESTION = b'{"model":"bench","messages":[{"role":"user","content":"Tell me of the sea, size 700"}]}'


def first_answer(chain: Chain, seconds: float = _FIRST_SECONDS) -> float:
    """Ask until there is an answer; the moment of it by time.monotonic(). Raises NotStarted."""
    deadline = time.monotonic() + seconds
    while True:
        status = _status(chain)
        now = time.monotonic()
        if status.startswith(b"HTTP/1.1 200"):
            return now
        if now > deadline:
            raise parts.NotStarted(f"{chain.to} gave no answer within {seconds:g} s, the last was {status!r}")
        time.sleep(0.002)


def _status(chain: Chain) -> bytes:
    """What an answer begins with; what went wrong instead."""
    lines = [
        "POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", *chain.headers,
        "connection: close", f"content-length: {len(QUESTION)}",
    ]  # fmt: skip
    try:
        with parts.reach(chain.to) as connection:
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + QUESTION)
            return connection.recv(200)
    except OSError as exc:
        return str(exc).encode()


_SINGLE_TRANSPORT = "transport" not in Settings.model_fields
ASYNCSSH, OPENSSH = "gateway + asyncssh + orchestrator", "gateway + openssh + orchestrator"
DIRECT, NGINX_CHAIN = "direct", "nginx + ssh -L + nginx"
ROUTER_CHAIN, LITELLM_CHAIN = "ssh -L + vllm-router", "litellm + ssh -L + vllm-router"
NGINX_UNIX, ROUTER = "nginx (UNIX socket)", "vllm-router"
ORCHESTRATOR, NO_SSH = "orchestrator (UNIX socket)", "gateway + orchestrator"

CONTESTANTS = (
    Contestant(DIRECT, direct),
    Contestant("nginx", nginx, (NGINX,)),
    Contestant(NGINX_UNIX, nginx_unix, (NGINX,)),
    Contestant(ROUTER, vllm_router, (VLLM_ROUTER,)),
    Contestant("litellm", litellm, (LITELLM,)),
    Contestant(ORCHESTRATOR, orchestrator, ours=True),
    Contestant(NO_SSH, gateway_local, ours=True),
    Contestant("ssh -L + nginx", ssh_nginx, (SSH, NGINX)),
    Contestant(ROUTER_CHAIN, ssh_vllm_router, (SSH, VLLM_ROUTER)),
    Contestant(NGINX_CHAIN, nginx_ssh_nginx, (SSH, NGINX)),
    Contestant(LITELLM_CHAIN, litellm_ssh_vllm_router, (SSH, VLLM_ROUTER, LITELLM)),
    Contestant(ASYNCSSH, ours_over(None if _SINGLE_TRANSPORT else "asyncssh"), (SSH,), ours=True),
    Contestant(OPENSSH, ours_over("openssh"), (SSH,), transport="openssh", ours=True),
)

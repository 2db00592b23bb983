"""The gateway's own metrics: requests by kind of path, and the way to the orchestrator."""

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response

from gateway import paths
from gateway.link import LinkState, LinkStatus
from orchestrator.exposition import CONTENT_TYPE, counted, gauge, render
from orchestrator.traffic import OTHER, Traffic

OWN = ("/", "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/orchestrator/status", "/orchestrator/endpoint",
       "/orchestrator/start", "/orchestrator/stop")  # fmt: skip
_DOING = ("/orchestrator/start", "/orchestrator/stop")
_KINDS = ("/api", "/v1")


def traffic_in(registry: CollectorRegistry) -> Traffic:
    return Traffic(registry, "sluice_gateway", "kind")


def kind_of(path: str) -> str:
    """What a request asked for: `own`, `api`, `v1`, `relayed` for all else that is passed on, `other` for nothing."""
    if path in OWN or path.startswith(("/docs/", "/ui/")):
        return "own"
    for prefix in _KINDS:
        if path == prefix or path.startswith(f"{prefix}/"):
            return prefix.removeprefix("/")
    return "relayed" if paths.is_relayed(path) else OTHER


def methods_of(path: str) -> tuple[str, ...]:
    """Those that one of `OWN` answers."""
    return ("POST",) if path in _DOING else ("GET", "HEAD")


def of_link(status: LinkStatus) -> list[Metric]:
    states = [({"state": state.value}, float(state is status.state)) for state in LinkState]
    reconnects = CounterMetricFamily(
        "sluice_gateway_tunnel_reconnects", "How often the tunnel was opened again.", value=status.reconnects
    )
    return [gauge("sluice_gateway_tunnel", "1 at the state that the tunnel is in.", states), reconnects]


def of_room(waiting: int) -> Metric:
    words = "Requests that wait for the connection to the orchestrator."
    return gauge("sluice_gateway_requests_waiting", words, [({}, waiting)])


async def show_metrics(request: Request) -> Response:
    state = request.state
    families = [*counted(state.registry), *of_link(state.link.status), of_room(state.trunk.room.requests)]
    return Response(render(families), media_type=CONTENT_TYPE)

"""What we want to reach, as ratios in one run, and whether we do. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.chains import (
    ASYNCSSH,
    LITELLM_CHAIN,
    NGINX_CHAIN,
    NGINX_UNIX,
    NO_SSH,
    OPENSSH,
    ORCHESTRATOR,
    ROUTER,
    ROUTER_CHAIN,
)
from bench.measure import Figures


@dataclass(frozen=True)
class Target:
    """`figure` of `ours`, over that of `against` where there is one, is to be at most `limit`; or at least."""

    words: str
    figure: str
    ours: str
    limit: float
    against: str | None = None
    at_least: bool = False
    their_figure: str | None = None  # where it has another name than ours

    @property
    def wanted(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"

    def reached(self, figures: Mapping[str, Figures]) -> float | None:
        """Ours, or the ratio; None when something of it was not measured."""
        value = figures.get(self.ours, {}).get(self.figure)
        if value is None or self.against is None:
            return value
        other = figures.get(self.against, {}).get(self.their_figure or self.figure)
        return None if other is None else value / other

    def is_met(self, reached: float) -> bool:
        return reached >= self.limit if self.at_least else reached <= self.limit


@dataclass(frozen=True)
class _OfBoth:
    """A target of the whole product, with asyncssh and with openssh."""

    words: str
    figure: str
    asyncssh: float
    openssh: float
    against: str | None = None
    at_least: bool = False

    def each(self) -> Iterator[Target]:
        for ours, limit in ((ASYNCSSH, self.asyncssh), (OPENSSH, self.openssh)):
            yield Target(self.words, self.figure, ours, limit, self.against, self.at_least)


_WHOLE = (
    _OfBoth("CPU a request", "c32_cpu", 1.5, 1.0, NGINX_CHAIN),
    _OfBoth("CPU a streamed chunk, 64 at 25/s", "s25_cpu", 0.85, 0.85, NGINX_CHAIN),
    _OfBoth("requests/s, 32 connections", "c32_rate", 1.0, 1.5, ROUTER_CHAIN, at_least=True),
    _OfBoth("requests/s, 32 connections", "c32_rate", 60, 100, LITELLM_CHAIN, at_least=True),
    _OfBoth("added p50, 1 connection", "added_c1_p50", 1.25, 1.25, ROUTER_CHAIN),
    _OfBoth("added to the first chunk", "added_first_p50", 1.1, 1.1, ROUTER_CHAIN),
    _OfBoth("chunk p99, 64 at 100/s", "s100_p99", 1.0, 1.0, NGINX_CHAIN),
    _OfBoth("slowest of 150 chunks, ms", "slowest_ms", 10, 10),
    _OfBoth("memory idle, gateway, MB", "rss_idle/gateway", 70, 70),
    _OfBoth("memory idle, orchestrator, MB", "rss_idle/orchestrator", 70, 70),
    _OfBoth("start to first answer, s", "start_s", 1, 1),
    _OfBoth("reconnect, ms", "reconnect_ms", 300, 300),
)
_WITHOUT_SSH = (
    Target("CPU a request", "c32_cpu", ORCHESTRATOR, 1.7, NGINX_UNIX),
    Target("CPU a request", "c32_cpu", ORCHESTRATOR, 0.5, ROUTER),
    Target("CPU a chunk, 64 at 25/s", "s25_cpu", ORCHESTRATOR, 1.0, ROUTER),
    Target("CPU a request, the gateway's process", "c32_cpu/gateway", NO_SSH, 1.7, "nginx", their_figure="c32_cpu"),
    Target("CPU a request, the gateway's process", "c32_cpu/gateway", NO_SSH, 0.5, ROUTER, their_figure="c32_cpu"),
    Target(
        "CPU a chunk, 64 at 25/s, the gateway's process", "s25_cpu/gateway", NO_SSH, 1.0, ROUTER,
        their_figure="s25_cpu",
    ),
    Target("CPU a request, both processes", "c32_cpu", NO_SSH, 1.7, "nginx"),
    Target("CPU a request, both processes", "c32_cpu", NO_SSH, 0.5, ROUTER),
    Target("CPU a chunk, 64 at 25/s, both processes", "s25_cpu", NO_SSH, 1.0, ROUTER),
)  # fmt: skip
TARGETS = (*(target for both in _WHOLE for target in both.each()), *_WITHOUT_SSH)

"""The checks, in their order: data. A stage is looked at, then its checks judge what has been seen."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.doctor import cluster, machine, way
from gateway.doctor.finding import Finding
from gateway.doctor.looking import Looking
from gateway.doctor.seen import Seen

Check = Callable[[Seen], Finding | Iterable[Finding] | None]
"""Pure. None: it has nothing to say here, such as SSH where there is none."""


@dataclass(frozen=True)
class Stage:
    look: Callable[[Looking, Seen], Awaitable[Seen]]
    checks: Sequence[Check]


STAGES = (
    Stage(Looking.door, (machine.settings, machine.port, machine.gateway, machine.key)),
    Stage(Looking.way, (way.configuration, way.name, way.network)),
    Stage(Looking.login, (way.host_key, way.login, way.forwarding, cluster.python, cluster.installation)),
    Stage(
        Looking.answers,
        (
            cluster.orchestrator, cluster.version, cluster.database, cluster.scheduler, cluster.account, cluster.home,
            cluster.services, cluster.engines, cluster.clock,
        ),
    ),
)  # fmt: skip


def judged(checks: Iterable[Check], seen: Seen) -> Iterator[Finding]:
    """What checks find, one line after the other."""
    for check in checks:
        found = check(seen)
        if isinstance(found, Finding):
            yield found
        elif found is not None:
            yield from found

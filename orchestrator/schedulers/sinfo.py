"""The nodes of a cluster as sinfo tells them: its call, and its lines read. Pure.

One line for all nodes of a partition that are in the same state and have the same GPUs in use, so that a cluster of
thousands of nodes is a few hundred lines. `--Format` and not `--json`, whose schema changes between releases.
"""

import re
from collections.abc import Iterator

from orchestrator.schedulers import Cpus, Gpus, NodeGroup, NodeState
from orchestrator.schedulers.words import REASONLESS, number, parse_limit

SEPARATOR = "\x1f"
FIELDS = ("Partition", "Available", "Time", "StateLong", "Nodes", "CPUsState", "Gres", "GresUsed", "NodeList")
SINFO = ("sinfo", "--noheader", "--Format=" + ",".join(f"{name}:{SEPARATOR}" for name in FIELDS))

# A state is followed by signs: * does not answer, ~ is powered off until a job needs it, - is planned for a job, …
_SIGNS = "*~#!%$@^+-"
# A node that does not answer gets no job, nor does one of a maintenance, or one that is to be restarted.
_AWAY = frozenset("*$@^!%")
_STATES = {
    "idle": NodeState.IDLE,
    "planned": NodeState.IDLE,
    "mixed": NodeState.MIXED,
    "allocated": NodeState.ALLOCATED,
    "completing": NodeState.ALLOCATED,
}


def parse_sinfo(text: str) -> list[NodeGroup]:
    """Lines of another shape, such as a site's banner, are passed over."""
    return [group for line in text.split("\n") if (group := _group(line)) is not None]


def _group(line: str) -> NodeGroup | None:
    values = [value.strip() for value in line.split(SEPARATOR)]
    if len(values) < len(FIELDS):
        return None
    partition, available, limit, state, nodes, cpus, gres, used, names = values[: len(FIELDS)]
    many, cores = number(nodes, 7), parse_cpus(cpus)
    if many is None or cores is None or not partition.rstrip("*"):
        return None
    return NodeGroup(
        partition=partition.removesuffix("*"),
        default=partition.endswith("*"),
        available=available,
        time_limit=parse_limit(limit),
        state=parse_node_state(state),
        number=many,
        nodes="" if names in REASONLESS else names,
        cpus=cores,
        gpus=tuple(_gpus(gres, used)),
    )


def parse_node_state(text: str) -> NodeState:
    """`mixed-`, `idle~`, `down*`; what takes no job is DOWN, also drained, reserved and in maintenance."""
    word = text.lower().rstrip(_SIGNS)
    if _AWAY.intersection(text[len(word) :]):
        return NodeState.DOWN
    return _STATES.get(word, NodeState.DOWN)


def parse_cpus(text: str) -> Cpus | None:
    """`allocated/idle/other/total`."""
    numbers = [number(part, 9) for part in text.split("/")]
    if len(numbers) != 4 or None in numbers:
        return None
    in_use, free, down, total = (value or 0 for value in numbers)
    return Cpus(total=total, in_use=in_use, free=free, down=down)


def _gpus(gres: str, used: str) -> Iterator[Gpus]:
    """Those of one node, by type. What is in use of a type that the node does not name is in use of its only type."""
    there, busy = parse_gres(gres), parse_gres(used)
    for kind, total in there.items():
        if not total:
            continue
        taken = sum(busy.values()) if len(there) == 1 else busy.get(kind, 0)
        yield Gpus(type=kind, total=total, in_use=min(taken, total))


def parse_gres(text: str) -> dict[str, int]:
    """The GPUs in Slurm's list of generic resources, by type; "" is the type of those without one.

    `gpu:4`, `gpu:a100:4(S:0-1)`, `gpu:a100:2(IDX:0,3),nvme:1`, `gpu:(null):0(IDX:N/A)`.
    """
    found: dict[str, int] = {}
    for part in re.split(r",(?![^()]*\))", text):  # not within (IDX:0,3)
        kind, *more = re.sub(r"\((?!null\))[^)]*\)", "", part.strip()).split(":")
        many = number(more[-1], 6) if more else None
        if kind != "gpu" or many is None:
            continue
        named = more[0] if len(more) > 1 and more[0] not in ("(null)", "no_consume") else ""
        found[named] = found.get(named, 0) + many
    return found

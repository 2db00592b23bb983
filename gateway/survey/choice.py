"""What a first site file says, chosen from a survey: each value with its source and what else there is. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from gateway.survey.facts import Account, Partition, Place, Slurm, Survey
from gateway.survey.sections import version

_SPECIAL = re.compile(
    r"(^|[-_])(debug|dev|devel|test|testing|interactive|int|preempt\w*|scav\w*|low\w*|short|express|admin|vi[sz]\w*|"
    r"login|backfill|maint\w*|guest|free|spot|jupyter\w*)([-_]|$)"
)
_ROOMY = 50 * 1024**3  # for a few models
_ROLES = ("scratch", "project", "home")


@dataclass(frozen=True)
class Choice:
    """`found`: where the value comes from, as half a sentence. `others`: what could stand there instead."""

    value: str
    found: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """None, where nothing was found that could be chosen."""

    account: Choice | None = None
    partition: Choice | None = None
    cpu_partition: Choice | None = None
    qos: Choice | None = None
    gpu_type: Choice | None = None
    minutes: int | None = None
    runtime: Choice | None = None
    module: Choice | None = None  # that brings the runtime
    cache: Choice | None = None


def choices(survey: Survey) -> Choices:
    slurm = survey.slurm
    runtime, module = runtime_of(survey)
    if slurm is None or not slurm.partitions:
        return Choices(account=_account(slurm, None), runtime=runtime, module=module, cache=cache_of(survey))
    charged, partition = charged_to(slurm, survey.groups)
    cpu = _cpu_partition(slurm, charged, survey.groups)
    qos = qos_of(charged, partition)
    return Choices(
        account=_account(slurm, charged),
        partition=_partition(slurm, charged, survey.groups, partition),
        cpu_partition=cpu,
        qos=qos,
        gpu_type=_gpu_type(partition),
        minutes=_minutes(slurm, partition, qos.value if qos else charged.default_qos if charged else ""),
        runtime=runtime,
        module=module,
        cache=cache_of(survey, charged.name if charged else ""),
    )


# Slurm


def may_use(partition: Partition, account: Account | None, groups: Sequence[str]) -> bool:
    """As far as Slurm tells: it decides itself when a job is submitted."""
    if partition.groups and not set(partition.groups) & set(groups):
        return False
    if account is None:
        return True
    if account.partition not in ("", partition.name) or account.name in partition.denied_accounts:
        return False
    return not partition.accounts or account.name in partition.accounts


def charged_to(slurm: Slurm, groups: Sequence[str]) -> tuple[Account | None, Partition]:
    """An account and the partition for GPUs: of the default account, else of the first that may use one."""
    accounts: list[Account | None] = [*sorted(slurm.accounts, key=lambda one: not one.default)] or [None]
    for account in accounts:
        with_gpus = _ranked(one for one in slurm.partitions if one.gpus and may_use(one, account, groups))
        if with_gpus:
            return account, with_gpus[0]
    usable = _ranked(one for one in slurm.partitions if may_use(one, accounts[0], groups))
    return accounts[0], (usable or _ranked(slurm.partitions))[0]


def _ranked(partitions: Iterable[Partition]) -> list[Partition]:
    """The best first: up, with nodes that work, not for tests, the default one, the largest, the longest."""

    def rank(one: Partition) -> tuple[bool, bool, bool, bool, int, float]:
        special = bool(_SPECIAL.search(one.name.lower()))
        size = one.usable_nodes * max(1, one.gpus_per_node)
        return one.up, one.usable_nodes > 0, not special, one.default, size, one.max_minutes or float("inf")

    return sorted(partitions, key=rank, reverse=True)


def _account(slurm: Slurm | None, charged: Account | None) -> Choice | None:
    if slurm is None or charged is None:
        return None
    names = tuple(dict.fromkeys(one.name for one in slurm.accounts if one.name != charged.name))
    how = "your default account" if charged.default else "your first account that may use GPUs" if names else "yours"
    return Choice(charged.name, f"{how}, by {slurm.accounts_from}", names)


def _partition(slurm: Slurm, account: Account | None, groups: Sequence[str], best: Partition) -> Choice:
    others = tuple(
        one.name for one in _ranked(slurm.partitions)
        if one.name != best.name and bool(one.gpus) == bool(best.gpus) and may_use(one, account, groups)
    )  # fmt: skip
    return Choice(best.name, f"sinfo: {described(best)}", others)


def described(one: Partition) -> str:
    """ "2 nodes with 4 GPUs (a100), the default one" """
    words = f"{one.nodes} node{'' if one.nodes == 1 else 's'}"
    if one.gpus:
        kinds = ", ".join(gpu.type for gpu in one.gpus if gpu.type)
        words += f" with {one.gpus_per_node} GPU{'' if one.gpus_per_node == 1 else 's'}" + (
            f" ({kinds})" if kinds else ""
        )
    else:
        words += " without GPUs"
    return words + (", the default one" if one.default else "") + ("" if one.up else ", not up now")


def _cpu_partition(slurm: Slurm, account: Account | None, groups: Sequence[str]) -> Choice | None:
    without = _ranked(one for one in slurm.partitions if not one.gpus and may_use(one, account, groups))
    if not without or not any(one.gpus for one in slurm.partitions):
        return None
    return Choice(without[0].name, f"sinfo: {described(without[0])}", tuple(one.name for one in without[1:]))


def qos_of(account: Account | None, partition: Partition) -> Choice | None:
    """Only where the account's default would be refused in the partition."""
    if account is None or not partition.qos or account.default_qos in partition.qos:
        return None
    both = [name for name in account.qos if name in partition.qos]
    if not both:
        return None
    best = next((name for name in ("default", "normal") if name in both), both[0])
    others = tuple(name for name in both if name != best)
    return Choice(best, f"scontrol: the partition {partition.name} takes it", others)


def _gpu_type(partition: Partition) -> Choice | None:
    kinds = [gpu.type for gpu in partition.gpus if gpu.type]
    return Choice(kinds[0], f"sinfo: the GPUs of {partition.name}", tuple(kinds[1:])) if kinds else None


def _minutes(slurm: Slurm, partition: Partition, qos: str) -> int | None:
    of_qos = next((one.max_minutes for one in slurm.qos if one.name == qos), None)
    return min((limit for limit in (partition.max_minutes, of_qos) if limit), default=None)


# Programs and folders


def runtime_of(survey: Survey) -> tuple[Choice | None, Choice | None]:
    """The container runtime, and the module that brings it where none is on the PATH."""
    here = {one.name: one for one in survey.containers if one.works}
    others = tuple(name for name in here if name != "apptainer")
    if "apptainer" in here:
        return Choice("apptainer", f"{here['apptainer'].path}: {here['apptainer'].version}", others), None
    named = newest(survey.modules.names if survey.modules else (), "apptainer")
    if named:
        return Choice("apptainer", f"the module {named[0]}", others), Choice(named[0], "module avail", tuple(named[1:]))
    if survey.slurm is None and "docker" in here:
        return Choice("docker", f"{here['docker'].path}: {here['docker'].version}", others), None
    return None, None


def newest(names: Iterable[str], family: str) -> list[str]:
    """The modules of a family, such as python or apptainer, the newest first."""
    pattern = re.compile(rf"(?:^|/){family}/", re.IGNORECASE)
    return sorted(
        (one for one in names if pattern.search(one)), key=lambda one: version(_behind(one, pattern)), reverse=True
    )


def _behind(name: str, pattern: re.Pattern[str]) -> str:
    found = pattern.search(name)
    return name[found.end() :] if found else name


def cache_of(survey: Survey, account: str = "") -> Choice | None:
    """Where models lie: a folder that other machines see too, with room, rather of this account than of another; None:
    the default below the home does."""
    able = [one for one in survey.places if one.writable and (one.shared or survey.slurm is None)]
    if not able:
        return None
    ranked = sorted(able, key=lambda one: _cache_rank(one, account), reverse=True)
    best = ranked[0]
    if best.role == "home":
        return None
    others = tuple(own_folder(one, survey.user) for one in ranked[1:] if one.role != "home")
    return Choice(own_folder(best, survey.user), f"{best.named}: {best.type}, {_room(best)}", others)


def _cache_rank(place: Place, account: str) -> tuple[bool, int, bool, bool, int]:
    roomy = place.room is not None and place.room >= _ROOMY
    role = -_ROLES.index(place.role) if place.role in _ROLES else -9
    return roomy, role, account in PurePosixPath(place.path).parts, place.named.startswith("$"), place.room or 0


def own_folder(place: Place, user: str) -> str:
    """Ours in a place: in a folder of the user's own, because that of a project belongs to others too."""
    path = PurePosixPath(place.path)
    return str((path if user in path.parts else path / user) / "sluicegate")


def _room(place: Place) -> str:
    return "room unknown" if place.room is None else f"room for {size(place.room)}"


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.0f} PiB"

"""What Slurm's commands say of a cluster, in the forms of 20.11 to 25.11: text in, facts out."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gateway.survey.facts import Account, Gpus, Partition, Qos, Slurm
from gateway.survey.sections import Section, Sections, number, version

_GPU = re.compile(r"gpu(?::(?P<type>[^:,()=]+))?:(?P<count>[0-9]{1,4})(?![^,(]*:)")
_TRES_GPU = re.compile(r"gres/gpu(?::(?P<type>[^=,]+))?=(?P<count>[0-9]{1,9})")
_TIME = re.compile(r"(?:(?P<days>[0-9]{1,6})-)?(?P<rest>[0-9]{1,6}(?::[0-9]{1,2}){0,2})")
_NONE = frozenset({"", "(null)", "N/A", "n/a", "None", "NONE", "ALL", "all"})
_MIB = 1024**2


def slurm(found: Sections) -> Slurm | None:
    """None where there is no sinfo."""
    if not found.named("slurm-version"):
        return None
    config = dict(_settings(found.first("config").lines))
    said = found.first("sinfo")
    of_scontrol = {one.name: one for one in partitions_of_scontrol(found.first("partitions").lines)}
    partitions = _merged(partitions_of_sinfo(said.lines) if said.good else (), of_scontrol)
    accounts, told_by = _accounts(found, config.get("ClusterName", ""))
    storage = config.get("AccountingStorageType", "")
    answers = (said.good or bool(of_scontrol)) and bool(partitions)
    return Slurm(
        version=version(found.first("slurm-version").last_words if found.first("slurm-version").good else "")
        or version(config.get("SLURM_VERSION", "")),
        answers=answers,
        cluster=config.get("ClusterName", ""),
        partitions=partitions,
        accounts=accounts,
        accounts_from=told_by,
        qos=qos_of_sacctmgr(found.first("qos")),
        accounting=None if not config else storage not in _NONE and not storage.endswith("/none"),
        enforced=_listed(config.get("AccountingStorageEnforce", "").replace("none", "")),
        select_type=config.get("SelectType", ""),
        words="" if answers else _why_not(said),
    )


def _why_not(said: Section) -> str:
    return said.last_words or ("sinfo did not answer in time" if not said.good else "sinfo lists no partition")


def minutes(text: str) -> int | None:
    """A time limit of Slurm's: days-hours:minutes:seconds, and its shorter forms. None: unlimited, or none told."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return None
    parts = [int(part) for part in found["rest"].split(":")]
    if found["days"] is not None:
        hours, mins = (*parts, 0)[:2]
        return int(found["days"]) * 24 * 60 + hours * 60 + mins
    if len(parts) == 3:
        return parts[0] * 60 + parts[1]
    return parts[0]  # minutes, or minutes:seconds


def gpus(gres: str) -> dict[str, int]:
    """ "gpu:a100:4(S:0-1),nvme:1" → {"a100": 4}; "gpu:4" → {"": 4}."""
    found: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        one = _GPU.fullmatch(item.strip())
        if one:
            kind = one["type"] or ""
            found[kind] = found.get(kind, 0) + int(one["count"])
    return {kind: count for kind, count in found.items() if count}


# Partitions


@dataclass
class _Seen:
    """What the lines of one partition have said until now."""

    default: bool = False
    up: bool = True
    limit: str = ""
    states: dict[str, int] = field(default_factory=dict)
    gpus: dict[str, int] = field(default_factory=dict)
    cpus: int | None = None
    memory: int | None = None
    features: dict[str, None] = field(default_factory=dict)


def partitions_of_sinfo(lines: Iterable[str]) -> tuple[Partition, ...]:
    """Lines of `sinfo -h -o %R|%P|%a|%l|%D|%T|%G|%c|%m|%f`: one for each partition, state and kind of node."""
    seen: dict[str, _Seen] = {}
    for line in lines:
        pieces = line.strip().split("|", 9)
        if len(pieces) == 10 and (nodes := number(pieces[4])) is not None:
            _note(seen.setdefault(pieces[0], _Seen()), pieces, nodes)
    return tuple(_partition(name, one) for name, one in seen.items())


def _note(seen: _Seen, pieces: Sequence[str], nodes: int) -> None:
    _, starred, up, seen.limit, _, state, gres, cpus, memory, features = pieces
    seen.default = seen.default or starred.endswith("*")
    seen.up = up.startswith("up")
    if nodes == 0:
        return
    state = re.sub(r"[^a-z_]+$", "", state.lower())
    seen.states[state] = seen.states.get(state, 0) + nodes
    for kind, count in gpus(gres).items():
        seen.gpus[kind] = max(seen.gpus.get(kind, 0), count)
    seen.cpus = max(seen.cpus or 0, number(cpus) or 0) or None
    seen.memory = max(seen.memory or 0, (number(memory) or 0) * _MIB) or None
    seen.features |= dict.fromkeys(_listed(features))


def _partition(name: str, seen: _Seen) -> Partition:
    return Partition(
        name=name,
        default=seen.default,
        up=seen.up,
        max_minutes=minutes(seen.limit),
        nodes=sum(seen.states.values()),
        states=tuple(seen.states.items()),
        gpus=tuple(Gpus(kind, count) for kind, count in seen.gpus.items()),
        cpus_per_node=seen.cpus,
        memory_per_node=seen.memory,
        features=tuple(seen.features),
    )


def partitions_of_scontrol(lines: Iterable[str]) -> Iterator[Partition]:
    """Lines of `scontrol -o show partition`: who may use them, and what there is where sinfo says nothing."""
    for line in lines:
        words = dict(_words(line))
        name = words.get("PartitionName")
        if name:
            nodes = number(words.get("TotalNodes", "")) or 0
            yield Partition(
                name=name,
                default=words.get("Default") == "YES",
                up=words.get("State", "UP") == "UP",
                max_minutes=minutes(words.get("MaxTime", "")),
                nodes=nodes,
                gpus=tuple(_gpus_of_tres(words.get("TRES", ""), nodes)),
                accounts=_listed(words.get("AllowAccounts", "")),
                denied_accounts=_listed(words.get("DenyAccounts", "")),
                qos=_listed(words.get("AllowQos", "")),
                groups=_listed(words.get("AllowGroups", "")),
            )


def _gpus_of_tres(tres: str, nodes: int) -> Iterator[Gpus]:
    counts = {one["type"] or "": int(one["count"]) for one in _TRES_GPU.finditer(tres)}
    if len(counts) > 1:
        counts.pop("", None)  # the sum of the others
    for kind, count in counts.items():
        yield Gpus(kind, max(1, count // nodes) if nodes else count)


def _merged(of_sinfo: Sequence[Partition], of_scontrol: Mapping[str, Partition]) -> tuple[Partition, ...]:
    """sinfo knows the nodes, scontrol who may use them."""
    if not of_sinfo:
        return tuple(of_scontrol.values())
    merged = []
    for one in of_sinfo:
        other = of_scontrol.get(one.name, one)
        merged.append(
            replace(
                one,
                default=one.default or other.default,
                up=one.up and other.up,
                gpus=one.gpus or other.gpus,
                accounts=other.accounts,
                denied_accounts=other.denied_accounts,
                qos=other.qos,
                groups=other.groups,
            )
        )
    return tuple(merged)


# Accounts


def _accounts(found: Sections, cluster: str) -> tuple[tuple[Account, ...], str]:
    """And the command that told of them."""
    default = found.first("default-account")
    usual = default.last_words if default.good else ""
    user = found.value("host", "user")
    ways = (
        ("sacctmgr", accounts_of_sacctmgr(found.first("assoc"), cluster)),
        ("scontrol show assoc_mgr", accounts_of_scontrol(found.first("assoc-cache"), user)),
        ("sshare", accounts_of_sshare(found.first("sshare"), user)),
    )
    for told_by, accounts in ways:
        if accounts:
            return tuple(replace(one, default=one.default or one.name == usual) for one in accounts), told_by
    return (), ""


def accounts_of_sacctmgr(section: Section, cluster: str) -> list[Account]:
    """Lines of `sacctmgr -nP show assoc … format=Cluster,Account,Partition,QOS,DefaultQOS`, of this cluster's."""
    if not section.good:
        return []
    rows = [line.strip().split("|") for line in section.lines if line.count("|") == 4]
    here = [row for row in rows if not cluster or row[0].lower() == cluster.lower()]
    return [Account(row[1], False, row[2], _listed(row[3]), row[4]) for row in here or rows if row[1]]


def accounts_of_scontrol(section: Section, user: str) -> list[Account]:
    """Of `scontrol show assoc_mgr flags=assoc`: records of several lines, which slurmctld has in its memory."""
    found: list[Account] = []
    mine = False
    for line in section.lines if section.good else ():
        words = dict(_words(line))
        if "Account" in words:
            mine = words.get("UserName", "").partition("(")[0] == user
            if mine and words["Account"] not in _NONE:
                found.append(Account(words["Account"], partition=words.get("Partition", "")))
        elif mine and found and words.get("DefAssoc") == "Yes":
            found[-1] = replace(found[-1], default=True)
    return found


def accounts_of_sshare(section: Section, user: str) -> list[Account]:
    """Lines of `sshare -U -n -P -o Account,User`."""
    rows = [line.strip().split("|") for line in section.lines if section.good and line.count("|") == 1]
    return [Account(row[0].strip()) for row in rows if row[1].strip() == user and row[0].strip()]


def qos_of_sacctmgr(section: Section) -> tuple[Qos, ...]:
    rows = [line.strip().split("|") for line in section.lines if section.good and line.count("|") == 1]
    return tuple(Qos(row[0], minutes(row[1])) for row in rows if row[0])


# Slurm's forms


def _settings(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Of `scontrol show config`: a name, blanks, an equals sign, a value."""
    for line in lines:
        name, equals, value = line.partition("=")
        if equals:
            yield name.strip(), value.strip()


def _words(line: str) -> Iterator[tuple[str, str]]:
    """Of a line with Name=value Name=value; the first of a name counts."""
    seen = set()
    for word in line.split():
        name, equals, value = word.partition("=")
        if equals and name not in seen:
            seen.add(name)
            yield name, value


def _listed(text: str) -> tuple[str, ...]:
    return tuple(one for part in text.split(",") if (one := part.strip()) not in _NONE)

"""Folders, how full their file systems are, and what may be written: df, quota, lfs quota, mmlsquota. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.survey.facts import Place, Quota
from gateway.survey.sections import Section, Sections, number

_KIB = 1024
_HEADING = re.compile(r"Disk quotas for (?P<kind>\w+) (?P<name>\S+) ")
_KINDS = {"user": "user", "usr": "user", "group": "group", "grp": "group", "project": "project", "prj": "project"}
_GPFS_KINDS = {"USR": "user", "GRP": "group", "FILESET": "fileset"}
_COLUMNS = 6  # used, quota, limit, files, quota, limit


@dataclass(frozen=True)
class Told:
    """A quota and where it counts: a mount point, what is mounted, or a folder. `name`: whose it is."""

    where: str
    kind: str
    name: str
    quota: Quota


def places(found: Sections) -> tuple[Place, ...]:
    """Each folder once, by the first name that it was found under; the home first."""
    told = [
        *quotas(found.first("quota")),
        *lustre_quotas(found.first("lfs-quota")),
        *gpfs_quotas(found.first("mmlsquota")),
    ]
    seen: dict[str, Place] = {}
    for record in found.records("place", "place", 10):
        real = record[3] or record[2]
        if record[2].startswith("/") and real not in seen:
            seen[real] = _place(record, told)
    return tuple(seen.values())


def _place(record: Sequence[str], told: Iterable[Told]) -> Place:
    role, named, path, real, writable, kind, size, free, source, mount = record
    total, left = number(size), number(free)
    return Place(
        path=path,
        role=role,
        named=named,
        writable=writable == "1",
        type=kind,
        size=None if total is None else total * _KIB,
        free=None if left is None else left * _KIB,
        source=source,
        mount=mount,
        quotas=tuple(one.quota for one in told if _counts(one, (path, real), source, mount)),
    )


def _counts(told: Told, paths: Sequence[str], source: str, mount: str) -> bool:
    """A user's quota counts on all of its file system, a group's for folders that have its name in their path."""
    if told.kind == "project":
        return told.where in paths
    there = told.where in (mount, source) or (told.where != "" and told.where == source.rpartition("/")[2])
    return there and (told.kind == "user" or any(told.name in path.split("/") for path in paths))


def quotas(section: Section) -> Iterator[Told]:
    """Of `quota -w`: a heading, titles, then a line for each file system that has a limit. Sizes in KiB."""
    kind, name = "user", ""
    for line in section.lines:
        heading = _HEADING.match(line.strip() + " ")
        if heading:
            kind, name = _KINDS.get(heading["kind"], "user"), heading["name"]
            continue
        where, *values = line.split() or [""]
        numbers = _numbers(values)
        if len(numbers) == _COLUMNS:
            yield _told(where, kind, name, numbers, "quota")


def lustre_quotas(section: Section) -> Iterator[Told]:
    """Of `lfs quota`: the same columns, but a long path stands in a line of its own."""
    kind, name, where = "", "", ""
    for line in section.lines:
        heading = _HEADING.match(line.strip() + " ")
        words = line.split()
        if heading:
            kind, name, where = _KINDS.get(heading["kind"], ""), heading["name"], ""
        elif kind and words and words[0].startswith("/"):
            where, words = words[0], words[1:]
        numbers = _numbers(words) if where else []
        if len(numbers) == _COLUMNS:
            yield _told(where, kind, name, numbers, "lfs quota")
            where = ""


def gpfs_quotas(section: Section) -> Iterator[Told]:
    """Of `mmlsquota --block-size K`: blocks and files on either side of a bar."""
    for line in section.lines:
        blocks, bar, files = line.partition("|")
        words = blocks.split()
        kind = next((_GPFS_KINDS[word] for word in words if word in _GPFS_KINDS), "")
        left, right = _numbers(words)[-4:], _numbers(files.split())
        if bar and kind and len(left) == 4 and len(right) >= 3:
            yield _told(words[0], kind, "", [*left[:3], *right[:3]], "mmlsquota")


def _told(where: str, kind: str, name: str, numbers: Sequence[int], by: str) -> Told:
    used, soft, hard, files, files_soft, files_hard = numbers
    limit = soft or hard
    whose = kind if kind == "user" else f"{kind} {name}".strip()
    quota = Quota(whose, used * _KIB, limit * _KIB if limit else None, files, files_soft or files_hard or None, by)
    return Told(where, kind, name, quota)


def _numbers(words: Iterable[str]) -> list[int]:
    """Those among them, without the marks of one that is exceeded (123*) or not up to date ([123])."""
    return [found for word in words if (found := number(word.strip("[]*"))) is not None]

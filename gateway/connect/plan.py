"""What there is to do, from what stands there and what is wanted: pure."""

from dataclasses import dataclass
from enum import StrEnum

from packaging.version import InvalidVersion, Version

from gateway.connect.standing import Standing


class Refused(Exception):
    """It is not for us to decide; the text says what to do."""


class Step(StrEnum):
    """In the order in which they are taken."""

    PACKAGES = "bring the packages that it needs"
    INSTALL = "install this version"
    SITE = "write a site file"
    SWITCH = "make it the current version"
    START = "start the orchestrator"
    REPLACE = "replace the orchestrator that runs; requests wait meanwhile, jobs go on"


@dataclass(frozen=True)
class Wanted:
    """`name`: of the version's folder, its number and a digest of all that belongs to it. `packages`: of theirs."""

    name: str
    version: str
    packages: str


def steps(there: Standing, wanted: Wanted, *, whole: bool = True, speaks: str = "") -> list[Step]:
    """Raises Refused.

    `whole`: what is installed by the wanted name is not damaged. `speaks`: the version that the running orchestrator
    tells of itself, "" where it does not answer.
    """
    _check(there, wanted, speaks)
    if _by_hand(there):
        return []
    needed = []
    absent = wanted.name not in there.present or not whole
    if absent and wanted.packages not in there.packages:
        needed.append(Step.PACKAGES)
    if absent:
        needed.append(Step.INSTALL)
    if not there.has_site:
        needed.append(Step.SITE)
    if there.running == "queued":  # it starts what is current then
        return [*needed, Step.SWITCH, Step.START] if there.installed != wanted.name else [*needed, Step.START]
    if there.running == "yes":
        if there.runs == wanted.name and whole:
            return [*needed, Step.SWITCH] if there.installed != wanted.name else needed
        return [*needed, Step.REPLACE]
    if there.installed != wanted.name:
        needed.append(Step.SWITCH)
    return [*needed, Step.START]


def _by_hand(there: Standing) -> bool:
    return there.running == "yes" and not there.runs


def _check(there: Standing, wanted: Wanted, speaks: str) -> None:
    if there.running == "elsewhere":
        raise Refused(
            f"an orchestrator of yours runs on {there.where}, and its socket cannot be reached from {there.host}. "
            f"Use the login node {there.where} (a Host of its own in your SSH configuration), or stop it there"
        )
    if _by_hand(there) and speaks != wanted.version:
        raise Refused(
            f"an orchestrator {speaks or 'that does not answer'} runs there as process {there.pid}, which somebody has "
            f"started by hand, and this is {wanted.version}. Stop it there (kill {there.pid}; jobs go on), and connect "
            "again"
        )
    newest = max((number_of(name) for name in (there.runs, there.installed) if name), default=None)
    if newest is not None and newest > number_of(wanted.name):
        raise Refused(
            f"version {newest} is installed there, and this is {wanted.version}, which may not understand its "
            "database. Install the newer version here; or go back by hand, as docs/operations.md has it"
        )


def number_of(name: str) -> Version:
    """The version's number in its folder's name, such as 0.1.0-1f2e3d4c5b."""
    try:
        return Version(name.partition("-")[0])
    except InvalidVersion:
        return Version("0")

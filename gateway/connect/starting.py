"""How the orchestrator is started on a login node, and why so: pure."""

from dataclasses import dataclass
from enum import StrEnum


class How(StrEnum):
    """A way to start it."""

    SYSTEMD = "systemd"  # a unit of the user's own systemd, which starts it again after a crash and a reboot
    DETACHED = "detached"  # a process of its own session, which outlives the login
    JOB = "job"  # a small Slurm job of its own, which the gateway reaches by a step of it (`gateway.bridge`)


_COST = "it takes one core and 2 GB of your allocation as long as it runs, and may have to wait in the queue"


@dataclass(frozen=True)
class Choice:
    """`warning`: what may go wrong with it, "" for nothing."""

    how: How
    reason: str
    warning: str = ""


@dataclass(frozen=True)
class Sessions:
    """What a site does with its users' processes; None: nobody says.

    `user_systemd`: `systemctl --user` works. `lingers`: it goes on after the logout. `kills`: all other processes are
    ended then.
    """

    user_systemd: bool = False
    lingers: bool | None = None
    kills: bool | None = None
    cpu_seconds: int | None = None  # that a process of a login may use; None: no limit
    slurm: bool = False  # there is one that takes jobs


def choice(sessions: Sessions, wanted: How | None = None) -> Choice:
    """The way for a site; with `wanted` that one, whatever the site says."""
    if wanted is How.SYSTEMD:
        return Choice(
            wanted, "as you wanted", "" if sessions.user_systemd else "`systemctl --user` does not work there"
        )
    if wanted is How.DETACHED:
        return Choice(wanted, "as you wanted", _of_detached(sessions))
    if wanted is How.JOB:
        return Choice(wanted, "as you wanted", _COST if sessions.slurm else "there is no Slurm that answers")
    if sessions.user_systemd and sessions.lingers:
        return Choice(How.SYSTEMD, "your systemd runs there also while you are not logged in")
    if sessions.slurm and sessions.kills:
        return Choice(How.JOB, "the site ends processes when you log out", _COST)
    if sessions.slurm and sessions.cpu_seconds is not None:
        minutes = sessions.cpu_seconds // 60
        return Choice(How.JOB, f"a process may use {minutes} minutes of CPU time on the login node", _COST)
    if sessions.user_systemd and sessions.kills:
        warning = "it may not linger, and then ends with your last login. Ask the site for `loginctl enable-linger`"
        return Choice(How.SYSTEMD, "the site ends all other processes at the logout", warning)
    if sessions.user_systemd:
        return Choice(How.DETACHED, "your systemd there ends with your last login", _of_detached(sessions))
    return Choice(How.DETACHED, "there is no systemd of your own there", _of_detached(sessions))


def _of_detached(sessions: Sessions) -> str:
    if sessions.kills:
        return (
            "the site ends processes when you log out, so it lives as long as a login of yours, such as the gateway's. "
            "Jobs go on, and the next `sluice connect` starts it again"
        )
    if sessions.cpu_seconds is not None:
        return (
            f"a process may use {sessions.cpu_seconds // 60} minutes of CPU time there; after that the next `sluice "
            "connect` starts it again. Jobs go on"
        )
    return ""

"""What vast.ai says of an instance, and what that means. Pure.

Source of the fields and their words: docs.vast.ai, "show instance", and vastai 1.9 (data/instance.py, SKILL.md).
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.errors import RentalError

MOST_WORDS = 500  # characters of vast.ai's that are repeated


class Status(StrEnum):
    """What a user is told of the rented machine."""

    RUNNING = "running"
    STOPPED = "stopped"  # its disk is kept
    EXITED = "exited"
    LOADING = "loading"
    SCHEDULING = "scheduling"  # waits for its GPU
    CREATING = "creating"
    UNCONFIGURED = "unconfigured"
    NOT_FOUND = "not_found"


@dataclass(frozen=True)
class Meaning:
    """`costs`: whether the GPU is paid for, None where vast.ai's words do not tell. `hopeless`: it never becomes
    running by itself. `words` say what the status leaves out."""

    status: Status
    costs: bool | None = False
    hopeless: bool = False
    words: str = ""


@dataclass(frozen=True)
class Instance:
    """An instance at one moment. `price`: dollars an hour. `ports`: those outside by those within, TCP only."""

    id: int
    meaning: Meaning
    wanted: str = ""  # running | stopped | frozen, as it was last asked for
    gpu_name: str | None = None
    price: float = 0.0
    address: str | None = None
    ports: Mapping[int, int] = field(default_factory=dict)
    words: str = ""  # vast.ai's own

    @property
    def status(self) -> Status:
        return self.meaning.status

    @property
    def message(self) -> str | None:
        """What there is to say beside the status."""
        return "; ".join(text for text in (self.meaning.words, self.words) if text) or None


_RUNNING = Meaning(Status.RUNNING, costs=True)
_LOADING = Meaning(Status.LOADING)
_CREATING = Meaning(Status.CREATING)
_STOPPED = Meaning(Status.STOPPED)
_SCHEDULING = Meaning(Status.SCHEDULING, words="it waits for its GPU, which others may have now")
NOT_FOUND = Meaning(Status.NOT_FOUND, hopeless=True, words="vast.ai has no such instance; look at VAST_INSTANCE_ID")
_ACTUAL: dict[str, Meaning] = {
    "created": _CREATING,
    "loading": _LOADING,
    "running": _RUNNING,
    "stopped": _STOPPED,
    "frozen": Meaning(
        Status.STOPPED, costs=True, words="vast.ai has frozen it: its memory is kept, and so is the price"
    ),
    "exited": Meaning(Status.EXITED, hopeless=True, words="its container has ended"),
    "rebooting": Meaning(Status.LOADING, costs=True, words="it starts again"),
    "unknown": Meaning(
        Status.EXITED, costs=None, hopeless=True, words="vast.ai has not heard from its host for a while (unknown)"
    ),
    "offline": Meaning(
        Status.EXITED, costs=None, hopeless=True, words="its host has lost the connection to vast.ai (offline)"
    ),
}
# The container is not there: what is wanted, and whether the machine is given, say the rest.
_ABSENT = ("created", "stopped", "exited")


def meaning_of(actual: str | None, wanted: str | None, given: str | None) -> Meaning:
    """What `actual_status`, `intended_status` and `cur_state` mean together.

    The container of an instance that was stopped has `exited`, so that this word alone does not tell a stop from a
    fault. `given` is the state of the contract: `running` while the GPU is ours.
    """
    if wanted == "stopped" and given == "stopped" and actual in ("unknown", "offline"):
        return Meaning(Status.STOPPED, words=_ACTUAL[actual].words)
    if actual is None or actual in _ABSENT:
        if wanted == "stopped":
            return _STOPPED
        if wanted == "running" and given == "stopped":
            return _SCHEDULING
        if actual == "exited" and given == "running":
            return Meaning(Status.EXITED, costs=None, hopeless=True, words="its container has ended by itself")
        if actual == "stopped" and wanted == "running":
            return _LOADING
    if actual is None:
        return _CREATING
    if actual == "running" and wanted == "stopped":
        return Meaning(Status.RUNNING, costs=True, words="it is being stopped")
    unforeseen = f"vast.ai says {actual[:40]!r} of it, which is not known here"
    return _ACTUAL.get(actual) or Meaning(Status.EXITED, costs=None, words=unforeseen)


def instance_in(content: Any, instance_id: int) -> Instance:
    """The instance in an answer of vast.ai: `{"instances": {…}}`, null for one that is not there.

    Raises RentalError for anything else.
    """
    if not isinstance(content, dict) or "instances" not in content:
        raise RentalError("vast.ai answers something that is no instance; look at VAST_API_URL")
    row = content["instances"]
    if row is None or row == []:
        return Instance(instance_id, NOT_FOUND)
    if not isinstance(row, dict) or row.get("id", instance_id) != instance_id:
        raise RentalError(f"vast.ai answers something that is not the instance {instance_id}")
    wanted = _text(row.get("intended_status"))
    return Instance(
        id=instance_id,
        meaning=meaning_of(_text(row.get("actual_status")), wanted, _text(row.get("cur_state"))),
        wanted=wanted or "",
        gpu_name=_text(row.get("gpu_name")),
        price=_price(row.get("dph_total")),
        address=_text(row.get("public_ipaddr")),
        ports=_ports(row.get("ports")),
        words=(_text(row.get("status_msg")) or "")[:MOST_WORDS],
    )


def place(instance: Instance, port: int, *, loopback: bool) -> tuple[str, int]:
    """Where a port of an instance is reached: an address and the port outside. Raises RentalError where it is not.

    Requests are sent there, so it must be a public address; `loopback` allows the machine's own instead.
    """
    if instance.address is None:
        raise RentalError(f"vast.ai gives no address of instance {instance.id} yet")
    outside = instance.ports.get(port)
    if outside is None:
        raise RentalError(
            f"instance {instance.id} does not map its port {port}: its template needs `-p {port}:{port}`, or another "
            "VAST_HEALTH_PORT or VAST_ENGINE_PORT"
        )
    try:
        address = ipaddress.ip_address(instance.address)
    except ValueError as exc:
        raise RentalError(f"vast.ai gives {instance.address[:100]!r} for an address, which is none") from exc
    if not (address.is_loopback if loopback else address.is_global and not address.is_multicast):
        raise RentalError(f"vast.ai gives the address {address}, which is not a public one: nothing is sent there")
    return str(address), outside


def url_of(place: tuple[str, int], path: str = "") -> str:
    address, port = place
    return f"http://{f'[{address}]' if ':' in address else address}:{port}{path}"


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _price(value: Any) -> float:
    """Dollars an hour; 0 for what is no price."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e6 else 0.0


def _ports(value: Any) -> dict[int, int]:
    """Docker's form: `{"8001/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41234"}]}`."""
    found: dict[int, int] = {}
    for name, bindings in value.items() if isinstance(value, dict) else ():
        inner, _, kind = str(name).partition("/")
        first = bindings[0] if isinstance(bindings, list) and bindings else None
        outer = str(first.get("HostPort", "")) if isinstance(first, dict) else ""
        if kind == "tcp" and _is_port(inner) and _is_port(outer):
            found[int(inner)] = int(outer)
    return found


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535

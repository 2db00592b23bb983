"""Which replica a request goes to. Pure: numbers in, a choice out."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.asked import Asked, opening

# With `prefix` a replica may have so many times the others' load before its requests go elsewhere.
_MOST_IMBALANCE = 1.25
_NOTHING = 8  # requests under way that an engine computes together as quickly as one


class Candidate(Protocol):
    """A replica that answers."""

    @property
    def id(self) -> str: ...

    @property
    def in_flight(self) -> int:
        """Requests that we have sent it and that are not answered yet."""

    @property
    def queue(self) -> int:
        """Requests that wait inside the engine, by its own metrics; 0 where it does not tell."""


class Policy(Protocol):
    """Chooses one of at least one candidates. `turn` is one more each time."""

    def __call__(self, candidates: Sequence[Candidate], asked: Asked, turn: int) -> int:
        """The index of the chosen one."""


def round_robin(candidates: Sequence[Candidate], asked: Asked, turn: int) -> int:
    """Each in turn."""
    return turn % len(candidates)


def least_loaded(candidates: Sequence[Candidate], asked: Asked, turn: int) -> int:
    """The one with the least to do; among equals in turn."""
    size = len(candidates)
    order = ((turn + n) % size for n in range(size))
    return min(order, key=lambda n: candidates[n].in_flight + candidates[n].queue)


def prefix(candidates: Sequence[Candidate], asked: Asked, turn: int) -> int:
    """The one that has seen this prompt's beginning before, unless it has much more to do than the others.

    Rendezvous hashing: each pair of a beginning and a replica has a score, the highest wins, so that a replica that
    goes or comes moves only its own share. A conversation's beginning ends with the user's first message, so that its
    next turn meets the same replica. With a session its name takes the place of the beginning.
    """
    key = asked.session or opening(asked.prefix)
    if not key:
        return least_loaded(candidates, asked, turn)
    most = max(_NOTHING, _MOST_IMBALANCE * (1 + sum(c.in_flight for c in candidates)) / len(candidates))
    ranked = sorted(range(len(candidates)), key=lambda n: _score(key, candidates[n].id), reverse=True)
    return next((n for n in ranked if candidates[n].in_flight < most), ranked[0])


def _score(key: bytes, replica: str) -> bytes:
    return hashlib.blake2b(key, digest_size=8, key=replica.encode()[:64]).digest()


@dataclass(frozen=True)
class Named:
    """A policy and what is said of it to users."""

    choose: Policy
    description: str


POLICIES: Mapping[str, Named] = {
    "round-robin": Named(round_robin, "each replica in turn"),
    "least-loaded": Named(least_loaded, "the replica with the fewest requests under way and waiting"),
    "prefix": Named(prefix, "the replica that has a prompt's beginning, or its session, in its cache"),
}
DEFAULT = "round-robin"
LEAST_LOADED = "least-loaded"

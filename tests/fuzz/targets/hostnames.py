"""Slurm's lists of nodes. What comes out are names of hosts, not too many of them, and each is its own list."""

import re

from orchestrator.schedulers.slurm import hostnames
from tests.fuzz.target import Target

_MOST = 10_000


def _run(data: bytes) -> None:
    text = data.decode(errors="replace")
    names = hostnames(text)
    assert len(names) <= _MOST, len(names)
    for name in names[:100]:
        assert re.fullmatch("[A-Za-z0-9_.-]+", name), name
        assert hostnames(name) == [name]
    if "[" not in text and len(names) == text.count(",") + 1:
        assert names == [part.strip() for part in text.split(",")]


TARGET = Target(
    _run,
    seeds=[
        b"gpu[01-03,7],login1",
        b"rack[1-2]node[001-010]",
        b"a,b,c-1.example_2",
        b"n[0-9],n[1-20]b,[1-2]",
        b"n[" + b",".join([b"0-999"] * 11) + b"]",
        b",".join([b"n[0-999]"] * 11),
    ],
    words=[b"[", b"]", b"-", b",", b"[0-999]", b"[1-999999999]", b"None assigned"],
)

"""What was found once is found no more, and each target takes what it begins with."""

import pytest

from tests.fuzz.target import CRASHERS, cut, kept, load, names, uncut


@pytest.mark.parametrize("name", names())
@pytest.mark.timeout(30)
def test_seeds_and_crashers(name: str) -> None:
    target = load(f"tests.fuzz.targets.{name}")
    assert target.seeds
    for data in (b"", *target.seeds, *(path.read_bytes() for path in kept(name))):
        target.run(data)


def test_each_crasher_has_a_target() -> None:
    assert {path.name for path in CRASHERS.iterdir()} <= set(names())


def test_pieces() -> None:
    assert cut(uncut(b"abcdef", 2, 0, 3)) == [b"ab", b"cde", b"f"]
    assert cut(uncut(b"ab", 9, 9)) == [b"ab"]
    assert cut(uncut(b"")) == cut(b"") == []

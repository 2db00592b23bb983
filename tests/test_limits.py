"""Both processes raise the limit of open files that a login gives them."""

import resource
import subprocess
import sys

import pytest

_TELL = "import resource; from orchestrator.limits import raise_open_files; raise_open_files(); "
_TELL += "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"


def told(soft: int, hard: int) -> tuple[int, int]:
    """The limits of a process that began with these."""
    limits = f"ulimit -Sn {soft} && ulimit -Hn {hard} && exec {sys.executable} -c '{_TELL}'"
    said = subprocess.run(["bash", "-c", limits], capture_output=True, text=True, check=True).stdout.split()
    return int(said[0]), int(said[1])


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"), [(512, 1024, 1024), (1024, 1024, 1024), (256, 20000, 16384), (18000, 20000, 18000)]
)
def test_the_soft_limit_rises_to_the_hard_one_and_not_beyond_a_bound(soft: int, hard: int, wanted: int) -> None:
    mine = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if mine != resource.RLIM_INFINITY and mine < hard:
        pytest.skip(
            f"NOT TESTED: this process may have only {mine} files open, and {hard} are needed: ulimit -Hn {hard}"
        )
    assert told(soft, hard) == (wanted, hard)

"""Each target for some seconds, under CI for longer; and a bug that was put there is found."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import planted
from tests.fuzz.__main__ import ROOT, fuzz, main
from tests.fuzz.target import names

CI = os.environ.get("CI") == "true"
# What others write, whoever they are: Slurm's commands, jobs, clients, engines. Under CI a minute for each of these.
FOREIGN = ("cluster", "events", "request_head", "run_files", "sbatch", "squeue")
OURS = tuple(name for name in names() if name not in FOREIGN)
HAS_WHEELS = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 15)

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None and not (CI and HAS_WHEELS),
        reason="atheris is not installed: it has wheels for Linux on x86_64 up to Python 3.14",
    ),
]


@pytest.mark.parametrize(("targets", "seconds"), [(FOREIGN, 60), (OURS, 20)], ids=["foreign", "ours"])
@pytest.mark.timeout(60 * len(names()) + 300)
def test_nothing_new_is_found(targets: tuple[str, ...], seconds: int) -> None:
    environment = dict(os.environ) | {"SECONDS": str(seconds if CI else 5)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *targets], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stdout
    tried = [line for line in done.stdout.splitlines() if line.endswith(" inputs")]
    assert len(tried) == len(targets) > 0, done.stdout


def test_a_planted_bug_is_found_and_its_input_kept(tmp_path: Path) -> None:
    said = fuzz("tests.fuzz.planted", 60, tmp_path)
    [found] = tmp_path.iterdir()
    assert "ZeroDivisionError" in said and str(found) in said
    with pytest.raises(ZeroDivisionError):
        planted.parse(found.read_bytes())


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(SystemExit, match=r"no such target: x; there are asked, bodies, "):
        main(["x"])

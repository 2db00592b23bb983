"""The job that an orchestrator may be itself: its script, and what its signals do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import Invalid
from orchestrator.lock import Holder
from orchestrator.own_job import NAME, directives, main, script
from orchestrator.services import job_name
from orchestrator.settings import Site
from tests.test_process import until

GOLDEN = Path(__file__).parent / "golden" / "own-job.sh"
STATE = Path("/home/ada/.sluicegate")


def test_the_whole_script() -> None:
    """`account`, `qos` and a reservation are the site's; what asks for whole nodes or GPUs is for engines."""
    site = Site(
        account="p200", partition="gpu", cpu_partition="cpu", qos="long", max_time_limit=2880,
        extra_directives=["--reservation=course", "--exclusive", "--gres=gpu:1"],
    )  # fmt: skip
    assert script(site, STATE) == GOLDEN.read_text()
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the development group in pyproject.toml
    command = [str(shellcheck), "--norc", "--severity=style", str(GOLDEN)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout


def test_what_the_site_does_not_say_is_left_to_slurm() -> None:
    lines = " ".join(directives(Site(request_memory=False), STATE))
    assert not [word for word in ("--time", "--mem", "--account", "--partition", "--qos") if word in lines]
    with pytest.raises(Invalid, match="partition"):
        directives(Site(partition="gpu --wrap=x"), STATE)


def test_it_is_no_service() -> None:
    """The watcher knows its jobs by their names."""
    assert not NAME.startswith(job_name("")) and "--job-name=" + NAME in directives(Site(), STATE)[0]


def test_the_script_is_printed_for_a_site_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "site.toml"
    file.write_text('scheduler = "slurm"\n[site]\npartition = "gpu"\n')
    assert main(["--config", str(file), str(STATE)]) == 0
    assert "#SBATCH --partition=gpu\n" in capsys.readouterr().out
    file.write_text('scheduler = "local"\n')
    assert main(["--config", str(file), str(STATE)]) == 2
    assert "no Slurm" in capsys.readouterr().err


def test_what_its_signals_do(tmp_path: Path) -> None:
    """USR2 starts the orchestrator again, USR1 has Slurm start the job again, TERM ends it; its folder is removed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {  # the trap first: one that has said something can be ended
        "serve": f'trap "exit 0" TERM\necho "$1 $ORCHESTRATOR_JOB $ORCHESTRATOR_SOCKET" >>{tmp_path}/said\n'
        "while :; do sleep 0.05; done",
        "slurm": f'echo "$@" >>{tmp_path}/said\nkill -TERM $PPID',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    said = tmp_path / "said"

    def lines() -> list[str]:
        return said.read_text().splitlines() if said.exists() else []

    text = script(Site(), tmp_path).replace("sleep 60", "sleep 1")
    holder = tmp_path / "orchestrator.holder"
    holder.write_text(Holder("node1", "boot1", 7, "1", job="17", socket="/tmp/s/orchestrator.sock").text())
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "17"}
    process = subprocess.Popen(["bash", "-c", text], env=environment)
    try:
        until(lambda: len(lines()) == 1)
        how, job, socket = lines()[0].split()
        assert (how, job, Path(socket).name) == ("job", "17", "orchestrator.sock")
        assert Path(socket).parent.stat().st_mode & 0o777 == 0o700
        assert not holder.exists(), "of an earlier start of the same job"
        holder.write_text('{"job": "16"}')
        process.send_signal(signal.SIGUSR2)
        until(lambda: len(lines()) == 2)
        assert holder.exists(), "another's"
        process.send_signal(signal.SIGUSR1)
        until(lambda: len(lines()) == 3)
        assert lines()[2] == "scontrol requeue 17"
        process.wait(10)
        assert not Path(socket).parent.exists()
    finally:
        process.terminate()  # the script ends what it has started
        process.wait(10)

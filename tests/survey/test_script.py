"""The script itself, by the shells that there are: whatever its commands do, it ends in time and leaves nothing."""

import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.survey import SCRIPT, OwnJob, Survey, read
from tests.gateway.sshd import free_port

pytestmark = [pytest.mark.system, pytest.mark.beside]

SHELLS = [name for name in ("dash", "bash", "busybox", "ksh", "mksh") if shutil.which(name)]
HANGS = "#!/bin/sh\necho 'gpu|gpu*|up|1:00:00|1|idle|gpu:1|4|1000|(null)'\nsleep 1000.5 & wait\n"


class Node:
    """A login node's home and programs of its own before those of this machine."""

    def __init__(self, folder: Path) -> None:
        self.home, self.programs, self.temporary = folder / "home", folder / "bin", folder / "tmp"
        for one in (self.home, self.programs, self.temporary):
            one.mkdir()
        (self.home / ".bash_profile").write_text(f"PATH={self.programs}:$PATH\n")

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def without(self, *names: str) -> None:
        """As if these were not installed."""
        for name in names:
            self.program(name, "#!/bin/sh\nexit 127\n")

    def run(self, shell: str, *arguments: str, text: str = SCRIPT) -> subprocess.CompletedProcess[str]:
        argv = ["busybox", "sh"] if shell == "busybox" else [shell]
        environment = {"HOME": str(self.home), "PATH": f"{self.programs}:/usr/bin:/bin", "TMPDIR": str(self.temporary)}
        return subprocess.run(
            [*argv, "-s", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            cwd=self.home,
        )

    def survey(self, shell: str, *arguments: str) -> Survey:
        done = self.run(shell, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert list(self.temporary.iterdir()) == [], "its folder is gone"
        return read(done.stdout)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_by_every_shell(shell: str, node: Node) -> None:
    line = "gpu|gpu*|up|1:00:00|2|idle|gpu:h100:4|4|1000|(null)"
    node.program("sinfo", f"#!/bin/sh\n[ \"$1\" = --version ] && echo 'slurm 24.11.1' || echo '{line}'\n")
    node.program("sluice", "#!/bin/sh\necho 'sluice 0.1.0'\n")
    survey = node.survey(shell, "brief", ".sluicegate", "4")
    assert (survey.user, survey.home) == (pwd.getpwuid(os.geteuid()).pw_name, str(node.home))
    assert survey.complete
    assert survey.slurm is not None
    assert (survey.slurm.version, survey.slurm.partitions[0].gpus[0].type) == ((24, 11, 1), "h100")
    assert any(one.path == "/usr/bin/python3" for one in survey.pythons)
    assert [one.version for one in survey.installed] == ["0.1.0"]
    assert survey.places[0].path == str(node.home)
    assert survey.places[0].free is not None
    assert survey.clock is not None
    assert abs(survey.clock - time.time()) < 30


def test_commands_that_hang_are_ended_with_all_that_they_started(node: Node) -> None:
    for name in ("sinfo", "scontrol", "sacctmgr", "sshare", "quota"):
        node.program(name, HANGS)
    before = time.monotonic()
    survey = node.survey("dash", "brief", ".sluicegate", "2")
    assert time.monotonic() - before < 12
    assert survey.complete
    assert "sinfo: no answer in time" in survey.trouble
    assert survey.places
    assert _sleepers() == []


def test_few_processes_at_a_time(node: Node) -> None:
    """Accounts of login nodes may have no more. Each of these is there for half a second."""
    for name in ("sinfo", "scontrol", "sacctmgr", "sshare", "quota", "sluice"):
        node.program(name, "#!/bin/sh\nps -A -o args= | grep -c '^ *[^ ]*dash -s' >>\"$HOME/counted\"\nsleep 0.5\n")
    assert node.survey("dash", "brief", ".sluicegate", "5").complete
    counted = [int(line) for line in (node.home / "counted").read_text().split()]
    assert len(counted) >= 9
    assert max(counted) <= 20


def _sleepers() -> list[str]:
    shown = subprocess.run(
        ["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    return [line for line in shown.splitlines() if "sleep 1000.5" in line]


def test_words_of_a_profile_and_of_the_environment(node: Node) -> None:
    lines = ["echo Welcome; echo no >&2", f"export SCRATCH={node.home}/scratch XDG_DATA_HOME=/usr/share"]
    lines += [f'export PATH="$PATH:{node.home}/slurm"']
    (node.home / ".bash_profile").write_text("\n".join(lines) + "\n")
    (node.home / "scratch" / "images").mkdir(parents=True)
    (node.home / "scratch" / "images" / "vllm-openai.sif").touch()
    (node.home / "slurm").mkdir()
    (node.home / "slurm" / "sinfo").write_text("#!/bin/sh\necho 'slurm 25.05.2'\n")
    (node.home / "slurm" / "sinfo").chmod(0o755)
    hidden = SCRIPT.replace("has sinfo && say", "false && say")  # as if this machine had no Slurm of its own
    survey = read(node.run("dash", "brief", ".sluicegate", "4", text=hidden).stdout)
    assert survey.needs_login_shell
    assert survey.login_path.endswith(f"{node.home}/slurm")
    assert [(one.role, one.named) for one in survey.places][:2] == [("home", "$HOME"), ("scratch", "$SCRATCH")]
    assert survey.images == (f"{node.home}/scratch/images/vllm-openai.sif",)


def test_no_secret_of_the_environment_is_told(node: Node) -> None:
    """The address of a package index may hold a password. It is asked without it."""
    address = f"http://ada:sesame@127.0.0.1:{free_port()}/simple"
    (node.home / ".bash_profile").write_text(
        f"export PIP_INDEX_URL={address} https_proxy=http://eve:sesame@127.0.0.1\n"
    )
    done = node.run("dash", "whole", ".sluicegate", "5")
    assert "sesame" not in done.stdout + done.stderr
    index = read(done.stdout).index
    assert index is not None
    assert (index.reachable, "@" in index.url, index.url.endswith("/simple")) == (False, False, True)


def test_without_a_place_for_files_it_says_so(node: Node) -> None:
    nowhere = SCRIPT.replace('"${TMPDIR:-/tmp}" /tmp /dev/shm "$HOME"', "/proc/1")
    done = node.run("dash", text=nowhere)
    assert done.returncode == 0
    (trouble,) = read(done.stdout).trouble
    assert trouble.startswith("no folder for temporary files")


def test_half_of_the_script_does_nothing(node: Node) -> None:
    """The connection broke while it was sent."""
    done = node.run("dash", text=SCRIPT[: SCRIPT.rindex("main")])
    assert (done.returncode, done.stdout) == (0, "")


def test_who_holds_the_state_folder(node: Node) -> None:
    state = node.home / "state"
    state.mkdir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    holder = '{"host": "login01", "boot": "%s", "pid": %d, "started": "%s"}'
    for text, alive, elsewhere in (
        (holder % (boot, os.getpid(), started), True, False),
        (holder % (boot, os.getpid(), "1"), False, False),
        (holder % ("another", 12, started), False, True),
    ):
        (state / "orchestrator.holder").write_text(text)
        process = node.survey("dash", "brief", "state", "4").process
        assert process is not None
        assert (process.host, process.alive, process.elsewhere) == ("login01", alive, elsewhere)


@pytest.mark.parametrize("shell", SHELLS)
def test_an_orchestrator_that_is_a_job(shell: str, node: Node) -> None:
    """It is named before it has the folder; one that squeue does not list has ended."""
    state = node.home / "state"
    state.mkdir()
    (state / "orchestrator.job").write_text("17\n")
    node.program("squeue", "#!/bin/sh\necho '170|RUNNING|cn9|None'; echo '17|PENDING||Priority'\n")
    assert node.survey(shell, "brief", "state", "4").job == OwnJob("17", False, "PENDING", "", "Priority")
    (state / "orchestrator.holder").write_text('{"host": "cn1", "boot": "x", "pid": 7, "started": "1", "job": "170"}')
    survey = node.survey(shell, "brief", "state", "4")
    assert (survey.job, survey.process) == (OwnJob("170", True, "RUNNING", "cn9", "None"), None)
    node.program("squeue", "#!/bin/sh\necho '18|RUNNING|cn9|None'\n")
    assert node.survey(shell, "brief", "state", "4").job == OwnJob("170", True)
    node.program("squeue", "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    (state / "bin").mkdir()
    (state / "bin" / "slurm").write_text('#!/bin/sh\necho "as the orchestrator sees it"; exec "$@"\n')
    (state / "bin" / "slurm").chmod(0o755)
    job = node.survey(shell, "brief", "state", "4").job
    assert job == OwnJob("170", True, words="as the orchestrator sees it")


def test_shellcheck_has_nothing_to_say() -> None:
    path = Path(__file__).parents[2] / "gateway" / "survey" / "survey.sh"
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the development group in pyproject.toml
    done = subprocess.run([str(shellcheck), "--norc", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout

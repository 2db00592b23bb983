"""A Slurm whose commands are the small programs in tests/bin and whose controller is a folder."""

from pathlib import Path

from orchestrator.schedulers.slurm import FIELDS, SEPARATOR, Slurm, clean_environment

BIN = Path(__file__).parent / "bin"
PATH = f"{BIN}:/usr/bin:/bin"
_COLUMNS = [name.lower() for name in FIELDS[1:]]


class FakeSlurm:
    """`home` is the user's home on the login node."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = home / "slurm"
        for name in ("jobs", "scripts"):
            (self.state / name).mkdir(parents=True)

    def scheduler(self, timeout: float = 20, **environment: str) -> Slurm:
        """`timeout` is long: it is not what these tests wait for."""
        inherited = {"PATH": PATH, "HOME": str(self.home)} | environment
        return Slurm(timeout=timeout, environment=clean_environment(inherited))

    def behave(self, command: str, bash: str = "") -> None:
        """From now on a command runs this first; "" makes it normal again."""
        (self.state / f"{command}.sh").write_text(bash)

    def calls(self, command: str) -> list[str]:
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.split()[0] == command]

    def environment_of(self, command: str) -> dict[str, str]:
        lines = (self.state / f"{command}.env").read_bytes().split(b"\0")
        return dict(line.decode().partition("=")[::2] for line in lines if line)

    def jobs(self) -> dict[str, dict[str, str]]:
        """The controller's jobs by id."""
        return {path.name: _columns(path) for path in sorted((self.state / "jobs").iterdir())}

    def change(self, job_id: str, **columns: str) -> None:
        """Make a job of this id, or change what squeue says of it."""
        defaults = dict.fromkeys(_COLUMNS, "") | {"submittime": "1795274371", "starttime": "N/A", "endtime": "N/A"}
        path = self.state / "jobs" / job_id
        content = (_columns(path) if path.exists() else defaults) | columns
        path.write_text(SEPARATOR.join(content[name] for name in _COLUMNS) + "\n")

    def show_nodes(self, lines: str) -> None:
        """What sinfo prints from now on; "~" stands for the separator."""
        (self.state / "nodes").write_text(lines.replace("~", SEPARATOR))

    def queue_of_others(self, lines: str) -> None:
        """The jobs that are ahead of ours, as squeue's columns (`orchestrator.schedulers.squeue.FIELDS`)."""
        (self.state / "others").write_text(lines.replace("~", SEPARATOR))

    def forget(self, job_id: str) -> None:
        """As after MinJobAge."""
        (self.state / "jobs" / job_id).unlink()


def _columns(path: Path) -> dict[str, str]:
    """What is known of one job."""
    return dict(zip(_COLUMNS, path.read_text().rstrip("\n").split(SEPARATOR), strict=True))

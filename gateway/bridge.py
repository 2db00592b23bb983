"""`sluice bridge SOCKET`: standard input and output of this process, joined with a UNIX socket.

For login nodes whose sshd forbids forwarding: the gateway runs this there as an ordinary command. It also sends this
file's text to `python3 -c`, where nothing of ours is installed, so: the standard library alone, and Python 3.6 on.

Where the orchestrator is in a Slurm job of its own, its socket is on that job's node. Then this becomes a step of that
job: srun carries the bytes to a bridge there.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

MARKER = b"sluicegate-bridge"  # a line of its own; what a login shell has printed before it is not for the gateway
_PIECE = 256 * 1024
_SQUEUE_SECONDS = 8


def main(path: str, step: bool = False) -> int:
    """Returns when either side has ended: the exit status. `step`: only as a step of the orchestrator's job; who can
    reach the socket here has a better way."""
    if step:
        return _into_job(path, "there is no job to be a step of")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as exc:
        connection.close()
        return _into_job(path, exc.strerror or str(exc))
    threading.Thread(target=_bring, args=(connection,), daemon=True).start()
    try:
        _write(b"\n" + MARKER + b"\n")
        while True:
            data = connection.recv(_PIECE)
            if not data:
                return 0
            _write(data)
    except (BrokenPipeError, ConnectionResetError):  # one side has left, which is how a bridge ends
        return 0


def job_of(folder: Path) -> "tuple[str, str]":
    """The Slurm job that the orchestrator of a state folder is in, and its socket there: "" for none, and for one
    that it does not have yet. The holder is the orchestrator's own word, the other file is from the submission."""
    holder = _json(folder / "orchestrator.holder")
    if holder is not None:
        return str(holder.get("job", "")), str(holder.get("socket", ""))
    try:
        return (folder / "orchestrator.job").read_text().strip(), ""
    except OSError:
        return "", ""


def _json(path: Path) -> "dict[str, object] | None":
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def refusal(job: str, told: str, there: str) -> str:
    """Why no step can be started in the job, "" when one can. `told`: squeue's line `STATE|REASON`, "" for none."""
    state, _, reason = told.partition("|")
    if not state:
        return "has ended. Start it by `sluice connect`"
    if state != "RUNNING":
        return "waits: {} ({})".format(state, reason or "no reason is told")
    return "" if there else "has begun, and the orchestrator is about to listen"


def _into_job(path: str, otherwise: str) -> int:
    """Become a bridge on the node of the orchestrator's job. Returns an exit status only when that cannot be;
    `otherwise`: what is said where there is no job."""
    folder = Path(path).parent
    job, there = job_of(folder)
    if job:
        return _into(folder, job, there)
    sys.stderr.write("sluice bridge: {}: {}\n".format(path, otherwise))  # noqa: UP032 (old Pythons)
    return 1


def _into(folder: Path, job: str, there: str) -> int:
    own = folder / "bin" / "slurm"  # it knows where Slurm's commands are, and whose job this is not
    slurm = [str(own)] if own.exists() else []
    try:
        why = refusal(job, _asked(slurm, job), there)
    except (OSError, subprocess.SubprocessError) as exc:
        why = "is not known: squeue: {}".format(exc)  # noqa: UP032
    if why:
        words = "the orchestrator's Slurm job {} {}".format(job, why)  # noqa: UP032
        sys.stderr.write("sluice bridge: " + words + "\n")
        _write(b"\n" + MARKER + b": " + words.encode() + b"\n")
        return 1
    # By its variable, not as --overlap: Slurm before 20.11 knows no such option, and lets steps share anyway.
    step = ["env", "SLURM_OVERLAP=1", "srun", "--jobid=" + job, "--nodes=1", "--ntasks=1", "--mem=0", "--mpi=none"]
    step += ["--quiet", "--unbuffered", str(folder / "bin" / "sluice"), "bridge", there]
    os.execvp((slurm + step)[0], slurm + step)
    return 1  # not reached


def _asked(slurm: "list[str]", job: str) -> str:
    """Raises OSError, SubprocessError."""
    done = subprocess.run(  # noqa: UP022 (old Pythons)
        [*slurm, "squeue", "--noheader", "--jobs=" + job, "--format=%T|%r"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=_SQUEUE_SECONDS,
    )  # fmt: skip
    words = done.stderr.decode(errors="replace").strip()
    if done.returncode and "Invalid job id" not in words:
        raise OSError(words or "it ended with status {}".format(done.returncode))  # noqa: UP032
    return done.stdout.decode(errors="replace").strip().partition("\n")[0]


def _bring(connection: socket.socket) -> None:
    """From standard input to the socket. Its end wakes the other direction, too."""
    try:
        while True:
            data = os.read(0, _PIECE)
            if not data:
                break
            connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the orchestrator has left, which the other direction sees, too
        pass


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--step" in sys.argv[2:]))

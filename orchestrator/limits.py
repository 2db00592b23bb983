"""What this process takes of the system: open files, memory, and the time to look after it."""

import ctypes
import gc
import resource

# Enough for thousands of streams, and no more than compute nodes allow: sbatch hands our limits on to jobs, and Slurm
# complains in a job's output about those that a node does not have.
_MOST_OPEN = 16384


def raise_open_files() -> None:
    """Take what the system lets us have, up to a bound. A login gives 1024, and each stream needs a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections(wanted: int) -> int:
    """How many clients may be connected at once: at most for half of the files that may be open. The others are for
    what is asked on their behalf: with none left not even a refusal could be sent."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft // 2))


def settle() -> None:
    """Called when all is imported and opened, for what stays as long as the process does.

    The garbage collector need not look at it again: its full pass takes 40 ms otherwise, and a token waits so long. And
    glibc gives back what importing has left, 10 MB in the gateway; other C libraries do so themselves.
    """
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""`python -m bench.counting MODULE`: run a module as it is, and tell on SIGUSR1 what it holds.

It says so in a file named like its process in the folder BENCH_COUNTED. The module begins with as many open files as a
login usually allows.
"""

import asyncio
import gc
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path


def tell(*_: object) -> None:
    """Runs in the event loop's thread: Python calls signal handlers between two of its instructions."""
    gc.collect()
    told = {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}
    path = Path(os.environ["BENCH_COUNTED"], f"{os.getpid()}.json")
    new = path.with_suffix(".new")
    new.write_text(json.dumps(told))
    new.rename(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tell)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

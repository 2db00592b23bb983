"""`python -m tests.fuzz [TARGET…]`: each target for SECONDS (60), as many at once as there are processors."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.target import CRASHERS, names

ROOT = Path(__file__).parents[2]


def fuzz(module: str, seconds: int, crashers: Path) -> str:
    """What was found, "" for nothing. The input is kept in `crashers`."""
    crashers.mkdir(parents=True, exist_ok=True)
    before = set(crashers.iterdir())
    command = [sys.executable, "-m", "tests.fuzz.child", module, str(seconds), str(crashers)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * seconds + 60
        )
    except subprocess.TimeoutExpired:
        return f"{module} did not end {seconds + 60} s after its time; no input is known"
    print(f"{module}: {_counted(done.stdout)}", flush=True)
    if done.returncode == 0:
        return ""
    found = "".join(f"\n  {path}" for path in sorted(set(crashers.iterdir()) - before)) or "\n  none"
    return f"{done.stdout.decode(errors='replace')[-6000:]}\n{module} does not hold; mend it and keep its input:{found}"


def _counted(output: bytes) -> str:
    """How many inputs were tried."""
    lines = [line.split()[-1] for line in output.splitlines() if b"number_of_executed_units" in line]
    return f"{lines[0].decode()} inputs" if lines else "ended early"


def main(chosen: Sequence[str]) -> int:
    if unknown := set(chosen) - set(names()):
        sys.exit(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    seconds = int(os.environ.get("SECONDS") or 60)

    def one(name: str) -> str:
        return fuzz(f"tests.fuzz.targets.{name}", seconds, CRASHERS / name)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [text for text in pool.map(one, chosen or names()) if text]
    print("\n\n".join(found), end="")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

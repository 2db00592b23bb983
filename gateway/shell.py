"""A command of this machine, run to its end."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from gateway.remote import Said


async def run(argv: Sequence[str], stdin: bytes | Path, seconds: float) -> Said:
    """In the home folder and a session of its own. Raises OSError, and TimeoutError after its end by force."""
    given = stdin.open("rb") if isinstance(stdin, Path) else None
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=given or pipe, stdout=pipe, stderr=pipe, cwd=Path.home(), start_new_session=True
        )
    finally:
        if given is not None:
            given.close()  # the process has its own
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(None if isinstance(stdin, Path) else stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Said(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))

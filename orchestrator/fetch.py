"""The program that downloads: `python -m orchestrator.fetch`, with a `Task` as a line of JSON on stdin.

It ends with 0, or says in a line of JSON on stdout why not. It ends at once when its stdin does: then the orchestrator
is gone, and another one may go on with the same files. What has come of a file stays, and is gone on with.
"""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import httpx2
from pydantic import BaseModel

from orchestrator import __version__
from orchestrator.errors import EngineError, OrchestratorError, not_written
from orchestrator.hub import translated
from orchestrator.hub_client import unreachable
from orchestrator.model_cache import CachedFile, ModelCache

AT_ONCE = 4  # files; the hub's own client takes 8
PIECE = 1 << 20  # bytes that are written in one go, and lost at worst
LOG = "log"
MOST_WORDS = 2000  # characters of what a failure says


class ModelTask(BaseModel):
    """Files of one commit of a model, into a cache. `transfer` names what is on its way."""

    kind: Literal["model"] = "model"
    root: Path
    transfer: str
    endpoint: str
    token: str | None
    model: str
    revision: str
    commit: str
    files: list[CachedFile]


class ImageTask(BaseModel):
    """A container image, by apptainer, into one file. `scratch` is a folder for what it needs on the way."""

    kind: Literal["image"] = "image"
    image: str
    target: Path
    scratch: Path
    modules: list[str]
    module_init: str = ""


class Failed(BaseModel):
    """What is said of a failure."""

    status: int
    detail: str


class Task(BaseModel):
    task: ModelTask | ImageTask


def main() -> int:
    os.umask(0o077)
    wanted = Task.model_validate_json(sys.stdin.readline()).task
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        fetch_model(wanted) if isinstance(wanted, ModelTask) else fetch_image(wanted)
    except OrchestratorError as exc:
        return _say(Failed(status=exc.status, detail=str(exc)[:MOST_WORDS]))
    except Exception as exc:  # noqa: BLE001 - the top: it is told to whoever started us
        return _say(Failed(status=502, detail=f"{type(exc).__name__}: {exc}"[:MOST_WORDS]))
    return 0


def _say(failed: Failed) -> int:
    sys.stdout.write(failed.model_dump_json() + "\n")
    sys.stdout.flush()
    return 1


def _end_with_stdin() -> None:
    """Nobody waits for us any more. What we have started ends too: it is of our process group."""
    while sys.stdin.read(1024):
        pass
    os.killpg(0, signal.SIGKILL)


def fetch_model(task: ModelTask) -> None:
    """All files, the smallest first, and then the snapshot. Raises what `translated` and the cache raise."""
    cache = ModelCache(task.root)
    missing = {file.blob: file for file in cache.missing(task.model, task.files)}  # two files may have one content
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(_fetch_file, task, cache, one) for one in sorted(missing.values(), key=lambda f: f.size)]
        try:
            for each in waiting:
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    cache.finish(task.model, task.revision, task.commit, task.files)


def _fetch_file(task: ModelTask, cache: ModelCache, file: CachedFile) -> None:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined] # as its documents say

    disable_progress_bars()
    constants.DOWNLOAD_CHUNK_SIZE = PIECE
    part = cache.part(task.model, file.blob, task.transfer)
    url = hf_hub_url(task.model, file.path, revision=task.commit, endpoint=task.endpoint)
    # As they are, so that they can be gone on with. Another host to which the hub sends us does not get the token.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"sluicegate/{__version__}"}
    headers |= {"Authorization": f"Bearer {task.token}"} if task.token else {}
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        with translated(task.endpoint, task.model), part.open("r+b") as content:
            there = content.seek(0, os.SEEK_END)
            if there > file.size:
                there = content.truncate(0)
                content.seek(0)
            http_get(url, content, resume_size=there, headers=headers, expected_size=file.size)
    except httpx2.HTTPError as exc:
        raise unreachable(task.endpoint, str(exc) or type(exc).__name__) from exc
    except OSError as exc:
        if exc.errno is None:  # of the library: the file that came is shorter or longer than it should be
            raise unreachable(task.endpoint, str(exc)) from exc
        raise not_written(part, exc) from exc
    cache.place(task.model, file, task.transfer)


# As a login shell, which knows `module` where the site has it. Modules come behind the first three words.
_APPTAINER = """
part=$1 image=$2 init=$3
shift 3
if [ -n "$init" ]; then . "$init" || exit 1; fi
for module in "$@"; do module load "$module" || exit 1; done
exec apptainer pull --force "$part" "$image"
"""


def fetch_image(task: ImageTask) -> None:
    """Raises EngineError with apptainer's own last words."""
    part, folders = task.scratch / "image.sif", [f"APPTAINER_{name}={task.scratch}" for name in ("CACHEDIR", "TMPDIR")]
    words = ["env", *folders, "bash", "-lc", _APPTAINER, "pull", str(part), task.image, task.module_init, *task.modules]
    try:
        task.scratch.mkdir(parents=True, exist_ok=True)
        with (task.scratch / LOG).open("wb") as log:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        if done.returncode == 0:
            part.rename(task.target)
            return
    except OSError as exc:
        raise not_written(task.target, exc) from exc
    raise EngineError(f"apptainer ended with {done.returncode}: {last_words(task.scratch)}")


def last_words(scratch: Path) -> str:
    """The end of what apptainer has said, without its colours."""
    try:
        lines = (scratch / LOG).read_text(encoding="utf-8", errors="replace")[-MOST_WORDS:].splitlines()
    except OSError:
        return ""
    return " ".join("".join(c for c in line if c.isprintable()).strip() for line in lines[-3:])


if __name__ == "__main__":
    sys.exit(main())

"""`sluice models push`: a model from this machine into the cache of the cluster's jobs, file by file.

What is of the hub is downloaded here first, into this machine's own cache of huggingface_hub.
"""

import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.console.desk import FAILED, NOT_NOW, USAGE, Desk
from gateway.console.progress import amount, length
from gateway.screen import Screen, Waiting
from gateway.shapes import JSON, Push
from orchestrator.errors import NotReady, OrchestratorError
from orchestrator.fetch import Failed, ModelTask, Task
from orchestrator.hub import check_model_id, listing_of, translated
from orchestrator.model_cache import MAIN, CachedFile, ModelCache, check_names, chosen, digest_of, transfer_of

PIECE = 8 << 20  # bytes that are sent in one request


class DownloadFailed(OrchestratorError):
    """What the program that downloads has said."""


class Outgoing(NamedTuple):
    """A model that is to be sent: its files here, and as the cache there knows them."""

    model: str
    revision: str
    commit: str
    files: Sequence[tuple[Path, CachedFile]]


def push(desk: Desk, what: str, name: str | None) -> int:
    """On stdout the model's name when it is there."""
    folder = Path(what).expanduser()
    if name is not None and not folder.is_dir():
        desk.say(f"sluice models push: --name is for a folder, and {what} is none here")
        return USAGE
    try:
        outgoing = of_folder(folder, name or folder.resolve().name) if folder.is_dir() else of_hub(desk, what)
    except (OrchestratorError, OSError) as exc:
        desk.say(f"sluice models push: {exc}")
        return NOT_NOW if isinstance(exc, NotReady) else FAILED
    answer = sent(desk, outgoing)
    desk.give_text(answer, outgoing.model)
    return 0


def of_folder(folder: Path, model: str) -> Outgoing:
    """A model in a folder. Its commit is made of its files, so that the same ones are the same snapshot."""
    check_model_id(model)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    sizes = [(path, CachedFile(path.relative_to(folder).as_posix(), path.stat().st_size, "0" * 64)) for path in paths]
    picked = set(chosen([file for _, file in sizes]))
    files = [(path, file._replace(blob=digest_of(path, file))) for path, file in sizes if file in picked]
    listing = "".join(f"{file.path}\0{file.blob}\n" for _, file in files)
    return Outgoing(model, MAIN, hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest(), files)


def of_hub(desk: Desk, what: str) -> Outgoing:
    """A model of the hub, downloaded here. Raises what the hub's errors become."""
    from huggingface_hub import HfApi, constants, get_token

    model, _, revision = what.partition("@")
    revision = revision or MAIN
    check_model_id(model)
    api, cache = HfApi(), ModelCache(Path(constants.HF_HUB_CACHE))  # with this machine's own token and mirror
    with translated(api.endpoint, model):
        listing = listing_of(api, model, revision)
    check_names(revision, listing.commit, listing.files)
    task = ModelTask(
        root=cache.root, transfer=transfer_of("laptop", cache.root), endpoint=api.endpoint, token=get_token(),
        model=model, revision=revision, commit=listing.commit, files=chosen(listing.files),
    )  # fmt: skip
    _download(desk, task, cache)
    return Outgoing(model, revision, listing.commit, [(cache.blob(model, file.blob), file) for file in task.files])


def _download(desk: Desk, task: ModelTask, cache: ModelCache) -> None:
    """By the program that the orchestrator has for it: it ends when its stdin does, so also at Ctrl-C.

    Raises DownloadFailed in its words.
    """
    total, screen = sum(file.size for file in task.files), Screen(desk.err)
    cache.check_space(task.model, total - cache.arrived(task.model, task.files, task.transfer))
    words = [sys.executable, "-m", "orchestrator.fetch"]
    pipe = subprocess.PIPE
    with (
        screen.waiting(f"{task.model}: downloading {amount(total)} to this machine") as line,
        subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as child,
    ):
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(Task(task=task).model_dump_json() + "\n")
        child.stdin.flush()
        while child.poll() is None:
            time.sleep(0.5)
            here = cache.arrived(task.model, task.files, task.transfer)
            line.show(f"{task.model}: downloaded {amount(here)} of {amount(total)}", about="downloading")
        if child.returncode != 0:
            raise DownloadFailed(_last(child.stdout.read()) or f"the download ended with status {child.returncode}")


def _last(said: str) -> str:
    try:
        return Failed.model_validate_json(said.strip().rpartition("\n")[2]).detail
    except ValueError:
        return ""


def sent(desk: Desk, outgoing: Outgoing) -> Push:
    """Send what is missing there. Raises ApiError and the like; sent again, it goes on where it broke off."""
    files = [dict(file._asdict()) for _, file in outgoing.files]
    here = {file.blob: path for path, file in outgoing.files}
    client, screen = desk.client, Screen(desk.err)

    def begun() -> Push:
        return client.push_model(outgoing.model, outgoing.commit, files, revision=outgoing.revision)

    answer = begun()
    missing = answer["missing"]
    total = sum(file["size"] - file["have"] for file in missing)
    with screen.waiting(f"{outgoing.model}: sending {amount(total)} in {len(missing)} files") as line:
        done = 0
        for file in missing:
            done = _send(desk, outgoing.model, here[file["blob"]], file, line, done, total)
        answer = begun() if missing else answer
        took = line.seconds
    screen.say(f"{outgoing.model}: {amount(total)} sent in {length(took)}, now at {answer['snapshot']}")
    return answer


def _send(desk: Desk, model: str, path: Path, file: JSON, line: Waiting, done: int, total: int) -> int:
    """One file from where it is due; how much has been sent in all."""
    with path.open("rb") as content:
        offset = content.seek(file["have"])
        while True:
            piece = content.read(PIECE)
            have = desk.client.push_content(model, file, offset, piece)["have"]
            offset, done = offset + len(piece), done + len(piece)
            pace = amount(done / max(line.seconds, 0.1))
            line.show(f"{model}: {amount(done)} of {amount(total)}, {pace}/s", about="sending")
            if have >= file["size"]:
                return done


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)

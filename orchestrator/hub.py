"""The Hugging Face Hub, asked through huggingface_hub.HfApi: which models there are, and what one of them is.

The library is imported when it is first needed, in a thread: it costs what docs/models.md says. Its calls block, and
orchestrator.hub_client is what keeps them within bounds.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx2

from orchestrator import __version__
from orchestrator.cache import Cache
from orchestrator.catalogue import Catalogue
from orchestrator.checkpoint import CONFIG, MODELOPT, Checkpoint, loaded
from orchestrator.errors import BadRequest, Invalid, NotFound, NotReady, OrchestratorError
from orchestrator.hub_client import RETRY_SECONDS, BoundedClient, unreachable
from orchestrator.model_cache import CachedFile
from orchestrator.settings import Settings, read_token

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.hf_api import ExpandModelProperty_T, RepoSibling

SortBy = Literal["downloads", "likes", "created_at", "last_modified", "trending_score"]

SECONDS = 15.0  # for one answer of ours, however many requests it takes
MOST_MODELS = 2000  # in the cache: about 10 MB
MOST_CHECKPOINTS = 100  # the same: a config.json has some kilobytes
SCANNED = 500  # models looked at for an architecture, which the hub cannot be asked for

_MODEL_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_EXPANDED: tuple["ExpandModelProperty_T", ...] = (
    "config",
    "createdAt",
    "downloads",
    "likes",
    "tags",
    "pipeline_tag",
    "library_name",
    "safetensors",
)
_WRONG_TOKEN = "Invalid credentials in Authorization header"  # huggingface_hub tells the two kinds of 401 apart by it
# Bytes of one number, by the names in a safetensors header.
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "F4": 0.5}


@dataclass(frozen=True)
class HubModel:
    """A model as the hub describes it. `size_bytes`: its weights; None in the results of a search."""

    id: str
    architectures: tuple[str, ...]  # of its config.json; empty for GGUF files, adapters and the like
    pipeline_tag: str | None
    library_name: str | None
    downloads: int  # in the last 30 days
    likes: int
    tags: tuple[str, ...]
    created_at: datetime | None
    parameters: int | None
    size_bytes: int | None


@dataclass(frozen=True)
class Listing:
    """One revision of a model: its commit and its files."""

    commit: str
    files: tuple[CachedFile, ...]


Models = tuple[HubModel, ...]
Answer = TypeVar("Answer")


class Hub:
    """`endpoint` is a URL without a slash at its end; `clock` gives aware datetimes; `seconds` limits each answer.

    huggingface_hub has one HTTP client for a process, so `seconds` is that of the last Hub made.
    """

    def __init__(
        self, *, endpoint: str, offline: bool, token_file: Path | None, clock: Callable[[], datetime],
        seconds: float = SECONDS,
    ) -> None:  # fmt: skip
        self.endpoint, self.offline, self.seconds = endpoint, offline, seconds
        self._token_file = token_file
        keep_error = timedelta(seconds=RETRY_SECONDS)
        self._cache: Cache[Models] = Cache(
            clock, keep=timedelta(hours=1), keep_error=keep_error, room=MOST_MODELS, weight=len
        )
        self._checkpoints: Cache[Checkpoint] = Cache(
            clock, keep=timedelta(hours=1), keep_error=keep_error, room=MOST_CHECKPOINTS
        )
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="hub")
        self._preparing = asyncio.Lock()
        self._api: type[HfApi] | None = None

    async def search(self, query: str, *, architecture: str | None, limit: int, sort_by: SortBy) -> Models:
        """Up to `limit` models whose name holds `query`, the highest `sort_by` first; with `architecture` those of the
        first SCANNED that have it. Raises NotReady, and Invalid for what the hub refuses.
        """
        scanned = limit if architecture is None else SCANNED

        def listed(api: "HfApi") -> Models:
            found = (
                _model(info)
                for info in api.list_models(search=query or None, sort=sort_by, limit=scanned, expand=list(_EXPANDED))
            )
            return tuple(model for model in found if architecture is None or architecture in model.architectures)

        return (await self._cached(("search", query, architecture, scanned, sort_by), listed))[:limit]

    async def popular(self) -> Models:
        """The 100 text-generation models that were downloaded most in the last 30 days. Raises NotReady."""

        def listed(api: "HfApi") -> Models:
            infos = api.list_models(pipeline_tag="text-generation", sort="downloads", limit=100, expand=list(_EXPANDED))
            return tuple(_model(info) for info in infos)

        return await self._cached(("popular",), listed)

    async def model(self, model_id: str) -> HubModel:
        """One model. Raises BadRequest before any call where `model_id` cannot be one, NotFound, NotReady."""
        check_model_id(model_id)

        def shown(api: "HfApi") -> Models:
            return (_model(api.model_info(model_id, files_metadata=True, timeout=self.seconds)),)

        (model,) = await self._cached(("model", model_id), shown, model_id)
        return model

    async def checkpoint(self, model_id: str) -> Checkpoint:
        """One model as its files describe it. Raises BadRequest, NotFound, also for a gated one, and NotReady."""
        check_model_id(model_id)

        def read(api: "HfApi") -> Checkpoint:
            info = api.model_info(model_id, files_metadata=True, timeout=self.seconds)
            names = {str(file.rfilename) for file in info.siblings or ()}
            config, modelopt = (_document(api, model_id, name) if name in names else {} for name in (CONFIG, MODELOPT))
            weights = bool(loaded(names, ".safetensors") or loaded(names, ".bin"))
            return Checkpoint(
                where=f"{self.endpoint}/{model_id}",
                config=config,
                modelopt=modelopt,
                weights=_size(info) if weights or len(loaded(names, ".gguf")) == 1 else None,
                dtypes=_dtypes(info),
                gguf=not weights and bool(loaded(names, ".gguf")),
            )

        return await self._checkpoints.get(model_id, partial(self._ask, read, model_id))

    async def listing(self, model_id: str, revision: str) -> Listing:
        """The files of one revision, as they are now. Raises BadRequest, NotFound, also for a gated one, NotReady."""
        check_model_id(model_id)

        return await self._ask(
            partial(listing_of, model_id=model_id, revision=revision, seconds=self.seconds), model_id
        )

    @property
    def token(self) -> str | None:
        """That of the jobs. Raises SettingsError where the file cannot be read."""
        return None if self._token_file is None else read_token(self._token_file)

    async def _cached(self, key: tuple[Any, ...], work: Callable[["HfApi"], Models], model_id: str = "") -> Models:
        return await self._cache.get(key, partial(self._ask, work, model_id))

    async def _ask(self, work: Callable[["HfApi"], Answer], model_id: str) -> Answer:
        """`work` in a thread, for at most `seconds`; the thread itself ends soon after them."""
        if self.offline:
            raise NotReady(
                "The Hugging Face Hub is not asked, because HF_HUB_OFFLINE is set for the orchestrator. Unset it and "
                "start the orchestrator again; GET /api/v1/vllm/available-models answers without the hub.",
                retry_after=RETRY_SECONDS,
            )
        api = await self._connected()

        def worked() -> Answer:
            with translated(self.endpoint, model_id):
                return work(api)

        try:
            async with asyncio.timeout(self.seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, worked)
        except TimeoutError as exc:
            raise unreachable(self.endpoint, f"no answer within {self.seconds:g} s") from exc

    async def _connected(self) -> "HfApi":
        """A new client: its token is that which stands in the file now."""
        async with self._preparing:
            if self._api is None:
                self._api = await asyncio.to_thread(_prepared, self.seconds)
        token = False if self._token_file is None else await asyncio.to_thread(read_token, self._token_file)
        return self._api(self.endpoint, token, library_name="sluicegate", library_version=__version__)

    def close(self) -> None:
        """Give up what is being asked for."""
        self._cache.close()
        self._checkpoints.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def open_hub(settings: Settings, clock: Callable[[], datetime]) -> AsyncIterator[Hub]:
    """The hub of these settings. Nothing is imported or asked yet."""
    token_file = settings.site.token_file
    hub = Hub(
        endpoint=settings.hub_endpoint,
        offline=settings.hub_offline,
        token_file=None if token_file is None else Path(token_file).expanduser(),
        clock=clock,
    )
    try:
        yield hub
    finally:
        hub.close()


def listing_of(api: "HfApi", model_id: str, revision: str, seconds: float = SECONDS) -> Listing:
    """The files of a revision, asked now. Raises huggingface_hub's errors, also for a gated model: see `translated`."""
    info = api.model_info(model_id, revision=revision, files_metadata=True, timeout=seconds)
    commit, files = str(info.sha), tuple(_file(file) for file in info.siblings or ())
    if CONFIG in {file.path for file in files}:  # of a gated model everybody may see which files there are
        _document(api, model_id, CONFIG, commit)
    return Listing(commit, files)


async def model_options(hub: Hub, catalogue: Catalogue) -> list[tuple[str, int | None]]:
    """Models to choose from, as (id, number of parameters): the hub's popular ones that vLLM runs, else ours."""
    try:
        popular = await hub.popular()
    except NotReady:
        return [(example.id, example.parameters) for example in catalogue.examples["text-generation"]]
    return [(model.id, model.parameters) for model in popular if catalogue.runs(model.architectures)]


def check_model_id(model_id: str) -> None:
    """Raise BadRequest unless it is `name` or `owner/name`: it becomes a part of a URL."""
    if not _MODEL_ID.fullmatch(model_id) or ".." in model_id or "." in model_id.split("/"):
        raise BadRequest(
            f"{model_id[:200]!r} is not the id of a model. It is `name` or `owner/name` of letters, digits and . _ - "
            "(at most 96 each), e.g. Qwen/Qwen2.5-7B-Instruct; GET /api/v1/vllm/search-models finds it."
        )


def _prepared(seconds: float) -> type["HfApi"]:
    """Import the library and give it our HTTP client. Once: doing it again would close the connections in use."""
    from huggingface_hub import HfApi, constants, set_client_factory

    constants.HF_HUB_DISABLE_TELEMETRY = True  # otherwise it asks the hub for a list of agents and keeps it in ~/.cache
    set_client_factory(partial(BoundedClient, seconds))
    return HfApi


@contextmanager
def translated(endpoint: str, model_id: str) -> Iterator[None]:
    """The errors of huggingface_hub become ours. It reads the hub's JSON without checking it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as exc:
        raise NotFound(f"Model {model_id!r} has no such revision at {endpoint}; leave it out for `main`") from exc
    except GatedRepoError as exc:
        raise NotFound(_gated(endpoint, model_id)) from exc
    except RepositoryNotFoundError as exc:
        raise NotFound(_unknown(endpoint, model_id)) from exc
    except HfHubHTTPError as exc:
        raise _refused(exc.response.status_code, str(exc.server_message or exc), endpoint, model_id) from exc
    except HFValidationError as exc:
        raise BadRequest(f"{model_id[:200]!r} is not the id of a model: {exc}") from exc
    except httpx2.InvalidURL as exc:
        raise unreachable(endpoint, str(exc)) from exc
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise unreachable(endpoint, "it answers with something that is not the hub's API (a login page?)") from exc


def _document(api: "HfApi", model_id: str, name: str, revision: str | None = None) -> dict[str, Any]:
    """A small file of a model that holds a JSON object; {} where it is not there. In memory only, unlike a download."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.errors import EntryNotFoundError

    headers = {"Authorization": f"Bearer {api.token}"} if api.token else {}
    url = hf_hub_url(model_id, name, revision=revision, endpoint=api.endpoint)
    answer = get_session().get(url, headers=headers)
    try:
        hf_raise_for_status(answer)
    except EntryNotFoundError:
        return {}
    found = answer.json()
    if not isinstance(found, dict):
        raise TypeError(f"{name} holds no object")
    return found


def _refused(status: int, words: str, endpoint: str, model_id: str) -> OrchestratorError:
    if status == 404:
        return NotFound(_unknown(endpoint, model_id))
    if status == 403:
        return NotFound(_gated(endpoint, model_id))
    if status == 401 and model_id and _WRONG_TOKEN not in words:  # what the hub says of any model that we may not see
        return NotFound(_unknown(endpoint, model_id))
    if status == 401:
        return NotReady(
            f"The Hugging Face Hub at {endpoint} refuses our token ({words[:300]}). Put a valid one into the file of "
            "[site] token_file.",
            retry_after=RETRY_SECONDS,
        )
    return Invalid(f"The Hugging Face Hub at {endpoint} refuses this with {status}: {words[:500]}")


def _gated(endpoint: str, model_id: str) -> str:
    return (
        f"Model {model_id!r} is gated: the hub shows it only to those who have accepted its terms. Accept them at "
        f"{endpoint}/{model_id} and name a file with your token as [site] token_file."
    )


def _unknown(endpoint: str, model_id: str) -> str:
    return (
        f"Model {model_id!r} not found at {endpoint}: it does not exist, or it is private and our token ([site] "
        "token_file) may not see it. GET /api/v1/vllm/search-models finds models."
    )


def _file(file: "RepoSibling") -> CachedFile:
    """Raises TypeError for a hub that does not say what is in its files, as some mirrors do not."""
    large = file.lfs
    size, blob = (file.size, file.blob_id) if large is None else (large.size, large.sha256)
    if size is None or blob is None:
        raise TypeError(f"it does not tell the hash of {file.rfilename}")
    return CachedFile(str(file.rfilename), int(size), str(blob))


def _model(info: "ModelInfo") -> HubModel:
    """What we use of an answer, whatever it holds. Raises AttributeError and the like for what is no model at all."""
    architectures = (info.config or {}).get("architectures") or []
    return HubModel(
        id=str(info.id),
        architectures=tuple(name for name in architectures if isinstance(name, str)),
        pipeline_tag=str(info.pipeline_tag) if info.pipeline_tag else None,
        library_name=str(info.library_name) if info.library_name else None,
        downloads=int(info.downloads or 0),
        likes=int(info.likes or 0),
        tags=tuple(str(tag) for tag in info.tags or ()),
        created_at=info.created_at,
        parameters=info.safetensors.total if info.safetensors else None,
        size_bytes=_size(info),
    )


def _dtypes(info: "ModelInfo") -> dict[str, int]:
    """Bytes of the tensors by dtype, from the numbers of parameters that the hub reads in the headers."""
    if not info.safetensors:
        return {}
    return {str(kind): int(count * _BYTES.get(kind, 1)) for kind, count in info.safetensors.parameters.items()}


def _size(info: "ModelInfo") -> int | None:
    """Bytes of the weights that vLLM would load: safetensors, else PyTorch's files; from the numbers of parameters
    where the files' sizes are not known. Files in folders and Mistral's second copy (consolidated*) do not count.
    """
    sizes = {file.rfilename: file.size for file in info.siblings or () if file.size is not None}
    for suffix in (".safetensors", ".bin"):
        found = {name: size for name, size in sizes.items() if name.endswith(suffix) and "/" not in name}
        once = {name: size for name, size in found.items() if not name.startswith("consolidated")}
        if found:
            return sum((once or found).values())
    if info.safetensors:
        return int(sum(count * _BYTES.get(kind, 1) for kind, count in info.safetensors.parameters.items()))
    return sum(size for name, size in sizes.items() if name.endswith((".gguf", ".pt", ".pth"))) or None

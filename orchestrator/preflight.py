"""A look at a service before a job is spent on it: does its model load, does it fit, would Slurm take it?

Nothing is started or recorded. `judge` is pure: what is known of a model and a plan becomes verdicts; around it the hub
or a folder, and the scheduler, are asked at the same time.
"""

import asyncio
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator import fit, quantization
from orchestrator.catalogue import Catalogue
from orchestrator.checkpoint import Checkpoint, read_checkpoint
from orchestrator.config import Plan, resolve
from orchestrator.errors import Invalid, NotFound, NotReady, OrchestratorError
from orchestrator.fit import DEFAULT_SHARE, Gpu, Memory, Placed
from orchestrator.hub import Hub
from orchestrator.model_cache import ENGINES, ModelCache, in_gb, is_hub_id
from orchestrator.models import new_submission_id
from orchestrator.quantization import Loader, Quantization
from orchestrator.recipes import Recipe, Value
from orchestrator.schedulers import Rehearsal
from orchestrator.services import Services, needs_no_hub
from orchestrator.settings import Engine, SettingsError, Site
from orchestrator.verdict import Level, Verdict

SECONDS = 15.0  # for reading a model's folder, which may lie on a file system that hangs

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
_OLLAMA_HUB = re.compile(r"(?:hf\.co|huggingface\.co)/([^:]+)(?::.*)?")
_SPLITTING = ("vllm", "sglang")  # engines that split each layer over the GPUs
_MOST = 1e9  # of anything that is counted
_SMALL_CACHE = ("fp8", "fp8_e4m3", "fp8_e5m2", "int8")


@dataclass(frozen=True)
class Report:
    """`ok`: nothing was found that will fail. `memory` and `quantization` are None for engines without a model."""

    ok: bool
    model: str | None
    engine: str
    verdicts: tuple[Verdict, ...]
    memory: Memory | None
    quantization: Quantization | None
    estimated_start: datetime | None
    script_ok: bool


@dataclass(frozen=True)
class Known:
    """What is shipped about engines and models."""

    catalogue: Catalogue
    loaders: Mapping[str, Loader]


@dataclass(frozen=True)
class Aim:
    """What is looked at: a recipe and the plan of a service. Its options are read where the recipe has them."""

    recipe: Recipe
    plan: Plan
    site: Site
    gpu: Gpu

    def set(self, alias: str) -> Value:
        """What a parameter was set to, by the short name that it has in every recipe."""
        found = (name for name, parameter in self.recipe.parameters.items() if parameter.alias == alias)
        return self.plan.parameters.get(next(found, ""))

    def option(self, *names: str) -> str | None:
        """The value behind a word such as --kv-cache-dtype among the further arguments."""
        parameters = self.recipe.parameters.items()
        lists = [self.plan.parameters.get(name) for name, parameter in parameters if parameter.type == "words"]
        words = [word for words in lists if isinstance(words, list) for word in words]
        for word, following in itertools.pairwise([*words, ""]):
            name, equals, value = word.partition("=")
            if name in names:
                return value if equals else following
        return None

    @property
    def source(self) -> str | None:
        """Where the model's files are: a path, or a name on the hub. None where there are none to look at."""
        if self.plan.engine == "llamacpp":
            weights = self.set("weights")
            return str(weights) if weights else None
        if self.plan.engine == "ollama":
            on_hub = _OLLAMA_HUB.fullmatch(self.plan.model or "")
            return on_hub[1] if on_hub else None
        return self.plan.model

    @property
    def on_disk(self) -> bool:
        return (self.source or "").startswith(("/", "~"))

    @property
    def gpus(self) -> int:
        """Of one engine: of a replica, or of all nodes of an engine that spans them."""
        chosen = self.plan.parameters.get("CUDA_VISIBLE_DEVICES")
        each = self.plan.gpus_per_replica or (len(str(chosen).split(",")) if chosen else self.plan.resources.gpu)
        return each * (self.plan.resources.nodes if self.spans_nodes else 1)

    @property
    def spans_nodes(self) -> bool:
        return any(parameter.alias == "pipeline_parallel_size" for parameter in self.recipe.parameters.values())

    def number(self, alias: str, *options: str) -> float | None:
        """A parameter or, where it is not set, an argument of the same meaning."""
        value = self.option(*options) or self.set(alias)
        try:
            number = 0.0 if value is None or isinstance(value, list) else float(value)
        except ValueError:
            return None  # the engine will say what is wrong with it
        return number if 0 < number <= _MOST else None

    @property
    def placed(self) -> Placed:
        nodes = self.plan.resources.nodes if self.spans_nodes else 1
        tensor = self.number("tensor_parallel_size", "--tensor-parallel-size", "-tp", "--tp-size", "--tp")
        pipeline = self.number("pipeline_parallel_size", "--pipeline-parallel-size", "-pp", "--pp-size")
        split = max(1, int(tensor or self.gpus // nodes))
        share = (
            self.number("gpu_memory_utilization", "--gpu-memory-utilization", "--mem-fraction-static") or DEFAULT_SHARE
        )
        tokens = self.number("max_model_len", "--max-model-len", "--context-length")
        length = None if tokens is None else int(tokens)
        bytes_each = 1 if self.option("--kv-cache-dtype") in _SMALL_CACHE else 2
        if self.gpus == 0:
            gpu = Gpu(_job_memory(self.plan), None, f"{self.plan.resources.memory} a node")
            return Placed(0, 1, gpu, 1, length, bytes_each)
        used = split * max(1, int(pipeline or nodes)) if self.plan.engine in _SPLITTING else self.gpus
        return Placed(used, split, self.gpu, min(share, 1), length, bytes_each)

    @property
    def version(self) -> str | None:
        """The engine's, where its image says it."""
        engine = self.site.engines.get(self.plan.engine, Engine())
        if (engine.runtime or self.site.runtime) == "none":
            return None
        found = re.search(r"[:_-]v?([0-9]+\.[0-9]+(?:\.[0-9]+)?)", engine.image or self.recipe.image or "")
        return found[1] if found else None


async def preflight(
    services: Services, hub: Hub, known: Known, recipe_name: str, config: Mapping[str, Any], gpu_memory_gb: float | None
) -> Report:
    """Look at the service that POST /services would start. Raises NotFound and Invalid as that does."""
    site = services.settings.site
    recipe = services.recipes.find(recipe_name)
    plan = resolve(recipe, config, site)
    said_by = "[site] gpu_memory_gb" if gpu_memory_gb is None else "the request"
    aim = Aim(recipe, plan, site, fit.gpu_of(site.gpu_type, gpu_memory_gb or site.gpu_memory_gb, said_by))
    async with asyncio.TaskGroup() as group:
        rehearsing = group.create_task(_rehearse(services, aim))
        finding = group.create_task(_find(services, hub, aim))
    (checkpoint, found), (rehearsal, said) = finding.result(), rehearsing.result()
    verdicts, memory, quantised = judge(aim, checkpoint, known)
    fetched = [] if checkpoint is None else await _fetched(services, aim, checkpoint.weights)
    every = (*found, *verdicts, *fetched, *said)
    return Report(
        ok=all(verdict.level is not Level.ERROR for verdict in every),
        model=plan.model,
        engine=plan.engine,
        verdicts=every,
        memory=memory,
        quantization=quantised,
        estimated_start=None if rehearsal is None else rehearsal.starts_at,
        script_ok=rehearsal is not None,
    )


async def _rehearse(services: Services, aim: Aim) -> tuple[Rehearsal | None, list[Verdict]]:
    """The scheduler's word; None where there is no script to ask about."""
    try:
        script = await services.script_of(aim.recipe, aim.plan, new_submission_id())
    except (Invalid, SettingsError) as exc:
        text = f"the job's script cannot be rendered: {exc}"
        return None, [Verdict("script", Level.ERROR, text, "see to that first: the service would be refused for it")]
    rendered = Verdict("script", Level.OK, "the job's script can be rendered")
    try:
        rehearsal = await services.rehearse(script)
    except OrchestratorError as exc:  # a full disk here says nothing of the job
        return Rehearsal(), [rendered, Verdict("scheduler", Level.UNKNOWN, f"the scheduler was not asked: {exc}")]
    return rehearsal, [rendered, rehearsed(rehearsal)]


def rehearsed(rehearsal: Rehearsal) -> Verdict:
    if rehearsal.refusal:
        text = f"the scheduler would refuse the job: {rehearsal.refusal}"
        return Verdict("scheduler", Level.ERROR, text, "ask for other resources, or look at [site] of the settings")
    if rehearsal.starts_at is None:
        text = "the scheduler did not say when the job would start"
        return Verdict("scheduler", Level.UNKNOWN, text, "ask again, or start the service: it waits in the queue")
    return Verdict("scheduler", Level.OK, f"the job would start at {rehearsal.starts_at.isoformat()}")


async def _find(services: Services, hub: Hub, aim: Aim) -> tuple[Checkpoint | None, list[Verdict]]:
    """The model's files, wherever the model is. A hub that cannot be asked is replaced by what was fetched before."""
    source = aim.source
    if source is None:
        return None, _not_looked_at(aim)
    if not aim.on_disk and (not _HUB_ID.fullmatch(source) or ".." in source):
        text = f"{source[:200]!r} is neither a name on the hub nor the whole path of a folder"
        return None, [Verdict("model", Level.UNKNOWN, text, "name the folder from / on, and it is looked at here")]
    try:
        return await (_read(Path(source).expanduser()) if aim.on_disk else hub.checkpoint(source)), []
    except NotReady as exc:
        kept = (
            None
            if aim.on_disk
            else await asyncio.to_thread(_kept, services.cache(aim.plan.engine, aim.plan.environment), source)
        )
        if kept is None:
            return None, [Verdict("model", Level.UNKNOWN, str(exc), "ask again later, or start the service as it is")]
        text = f"the hub cannot be asked; what is said is of the copy in {kept.where}"
        return kept, [Verdict("model", Level.WARNING, text, "make sure that the copy is complete")]
    except NotFound as exc:
        return None, [_absent(aim, str(exc), elsewhere=services.scheduler.name != "local")]
    except OrchestratorError as exc:
        return None, [Verdict("model", Level.ERROR, str(exc), "see to that first: the job would fail in the same way")]


def _not_looked_at(aim: Aim) -> list[Verdict]:
    if aim.plan.engine != "ollama":
        return []
    text = f"{aim.plan.model!r} is a model of Ollama's library, which is not asked"
    return [Verdict("model", Level.UNKNOWN, text, "https://ollama.com/library has its size")]


def _absent(aim: Aim, words: str, *, elsewhere: bool) -> Verdict:
    """`elsewhere`: jobs run on other machines, which may see more folders than this one."""
    if not aim.on_disk:
        return Verdict(
            "model", Level.ERROR, words, "correct the name, or name a token that may see it: [site] token_file"
        )
    if elsewhere:
        return Verdict("model", Level.UNKNOWN, words, "correct the path, unless only the compute nodes see it")
    return Verdict("model", Level.ERROR, words, "correct the path")


async def _read(path: Path) -> Checkpoint:
    try:
        async with asyncio.timeout(SECONDS):
            return await asyncio.to_thread(read_checkpoint, path)
    except TimeoutError as exc:
        raise NotReady(f"the folder {path} was not read within {SECONDS:g} s; does its file system answer?") from exc


def _kept(cache: ModelCache, model: str) -> Checkpoint | None:
    """The newest copy of a model of the hub in the cache that the jobs use, where there is one."""
    try:
        copies = sorted((cache.folder(model) / "snapshots").iterdir(), key=lambda copy: copy.stat().st_mtime)
        return read_checkpoint(copies[-1]) if copies else None
    except (OSError, OrchestratorError):
        return None  # the hub's own words are the answer then


async def _fetched(services: Services, aim: Aim, weights: int | None) -> list[Verdict]:
    """Whether a job would have to download its model. `weights`: bytes, None where they are not known."""
    model, plan = aim.plan.model or "", aim.plan
    if aim.on_disk or plan.engine not in ENGINES or not is_hub_id(model):
        return []
    there = await asyncio.to_thread(services.cache(plan.engine, plan.environment).has, model)
    return [in_cache(aim, there=there, offline=needs_no_hub(plan), size=weights)]


def in_cache(aim: Aim, *, there: bool, offline: bool, size: int | None) -> Verdict:
    """`offline`: the engine wants nothing of the hub but its model."""
    if there:
        text = "the model is in the jobs' cache" + ("; the job asks nothing of the hub" if offline else "")
        return Verdict("cache", Level.OK, text)
    model, pull = aim.plan.model, f"sluice models pull {aim.plan.model}"
    environment = aim.site.environment | aim.plan.environment
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        text = f"{model} is not in the jobs' cache, and HF_HUB_OFFLINE forbids the job to download it"
        return Verdict("cache", Level.ERROR, text, pull)
    amount = "" if size is None else f", {in_gb(size)}"
    return Verdict("cache", Level.OK, f"the model would be downloaded by the job{amount}", f"{pull} does it before")


def judge(
    aim: Aim, checkpoint: Checkpoint | None, known: Known
) -> tuple[list[Verdict], Memory | None, Quantization | None]:
    """What is to be said of a model on its engine and its GPUs. Without the model only the memory's GPUs are known."""
    loader = known.loaders.get(aim.plan.engine)
    if loader is None or aim.plan.model is None:
        return [], None, None
    placed = aim.placed
    if checkpoint is None:
        return _parallelism(aim, placed, None), fit.memory_of(None, None, placed), None
    quantised = quantization.quantization_of(checkpoint.config, checkpoint.modelopt, gguf=checkpoint.gguf)
    shape = fit.shape_of(checkpoint.config)
    memory = fit.memory_of(_resident(checkpoint, quantised, loader), shape, placed)
    verdicts = [
        Verdict("model", Level.OK, f"found at {checkpoint.where}"),
        *_architecture(aim, checkpoint, known.catalogue),
        quantization.judge(loader, quantised, version=aim.version, capability=placed.gpu.capability),
        *_complete(checkpoint),
        *_parallelism(aim, placed, None if shape is None else shape.heads),
        _softened(aim, loader, quantised, fit.judge(memory, shape, placed, refuses=aim.plan.engine == "vllm")),
    ]
    return verdicts, memory, quantised


def _softened(aim: Aim, loader: Loader, quantised: Quantization, verdict: Verdict) -> Verdict:
    """Weights that the engine itself makes smaller while it loads them are counted as they are in the files."""
    method = aim.option(loader.option) if loader.option else None
    if method is None or quantised.method is not None or verdict.level is not Level.ERROR:
        return verdict
    text = f"{verdict.message}, before they are made smaller by {loader.option} {method[:60]}"
    return replace(verdict, level=Level.WARNING, message=text)


def _resident(checkpoint: Checkpoint, quantised: Quantization, loader: Loader) -> int | None:
    """Bytes of the weights when loaded: the engines that take safetensors make 16 bits of 32 where they may choose."""
    if checkpoint.weights is None or quantised.method is not None or list(loader.methods) == ["gguf"]:
        return checkpoint.weights
    return checkpoint.weights - min(checkpoint.weights, checkpoint.dtypes.get("F32", 0)) // 2


def _architecture(aim: Aim, checkpoint: Checkpoint, catalogue: Catalogue) -> list[Verdict]:
    if checkpoint.gguf or aim.plan.engine not in _SPLITTING:
        return []
    names = ", ".join(checkpoint.architectures)
    if not names:
        text = "config.json names no architecture"
        return [Verdict("architecture", Level.UNKNOWN, text, "an adapter or a part of a model does not serve alone")]
    there = catalogue.runs(checkpoint.architectures)
    if aim.plan.engine == "sglang":
        text = f"{names} runs on vLLM" if there else f"{names} is not known"
        return [Verdict("architecture", Level.UNKNOWN, f"{text}; SGLang's own list is not looked at")]
    if there:
        return [Verdict("architecture", Level.OK, f"vLLM {catalogue.vllm_version} runs {names}")]
    if isinstance(checkpoint.config.get("auto_map"), dict):
        text = f"vLLM {catalogue.vllm_version} has no code for {names}, but the model brings some of its own"
        return [Verdict("architecture", Level.WARNING, text, 'add vllm_args ["--trust-remote-code"] if you trust it')]
    text = f"vLLM {catalogue.vllm_version} has no code for {names}"
    return [Verdict("architecture", Level.ERROR, text, "GET /api/v1/vllm/available-models lists what it runs")]


def _complete(checkpoint: Checkpoint) -> list[Verdict]:
    if not checkpoint.missing:
        return []
    text = f"{len(checkpoint.missing)} of the weights' files are not there, {checkpoint.missing[0][:100]!r} among them"
    return [Verdict("weights", Level.ERROR, text, "finish the download: hf download MODEL --local-dir FOLDER")]


def _parallelism(aim: Aim, placed: Placed, heads: int | None) -> list[Verdict]:
    """Whether the model can be split as it was asked for."""
    if aim.plan.engine not in _SPLITTING or aim.gpus == 0:
        return []
    if placed.gpus > aim.gpus:
        text = f"the model is to be split over {placed.gpus} GPUs, but there are {aim.gpus}"
        return [Verdict("parallelism", Level.ERROR, text, "ask for more GPUs, or a smaller tensor_parallel_size")]
    if heads is not None and heads % placed.tensor_parallel:
        text = f"{heads} attention heads cannot be split over {placed.tensor_parallel} GPUs"
        fitting = [n for n in range(1, aim.gpus + 1) if heads % n == 0]
        step = f"set tensor_parallel_size to one of {', '.join(map(str, fitting))}"
        return [Verdict("parallelism", Level.ERROR, text, step)]
    if placed.gpus < aim.gpus:
        text = f"the job asks for {aim.gpus} GPUs, of which {aim.gpus - placed.gpus} would stay idle"
        return [Verdict("parallelism", Level.WARNING, text, f"ask for {placed.gpus}, or use them all")]
    return []


def _job_memory(plan: Plan) -> int:
    """Bytes of the memory of one node of a job: `64G` and the like, as resolve() has written it."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return int(plan.resources.memory[:-1]) * units[plan.resources.memory[-1]]

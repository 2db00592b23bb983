"""Whether a model fits into the memory of the GPUs that it is given. Pure, but for the table in data/.

A GPU holds its share of the weights, its share of the KV cache, and what the engine itself needs. The cache is counted
for one sequence of the greatest length: an engine that cannot hold that refuses to start. Sliding windows and layers
without attention are not taken off, so that the cache is an upper bound for models that have them.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.catalogue import DATA
from orchestrator.verdict import Level, Verdict

CHECK = "memory"
GIB = 1024**3
OVERHEAD = int(1.5 * GIB)  # of a GPU, for the CUDA context, activations and CUDA graphs: 1 to 2 GiB
DEFAULT_SHARE = 0.9  # of a GPU's memory that an engine takes: the default of vLLM, and about that of SGLang
_MOST = 1_000_000_000  # a number in a config.json that is larger is not believed

# What a config.json leaves out because it is the default of its class in Transformers.
_DEFAULTS: dict[str, dict[str, int]] = {
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    },
}  # fmt: skip
_TEXT_PARTS = ("text_config", "llm_config", "language_config")
_WINDOWS = ("sliding_window", "layer_types", "attention_chunk_size", "layers_block_type", "linear_num_key_heads")


@dataclass(frozen=True)
class Shape:
    """What of a model decides the size of its KV cache. `latent`: numbers a layer and token of models with MLA, which
    keep one compressed vector; `longest`: tokens; `windowed`: some layers keep less."""

    layers: int
    heads: int | None
    kv_heads: int
    head_dim: int
    latent: int | None = None
    longest: int | None = None
    windowed: bool = False

    def per_token(self, tensor_parallel: int, bytes_each: float) -> int:
        """Bytes of cache on all GPUs together. A head is on one GPU at least, a latent vector on each."""
        if self.latent is not None:
            numbers = self.latent * tensor_parallel
        else:
            numbers = 2 * self.head_dim * math.ceil(self.kv_heads / tensor_parallel) * tensor_parallel
        return math.ceil(self.layers * numbers * bytes_each)


@dataclass(frozen=True)
class Gpu:
    """One GPU, as far as it is known. `told` says from where, for people."""

    memory: int | None = None  # bytes
    capability: int | None = None  # compute capability times ten
    told: str = ""


@dataclass(frozen=True)
class Placed:
    """Where one engine's model goes: over how many GPUs, of which each layer is split over `tensor_parallel`.

    No GPUs: the processor, and `gpu.memory` is that of the job. `length` in tokens, None for the model's own limit;
    `share` of each memory may be used; `bytes_each` is the size of a number in the cache.
    """

    gpus: int
    tensor_parallel: int
    gpu: Gpu
    share: float = DEFAULT_SHARE
    length: int | None = None
    bytes_each: float = 2

    @property
    def places(self) -> int:
        return max(1, self.gpus)

    @property
    def overhead(self) -> int:
        """Bytes that the engine needs beside weights and cache, in all places together."""
        return OVERHEAD * self.gpus or GIB // 2


@dataclass(frozen=True)
class Memory:
    """Bytes, on all GPUs together but for `gpu_memory_bytes`. None is not known."""

    weights_bytes: int | None
    kv_cache_bytes_per_token: int | None
    kv_cache_bytes: int | None
    max_model_len: int | None
    total_bytes: int | None
    gpus: int
    gpu_memory_bytes: int | None
    fits: bool | None


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape in a config.json, also where it is nested; None for one that does not say it."""
    part: Mapping[str, Any] = config
    for name in _TEXT_PARTS:
        if isinstance(config.get(name), Mapping):
            part = config[name]
    part = _DEFAULTS.get(str(part.get("model_type")), {}) | dict(part)
    layers = _first(part, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = _first(part, "num_attention_heads", "n_head", "n_heads")
    longest = _first(part, "max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "model_max_length")
    windowed = any(part.get(name) for name in _WINDOWS)
    latent, rope = _first(part, "kv_lora_rank"), _first(part, "qk_rope_head_dim")
    if layers is not None and latent is not None:
        return Shape(layers, heads, heads or 1, 0, latent + (rope or 0), longest, windowed)
    size = _first(part, "hidden_size", "n_embd", "d_model")
    head_dim = _first(part, "head_dim") or (size // heads if size and heads else None)
    kv_heads = 1 if part.get("multi_query") is True else _first(part, "num_key_value_heads", "num_kv_heads") or heads
    if layers is None or head_dim is None or kv_heads is None:
        return None
    return Shape(layers, heads, kv_heads, head_dim, None, longest, windowed)


def _first(part: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = part.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST:
            return value
    return None


def gpu_of(gpu_type: str | None, memory_gb: float | None, said_by: str = "") -> Gpu:
    """The GPU of a type such as `a100`, `nvidia_h100_80gb_hbm3` or `a100_3g.20gb`.

    `memory_gb` is what `said_by` says of it, in units of 2^30 bytes, as GPUs are named.
    """
    known = _known(gpu_type or "")
    capability = None if known is None else known["capability"]
    if memory_gb is not None:
        return Gpu(int(memory_gb * GIB), capability, f"{memory_gb:g} GB, as {said_by} says")
    if known is None:
        return Gpu()
    if named := re.findall(r"(?<![0-9])([0-9]{1,3})gb", (gpu_type or "").lower()):
        return Gpu(int(named[-1]) * GIB, capability, f"{named[-1]} GB, as its name {gpu_type!r} says")
    also = "".join(f" (there are some with {size})" for size in known["also"])
    return Gpu(known["gib"] * GIB, capability, f"{known['gib']} GB, as {gpu_type!r} usually has{also}")


def _known(gpu_type: str) -> dict[str, Any] | None:
    """The table's GPU that a type names."""
    gpus: dict[str, dict[str, Any]] = json.loads((DATA / "gpus.json").read_text(encoding="utf-8"))["gpus"]
    words = re.split(r"[^a-z0-9]+", gpu_type.lower())
    joined = {*words, *(one + other for one, other in itertools.pairwise(words))}  # "RTX 4090"
    return next((gpus[name] for name in gpus if name in joined), None)


def memory_of(weights: int | None, shape: Shape | None, placed: Placed) -> Memory:
    """What a model needs where it is placed, as far as it is known."""
    per_token = None if shape is None else shape.per_token(placed.tensor_parallel, placed.bytes_each)
    length = placed.length or (None if shape is None else shape.longest)
    cache = None if per_token is None or length is None else per_token * length
    total = None if weights is None or cache is None else weights + cache + placed.overhead
    room = _room(placed)
    fits = None if total is None or room is None else total <= room
    if weights is not None and room is not None and weights + placed.overhead > room:
        fits = False  # whatever the cache
    return Memory(weights, per_token, cache, length, total, placed.gpus, placed.gpu.memory, fits)


def _room(placed: Placed) -> int | None:
    """Bytes that the engine may use, on all GPUs together."""
    return None if placed.gpu.memory is None else int(placed.gpu.memory * placed.share) * placed.places


def judge(memory: Memory, shape: Shape | None, placed: Placed, *, refuses: bool) -> Verdict:
    """Whether it fits. `refuses`: this engine does not start when the cache cannot hold one sequence of full length."""
    if memory.weights_bytes is None:
        text = "the size of the weights is not known"
        return Verdict(CHECK, Level.UNKNOWN, text, "compare the size of its files with the memory of the GPUs")
    room = _room(placed)
    if room is None:
        text = f"the model needs {said(memory.total_bytes or memory.weights_bytes)}; the GPUs' memory is not known"
        return Verdict(CHECK, Level.UNKNOWN, text, "send gpu_memory_gb, or set [site] gpu_memory_gb or gpu_type")
    share = f"; {placed.share:.0%} of it for the engine" if placed.share < 1 else ""
    where = f"{_places(placed)} ({placed.gpu.told}{share})"
    left = room - memory.weights_bytes - placed.overhead
    if left < 0:
        text = f"the weights of {said(memory.weights_bytes)} do not fit into {where}"
        return Verdict(CHECK, Level.ERROR, text, _more(memory, shape, placed))
    if memory.kv_cache_bytes is None or memory.kv_cache_bytes_per_token is None:
        text = f"the weights of {said(memory.weights_bytes)} fit into {where}; the size of the KV cache is not known"
        return Verdict(CHECK, Level.UNKNOWN, text)
    bound = "at most " if shape is not None and shape.windowed else ""
    cache = f"a KV cache of {bound}{said(memory.kv_cache_bytes)} for {memory.max_model_len} tokens"
    if memory.kv_cache_bytes > left:
        most = left // memory.kv_cache_bytes_per_token
        text = f"the weights of {said(memory.weights_bytes)} fit into {where}, but {cache} does not"
        level = Level.ERROR if refuses and not bound else Level.WARNING
        return Verdict(CHECK, level, text, f"set max_model_len to at most {most}, or {_more(memory, shape, placed)}")
    text = f"the weights of {said(memory.weights_bytes)} and {cache} fit into {where}"
    return Verdict(CHECK, Level.OK, text)


def _more(memory: Memory, shape: Shape | None, placed: Placed) -> str:
    """How many GPUs would do, by the same count."""
    if placed.gpus == 0:
        return "ask for more memory, or for GPUs"
    for gpus in (2**n for n in range(1, 8)):
        if gpus <= placed.gpus or (shape is not None and shape.heads is not None and shape.heads % gpus):
            continue
        larger = Placed(gpus, gpus, placed.gpu, placed.share, memory.max_model_len, placed.bytes_each)
        if memory_of(memory.weights_bytes, shape, larger).fits:
            return f"ask for {gpus} GPUs"
    return "choose larger GPUs, or the model with fewer bits"


def _places(placed: Placed) -> str:
    if placed.gpus == 0:
        return "the memory of the job"
    return "the GPU" if placed.gpus == 1 else f"{placed.gpus} GPUs"


def said(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / 1024**2:.0f} MiB"

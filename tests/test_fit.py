"""What a model needs, by its config.json, and where it fits. The numbers can be counted by hand."""

import pytest

from orchestrator.fit import GIB, OVERHEAD, Gpu, Placed, gpu_of, judge, memory_of, shape_of
from orchestrator.verdict import Level
from tests.checkpoints import (
    DEEPSEEK_V3,
    FALCON_7B,
    GEMMA3_4B,
    GEMMA3_27B,
    GPT2,
    GPT_OSS_20B,
    JSON,
    LLAMA31_8B,
    MIXTRAL_8X7B,
    QWEN25_7B,
)

QWEN_BYTES = 15_231_233_024  # 7,615,616,512 numbers of two bytes
LLAMA_BYTES = 16_060_522_496


@pytest.mark.parametrize(
    ("config", "split", "bytes_each", "per_token", "longest"),
    [
        (QWEN25_7B, 1, 2, 28 * 2 * 4 * 128 * 2, 32768),
        (QWEN25_7B, 4, 2, 28 * 2 * 4 * 128 * 2, 32768),
        (QWEN25_7B, 8, 2, 28 * 2 * 8 * 128 * 2, 32768),  # four heads on eight GPUs: each twice
        (QWEN25_7B, 1, 1, 28 * 2 * 4 * 128, 32768),
        (LLAMA31_8B, 1, 2, 131072, 131072),
        (MIXTRAL_8X7B, 2, 2, 131072, 32768),
        (DEEPSEEK_V3, 1, 2, 61 * (512 + 64) * 2, 163840),  # one latent vector, not keys and values
        (DEEPSEEK_V3, 8, 2, 61 * (512 + 64) * 2 * 8, 163840),  # which each GPU has
        (GEMMA3_27B, 1, 2, 62 * 2 * 16 * 128 * 2, None),
        (GEMMA3_4B, 1, 2, 34 * 2 * 4 * 256 * 2, 131072),
        (GPT_OSS_20B, 1, 2, 24 * 2 * 8 * 64 * 2, 131072),
        (GPT2, 1, 2, 12 * 2 * 12 * 64 * 2, 1024),
        (FALCON_7B, 1, 2, 32 * 2 * 1 * 64 * 2, None),
    ],
)
def test_the_cache_of_a_token(config: JSON, split: int, bytes_each: int, per_token: int, longest: int | None) -> None:
    shape = shape_of(config)
    assert shape is not None
    if config is GEMMA3_27B:
        longest = 131072  # the default of its class
    assert (shape.per_token(split, bytes_each), shape.longest) == (per_token, longest)


@pytest.mark.parametrize(
    ("config", "windowed"),
    [(QWEN25_7B, False), (MIXTRAL_8X7B, False), (GEMMA3_27B, True), (GPT_OSS_20B, True), (DEEPSEEK_V3, False)],
)
def test_windows_make_it_an_upper_bound(config: JSON, windowed: bool) -> None:
    shape = shape_of(config)
    assert shape is not None and shape.windowed is windowed


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_hidden_layers": "28", "num_attention_heads": 28, "hidden_size": 3584},
        {"num_hidden_layers": -1, "num_attention_heads": 28, "hidden_size": 3584},
        {"num_hidden_layers": 10**30, "num_attention_heads": 28, "hidden_size": 3584},
        {"num_hidden_layers": True, "num_attention_heads": 28, "hidden_size": 3584},
        {"text_config": [], "model_type": {}},
        {"num_hidden_layers": 28, "hidden_size": 3584},
    ],
)
def test_a_config_that_does_not_say_it_is_not_guessed_at(config: JSON) -> None:
    assert shape_of(config) is None


@pytest.mark.parametrize(
    ("gpu_type", "gib", "capability"),
    [
        ("a100", 40, 80),
        ("A100-SXM4-80GB", 80, 80),
        ("a100_80gb", 80, 80),
        ("a100_3g.20gb", 20, 80),
        ("nvidia_h100_80gb_hbm3", 80, 90),
        ("NVIDIA GeForce RTX 4090", 24, 89),
        ("l40s", 48, 89),
        ("l4", 24, 89),
        ("gb10", 128, 121),
        ("mi300x", 192, None),
    ],
)
def test_a_gpu_is_known_by_its_type(gpu_type: str, gib: int, capability: int | None) -> None:
    gpu = gpu_of(gpu_type, None)
    assert (gpu.memory, gpu.capability) == (gib * GIB, capability)
    assert gpu_type in gpu.told


def test_of_two_sizes_the_smaller_is_taken_and_that_is_said() -> None:
    assert "80" in gpu_of("a100", None).told
    assert gpu_of("a100", 80, "the request").memory == 80 * GIB
    assert gpu_of("a100", 80, "the request").told == "80 GB, as the request says"
    assert gpu_of("tpu", None) == gpu_of(None, None) == Gpu()


def _placed(gpus: int, gib: int | None, length: int | None = None, share: float = 0.9) -> Placed:
    return Placed(gpus, max(1, gpus), Gpu(None if gib is None else gib * GIB, 80, f"{gib} GB"), share, length)


@pytest.mark.parametrize(
    ("config", "weights", "placed", "level", "words", "step"),
    [
        (QWEN25_7B, QWEN_BYTES, _placed(1, 40), Level.OK, "fit into the GPU", ""),
        (QWEN25_7B, QWEN_BYTES, _placed(1, 16), Level.ERROR, "the weights of 14.2 GiB do not fit", "ask for 2 GPUs"),
        (QWEN25_7B, QWEN_BYTES, _placed(1, 19), Level.ERROR, "does not", "max_model_len to at most 26"),
        (QWEN25_7B, QWEN_BYTES, _placed(1, 19, 16384), Level.OK, "16384 tokens", ""),
        (QWEN25_7B, QWEN_BYTES, _placed(1, None), Level.UNKNOWN, "needs 17.4 GiB", "gpu_memory_gb"),
        (QWEN25_7B, None, _placed(1, 40), Level.UNKNOWN, "size of the weights", "compare"),
        ({}, QWEN_BYTES, _placed(1, 40), Level.UNKNOWN, "KV cache is not known", ""),
        ({}, QWEN_BYTES, _placed(1, 8), Level.ERROR, "do not fit", "choose larger GPUs"),
        (LLAMA31_8B, LLAMA_BYTES, _placed(1, 40), Level.OK, "16.0 GiB for 131072 tokens", ""),
        (LLAMA31_8B, LLAMA_BYTES, _placed(1, 24), Level.ERROR, "does not", "ask for 2 GPUs"),
        (DEEPSEEK_V3, 688_586_727_753, _placed(8, 80), Level.ERROR, "do not fit into 8 GPUs", "ask for 16 GPUs"),
        (DEEPSEEK_V3, 688_586_727_753, _placed(8, 141), Level.OK, "fit into 8 GPUs", ""),
        (GPT_OSS_20B, 13_761_264_768, _placed(1, 20, 131072), Level.WARNING, "at most 6.0 GiB", "max_model_len"),
        (GPT2, 548_105_171, _placed(0, 2, share=1), Level.OK, "fit into the memory of the job", ""),
        (QWEN25_7B, QWEN_BYTES, _placed(0, 4, share=1), Level.ERROR, "do not fit", "ask for more memory"),
    ],
)
def test_whether_it_fits(
    config: JSON, weights: int | None, placed: Placed, level: Level, words: str, step: str
) -> None:
    shape = shape_of(config)
    memory = memory_of(weights, shape, placed)
    verdict = judge(memory, shape, placed, refuses=True)
    assert (verdict.check, verdict.level) == ("memory", level), verdict
    assert words in verdict.message, verdict
    assert step in verdict.next_step, verdict
    assert memory.fits is {Level.OK: True, Level.UNKNOWN: None}.get(level, False)


def test_the_advice_holds() -> None:
    shape = shape_of(QWEN25_7B)
    verdict = judge(memory_of(QWEN_BYTES, shape, _placed(1, 19)), shape, _placed(1, 19), refuses=True)
    most = int(verdict.next_step.split("at most ")[1].split(",")[0])
    assert memory_of(QWEN_BYTES, shape, _placed(1, 19, most)).fits is True
    assert memory_of(QWEN_BYTES, shape, _placed(1, 19, most + 1)).fits is False


def test_an_engine_that_takes_a_smaller_cache_is_only_warned_of() -> None:
    shape = shape_of(QWEN25_7B)
    memory = memory_of(QWEN_BYTES, shape, _placed(1, 19))
    assert judge(memory, shape, _placed(1, 19), refuses=False).level is Level.WARNING


def test_the_numbers_of_an_answer() -> None:
    memory = memory_of(QWEN_BYTES, shape_of(QWEN25_7B), _placed(2, 40, 1000))
    assert memory.total_bytes == QWEN_BYTES + 57_344 * 1000 + 2 * OVERHEAD
    assert (memory.kv_cache_bytes_per_token, memory.kv_cache_bytes) == (57_344, 57_344_000)
    assert (memory.max_model_len, memory.gpus, memory.gpu_memory_bytes, memory.fits) == (1000, 2, 40 * GIB, True)

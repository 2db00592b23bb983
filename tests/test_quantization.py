"""What a config.json says of its quantisation, and which engine loads that."""

import json
import os
import subprocess
from typing import Any

import pytest

from orchestrator.quantization import Quantization, judge, quantization_of, read_loaders
from orchestrator.verdict import Level
from tests.checkpoints import (
    AWQ,
    BITSANDBYTES,
    COMPRESSED_FP8,
    COMPRESSED_MIXED,
    COMPRESSED_NVFP4,
    DEEPSEEK_V3,
    GPT_OSS_20B,
    GPTQ,
    JSON,
    LLAMA31_8B,
    MODELOPT_FP8,
    MODELOPT_NVFP4,
    QWEN25_7B,
)
from tests.vllm.fixtures import VllmEnvironment

LOADERS = read_loaders()
CONFIG, HF = "config.json: quantization_config", "hf_quant_config.json: quantization"
NESTED = {"text_config": {"quantization_config": {"quant_method": "AWQ", "bits": 4}}}
NEWER_MODELOPT = {
    "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "producer": {"name": "modelopt"}}
}
OLDER_COMPRESSED = {"compression_config": {"format": "pack-quantized", "config_groups": {}}}


@pytest.mark.parametrize(
    ("config", "modelopt", "expected"),
    [
        (QWEN25_7B, {}, Quantization()),
        (AWQ, {}, Quantization("awq", bits=4, read_from=CONFIG)),
        (GPTQ, {}, Quantization("gptq", bits=4, read_from=CONFIG)),
        (DEEPSEEK_V3, {}, Quantization("fp8", read_from=CONFIG)),
        (GPT_OSS_20B, {}, Quantization("mxfp4", read_from=CONFIG)),
        (BITSANDBYTES, {}, Quantization("bitsandbytes", bits=4, read_from=CONFIG)),
        (COMPRESSED_FP8, {}, Quantization("compressed-tensors", None, 8, ("float-quantized",), CONFIG)),
        (
            COMPRESSED_MIXED,
            {},
            Quantization("compressed-tensors", None, 8, ("float-quantized", "mxfp4-pack-quantized"), CONFIG),
        ),
        (
            OLDER_COMPRESSED,
            {},
            Quantization("compressed-tensors", None, None, ("pack-quantized",), "config.json: compression_config"),
        ),
        (NESTED, {}, Quantization("awq", bits=4, read_from="config.json: text_config: quantization_config")),
        (LLAMA31_8B, MODELOPT_NVFP4, Quantization("modelopt_fp4", "NVFP4", None, (), HF)),
        (LLAMA31_8B, MODELOPT_FP8, Quantization("modelopt", "FP8", None, (), HF)),
        (NEWER_MODELOPT, {}, Quantization("modelopt_fp4", "NVFP4", None, (), CONFIG)),
        ({}, {"quantization": {"quant_algo": "MIXED"}}, Quantization("modelopt_mixed", "MIXED", None, (), HF)),
        ({}, {"quantization": {"quant_algo": "MXFP8"}}, Quantization("modelopt_mxfp8", "MXFP8", None, (), HF)),
        ({}, {"quantization": {"quant_algo": None}}, Quantization()),
        ({"quantization_config": {"bits": 4}}, {}, Quantization("unknown", bits=4, read_from=CONFIG)),
        ({"quantization_config": {"quant_method": 7, "bits": "4"}}, {}, Quantization("unknown", read_from=CONFIG)),
        ({"quantization_config": [], "text_config": 3}, {"quantization": []}, Quantization()),
        ({"quantization_config": {"quant_method": "x" * 500}}, {}, Quantization("x" * 60, read_from=CONFIG)),
    ],
)  # fmt: skip
def test_what_the_files_say(config: JSON, modelopt: JSON, expected: Quantization) -> None:
    assert quantization_of(config, modelopt) == expected


def test_gguf_is_known_by_the_files_themselves() -> None:
    assert quantization_of({}, {}, gguf=True).method == "gguf"


@pytest.mark.parametrize(
    ("engine", "config", "modelopt", "more", "level", "words"),
    [
        ("vllm", QWEN25_7B, {}, {}, Level.OK, "not quantised"),
        ("vllm", AWQ, {}, {}, Level.OK, "vLLM 0.11.2 and 0.32.0"),
        ("vllm", AWQ, {}, {"capability": 70}, Level.ERROR, "compute capability 7.5 and up; this one has 7.0"),
        ("vllm", COMPRESSED_FP8, {}, {}, Level.OK, "compressed-tensors"),
        ("vllm", COMPRESSED_FP8, {}, {"capability": 80}, Level.OK, ""),
        ("vllm", GPT_OSS_20B, {}, {"capability": 75}, Level.ERROR, "8.0 and up"),
        ("vllm", LLAMA31_8B, MODELOPT_NVFP4, {"capability": 100}, Level.OK, "modelopt_fp4"),
        ("vllm", BITSANDBYTES, {}, {}, Level.WARNING, "0.11.2, but not by 0.32.0"),
        ("vllm", BITSANDBYTES, {}, {"version": "0.11.2"}, Level.OK, "0.11.2"),
        ("vllm", BITSANDBYTES, {}, {"version": "0.12"}, Level.OK, "0.11.2"),
        ("vllm", BITSANDBYTES, {}, {"version": "0.9.1"}, Level.OK, "0.11.2"),
        ("vllm", BITSANDBYTES, {}, {"version": "0.32.0"}, Level.ERROR, "does not load"),
        ("vllm", BITSANDBYTES, {}, {"version": "0.40.1"}, Level.UNKNOWN, "whether 0.40.1 does"),
        ("vllm", {"quantization_config": {"quant_method": "exl2"}}, {}, {}, Level.ERROR, "'exl2'"),
        ("sglang", QWEN25_7B, {}, {}, Level.OK, "not quantised"),
        ("sglang", COMPRESSED_FP8, {}, {}, Level.WARNING, "scheme not found"),
        ("sglang", COMPRESSED_NVFP4, {}, {"capability": 90}, Level.ERROR, "10.0 and up"),
        ("sglang", COMPRESSED_NVFP4, {}, {"capability": 121}, Level.WARNING, "never gets ready"),
        ("sglang", COMPRESSED_MIXED, {}, {}, Level.ERROR, "no code for the compressed-tensors format 'mxfp4"),
        ("sglang", LLAMA31_8B, MODELOPT_NVFP4, {"capability": 121}, Level.OK, "modelopt_fp4"),
        ("sglang", LLAMA31_8B, MODELOPT_NVFP4, {"capability": 90}, Level.ERROR, "10.0 and up"),
        ("sglang", LLAMA31_8B, MODELOPT_FP8, {}, Level.OK, "modelopt"),
        ("sglang", DEEPSEEK_V3, {}, {"capability": 90}, Level.OK, "fp8"),
        ("sglang", GPTQ, {}, {}, Level.OK, "gptq"),
        ("ollama", QWEN25_7B, {}, {}, Level.ERROR, "no GGUF"),
        ("llamacpp", AWQ, {}, {}, Level.ERROR, "does not load"),
    ],
)
def test_which_engine_loads_it(
    engine: str, config: JSON, modelopt: JSON, more: dict[str, Any], level: Level, words: str
) -> None:
    verdict = judge(LOADERS[engine], quantization_of(config, modelopt), **more)
    assert (verdict.check, verdict.level) == ("quantization", level), verdict
    assert words in verdict.message, verdict
    assert bool(verdict.next_step) is (level is not Level.OK)


@pytest.mark.parametrize(
    ("engine", "version", "level"),
    [
        ("vllm", None, Level.WARNING),
        ("vllm", "0.32.0", Level.ERROR),
        ("sglang", None, Level.OK),
        ("ollama", None, Level.OK),
        ("llamacpp", None, Level.OK),
    ],
)
def test_gguf(engine: str, version: str | None, level: Level) -> None:
    assert judge(LOADERS[engine], quantization_of({}, {}, gguf=True), version=version).level is level


ASK_VLLM = """
import json, vllm
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
asked = json.loads(input())
methods = [method for method in QUANTIZATION_METHODS if method in asked]
print(json.dumps([vllm.__version__, {name: get_quantization_config(name).get_min_capability() for name in methods}]))
"""


@pytest.mark.vllm
def test_the_table_is_that_of_vllm(vllm_environment: VllmEnvironment) -> None:
    known = LOADERS["vllm"]
    newest = {m: known.methods[m].capability.get(known.versions[-1]) for m in known.methods if m != "auto-round"}
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [str(vllm_environment.python), "-c", ASK_VLLM], input=json.dumps(list(newest)), env=environment,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    version, capability = json.loads(done.stdout.splitlines()[-1])
    assert version.startswith(known.versions[-1])
    assert capability == {name: least for name, least in newest.items() if least is not None}


def test_the_table_agrees_with_itself() -> None:
    for engine, loader in LOADERS.items():
        assert loader.source and loader.versions, engine
        for name, method in loader.methods.items():
            assert name == name.lower() and method.capability, name
            assert set(method.capability) <= set(loader.versions), (engine, name)
            for form, versions in method.formats.items():
                assert set(versions) <= set(loader.versions), (engine, form)

"""How far engines are with loading, in lines that they have really written."""

import pytest

from orchestrator.loading import loading_of

START = (
    "2026-11-20T09:13:41+0000 sluicegate: job 42 on node1: starting python3 -m vllm on port 8001 (replica 0, start 1)\n"
)
VLLM = """\
(APIServer pid=300) INFO 11-24 11:43:12 [utils.py:233] vLLM API server version 0.11.2
(APIServer pid=300) INFO 11-24 11:43:20 [__init__.py:1773] Using max model len 32768
"""
SHARDS = """\
\rLoading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]

\rLoading safetensors checkpoint shards:  25% Completed | 1/4 [00:02<00:07,  2.55s/it]

\rLoading safetensors checkpoint shards:  50% Completed | 2/4 [00:05<00:05,  2.66s/it]
"""
CORE = "(EngineCore_DP0 pid=441) INFO 11-24 11:43:54 "
LOADED = CORE + "[gpu_model_runner.py:3341] Model loading took 2.0513 GiB memory and 27.200487 seconds\n"
COMPILED = CORE + "[backends.py:559] Dynamo bytecode transform time: 6.31 s\n"
CACHE = CORE + "[kv_cache_utils.py:1234] GPU KV cache size: 1,587,648 tokens\n"
GRAPHS = "\rCapturing CUDA graphs (decode, FULL):  46%|####6     | 16/35 [00:00<00:00, 33.86it/s]"
UP = "(APIServer pid=1391815) INFO:     Application startup complete.\n"
SGLANG = """\
[2026-11-20 09:13:50] Load weight begin. avail mem=78.58 GB
Capturing batches (bs=32 avail_mem=8.01 GB):  43%|####3     | 10/23 [00:03<00:04,  2.70it/s]"""
# vLLM 0.32 on a processor.
V032 = """\
(APIServer pid=23445) INFO 11-27 12:29:08 [api_utils.py:347]   █▄█▀ █     █     █     █  model   /models/SmolLM2-135M
(APIServer pid=23445) INFO 11-27 12:29:08 [api_utils.py:286] non-default args: {'host': '127.0.0.1', 'port': 18457}
(APIServer pid=23445) INFO 11-27 12:29:57 [model.py:2152] Using max model len 1024
(EngineCore pid=29236) INFO 11-27 12:30:42 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='x'
"""
V032_LOADING = "(Worker pid=31525) INFO [cpu_model_runner.py:68] Starting to load model /models/SmolLM2-135M...\n"
V032_BAR = """\
[W1127 12:31:20.432233357 utils.cpp:68] Warning: NUMA binding: Using MEMBIND policy for memory allocation
\rLoading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]
\rLoading safetensors checkpoint shards: 100% Completed | 1/1 [00:02<00:00,  2.35s/it]
\rLoading safetensors checkpoint shards: 100% Completed | 1/1 [00:02<00:00,  2.35s/it]

"""
V032_CACHE = """\
(EngineCore pid=29236) INFO 11-27 12:31:26 [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens
(EngineCore pid=29236) WARNING 11-27 12:31:39 [cpu.py:224] Triton is not installed. triton-cpu is expected on x86 CPUs.
"""
V032_INIT = (
    "(EngineCore pid=29236) INFO [core.py:402] init engine (profile, create kv cache, warmup model) took 8.92 s\n"
)
V032_UP = """\
(APIServer pid=23445) INFO 11-27 12:31:41 [entry.py:140] Starting vLLM server on http://127.0.0.1:18457
(APIServer pid=23445) INFO 11-27 12:31:42 [launcher.py:195] Route: /ping, Methods: POST
"""
LLAMACPP = """\
build: 4719 (e1a2) with cc
load_tensors: loading model tensors, this can take a while... (mmap = true)
......................"""
FETCH = "\rmodel-00001-of-00002.safetensors:  37%|###7      | 1.85G/4.98G [00:22<00:37, 83.9MB/s]"


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (("", ""), None),
        (("hello\n",), None),
        ((START,), ("starting", None, "the engine starts")),
        ((VLLM, START), ("starting", None, "the engine starts")),
        ((VLLM, START + FETCH), ("downloading", 37, "model-00001-of-00002.safetensors")),
        ((VLLM, START + SHARDS), ("loading", 50, "Loading safetensors checkpoint shards 2/4")),
        ((VLLM + LOADED, START + SHARDS), ("loading", 50, "Loading safetensors checkpoint shards 2/4")),
        ((VLLM + LOADED + COMPILED, START + SHARDS), ("compiling", None, "Dynamo bytecode transform time: 6.31 s")),
        ((VLLM + LOADED + CACHE, START + SHARDS), ("warming up", None, "GPU KV cache size: 1,587,648 tokens")),
        ((VLLM + CACHE, START + SHARDS + GRAPHS), ("warming up", 46, "Capturing CUDA graphs (decode, FULL)")),
        ((VLLM + CACHE + UP, START + SHARDS + GRAPHS), ("serving", None, "Application startup complete")),
        # Started again: what is before does not count.
        ((VLLM + CACHE + UP + VLLM, START + SHARDS + GRAPHS + START), ("starting", None, "the engine starts")),
        (("", START + SGLANG), ("warming up", 43, "Capturing batches (bs=32 avail_mem=8.01 GB)")),
        (("", START + LLAMACPP), ("loading", 22, "loading model tensors")),
        ((V032, START), ("starting", None, "the engine starts")),
        ((V032 + V032_LOADING, START), ("loading", None, "Starting to load model /models/SmolLM2-135M")),
        ((V032 + V032_LOADING, START + V032_BAR), ("loading", 100, "Loading safetensors checkpoint shards 1/1")),
        ((V032 + V032_CACHE, START + V032_BAR), ("warming up", None, "CPU KV cache size: 46,592 tokens")),
        (
            (V032 + V032_CACHE + V032_INIT, START + V032_BAR),
            ("warming up", None, "init engine (profile, create kv cache, warmup model) took 8.92 s"),
        ),
        ((V032 + V032_CACHE + V032_UP, START + V032_BAR), ("serving", None, "Starting vLLM server")),
        (("", "pulling 2049f5674b1e:  45%"), ("downloading", 45, "pulling 2049f5674b1e")),
    ],
)
def test_what_is_told(outputs: tuple[str, ...], told: tuple[str, float | None, str] | None) -> None:
    found = loading_of(*outputs)
    assert (found and (found.phase, found.percent, found.text)) == told


def test_a_line_without_end_costs_nothing_much() -> None:
    assert loading_of("." * 16_000 + "Loading safetensors " * 700) is None

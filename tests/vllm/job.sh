#!/bin/bash
# vLLM on CPUs as a Slurm job: PYTHON, MODEL, NAME and PORT come from the environment, the API key from ~/key.
set -euo pipefail
. "$HOME/key"
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
export TORCHINDUCTOR_CACHE_DIR="$HOME/.cache/torchinductor"
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
exec "$PYTHON" -m vllm.entrypoints.openai.api_server --model "$MODEL" --served-model-name "$NAME" \
    --enforce-eager --max-model-len 1024 --host 0.0.0.0 --port "$PORT"

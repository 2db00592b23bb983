"""The fake engine on a small GPU: a context of more than 4096 tokens does not fit, and it says so as vLLM does. For the
model QUIRKS the one that misbehaves as its prompts say."""

import os
import sys
from pathlib import Path

LIMIT = 4096
QUIRKS = "org/quirks"

if __name__ == "__main__":
    words = sys.argv[1:]
    asked = int(words[words.index("--max-model-len") + 1]) if "--max-model-len" in words else 0
    if asked > LIMIT:
        raise SystemExit(
            f"ValueError: To serve at least one request with the models's max seq len ({asked}), (0.98 GiB KV cache is "
            f"needed, which is larger than the available KV cache memory (0.49 GiB). Based on the available memory, "
            f"the estimated maximum model length is {LIMIT}. Try increasing `gpu_memory_utilization` or decreasing "
            "`max_model_len` when initializing the engine."
        )
    fake = Path(__file__).parents[1] / ("quirks_engine.py" if QUIRKS in words else "fake_engine.py")
    os.execv(sys.executable, [sys.executable, str(fake), *words])

"""A vLLM on a GPU of which 85 % are free: with a larger --gpu-memory-utilization it ends as vLLM does, else it is the
fake engine."""

import os
import sys
from pathlib import Path

SAYS = """\
(EngineCore_DP0 pid=312) ERROR 11-20 09:14:07 [core.py:843] EngineCore failed to start.
(EngineCore_DP0 pid=312) ERROR 11-20 09:14:07 [core.py:843] torch.OutOfMemoryError: CUDA out of memory. Tried to \
allocate 224.00 MiB. GPU 0 has a total capacity of 11.53 GiB of which 187.75 MiB is free.
(APIServer pid=300) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""

if __name__ == "__main__":
    words = sys.argv[1:]
    if float(words[words.index("--gpu-memory-utilization") + 1]) > 0.85:
        sys.exit(SAYS)
    engine = str(Path(__file__).with_name("fake_engine.py"))
    os.execv(sys.executable, [sys.executable, engine, *words])

"""The command line of SGLang in front of tests/fake_engine.py: `fake_sglang.py --config FILE.yaml --model-path M …`.

As SGLang, it takes the key from its options, which may stand in the file, and knows none of vLLM's names.
"""

import argparse
import os
import sys
from pathlib import Path

import yaml


def main(words: list[str]) -> None:
    at = words.index("--config")
    given = yaml.safe_load(Path(words[at + 1]).read_text())
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))] + words[:at] + words[at + 2 :]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model-path", "served-model-name", "host", "port", "tp-size"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("context-length", "mem-fraction-static", "api-key", "schedule-policy"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--enable-metrics", action="store_true")
    options = parser.parse_args(words)
    print(f"parsed {sorted(k for k, v in vars(options).items() if v)}", file=sys.stderr, flush=True)
    engine = [str(Path(__file__).with_name("fake_engine.py")), "--model", options.model_path]
    engine += ["--served-model-name", options.served_model_name, "--host", options.host, "--port", options.port]
    engine += ["--max-model-len", options.context_length or "2048"]
    os.execve(sys.executable, [sys.executable, *engine], os.environ | {"VLLM_API_KEY": options.api_key or ""})


if __name__ == "__main__":
    main(sys.argv[1:])

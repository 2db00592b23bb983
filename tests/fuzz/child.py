"""One target in a process of its own: `python -m tests.fuzz.child MODULE SECONDS CRASHERS`. Ends with 0 if it holds."""

import logging
import sys
import tempfile
from pathlib import Path

import atheris

from tests.fuzz.target import Target, kept, load

SLOWEST = 5  # seconds for one input


def main(module: str, seconds: str, crashers: str) -> None:
    with atheris.instrument_imports(include=["orchestrator", "gateway", "tests.fuzz.planted"]):
        target = load(module)
    logging.disable()  # the code under test says what it refuses
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = _written(target, module.rpartition(".")[2], Path(folder))
        options: dict[str, object] = {
            "max_total_time": seconds,
            "timeout": SLOWEST,
            "max_len": target.longest,
            "rss_limit_mb": 2048,
            "artifact_prefix": f"{crashers}/",
            "print_final_stats": 1,
        }
        if target.words:  # an empty file is an error
            options["dict"] = words
        atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)], target.run)
        atheris.Fuzz()  # does not return


def _written(target: Target, name: str, folder: Path) -> tuple[Path, Path]:
    """The first inputs and the words, as libFuzzer reads them."""
    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir()
    for number, seed in enumerate([*target.seeds, *(path.read_bytes() for path in kept(name))]):
        (corpus / str(number)).write_bytes(seed)
    lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
    words.write_text("".join(lines))
    return corpus, words


if __name__ == "__main__":
    main(*sys.argv[1:])

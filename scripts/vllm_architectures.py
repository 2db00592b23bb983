"""Write orchestrator/data/vllm_architectures.json from the registry of an installed vLLM.

    /path/to/vllm/venv/bin/python scripts/vllm_architectures.py            writes the file
    /path/to/vllm/venv/bin/python scripts/vllm_architectures.py --print    prints what it would hold

Run it with the Python that has vLLM; nothing else must be installed there. tests/test_catalogue.py fails when the file
is not that of the vLLM of the tests. Source: the tables of vllm/model_executor/models/registry.py.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "orchestrator" / "data" / "vllm_architectures.json"

# Our groups, and vLLM's tables that they are made of. An architecture may be in several.
GROUPS = {
    "text-generation": ["_TEXT_GENERATION_MODELS"],
    "vision-language": ["_MULTIMODAL_MODELS"],
    "embedding": ["_EMBEDDING_MODELS", "_LATE_INTERACTION_MODELS"],
    "pooling": ["_REWARD_MODELS", "_TOKEN_CLASSIFICATION_MODELS", "_SEQUENCE_CLASSIFICATION_MODELS"],
    "speculative": ["_SPECULATIVE_DECODING_MODELS"],
}
# Architectures that run through the model code of Transformers: {architecture: (module, class)}.
THROUGH_TRANSFORMERS = "_TRANSFORMERS_SUPPORTED_MODELS"
# The classes of that code itself. No model on the hub has one as its architecture.
CLASSES_OF_THE_BACKEND = "_TRANSFORMERS_BACKEND_MODELS"


def document() -> dict[str, Any]:
    """{"vllm_version": …, "architectures": {group: [name, …]}}. Raises RuntimeError for an unknown table of vLLM."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    version = importlib.import_module("vllm").__version__
    found = {group: {name for table in tables for name in getattr(registry, table)} for group, tables in GROUPS.items()}
    for name, (_, backend) in getattr(registry, THROUGH_TRANSFORMERS).items():
        found["vision-language" if "MultiModal" in backend else "text-generation"].add(name)
    known = set().union(*found.values(), getattr(registry, CLASSES_OF_THE_BACKEND))
    if left_out := set(registry.ModelRegistry.get_supported_archs()) - known:
        raise RuntimeError(f"vLLM {version} has a table that GROUPS does not name: {sorted(left_out)}")
    return {"vllm_version": version, "architectures": {group: sorted(names) for group, names in found.items()}}


def text() -> str:
    return json.dumps(document(), indent=1) + "\n"


def main(arguments: list[str]) -> int:
    if "--print" in arguments:
        sys.stdout.write(text())
    else:
        FILE.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

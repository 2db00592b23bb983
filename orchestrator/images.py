"""Container images as files: what an image of a registry is called once it is one. Pure."""

import re
from pathlib import Path

from orchestrator.errors import Invalid

DEFAULT_GB = 10.0
"""What an image of an engine has, about; apptainer says nothing of it before it has it."""
NEEDS = 3
"""Times its size that apptainer needs on the way: layers, the unpacked tree, the file."""

_REFERENCE = re.compile(r"(docker|oras|library|shub)://[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,300}")


def check_reference(image: str) -> None:
    """Raises Invalid unless it is one that apptainer pulls."""
    if not _REFERENCE.fullmatch(image) or ".." in image:
        raise Invalid(
            f"{image[:200]!r} is not an image that can be pulled; write it like docker://vllm/vllm-openai:v0.11.2"
        )


def file_of(folder: Path, image: str) -> Path:
    """docker://vllm/vllm-openai:v0.11.2 → FOLDER/vllm--vllm-openai--v0.11.2.sif."""
    _, _, name = image.partition("://")
    plain = re.sub(r"[/:@]", lambda found: {"/": "--", ":": "--", "@": "-at-"}[found[0]], name)
    return folder / f"{plain}.sif"

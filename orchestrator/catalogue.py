"""What is known about models without a network: the architectures that vLLM runs, and a guide. Both lie in data/.

`scripts/vllm_architectures.py` writes the first from vLLM's own registry; the second is written by hand.
"""

import difflib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import Invalid

DATA = Path(__file__).parent / "data"

# What a user asks for, and the groups of the data file that are it.
KINDS = {
    "text-generation": ("text-generation",),
    "vision-language": ("vision-language",),
    "embedding": ("embedding", "pooling"),
}
# The hub's names for the task of a model that embeds, whatever its architecture could do besides.
_EMBEDDING_TAGS = ("feature-extraction", "sentence-similarity")


class Example(BaseModel):
    """A model that is known to run. `parameters`: how many numbers it has."""

    model_config = ConfigDict(frozen=True)

    id: str
    architecture: str
    parameters: int


class Catalogue(BaseModel):
    """`architectures`: names as in a model's config.json, by group; a name may be in several groups."""

    model_config = ConfigDict(frozen=True)

    vllm_version: str
    architectures: dict[str, list[str]]
    examples: dict[str, list[Example]]
    notes: list[str]
    how_to_find_models: list[str]
    resource_guidelines: dict[str, str]

    @cached_property
    def supported(self) -> dict[str, list[str]]:
        """The architectures that serve users, by kind: draft models, which only speed up others, are left out."""
        return {
            kind: sorted({name for group in groups for name in self.architectures[group]})
            for kind, groups in KINDS.items()
        }

    @cached_property
    def _runs(self) -> frozenset[str]:
        return frozenset(name for names in self.supported.values() for name in names)

    def runs(self, architectures: Iterable[str]) -> bool:
        """True when vLLM has code for one of a model's architectures. No architecture: False."""
        return not self._runs.isdisjoint(architectures)

    def task_of(self, architectures: Iterable[str], pipeline_tag: str | None) -> str | None:
        """The group that vLLM would serve a model in; None for a model that it does not run."""
        names = set(architectures)
        if pipeline_tag in _EMBEDDING_TAGS and self.runs(names):
            return "embedding"
        return next((group for group, known in self.architectures.items() if not names.isdisjoint(known)), None)

    def check(self, architecture: str) -> None:
        """Raise Invalid for an architecture that vLLM does not run; the text names the nearest ones."""
        if architecture in self._runs:
            return
        near = difflib.get_close_matches(architecture[:100], sorted(self._runs), n=5, cutoff=0.5)
        hint = f" Did you mean {', '.join(near)}?" if near else " For example: Qwen2ForCausalLM, LlamaForCausalLM."
        raise Invalid(
            f"architecture is {architecture[:100]!r}, which vLLM {self.vllm_version} does not have.{hint} "
            f"All {len(self._runs)} choices: GET /api/v1/vllm/available-models"
        )


def read_catalogue() -> Catalogue:
    """The shipped one: 20 KB, read in a millisecond."""
    known = json.loads((DATA / "vllm_architectures.json").read_text(encoding="utf-8"))
    guide = json.loads((DATA / "models_guide.json").read_text(encoding="utf-8"))
    return Catalogue.model_validate(known | guide)

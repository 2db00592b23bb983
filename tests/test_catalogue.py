"""What is shipped about models agrees with itself and with the registry of the vLLM of the tests."""

import os
import subprocess

import pytest

from orchestrator.catalogue import KINDS, read_catalogue
from orchestrator.errors import Invalid
from scripts import vllm_architectures
from tests.vllm.fixtures import VllmEnvironment


@pytest.mark.vllm
def test_the_architectures_are_those_of_vllm(vllm_environment: VllmEnvironment) -> None:
    script = str(vllm_architectures.__file__)
    command = [str(vllm_environment.python), script, "--print"]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said = f"run {command[0]} scripts/vllm_architectures.py"
    assert done.stdout == vllm_architectures.FILE.read_text(encoding="utf-8"), said


def test_every_example_is_of_an_architecture_that_vllm_runs_as_that_kind() -> None:
    catalogue = read_catalogue()
    assert list(catalogue.supported) == list(catalogue.examples) == list(KINDS)
    for kind, examples in catalogue.examples.items():
        for example in examples:
            assert example.architecture in catalogue.supported[kind], example
            assert catalogue.runs([example.architecture]), example


@pytest.mark.parametrize(
    ("architectures", "tag", "runs", "task"),
    [
        (["Qwen2ForCausalLM"], "text-generation", True, "text-generation"),
        (["Qwen3ForCausalLM"], "feature-extraction", True, "embedding"),
        (["Qwen2_5_VLForConditionalGeneration"], "image-text-to-text", True, "vision-language"),
        (["BertModel"], None, True, "embedding"),
        (["BertForSequenceClassification"], "text-classification", True, "pooling"),
        (["Unknown", "LlamaForCausalLM"], None, True, "text-generation"),
        (["EagleLlamaForCausalLM"], "text-generation", False, "speculative"),
        (["TransformersForCausalLM"], None, False, None),
        (["UNet2DConditionModel"], "feature-extraction", False, None),
        ([], "text-generation", False, None),
    ],
)
def test_what_vllm_makes_of_an_architecture(
    architectures: list[str], tag: str | None, runs: bool, task: str | None
) -> None:
    catalogue = read_catalogue()
    assert (catalogue.runs(architectures), catalogue.task_of(architectures, tag)) == (runs, task)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("qwen2forcausallm", "available-models"),
        ("LlamaForCausalML", "LlamaForCausalLM"),
        ("x" * 9000, "Qwen2ForCausalLM"),
    ],
)
def test_an_unknown_architecture_is_refused_with_what_there_is(architecture: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        read_catalogue().check(architecture)
    assert len(str(caught.value)) < 1000

"""pytest fixture for tests on a real vLLM. Load it as a plugin: `-p tests.vllm.fixtures`."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vllm import make


@dataclass(frozen=True)
class VllmEnvironment:
    """`python` runs `-m vllm.entrypoints.openai.api_server`, `model` is a checkpoint; everybody may read both."""

    python: Path
    model: Path


@pytest.fixture(scope="session")
def vllm_environment() -> VllmEnvironment:
    """The made environment. It is made now in CI and with SLUICE_TEST_VLLM=1; elsewhere it must be there already."""
    in_ci = os.environ.get("CI") == "true"
    if not (in_ci or os.environ.get("SLUICE_TEST_VLLM") == "1" or make.folder().exists()):
        pytest.skip("NO VLLM, so this is not tested: python tests/vllm/make.py makes it (2 minutes, 3 GB)")
    done = subprocess.run([sys.executable, make.__file__], stdout=subprocess.PIPE, text=True, timeout=3600)
    if done.returncode:
        pytest.fail(f"tests/vllm/make.py ended with {done.returncode}: its messages are above")
    answer = json.loads(done.stdout.splitlines()[-1])
    return VllmEnvironment(Path(answer["python"]), Path(answer["model"]))

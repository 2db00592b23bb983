"""Models in folders, whole and broken ones."""

import json
import os
from pathlib import Path

import pytest

from orchestrator.checkpoint import Checkpoint, read_checkpoint, read_header
from orchestrator.errors import Invalid, NotFound, OrchestratorError
from tests.checkpoints import MODELOPT_NVFP4, QWEN25_7B, folder, safetensors

ONE = {"model.safetensors": {"a": ("BF16", 1000), "b": ("F32", 24)}}
TWO = {
    "model-00001-of-00002.safetensors": {"a": ("BF16", 3 << 30)},
    "model-00002-of-00002.safetensors": {"b": ("F8_E4M3", 1 << 30), "c": ("BF16", 16)},
    "consolidated.safetensors": {"a": ("BF16", 4 << 30)},
}
INDEX = {
    "metadata": {"total_size": 5_000_000_000},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}


def test_a_folder_is_read_from_the_headers_of_its_weights(tmp_path: Path) -> None:
    path = folder(tmp_path / "qwen", QWEN25_7B, ONE)
    assert read_checkpoint(path) == Checkpoint(str(path), QWEN25_7B, {}, 1024, {"BF16": 1000, "F32": 24})
    assert read_checkpoint(path).architectures == ("Qwen2ForCausalLM",)


def test_several_files_and_a_second_copy(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", QWEN25_7B, TWO)
    (path / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    (path / "hf_quant_config.json").write_text(json.dumps(MODELOPT_NVFP4))
    found = read_checkpoint(path)
    assert found.weights == (4 << 30) + 16
    assert found.dtypes == {"BF16": (3 << 30) + 16, "F8_E4M3": 1 << 30}
    assert (found.missing, found.modelopt) == ((), MODELOPT_NVFP4)


def test_a_download_that_was_broken_off(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", QWEN25_7B, {"model-00001-of-00002.safetensors": {"a": ("BF16", 100)}})
    (path / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    found = read_checkpoint(path)
    assert found.missing == ("model-00002-of-00002.safetensors",)
    assert found.weights == 5_000_000_000


def test_links_are_followed_as_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    blobs = folder(tmp_path / "blobs", QWEN25_7B, ONE)
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(blobs / name)
    assert read_checkpoint(snapshot).weights == 1024


def test_gguf_as_a_file_and_in_a_folder(tmp_path: Path) -> None:
    one, folder_of_two = tmp_path / "one.gguf", tmp_path / "two"
    one.write_bytes(b"GGUF" + bytes(96))
    assert read_checkpoint(one) == Checkpoint(str(one), weights=100, gguf=True)
    folder_of_two.mkdir()
    (folder_of_two / "q4.gguf").write_bytes(b"GGUF" + bytes(6))
    assert read_checkpoint(folder_of_two) == Checkpoint(str(folder_of_two), weights=10, gguf=True)
    (folder_of_two / "q8.gguf").write_bytes(b"GGUF" + bytes(6))
    assert read_checkpoint(folder_of_two) == Checkpoint(str(folder_of_two), gguf=True)


def test_pytorch_files_are_measured_by_their_size(tmp_path: Path) -> None:
    path = folder(tmp_path / "old", QWEN25_7B, {})
    (path / "pytorch_model.bin").write_bytes(bytes(77))
    assert read_checkpoint(path).weights == 77


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no safetensors"),
        (b"\xff" * 8 + b"{}", "no safetensors"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "no safetensors"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((4).to_bytes(8, "little") + b"nope", "no JSON"),
        ((9).to_bytes(8, "little") + b'{"a": 42}', "TypeError"),
        ((54).to_bytes(8, "little") + b'{"a": {"dtype": "F16", "data_offsets": [100,      20]}}'[:54], "no JSON"),
        ((55).to_bytes(8, "little") + b'{"a": {"dtype": "F16", "data_offsets": [100,      20]}}', "of -80 bytes"),
        ((15).to_bytes(8, "little") + b'{"a": {"b": 1}}', "KeyError"),
        ((5000).to_bytes(8, "little") + b"[" * 5000, "no JSON"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = folder(tmp_path / "bad", QWEN25_7B, {})
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(Invalid, match=words):
        read_checkpoint(path)


def test_what_cannot_be_read_is_said_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.json")
    large = folder(tmp_path / "large", {}, {})
    with (large / "config.json").open("wb") as file:
        file.truncate(5 << 20)
    many = folder(tmp_path / "many", {}, {})
    for number in range(2001):
        (many / str(number)).touch()
    (tmp_path / "text").write_text("no model")
    for name, kind, words in (
        ("nothing", NotFound, "no model at"),
        ("empty", NotFound, "holds no model"),
        ("pipe", Invalid, "not a regular file"),
        ("large", Invalid, "are not read"),
        ("many", Invalid, "more than 2000 files"),
        ("text", Invalid, "no GGUF"),
    ):
        with pytest.raises(OrchestratorError, match=words) as caught:
            read_checkpoint(tmp_path / name)
        assert type(caught.value) is kind, name


def test_headers_are_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors(path, {"a": ("BF16", 8)})
    header, size = read_header(path)
    assert (header["a"]["dtype"], size) == ("BF16", len(json.dumps(header)))
    with pytest.raises(Invalid):
        read_header(path, size - 1)

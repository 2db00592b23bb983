"""The cache of models: its layout beside huggingface_hub's own, what is complete in it, what is fetched of a model."""

import json
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from orchestrator.errors import Invalid, StateFull
from orchestrator.model_cache import (
    CachedFile,
    ModelCache,
    cache_of,
    check_names,
    chosen,
    digest_of,
    in_gb,
    is_hub_id,
    root_of,
    wants_more,
)
from orchestrator.settings import Engine, Site
from tests.fake_hub import COMMIT, SMALL, TINY

MODEL, TRANSFER = "tiny/whole", "t"
FILES = [
    CachedFile(file["rfilename"], file["size"], file.get("lfs", {}).get("sha256", file["blobId"]))
    for file in SMALL["siblings"]
]
HASH = "a" * 40


def filled(root: Path) -> ModelCache:
    cache = ModelCache(root)
    for file in FILES:
        part = cache.part(MODEL, file.blob, TRANSFER)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(TINY[file.path])
        cache.place(MODEL, file, TRANSFER)
    cache.finish(MODEL, "main", COMMIT, FILES)
    return cache


def test_the_layout_is_the_librarys(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    for name, content in TINY.items():
        found = try_to_load_from_cache(MODEL, name, cache_dir=tmp_path)
        assert isinstance(found, str) and Path(found).read_bytes() == content
    (repo,) = scan_cache_dir(tmp_path).repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash, revision.refs) == (MODEL, COMMIT, frozenset({"main"}))
    assert repo.size_on_disk == sum(len(content) for content in TINY.values())
    assert (cache.has(MODEL), cache.has(MODEL, COMMIT), cache.has(MODEL, "v2"), cache.has("a/b")) == (
        True,
        True,
        False,
        False,
    )
    cache.finish(MODEL, "main", COMMIT, FILES)  # again changes nothing
    assert not cache.missing(MODEL, FILES)


def test_what_is_something_else_is_refused_and_gone(tmp_path: Path) -> None:
    cache, file = ModelCache(tmp_path), FILES[3]
    part = cache.part(MODEL, file.blob, TRANSFER)
    part.parent.mkdir(parents=True)
    for content in (b"short", bytes(file.size)):
        part.write_bytes(content)
        with pytest.raises(Invalid, match=r"model.safetensors of tiny/whole is something else"):
            cache.place(MODEL, file, TRANSFER)
        assert not part.exists()


def test_what_has_arrived(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    total = sum(file.size for file in FILES)
    assert cache.arrived(MODEL, FILES, TRANSFER) == total
    cache.blob(MODEL, FILES[3].blob).rename(cache.part(MODEL, FILES[3].blob, TRANSFER))
    cache.part(MODEL, FILES[3].blob, TRANSFER).write_bytes(b"12345")
    assert cache.arrived(MODEL, FILES, TRANSFER) == total - FILES[3].size + 5
    assert cache.missing(MODEL, FILES) == [FILES[3]]
    assert not cache.has(MODEL), "a link whose content is not there is no file"


def test_space(tmp_path: Path) -> None:
    ModelCache(tmp_path / "not" / "there").check_space("a", 1)
    with pytest.raises(StateFull, match=r"the cache of models is full \(a needs 1000000\.0 GB, and .* are free at"):
        ModelCache(tmp_path).check_space("a", 10**15)


INDEX = json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}})


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        ({}, False),
        ({"config.json": "{}", "tokenizer.json": ""}, False),
        ({"config.json": "{}", "tokenizer.json": "", "model.safetensors": ""}, True),
        ({"config.json": "{}", "model.safetensors": ""}, False),
        ({"config.json": "{}", "vocab.json": "", "pytorch_model.bin": ""}, True),
        ({"config.json": "{}", "tokenizer.json": "", "model-00001-of-00002.safetensors": ""}, False),
        (
            {
                "config.json": "{}", "tokenizer.json": "", "model-00001-of-00002.safetensors": "",
                "model-00002-of-00002.safetensors": "",
            },
            True,
        ),
        (
            {
                "config.json": "{}", "tokenizer.json": "", "model.safetensors.index.json": INDEX,
                "model-00001-of-00002.safetensors": "",
            },
            False,
        ),
        (
            {"config.json": '{"auto_map": {"A": "other/code--m.A"}}', "vocab.txt": "", "model.safetensors": ""},
            False,
        ),
        ({"config.json": '{"auto_map": {"AutoModel": "m.Model"}}', "vocab.txt": "", "model.safetensors": ""}, True),
        ({"config.json": "[", "tokenizer.json": "", "model.safetensors": ""}, False),
    ],
)  # fmt: skip
def test_complete(names: dict[str, str], whole: bool, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, content in names.items():
        (snapshot / name).write_text(content)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text(COMMIT)
    assert ModelCache(tmp_path).has("a/b") is whole


@pytest.mark.parametrize(
    ("given", "patterns", "taken"),
    [
        (["a.json", "m.safetensors", "m.bin", "onnx/m.onnx", "m.gguf"], (), ["a.json", "m.safetensors"]),
        (["m.safetensors", "consolidated.safetensors", "original/c.pth"], (), ["m.safetensors"]),
        (["a.json", "pytorch_model.bin", "tf_model.h5"], (), ["a.json", "pytorch_model.bin"]),
        (
            ["a.json", "unet/m.safetensors", "vae/m.safetensors"],
            (),
            ["a.json", "unet/m.safetensors", "vae/m.safetensors"],
        ),
        (["README.md", "q4.gguf", "q8.gguf"], (), ["README.md", "q4.gguf", "q8.gguf"]),
        (["README.md", "q4.gguf", "q8.gguf"], ("*q4*", "*.md"), ["README.md", "q4.gguf"]),
    ],
)
def test_what_is_fetched(given: list[str], patterns: tuple[str, ...], taken: list[str]) -> None:
    files = [CachedFile(path, 1, HASH) for path in given]
    assert [file.path for file in chosen(files, patterns)] == taken


@pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../b", "a//b", "./a", "a\nb", "a\\b", "x" * 501])
def test_a_path_that_leads_elsewhere(path: str) -> None:
    with pytest.raises(Invalid, match="not the path of a file"):
        check_names("main", COMMIT, [CachedFile(path, 1, HASH)])


def test_other_names_that_cannot_be() -> None:
    check_names("refs/pr/1", COMMIT, FILES)
    for revision, commit, file in (
        ("../x", COMMIT, FILES[0]), ("a/./b", COMMIT, FILES[0]), ("main", "7ae5", FILES[0]),
        ("main", COMMIT, CachedFile("a", -1, HASH)), ("main", COMMIT, CachedFile("a", 1, "../../x")),
    ):  # fmt: skip
        with pytest.raises(Invalid):
            check_names(revision, commit, [file])


def test_where_it_is() -> None:
    home, cache = Path("/home/ada"), Path("/scratch/cache")
    assert cache_of(Site(), "vllm", cache, home).root == Path("/home/ada/.cache/huggingface/hub")
    assert cache_of(Site(runtime="docker"), "vllm", cache, home).root == cache / "huggingface" / "hub"
    site = Site(cache_dir=str(cache), engines={"vllm": Engine(environment={"HF_HUB_CACHE": "/models"})})
    assert cache_of(site, "sglang", cache, home).root == cache / "huggingface" / "hub"
    assert cache_of(site, "vllm", cache, home).root == Path("/models")
    assert cache_of(site, "sglang", cache, home, {"HF_HOME": "/mine"}).root == Path("/mine/hub")
    assert root_of({"XDG_CACHE_HOME": "/x"}, home) == Path("/x/huggingface/hub")


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ([], False),
        (["--enable-prefix-caching", "--quantization", "awq", "--chat-template", "/data/t.jinja"], False),
        (["--tokenizer", "gpt2"], True),
        (["--speculative-config", '{"model": "owner/draft"}'], True),
        (["--lora-modules=sql=owner/adapter"], True),
        (["--revision", "v2"], True),
        (["--code-revision=v2"], True),
        (["--something", "owner/name"], True),
    ],
)
def test_arguments_that_name_something_else_of_the_hub(words: list[str], more: bool) -> None:
    assert wants_more(words) is more


def test_words_for_sizes_and_names() -> None:
    assert [in_gb(size) for size in (15_231_271_888, 4_000_000)] == ["15.2 GB", "4.0 MB"]
    assert [is_hub_id(name) for name in ("gpt2", "a/b", "/data/a", "~/a", "a/b/c", "a/..b")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_gits_hash(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")  # echo hello | git hash-object --stdin
    assert digest_of(tmp_path / "x", CachedFile("x", 6, HASH)) == "ce013625030ba8dba906f756967f9e9ca394464a"

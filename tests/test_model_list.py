"""models.yaml: what it says, and what it must not say."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import resolve
from orchestrator.model_list import ListedModel, ModelList, check_entries, config_of, read_model_list
from orchestrator.recipes import RecipeBook, builtin_recipes
from orchestrator.settings import SettingsError, Site

BOOK = RecipeBook([builtin_recipes()])

THREE = """
slots:
  main: {SWITCH_TIMEOUT_SEC: 900, max_wait: 30, default: qwen3-30b}
models:
  gpt-oss120:
    source: {type: huggingface_repo, value: openai/gpt-oss-120b}
    backend: {image: "docker://vllm/vllm-openai:v0.11.2", port: 8005, vllm_args: "--max-model-len 8192"}
    slot: main
  qwen3-30b:
    source: {type: huggingface_repo, value: Qwen/Qwen3-30B-A3B}
    aliases: [Qwen/Qwen3]
    slot: main
    idle_minutes: 30
    price: 1.5
  qwen3-235b-4bit:
    source: {type: local_path, value: /models/qwen3-235b-awq}
    backend: {vllm_args: ["--enforce-eager"]}
    quantization: awq
    config: {resources: {gpu: 4, time_limit: 480}}
"""


def listed(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return read_model_list(path)


def test_the_entries_become_configs_of_services(tmp_path: Path) -> None:
    found = listed(tmp_path, THREE)
    assert (found.slots["main"].switch_timeout, found.slot_names()) == (900, ["main"])
    assert list(found.inside("main")) == ["gpt-oss120", "qwen3-30b"]
    plans = {}
    for name, model in found.models.items():
        recipe = BOOK.find(model.recipe)
        config = config_of(name, model.model_copy(update={"idle_minutes": None}), recipe, model.slot)
        plans[name] = resolve(recipe, config, Site())
    first, second, third = plans.values()
    assert (first.model, first.served_names, first.port) == ("openai/gpt-oss-120b", ("gpt-oss120", "main"), 8005)
    assert first.parameters["VLLM_EXTRA_ARGS"] == ["--max-model-len", "8192"]
    assert second.served_names == ("qwen3-30b", "Qwen/Qwen3", "main")
    assert (third.model, third.served_names) == ("/models/qwen3-235b-awq", ("qwen3-235b-4bit",))
    assert third.parameters["VLLM_EXTRA_ARGS"] == ["--enforce-eager", "--quantization", "awq"]
    assert (third.resources.gpu, third.resources.time_limit) == (4, 480)


def test_no_file_is_no_model() -> None:
    assert read_model_list(None).models == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [a]", ["models", "dict"]),
        ("models: {a: {sauce: 1}}", ["models.a.sauce", "source"]),
        ("models: {a: {source: {type: ftp, value: x}}}", ["models.a.source.type", "local_path"]),
        ("models: {a: {backend: {port: 80}}}", ["models.a.backend.port", "1024"]),
        ("models: {a/b: {}}", ["'a/b'", "letters, digits"]),
        ("models: {a: {aliases: ['b c']}}", ["'b c'", "an alias of a"]),
        ("models: {a: {aliases: [b]}, b: {}}", ["'b'", "an alias of a", "a model"]),
        ("models: {a: {slot: a}}", ["'a'", "a slot", "a model"]),
        ("slots: {s: {}}", ["'s'", "has no model"]),
        ("slots: {s: {default: b}}\nmodels: {a: {slot: s}}", ["slots.s.default", "'b'", "one of a"]),
        ("models: {a: {slot: s, config: {keep_alive: true}}}", ["models.a", "keep_alive"]),
        ("models: {a: {slot: s}}\nslots: {s: {max_wate: 1}}", ["max_wate", "'max_wait'"]),
        ("models: {a: [", ["cannot read the model list"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as told:
        listed(tmp_path, text)
    assert [word for word in ["models.yaml", *words] if word not in str(told.value)] == []


@pytest.mark.parametrize(
    ("recipe", "entry", "words"),
    [
        ("vllm-single-node", {}, ["models.m", "needs a source"]),
        ("llamacpp-cpu", {"aliases": ["x"]}, ["models.m", "one name only"]),
        ("llamacpp-cpu", {"quantization": "awq"}, ["models.m", "no further arguments", "--quantization awq"]),
        ("ollama", {"source": {"type": "huggingface_repo", "value": "llama3"}}, ["models.m", "'llama3'"]),
        ("vector-db/qdrant", {}, ["models.m", "does not serve a model"]),
    ],
)
def test_an_entry_that_its_recipe_cannot_serve(recipe: str, entry: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as told:
        config_of("m", ListedModel.model_validate(entry), BOOK.find(recipe), None)
    assert [word for word in words if word not in str(told.value)] == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [({}, ["models.m", "needs a source"]), ({"recipe": "vllm-sinlge"}, ["models.m.recipe", "vllm-sinlge"])],
)
def test_an_entry_that_could_never_be_started_ends_the_start(entry: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as told:
        check_entries(ModelList.model_validate({"models": {"m": entry}}), BOOK)
    assert [word for word in words if word not in str(told.value)] == []


def test_llama_cpp_is_given_the_weights_and_the_name() -> None:
    entry = ListedModel.model_validate({"source": {"type": "local_path", "value": "/models/m.gguf"}})
    recipe = BOOK.find("llamacpp-cpu")
    plan = resolve(recipe, config_of("m", entry, recipe, "main"), Site())
    assert (plan.served_names, plan.parameters["LLAMACPP_WEIGHTS"]) == (("m",), "/models/m.gguf")

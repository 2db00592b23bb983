"""Recipes as folders: what is found under which name, and what a broken one says."""

from pathlib import Path

import pytest
import yaml

from orchestrator.errors import NotFound
from orchestrator.recipes import RecipeBook, builtin_recipes, read_recipe
from orchestrator.settings import SettingsError

GOOD = """
name: tei
category: inference
description: Embeddings.
engine: tei
command: [text-embeddings-router]
ports: [8080]
port_parameter: TEI_PORT
parameters:
  TEI_PORT: {description: The port., type: integer, default: 8080}
"""
JOB = '{% extends "base.sh.j2" %}{% block command %}{{ command }}{% endblock %}\n'


@pytest.fixture(scope="module")
def book() -> RecipeBook:
    return RecipeBook([builtin_recipes()])


def write(root: Path, content: str = GOOD, name: str = "inference/tei", job: str | None = JOB) -> Path:
    """A recipe folder below `root`."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(content)
    if job is not None:
        (folder / "job.sh.j2").write_text(job)
    return folder


def fault(folder: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read_recipe(folder)
    return str(caught.value)


def test_every_folder_of_the_built_in_recipes_is_found(book: RecipeBook) -> None:
    folders = {f"{p.parent.parent.name}/{p.parent.name}" for p in builtin_recipes().glob("*/*/job.sh.j2")}
    assert (
        {recipe.full_name for recipe in book.all()}
        == folders
        >= {
            "inference/llamacpp-cpu",
            "inference/vllm-single-node",
        }
    )


def test_the_defaults_of_the_contract(book: RecipeBook) -> None:
    recipe = book.find("vllm-single-node")
    assert recipe.resources.model_dump() == {"nodes": 1, "cpu": 8, "memory": "64G", "gpu": 4, "time_limit": 15}
    assert recipe.ports == [8001]
    assert recipe.parameters["VLLM_MODEL"].default == "Qwen/Qwen2.5-0.5B-Instruct"


def test_a_public_recipe_has_the_keys_of_the_contract(book: RecipeBook) -> None:
    for recipe in book.all():
        public = recipe.public()
        assert public["path"] == recipe.full_name == f"{public['category']}/{public['name']}"
        wanted = {"name", "category", "version", "description", "ports", "resources", "path", "image", "parameters"}
        assert wanted <= public.keys()
        for parameter in public["parameters"].values():
            assert {"description", "type", "default", "required", "location"} <= parameter.keys()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("inference/vllm-single-node", "inference/vllm-single-node"),
        ("vllm-single-node", "inference/vllm-single-node"),
        ("inference/vllm", "inference/vllm-single-node"),
        ("vllm", "inference/vllm-single-node"),
        ("inference/llamacpp-cpu", "inference/llamacpp-cpu"),
        ("llamacpp-cpu", "inference/llamacpp-cpu"),
    ],
)
def test_a_recipe_is_found_by_its_full_name_its_bare_name_and_its_alias(
    book: RecipeBook, name: str, found: str
) -> None:
    assert book.find(name).full_name == found


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vllm-singel-node", "vllm-single-node"),
        ("inference/vllm-single-nod", "inference/vllm-single-node"),
        ("llamacp-cpu", "llamacpp-cpu"),
    ],
)
def test_an_unknown_name_lists_what_there_is_and_the_nearest(book: RecipeBook, name: str, meant: str) -> None:
    with pytest.raises(NotFound) as caught:
        book.find(name)
    text = str(caught.value)
    assert f"{name!r} not found. Did you mean {meant!r}?" in text
    assert "inference/llamacpp-cpu, " in text and "inference/vllm-single-node" in text


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "../../etc/passwd",
        "inference/../inference/vllm-single-node",
        "../recipes/inference/vllm-single-node",
        "/inference/vllm-single-node",
        "inference//vllm-single-node",
        "inference/vllm-single-node/",
        "inference\\vllm-single-node",
        "C:\\",
        "%2e%2e%2fvllm",
        "inference%2Fvllm-single-node",
        "vllm-single-node\0",
        "vllm-single-node\n",
        "vllm-single-node ",
        "VLLM-SINGLE-NODE",
        "vllm-single-nоde",  # noqa: RUF001 - a Cyrillic o
        "vllm‑single‑node",  # noqa: RUF001 - non-breaking hyphens
        "ｖllm-single-node",  # noqa: RUF001 - full width
        "\ud800",
        "x" * 5000,
        "vllm-single-node" * 300,
        "$(touch /tmp/x)",
        "{{ 7*7 }}",
        "*",
    ],
)
def test_an_evil_name_is_not_found(book: RecipeBook, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        book.find(name)
    text = str(caught.value)
    text.encode()  # it can be sent
    assert text.isprintable() and len(text) < 1000


def test_a_bare_name_in_two_categories_is_ambiguous(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, GOOD.replace("category: inference", "category: other"), "other/tei")
    book = RecipeBook([tmp_path])
    with pytest.raises(NotFound, match=r"ambiguous: inference/tei, other/tei"):
        book.find("tei")
    assert book.find("other/tei").category == "other"


def test_the_first_folder_that_has_a_name_wins(tmp_path: Path) -> None:
    mine = (builtin_recipes() / "inference/llamacpp-cpu/recipe.yaml").read_text()
    write(tmp_path, mine.replace("version: 1.0.0", 'version: "9"'), "inference/llamacpp-cpu")
    for folders, version in (
        ([tmp_path, builtin_recipes()], "9"),
        ([builtin_recipes(), tmp_path], "1.0.0"),
    ):
        assert RecipeBook(folders).find("llamacpp-cpu").version == version


def test_a_recipe_of_ones_own_may_have_the_name_of_an_alias(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("name: tei", "name: vllm"), "inference/vllm")
    book = RecipeBook([tmp_path, builtin_recipes()])
    assert book.find("inference/vllm").full_name == book.find("vllm").full_name == "inference/vllm"


def test_a_recipe_folder_that_does_not_exist_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"{tmp_path}/nowhere does not exist; see ORCHESTRATOR_RECIPES"):
        RecipeBook([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: tei", "name: [", ["while parsing a flow", "line 2"]),
        ("name: tei", "\tname: tei", ["'\\t'", "line 2"]),
        (GOOD, "", ["expected `name:`"]),
        (GOOD, "- a list", ["expected `name:`"]),
        (GOOD, "when: 2001-99-99", ["month must be in 1..12"]),
        (GOOD, "[" * 5000, ["recursion"]),
        ("engine: tei\n", "", ["engine: Field required"]),
        ("ports: [8080]", "ports: []", ["ports: List should have at least 1 item"]),
        ("ports: [8080]", "ports: [many]", ["ports.0: Input should be a valid integer"]),
        ("engine: tei", "engine: tei\ncomand: x", ["comand: Extra inputs are not permitted"]),
        ("engine: tei", "engine: tei\n7: x", ["7: Keys should be strings"]),
        ("default: 8080", "defualt: 8080", ["parameters.TEI_PORT.defualt: Extra inputs"]),
        ("type: integer", "type: int", ["parameters.TEI_PORT.type: Input should be 'string', 'integer'"]),
        ("default: 8080", 'default: 8080, pattern: "("', ["parameters.TEI_PORT.pattern", "not a regular expression"]),
        ("port_parameter: TEI_PORT", "port_parameter: PORT_TEI", ["'PORT_TEI' is not among the parameters (TEI_PORT)"]),
        ("TEI_PORT: {", "TEI PORT: {", ["TEI_PORT", "is not among"]),
        ("parameters:", "parameters:\n  A B: {description: x}", ["'A B' is not a name for an environment variable"]),
        ("engine: tei", 'engine: tei\nenvironment: {"A=B": x}', ["'A=B' is not a name for an environment variable"]),
        ("name: tei", "name: other", ["'other' must be the folder's name 'tei'"]),
        ("category: inference", "category: other", ["'other' must be the folder's name 'inference'"]),
    ],
)
def test_a_broken_recipe_says_file_and_fault(tmp_path: Path, old: str, new: str, says: list[str]) -> None:
    assert GOOD.count(old) == 1
    folder = write(tmp_path, GOOD.replace(old, new))
    text = fault(folder)
    assert [part for part in [str(folder / "recipe.yaml"), *says] if part not in text] == [], text


def test_a_folder_name_that_no_client_could_send_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD.replace("name: tei", "name: Tei x"), "inference/Tei x")
    assert "'Tei x' must be the folder's name 'Tei x' (a-z, 0-9, - _ .)" in fault(folder)


def test_a_recipe_without_a_job_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path, job=None)
    assert fault(folder) == f"{folder} has no job.sh.j2"


@pytest.mark.parametrize("part", ["recipe.yaml", "job.sh.j2", ""])
def test_a_link_that_leads_out_of_the_recipes_is_told(tmp_path: Path, part: str) -> None:
    folder = write(tmp_path / "book")
    outside = tmp_path / "outside"
    (folder / part).rename(outside)
    (folder / part).symlink_to(outside)
    assert fault(folder).startswith(f"{folder / part if part else folder} is a link that leads out of")
    within = tmp_path / "book" / "within"
    outside.rename(within)
    (folder / part).unlink()
    (folder / part).symlink_to(within)
    assert read_recipe(folder).name == "tei"


@pytest.mark.parametrize("parameter", ["MY_KEY: {", "MINE: {alias: token, ", "MINE: {also: [MY_SECRET], "])
def test_a_parameter_that_is_secret_by_its_name_is_told(tmp_path: Path, parameter: str) -> None:
    folder = write(tmp_path, f"{GOOD}  {parameter}description: x}}\n")
    assert "is secret by its name, but parameters stand in the script" in fault(folder)


def test_a_secret_of_a_recipe_is_not_shown(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, f"{GOOD}environment: {{MY_TOKEN: planted, MINE: shown}}\n"))
    assert recipe.public()["environment"] == {"MY_TOKEN": "***", "MINE": "shown"}


def test_a_recipe_that_is_not_text_says_file_and_fault(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "recipe.yaml").write_bytes(b"name: \xff\xfe\n")
    assert f"cannot read the recipe {folder}/recipe.yaml: " in fault(folder)


def test_one_broken_recipe_is_told_when_the_book_is_made(tmp_path: Path) -> None:
    write(tmp_path, GOOD + "unknown: 1\n")
    with pytest.raises(SettingsError, match=r"inference/tei/recipe.yaml:\n  unknown: Extra inputs"):
        RecipeBook([tmp_path, builtin_recipes()])


def test_a_folder_cannot_be_set_from_inside_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD + "folder: /etc\n")
    assert read_recipe(folder).folder == folder


def test_every_default_of_a_built_in_recipe_is_within_its_own_bounds(book: RecipeBook) -> None:
    for recipe in book.all():
        content = yaml.safe_load((recipe.folder / "recipe.yaml").read_text())
        assert set(content["parameters"]) == set(recipe.parameters)
        for name, parameter in recipe.parameters.items():
            if isinstance(parameter.default, int | float):
                low, high = parameter.minimum, parameter.maximum
                assert low is not None and high is not None and low <= parameter.default <= high, name

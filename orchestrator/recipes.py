"""Recipes: folders `CATEGORY/NAME/` with a `recipe.yaml` that says what can be set and a `job.sh.j2` that is the job.

docs/recipes.md explains how to write one. Names come from a listing of the folders, never from a path a client typed.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from orchestrator.confidential import is_secret, masked
from orchestrator.errors import NotFound
from orchestrator.settings import SettingsError

Value = str | int | float | bool | list[str] | None

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Parameter(BaseModel):
    """One thing that a user may set in `config.environment` under its own name, or in `config` under its `alias`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    type: Literal["string", "integer", "number", "boolean", "words"] = "string"  # words: a list of arguments
    default: Value = None
    required: bool = False
    location: Literal["root", "environment"] = "environment"
    alias: str | None = None  # the key in `config` itself, e.g. `model` for VLLM_MODEL
    also: list[str] = []  # further spellings of the name in `config.environment`
    minimum: float | None = None
    maximum: float | None = None
    choices: list[str] | None = None
    pattern: str | None = None  # a regular expression that the whole of a string must match
    pattern_hint: str | None = None  # the pattern in words, for the error

    @field_validator("pattern")
    @classmethod
    def _is_a_regular_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as exc:
            raise ValueError(f"{value!r} is not a regular expression: {exc}") from exc
        return value


class Resources(BaseModel):
    """What a job asks for, per node. The words are those of the HTTP contract; `time_limit` is in minutes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int = 1
    cpu: int = 1
    memory: str = "4G"
    gpu: int = 0
    time_limit: int = 60


class Recipe(BaseModel):
    """A recipe as its folder describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    category: str
    version: str = "1.0.0"
    description: str
    engine: str  # looked up in [site.engines.<engine>]
    command: list[str]  # the words that start the engine where the site names none; `{python}` is the interpreter
    container_command: list[str] = []  # the same in the recipe's image, where that differs
    image: str | None = None  # where the site's runtime is a container and the site names no image
    ports: list[int] = Field(min_length=1)
    port_parameter: str | None = None  # the parameter that overrides ports[0]
    model_parameter: str | None = None  # the parameter that holds the model
    served_name_parameter: str | None = None  # the parameter that renames it for clients
    source_parameter: str | None = None  # the parameter of the weights where `model_parameter` is only their name
    aliases: bool = False  # whether its engine serves a model under several names
    gpus_per_replica_parameter: str | None = None  # its presence makes the service a replica group
    volume_parameter: str | None = None  # the parameter that names a folder which outlives the job
    health: str = "/health"  # answers 200 when the engine serves
    models: str | None = None  # an OpenAI list of the models served
    environment: dict[str, str] = {}
    exports: list[str] = []  # what the block `setup` exports, so that a container is given it too
    resources: Resources = Resources()
    max_nodes: int = 1
    parameters: dict[str, Parameter] = {}
    folder: Path = Path()

    @property
    def full_name(self) -> str:
        return f"{self.category}/{self.name}"

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        for role in (
            self.port_parameter,
            self.model_parameter,
            self.served_name_parameter,
            self.source_parameter,
            self.gpus_per_replica_parameter,
            self.volume_parameter,
        ):
            if role is not None and role not in self.parameters:
                raise ValueError(f"{role!r} is not among the parameters ({', '.join(self.parameters)})")
        for name in (*self.environment, *self.exports, *self.parameters):
            if not ENVIRONMENT_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a name for an environment variable")
        for name, parameter in self.parameters.items():
            for spelling in (name, parameter.alias or "", *parameter.also):
                if is_secret(spelling):
                    raise ValueError(
                        f"the parameter {name} ({spelling!r}) is secret by its name, but parameters stand in the "
                        "script; leave it out: what a user sets in config.environment is a variable of the job anyway"
                    )
        return self

    def public(self) -> dict[str, Any]:
        """The recipe as `GET /recipes` shows it."""
        shown = {
            name: p.model_dump(exclude={"pattern", "pattern_hint"}, exclude_none=True)
            | {"default": p.default, "required": p.required, "location": p.location}
            for name, p in self.parameters.items()
        }
        return {
            "name": self.name,
            "category": self.category,
            "version": self.version,
            "description": self.description,
            "engine": self.engine,
            "ports": self.ports,
            "resources": self.resources.model_dump(),
            "path": self.full_name,
            "image": self.image,
            "environment": masked(self.environment),
            "parameters": shown,
        }


def builtin_recipes() -> Path:
    """The folder of the recipes that come with the package: inside it when installed, beside it in a checkout."""
    inside = Path(__file__).parent / "builtin_recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


class RecipeBook:
    """All recipes below some folders; the first folder that has a name wins. Read once, when it is made."""

    # Spellings of older clients.
    ALIASES = {"inference/vllm": "inference/vllm-single-node", "vllm": "inference/vllm-single-node"}  # noqa: RUF012

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [folder.expanduser().resolve() for folder in folders]
        self._recipes: dict[str, Recipe] = {}
        for folder in self.folders:
            for recipe in _read_folder(folder):
                self._recipes.setdefault(recipe.full_name, recipe)

    def all(self) -> list[Recipe]:
        return [self._recipes[name] for name in sorted(self._recipes)]

    def find(self, name: str) -> Recipe:
        """The recipe called `category/name` or `name`. Raises NotFound with the list of what there is."""
        matching = self._called(name) or self._called(self.ALIASES.get(name, name))
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise NotFound(f"Recipe {name!r} is ambiguous: {_listed(r.full_name for r in matching)}")
        raise NotFound(self._unknown(name))

    def _called(self, name: str) -> list[Recipe]:
        return [r for r in self.all() if name in (r.full_name, r.name)]

    def _unknown(self, name: str) -> str:
        known = list(self._recipes)
        near = difflib.get_close_matches(name[:200], known + [r.name for r in self._recipes.values()], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"Recipe {name[:200]!r} not found.{hint} There are: {_listed(known)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _read_folder(folder: Path) -> list[Recipe]:
    if not folder.is_dir():
        raise SettingsError(f"the recipe folder {folder} does not exist; see ORCHESTRATOR_RECIPES")
    return [read_recipe(path.parent) for path in sorted(folder.glob("*/*/recipe.yaml"))]


def _check_within(book: Path, *parts: Path) -> None:
    """Raises SettingsError where a link leads out of a folder of recipes."""
    for part in parts:
        if not part.resolve().is_relative_to(book.resolve()):
            raise SettingsError(
                f"{part} is a link that leads out of the recipe folder {book}, to {part.resolve()}; "
                "copy it there, or name its own folder in ORCHESTRATOR_RECIPES"
            )


def read_recipe(folder: Path) -> Recipe:
    """The recipe of one folder. Raises SettingsError naming the file and what is wrong in it."""
    path = folder / "recipe.yaml"
    _check_within(folder.parent.parent, folder, path, folder / "job.sh.j2")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise SettingsError(f"{path}: expected `name:`, `category:`, … as a mapping")
        recipe = Recipe.model_validate(content | {"folder": folder})
    except ValidationError as exc:
        faults = [f"\n  {'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in exc.errors()]
        raise SettingsError(f"wrong recipe {path}:{''.join(faults)}") from exc
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as exc:
        raise SettingsError(f"cannot read the recipe {path}: {exc}") from exc
    for part, is_called in ((recipe.category, folder.parent.name), (recipe.name, folder.name)):
        if part != is_called or not _NAME.fullmatch(part):
            raise SettingsError(f"{path}: {part!r} must be the folder's name {is_called!r} (a-z, 0-9, - _ .)")
    if not (folder / "job.sh.j2").is_file():
        raise SettingsError(f"{folder} has no job.sh.j2")
    return recipe

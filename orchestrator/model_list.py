"""The models that this orchestrator offers, in `models.yaml`: what sleeps is started when it is asked for.

    slots:
      main: {max_wait: 60}
    models:
      qwen3-30b:
        source: {type: huggingface_repo, value: Qwen/Qwen3-30B-A3B}
        backend: {vllm_args: ["--max-model-len", "32768"]}
        config: {resources: {gpu: 2, time_limit: 480}}
        slot: main

docs/slots.md explains each word.
"""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import NotFound
from orchestrator.recipes import Recipe, RecipeBook
from orchestrator.settings import SettingsError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # part of a URL
_ALIAS = re.compile(r"[A-Za-z0-9_./@+=-]{1,256}")
_ARGUMENTS = ("vllm_args", "sglang_args")
"""Aliases of the parameter that takes further arguments of an engine."""


class Source(BaseModel):
    """Where the weights are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["local_path", "huggingface_repo"]
    value: str = Field(min_length=1, max_length=1024)


def _words(value: Any) -> Any:
    return shlex.split(value) if isinstance(value, str) else value


class Backend(BaseModel):
    """`image`: in place of the site's, where engines run in containers. `vllm_args`: further arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = None
    port: int | None = Field(default=None, ge=1024, le=65535)
    vllm_args: Annotated[list[str], BeforeValidator(_words)] = []


class ListedModel(BaseModel):
    """One model by its logical name. `config` is that of a service, see `GET /recipes/{name}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = "inference/vllm-single-node"
    source: Source | None = None
    backend: Backend = Backend()
    quantization: str | None = None
    config: dict[str, Any] = {}
    aliases: tuple[str, ...] = ()
    slot: str | None = None
    idle_minutes: float | None = Field(default=None, ge=0)  # without a request, until its job is ended; 0: never
    price: float | None = Field(default=None, ge=0)  # of an hour of its job, in the currency of [prices]


class Policy(BaseModel):
    """When a slot's models take each other's place. All times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    # From the start of a job until its engine answers, the queue included.
    switch_timeout: float = Field(
        default=3600, gt=0, validation_alias=AliasChoices("switch_timeout", "SWITCH_TIMEOUT_SEC")
    )
    max_wait: float = Field(default=60, ge=0)  # while another model is loaded and has requests of its own
    min_serve: float = Field(default=10, ge=0)  # so long a model stays at least while it has requests
    drain_timeout: float = Field(default=300, ge=0)  # for requests under way when another model's turn has come
    retry_after_failure: float = Field(default=60, ge=0)  # until a model that did not load is tried again
    on_failure: Literal["previous", "none"] = "previous"  # what is loaded when a model did not load
    default: str | None = None  # what a request gets that names none of the slot's models while nothing is loaded


@dataclass(frozen=True)
class Listing:
    """What a service knows of its place in the list. `price`: of an hour of its job."""

    model: str
    slot: str
    image: str | None = None
    price: float | None = None


class ModelList(BaseModel):
    """All of the file, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: dict[str, Policy] = {}
    models: dict[str, ListedModel] = {}

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Self:
        taken: dict[str, str] = {}
        for name, what, pattern in self._names():
            if not pattern.fullmatch(name):
                raise ValueError(
                    f"{what} is called {name!r}: use letters, digits and . _ - only (in aliases also / @ + =)"
                )
            if name in taken:
                raise ValueError(f"{name!r} is the name of {taken[name]} and of {what}: give each a name of its own")
            taken[name] = what
        return self

    def _names(self) -> Iterator[tuple[str, str, re.Pattern[str]]]:
        for slot in self.slot_names():
            yield slot, "a slot", _NAME
        for name, model in self.models.items():
            yield name, "a model", _NAME
            for alias in model.aliases:
                yield alias, f"an alias of {name}", _ALIAS

    @model_validator(mode="after")
    def _slots_fit(self) -> Self:
        for name, policy in self.slots.items():
            inside = self.inside(name)
            if not inside:
                raise ValueError(f"the slot {name!r} has no model: say `slot: {name}` at those that belong to it")
            if policy.default is not None and policy.default not in inside:
                raise ValueError(f"slots.{name}.default is {policy.default!r}; choose one of {', '.join(inside)}")
        for name, model in self.models.items():
            if model.slot is not None and model.config.get("keep_alive"):
                raise ValueError(
                    f"models.{name}: a model of a slot has the slot to itself, so no second job may run beside its "
                    "first; leave keep_alive out"
                )
        return self

    def slot_names(self) -> list[str]:
        """Also those that only models name."""
        return list(dict.fromkeys([*self.slots, *(m.slot for m in self.models.values() if m.slot is not None)]))

    def inside(self, slot: str) -> dict[str, ListedModel]:
        """The models that exclude each other in a slot."""
        return {name: model for name, model in self.models.items() if model.slot == slot}


def read_model_list(path: Path | None) -> ModelList:
    """The list in a file, an empty one for None. Raises SettingsError that names the place and what is allowed."""
    if path is None:
        return ModelList()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as exc:
        raise SettingsError(f"cannot read the model list {path}: {exc}") from exc
    try:
        return ModelList.model_validate(content or {})
    except ValidationError as exc:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}{_meant(e)}" for e in exc.errors()]
        raise SettingsError("\n  ".join([f"the model list {path} is wrong:", *lines])) from exc


def check_entries(listed: ModelList, book: RecipeBook) -> None:
    """Raises SettingsError for an entry that could never be started."""
    for name, model in listed.models.items():
        try:
            recipe = book.find(model.recipe)
        except NotFound as exc:
            raise SettingsError(f"models.{name}.recipe: {exc}") from exc
        config_of(name, model, recipe, model.slot)


def _meant(error: Mapping[str, Any]) -> str:
    if error["type"] != "extra_forbidden":
        return ""
    known = sorted({*Policy.model_fields, *ListedModel.model_fields, *ModelList.model_fields})
    near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
    return f" (do you mean {near[0]!r}?)" if near else ""


def config_of(name: str, model: ListedModel, recipe: Recipe, slot: str | None) -> dict[str, Any]:
    """The `config` that starts a model so that clients find it by its name. Raises SettingsError.

    What the entry's own `config` says wins, but for the names.
    """
    names = [*model.aliases, *([slot] if slot is not None and recipe.aliases else [])]
    if names and not recipe.aliases:
        raise SettingsError(
            f"models.{name}: an engine of {recipe.full_name} answers to one name only; leave the aliases out"
        )
    config: dict[str, Any] = {}
    if names:
        config["aliases"] = names
    if model.backend.port is not None:
        config["replica_port"] = model.backend.port
    if model.idle_minutes is not None:
        config["idle_timeout"] = model.idle_minutes
    if arguments := _arguments(name, model, recipe):
        config |= arguments
    return config | model.config | _weights(name, model, recipe)


def _arguments(name: str, model: ListedModel, recipe: Recipe) -> dict[str, list[str]]:
    quantization = [] if model.quantization is None else ["--quantization", model.quantization]
    words = [*model.backend.vllm_args, *quantization]
    if not words:
        return {}
    there = [parameter.alias for parameter in recipe.parameters.values() if parameter.alias in _ARGUMENTS]
    if not there or there[0] is None:
        raise SettingsError(f"models.{name}: {recipe.full_name} takes no further arguments ({shlex.join(words)})")
    return {there[0]: words}


def _weights(name: str, model: ListedModel, recipe: Recipe) -> dict[str, str]:
    """Under which parameters the recipe takes the weights and the name."""
    value = None if model.source is None else model.source.value
    if recipe.served_name_parameter is not None:
        if value is None:
            raise SettingsError(f"models.{name} needs a source: {{type: huggingface_repo, value: OWNER/NAME}}")
        return {_key(recipe, recipe.model_parameter): value, _key(recipe, recipe.served_name_parameter): name}
    if recipe.source_parameter is not None:
        source = {} if value is None else {_key(recipe, recipe.source_parameter): value}
        return {_key(recipe, recipe.model_parameter): name, **source}
    if recipe.model_parameter is None:
        raise SettingsError(f"models.{name}: {recipe.full_name} does not serve a model")
    if value not in (None, name):
        raise SettingsError(
            f"models.{name}: an engine of {recipe.full_name} calls its model {value!r}; give the entry that name, or "
            "leave the source out"
        )
    return {_key(recipe, recipe.model_parameter): name}


def _key(recipe: Recipe, parameter: str | None) -> str:
    assert parameter is not None
    return recipe.parameters[parameter].alias or parameter


def known(names: Mapping[str, Any], asked: str, what: str) -> NotFound:
    """There is none of that name."""
    near = difflib.get_close_matches(asked[:100], names, 1)
    hint = f" Do you mean {near[0]!r}?" if near else ""
    return NotFound(f"There is no {what} {asked[:100]!r}.{hint} There is {', '.join(names) or 'none'}.")

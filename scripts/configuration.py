"""Write docs/configuration.md from the settings: `make configuration`. A test fails when it differs from them.

What a setting does stands below its field, as a string: read here from the source, so that a start of either half
has nothing to do with it.
"""

import ast
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from gateway.settings import Settings as Gateway
from orchestrator.settings import Budget, Engine, Prices, Settings, Site, Vast

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
_NAMES: dict[Any, str] = {str: "text", SecretStr: "text, secret", int: "whole number", float: "number",
                          bool: "true or false", Path: "path"}  # fmt: skip
_BOUNDS = {Ge: "at least {}", Gt: "above {}", Le: "at most {}", Lt: "below {}"}
_NONE = "\N{EN DASH}"
_INTRO = """\
# Settings

All that can be set, made from the settings of the code (`make configuration`).

Each half reads its settings once, when it starts: variables of the environment win over the TOML file, which wins over
the defaults. A wrong name or value ends the start with a sentence that names it.
"""
_OTHERS = """\
## Variables of others

| variable | |
|---|---|
| `HF_ENDPOINT` | a mirror of the Hugging Face Hub; also in `[site.environment]` ([models](models.md#settings)) |
| `HF_HUB_OFFLINE` | `1`: the orchestrator never asks the hub |
| `HTTPS_PROXY`, `NO_PROXY` | the proxy by which the orchestrator reaches the hub and vast.ai |
| `MODELS_YAML_PATH` | as `ORCHESTRATOR_MODELS`, where that is not set |
| `XDG_CONFIG_HOME`, `XDG_CACHE_HOME` | in place of `~/.config` and `~/.cache` |
| `SLUICE_COMPILED` | `1` while a wheel is built: its data path is compiled |
"""


class Undescribed(Exception):
    """A setting has no string below it."""


@dataclass(frozen=True)
class Section:
    """One table. `prefix`: of the variables, None where there are none; `others`: those that are called otherwise."""

    title: str
    about: str
    model: type[BaseModel]
    prefix: str | None = None
    others: tuple[tuple[str, str], ...] = ()


SECTIONS = (
    Section(
        "The gateway", "In the file of `sluice gateway --config FILE`, or of `GATEWAY_CONFIG`.", Gateway, "GATEWAY_"
    ),
    Section(
        "The orchestrator",
        "In the file of `sluice orchestrator --config FILE`, or of `ORCHESTRATOR_CONFIG`. A table can also be given as "
        "JSON in the variable of its name, such as `ORCHESTRATOR_SITE`.",
        Settings,
        "ORCHESTRATOR_",
    ),
    Section("`[site]`", "What is special about a cluster or a workstation. Of the orchestrator's file.", Site),
    Section(
        "`[site.engines.NAME]`",
        "How one engine is started there; NAME is the `engine` of its recipe: `vllm`, `sglang`, `ollama`, `llamacpp`, "
        "`qdrant`, or that of a recipe of yours.",
        Engine,
    ),
    Section("`[prices]`", "What is used is counted in any case; prices make money of it ([costs](costs.md)).", Prices),
    Section("`[[budgets]]`", "As many as you like ([costs](costs.md#budgets)).", Budget),
    Section(
        "`[vast]`",
        "A GPU that is rented at vast.ai ([a rented GPU](vast.md)).",
        Vast,
        "VAST_",
        (("control_api_key", "CONTROL_API_KEY"),),
    ),
)


def text() -> str:
    """The page."""
    return "\n".join([_INTRO, *map(_section, SECTIONS), _OTHERS])


def _section(section: Section) -> str:
    head = "variable, in the file" if section.prefix else "in the file"
    lines = [f"## {section.title}", "", section.about, ""]
    lines += [_row(head, "is", "default", "what it does"), _row(*["---"] * 4)]
    said, fields = descriptions(section.model), section.model.model_fields
    lines += [_row(_names(section, name), *_facts(field), said[name]) for name, field in fields.items()]
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _names(section: Section, name: str) -> str:
    if section.prefix is None:
        return f"`{name}`"
    variable = dict(section.others).get(name, section.prefix + name.upper())
    return f"`{variable}`" + ("" if name == "config" else f"<br>`{name}`")


def _facts(field: FieldInfo) -> list[str]:
    """What a value may be, and the default."""
    bounds = [_BOUNDS[type(one)].format(_number(one)) for one in field.metadata if type(one) in _BOUNDS]
    return [", ".join([_kind(field.annotation), *bounds]), _default(field)]


def _number(bound: Any) -> str:
    (value,) = (getattr(bound, name) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name))
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _kind(kind: Any) -> str:
    origin, words = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (one,) = (word for word in words if word is not NoneType)
        return _kind(one)
    if origin is Annotated:
        return _kind(words[0])
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in words)
    if origin is list:
        return "list of tables" if _is_table(words[0]) else f"list: {_kind(words[0])}"
    if origin is dict:
        return "tables by name" if _is_table(words[1]) else f"table: {_kind(words[1])}"
    return "table" if _is_table(kind) else _NAMES[kind]


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ("", [], {}) or isinstance(value, BaseModel):
        return _NONE
    if isinstance(value, Path):
        return f"`{Path('~') / value.relative_to(Path.home())}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"{value:g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What stands below each field in the source. Raises Undescribed."""
    source = ROOT.joinpath(*model.__module__.split(".")).with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == model.__name__)
    found = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and (said := _string(below)):
            found[field.target.id] = " ".join(said.split())
    for name in model.model_fields:
        if name not in found:
            raise Undescribed(f"{source.name}: {model.__name__}.{name} has no string below it; say what it does")
    return found


def _string(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None


def main() -> int:
    PAGE.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

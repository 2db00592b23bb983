"""A form out of a recipe, and a service's `config` out of what was filled in: pure, but for a request's body."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from gateway.dashboard.asking import Refused

_MOST_BYTES = 256 * 1024
_NAMED = re.compile(r"\bconfig\.(?:environment\.|resources\.)?([A-Za-z_][A-Za-z0-9_]*)")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form, the last value of each. Raises Refused for a form larger than any of ours."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise Refused(413, f"the form is larger than {_MOST_BYTES >> 10} KiB")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000))
    except ValueError as exc:
        raise Refused(400, f"the form cannot be read: {exc}") from exc


@dataclass(frozen=True)
class Field:
    """One value that can be set. `place`: where it stands in `config`. `kind`: text, number, boolean, choice or words.

    `value` is what the form shows at first, `default` what counts where it is left empty. `names`: by which the
    orchestrator's errors may call it.
    """

    name: str
    label: str
    place: tuple[str, ...]
    kind: str = "text"
    help: str = ""
    default: str = ""
    value: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    step: str = "any"
    required: bool = False
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Form:
    """`main` is shown at once, `more` on request."""

    main: tuple[Field, ...]
    more: tuple[Field, ...]

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.main + self.more


_RESOURCES = (
    ("gpu", "GPUs a node", "0 for a job without GPUs."),
    ("time_limit", "Time limit in minutes", "The job ends then, whatever it does."),
    ("nodes", "Nodes", ""),
    ("cpu", "Processor cores a node", ""),
    ("memory", "Memory a node", "A number with M, G or T behind it."),
)
# Of parameters that several recipes have; others are called as in `config`.
_LABELS = {
    "model": "Model",
    "max_model_len": "Longest context, in tokens",
    "gpu_per_replica": "GPUs a replica",
    "volume": "Volume",
    "served_model_name": "The model's name for clients",
    "replica_port": "Port",
    "base_port": "First port",
    "tensor_parallel_size": "GPUs that share the model",
    "gpu_memory_utilization": "Share of the GPUs' memory",
    "vllm_args": "Further arguments",
    "sglang_args": "Further arguments",
}
_MAIN_RESOURCES = ("gpu", "time_limit")
_GENERAL = (
    Field("idle_timeout", "End it when idle for, in minutes", ("idle_timeout",), "number",
          "Without a request for so long. Empty: never, or as the site says.", minimum=0),
    Field("keep_alive", "Keep it running beyond the time limit", ("keep_alive",), "boolean",
          "Another job takes over before this one reaches its limit."),
    Field("account", "Account", ("account",), help="The Slurm account that pays. Empty: the site's."),
)  # fmt: skip
_VARIABLES = Field(
    "variables", "Further variables of the job", ("environment",), "lines", "One NAME=value a line.",
    names=frozenset({"variables"}),
)  # fmt: skip


def form_of(recipe: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Form:
    """The form of a recipe as `GET /api/v1/recipes` has it, filled with `config`."""
    given = config or {}
    parameters = [_parameter(name, about, given) for name, about in recipe["parameters"].items()]
    resources = [_resource(name, label, text, recipe, given) for name, label, text in _RESOURCES]
    main = [field for field in parameters if _is_main(field)]
    main += [field for field in resources if field.name in _MAIN_RESOURCES]
    more = [field for field in resources if field.name not in _MAIN_RESOURCES]
    more += [field for field in parameters if not _is_main(field)]
    more += [_filled(field, given.get(field.name)) for field in _GENERAL]
    variables = {name: value for name, value in _part(given, "environment").items() if not _is_known(name, recipe)}
    text = "\n".join(f"{name}={value}" for name, value in variables.items())
    more.append(replace(_VARIABLES, value=text))
    return Form(tuple(main), tuple(more))


def amended(form: Form, changes: Mapping[str, Any]) -> Form:
    """With the values of a part of a `config`, such as a diagnosis has it."""
    flat = {**changes, **_part(changes, "environment"), **_part(changes, "resources")}

    def changed(field: Field) -> Field:
        named = [name for name in field.names if name in flat]
        return _filled(field, flat[named[0]]) if named else field

    return Form(tuple(changed(field) for field in form.main), tuple(changed(field) for field in form.more))


def config_of(form: Form, given: Mapping[str, str]) -> dict[str, Any]:
    """The `config` of what was filled in: only what differs from the defaults. Raises Refused where it cannot be read.

    Numbers and words are left as they were written: the orchestrator says what is wrong with them.
    """
    config: dict[str, Any] = {}
    for field in form.fields:
        text = given.get(field.name, "").strip()
        if field.kind == "lines":
            _put_variables(config, text)
        elif field.kind == "boolean":
            wanted = bool(text)
            if wanted != (field.default == "true"):
                _put(config, field.place, wanted)
        elif text and text != field.default:
            _put(config, field.place, _value(field, text))
    return config


def field_named(form: Form, text: str) -> Field | None:
    """The field that an error of the orchestrator is about."""
    for name in _NAMED.findall(text):
        for field in form.fields:
            if name in field.names:
                return field
    return None


def _parameter(name: str, about: Mapping[str, Any], given: Mapping[str, Any]) -> Field:
    alias, choices = about.get("alias"), tuple(about.get("choices") or ())
    place = (alias,) if alias else (name,) if about["location"] == "root" else ("environment", name)
    kind = "choice" if choices else {"integer": "number", "string": "text"}.get(about["type"], about["type"])
    names = frozenset({name, *about.get("also", ())} | ({alias} if alias else set()))
    field = Field(
        name=name,
        label=_LABELS.get(alias or name, alias or name),
        place=place,
        kind=kind,
        help=about["description"],
        default=_shown(about["default"]),
        choices=choices,
        minimum=about.get("minimum"),
        maximum=about.get("maximum"),
        step="1" if about["type"] == "integer" else "any",
        required=about["required"],
        names=names,
    )
    places = (given, _part(given, "environment"))
    return _filled(field, next((at[one] for at in places for one in names if at.get(one) is not None), None))


def _resource(name: str, label: str, text: str, recipe: Mapping[str, Any], given: Mapping[str, Any]) -> Field:
    default = _shown(recipe["resources"][name])
    kind = "text" if name == "memory" else "number"
    least = 0.0 if name == "gpu" else 1.0 if kind == "number" else None
    field = Field(
        name, label, ("resources", name), kind, text, default, minimum=least, step="1", names=frozenset({name})
    )
    for at in (_part(given, "resources"), given):
        if name in at:
            return _filled(field, 0 if at[name] is None else at[name])
    return _filled(field, None)


def _filled(field: Field, value: Any) -> Field:
    shown = field.default if value is None else _shown(value)
    return replace(field, value=shown, names=field.names or frozenset({field.name}))


def _is_main(field: Field) -> bool:
    return field.place[-1] in ("model", "gpu_per_replica", "volume", "max_model_len") or field.required


def _is_known(name: str, recipe: Mapping[str, Any]) -> bool:
    return any(name == one or name in about.get("also", ()) for one, about in recipe["parameters"].items())


def _value(field: Field, text: str) -> Any:
    if field.place == ("resources", "gpu") and text == "0":
        return None
    return text


def _put_variables(config: dict[str, Any], text: str) -> None:
    for line in filter(None, (line.strip() for line in text.splitlines())):
        found = _VARIABLE.fullmatch(line)
        if found is None:
            raise Refused(422, f"config.variables: {line[:100]!r} is not NAME=value")
        _put(config, ("environment", found[1]), found[2])


def _put(config: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for key in place[:-1]:
        config = config.setdefault(key, {})
    config[place[-1]] = value


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = config.get(key)
    return part if isinstance(part, Mapping) else {}


def _shown(value: Any) -> str:
    """As a form has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return shlex.join(str(word) for word in value) if isinstance(value, list) else str(value)

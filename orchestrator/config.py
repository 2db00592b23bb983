"""What a user asked for, checked: a recipe and a `config` become a `Plan`, or an Invalid that names the value."""

import difflib
import math
import re
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from orchestrator.confidential import MASK, is_secret
from orchestrator.errors import Invalid
from orchestrator.recipes import ENVIRONMENT_NAME, Parameter, Recipe, Resources, Value
from orchestrator.routing import DEFAULT, POLICIES
from orchestrator.settings import Site

# The variables of base.sh.j2 and those that bash itself keeps: an export of the same name would not reach the engine,
# but change the script (NODE and PORT say where the service is).
SCRIPT_NAMES = re.compile(
    r"RUN|JOB|NODE|PART|PUBLISHED|ENGINES|PORTS?|GPUS|STATES|STARTS|SIGNAL|LOCKS|CLAIM(S|ANT)?|WISH|CODE|ALLOCATED|PLACES|CHOSEN"
    r"|EPHEMERAL|MOST_RESTARTS|FIRST|LAST|PER_REPLICA|AGAIN_AT|STARTED_AT|FAILURES|LEFT|i|comma|claim|pause|place|code"
    r"|RAY_(PID|NODES|NODE_IP|HEAD|HEAD_PORT|ENGINE|FOLDER|PROGRAM|VERSION|OPTIONS|ADDRESS)"
    r"|OLLAMA_(PID|STORE|WANTED|PLACE|TAG|MANIFEST)"
    r"|_|IFS|PS4|ENV|BASH.*|SHELLOPTS|SHLVL|PWD|OLDPWD|CDPATH|UID|EUID|PPID|GROUPS|DIRSTACK|FUNCNAME|PIPESTATUS|LINENO"
    r"|SECONDS|S?RANDOM|EPOCH.*|HISTCMD|OPT(ARG|ERR|IND)|COMP_.*|GLOBIGNORE|EXECIGNORE|POSIXLY_CORRECT|TMOUT|REPLY"
)
# Names that would change what runs, not how: the loader's, the shell's, Python's and Slurm's own. A job runs as its
# user, who may run anything anyway: the refusal keeps nobody out. It protects the script's own promises (its claim, its
# exit file, its ports, the key that the engine asks for), which the programs that it calls must keep, not others.
_FORBIDDEN_NAMES = re.compile(
    rf"{SCRIPT_NAMES.pattern}|LD_.*|GCONV_PATH|GLIBC_TUNABLES|LOCPATH|PATH|HOME|USER|LOGNAME|SHELL|PROMPT_.*|PS[0-9]"
    r"|PYTHON.*|SLURM.*|S(BATCH|RUN|QUEUE|CANCEL|ACCT|CONTROL)_.*|SLUICE.*"
    r"|VLLM_API_KEY|CUDA_VISIBLE_DEVICES|APPTAINER.*|SINGULARITY.*|DOCKER_.*"
)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+:-]{0,127}")
_MEMORY = re.compile(r"(\d{1,9})\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_MEGABYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}
Number = TypeVar("Number", int, float)
Setting = TypeVar("Setting")

_RESOURCES = ("nodes", "cpu", "memory", "gpu", "time_limit")
_BOUNDS = {"cpu": (1, 1024), "gpu": (0, 64)}
_IDLE_MINUTES = (0.1, 525_600)

# A value in an error's text: short, however large or deep it is.
_MOST_ALIASES = 16
_MODEL_NAME = re.compile(r"[A-Za-z0-9_./@+=:-]{1,256}")
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 100, 100


class Plan(BaseModel):
    """A service in full, every default filled in. Kept with the service; the job's script is made from it alone."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    engine: str
    resources: Resources
    parameters: dict[str, Value]
    environment: dict[str, str]  # exported in the job, without the parameters and the secrets
    secrets: tuple[str, ...] = ()  # the names of what else is exported; the values are in the job's own file only
    account: str | None = None
    port: int  # asked for; the job takes the next free one
    model: str | None = None
    served_model_name: str | None = None
    aliases: tuple[str, ...] = ()  # further names by which clients ask for it
    routing: str = DEFAULT  # the policy by which its replicas share requests
    health: str = "/health"
    models: str | None = None
    gpus_per_replica: int | None = None  # None: a single service, not a replica group
    replicas_per_node: int = 1
    volume: str | None = None  # the name of the folder that outlives the job
    keep_alive: bool = False  # another job takes over before this one reaches its limit
    listed: str | None = None  # the model's name in the model list, where it was started from there
    slot: str | None = None  # the slot that it has
    image: str | None = None  # of its containers, before the site's and the recipe's
    price: float | None = None  # of an hour of its job, before that of the site's table
    idle_timeout: float | None = None  # minutes without a request after which it is ended; None: never
    gpu_type: str | None = None  # as the site calls those that it was given

    @property
    def served_names(self) -> tuple[str, ...]:
        """The names by which clients ask for the model."""
        return () if self.served_model_name is None else (self.served_model_name, *self.aliases)

    @property
    def total_replicas(self) -> int:
        return self.replicas_per_node * self.resources.nodes


def resolve(recipe: Recipe, config: Mapping[str, Any], site: Site, *, idle_minutes: float | None = None) -> Plan:
    """The plan for `config`. Raises Invalid with a sentence that names the key, the value and what is allowed.

    `idle_minutes`: the idle timeout of those that say nothing of it.
    """
    environment = _mapping(config, "environment")
    _check_keys(recipe, config, environment)
    parameters = _parameters(recipe, config, environment)
    own_names = {n for name, p in recipe.parameters.items() for n in (name, *p.also)}
    others = {k: _text(f"config.environment.{k}", v) for k, v in environment.items() if k not in own_names}
    exported = recipe.environment | others
    port = parameters.get(recipe.port_parameter or "") or recipe.ports[0]
    model = parameters.get(recipe.model_parameter or "")
    served = parameters.get(recipe.served_name_parameter or "") or model
    volume = parameters.get(recipe.volume_parameter or "")
    resources = _resources(recipe, config, site)
    gpus_per_replica, replicas_per_node = _replicas(recipe, parameters, resources, int(str(port)))
    return Plan(
        recipe=recipe.full_name,
        engine=recipe.engine,
        resources=resources,
        parameters=parameters,
        environment={name: value for name, value in exported.items() if not is_secret(name)},
        secrets=tuple(name for name in exported if is_secret(name)),
        account=_account(config),
        port=int(str(port)),
        model=None if model is None else str(model),
        served_model_name=None if served is None else str(served),
        aliases=_aliases(recipe, config),
        routing=_routing(recipe, config),
        health=recipe.health,
        models=recipe.models,
        gpus_per_replica=gpus_per_replica,
        replicas_per_node=replicas_per_node,
        volume=None if volume is None else str(volume),
        keep_alive=_keep_alive(recipe, config, site),
        idle_timeout=_idle_timeout(config, idle_minutes),
        gpu_type=site.gpu_type if resources.gpu else None,
    )


def secrets_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a user's `config` that others may not see. `resolve` has found nothing wrong with them."""
    return {name: str(value) for name, value in _mapping(config, "environment").items() if is_secret(name)}


def _replicas(
    recipe: Recipe, parameters: Mapping[str, Value], resources: Resources, base_port: int
) -> tuple[int | None, int]:
    """GPUs of each replica and replicas of each node; (None, 1) for a recipe of single services."""
    name = recipe.gpus_per_replica_parameter
    if name is None:
        return None, 1
    each, gpus = int(str(parameters[name])), resources.gpu
    if gpus == 0 or gpus % each:
        fitting = ", ".join(str(n) for n in range(1, gpus + 1) if gpus % n == 0) or "none: ask for GPUs"
        raise Invalid(
            f"config.{name} is {each}, but {gpus} GPUs a node cannot be shared out to replicas of {each}; "
            f"allowed for {gpus}: {fitting}"
        )
    last = base_port + gpus // each * resources.nodes - 1
    if last > 65535:
        raise Invalid(f"the ports {base_port} to {last} of the replicas go beyond 65535; choose a lower base_port")
    return each, gpus // each


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Invalid(f"config.{key} must be an object, not {_short.repr(value)}")
    return value


def _check_keys(recipe: Recipe, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    root = {"environment", "resources", "account", "keep_alive", "idle_timeout", *_RESOURCES}
    root |= {"routing"} if recipe.models else set()
    root |= {"aliases"} if recipe.aliases else set()
    root |= {p.alias for p in recipe.parameters.values() if p.alias}
    root |= {name for name, p in recipe.parameters.items() if p.location == "root"}
    for where, given, known in (
        ("config", config, root),
        ("config.resources", _mapping(config, "resources"), set(_RESOURCES)),
    ):
        for key in given:
            if key not in known:
                raise Invalid(_unknown_key(where, key, known))
    for name in environment:
        if not ENVIRONMENT_NAME.fullmatch(name):
            raise Invalid(f"config.environment: {name[:100]!r} is not a name; use letters, digits and _ only")
        if _FORBIDDEN_NAMES.fullmatch(name) and name not in recipe.parameters:
            raise Invalid(
                f"config.environment.{name} is not allowed: it would change how the job itself runs. "
                "A site-wide value belongs in [site.environment] of the orchestrator's settings file."
            )


def _unknown_key(where: str, key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{where}: unknown key {key[:100]!r}.{hint} Known keys: {', '.join(sorted(known))}"


def _parameters(recipe: Recipe, config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, parameter in recipe.parameters.items():
        given = _given(name, parameter, config, environment)
        found[name] = parameter.default if given is None else given
        if found[name] is None and parameter.required:
            raise Invalid(f"config needs {name}: {parameter.description}")
    return found


def _given(name: str, parameter: Parameter, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Value:
    """What a parameter was set to, None when it was not. Two settings that differ are refused."""
    places = [(f"config.environment.{n}", environment.get(n)) for n in (name, *parameter.also)]
    if parameter.alias:
        places.append((f"config.{parameter.alias}", config.get(parameter.alias)))
    if parameter.location == "root":
        places.append((f"config.{name}", config.get(name)))
    return _agreed([(place, _typed(place, parameter, value)) for place, value in places if value is not None])


def _agreed(given: Sequence[tuple[str, Setting]]) -> Setting | None:
    """The one value that was given, at one place or at several. Raises Invalid when they differ."""
    for place, value in given[1:]:
        if value != given[0][1]:
            first, other = _short.repr(given[0][1]), _short.repr(value)
            raise Invalid(f"{place} is {other} but {given[0][0]} is {first}: set only one of them")
    return given[0][1] if given else None


def _typed(where: str, parameter: Parameter, value: Any) -> Value:
    match parameter.type:
        case "string":
            return _string(where, parameter, value)
        case "integer":
            return _bounded(where, parameter, _integer(where, value))
        case "number":
            return _bounded(where, parameter, _number(where, value))
        case "boolean":
            return _boolean(where, value)
        case "words":
            return _words(where, value)


def _string(where: str, parameter: Parameter, value: Any) -> str:
    text = _text(where, value)
    if parameter.choices is not None and text not in parameter.choices:
        raise Invalid(f"{where} is {text[:200]!r}; allowed: {', '.join(parameter.choices)}")
    if parameter.pattern is not None and not re.fullmatch(parameter.pattern, text):
        raise Invalid(f"{where} is {text[:200]!r}; {parameter.pattern_hint or f'it must match {parameter.pattern}'}")
    return text


def _text(where: str, value: Any) -> str:
    """A string that can stand in a job script. A line break would leave its line, whatever the quoting."""
    shown = MASK if is_secret(where.rpartition(".")[2]) else _short.repr(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Invalid(f"{where} must be a string or a number, not {shown}")
    if isinstance(value, float) and not math.isfinite(value):
        raise Invalid(f"{where} must be a finite number, not {shown}")
    text = str(value)
    if text == MASK == shown:
        raise Invalid(f"{where} is {MASK!r}, which stands for a value that is not shown; send the value itself")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise Invalid(f"{where} contains a line break or another control character: {shown}")
    if len(text) > 4096:
        raise Invalid(f"{where} has {len(text)} characters; at most 4096 are allowed")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise Invalid(f"{where} is not valid Unicode text: {shown}") from exc
    return text


def _integer(where: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,15}", value.strip()):
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Invalid(f"{where} must be a whole number, not {_short.repr(value)}")


def _number(where: str, value: Any) -> float:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
    except (ValueError, OverflowError) as exc:
        raise Invalid(f"{where} must be a number, not {_short.repr(value)}") from exc
    raise Invalid(f"{where} must be a finite number, not {_short.repr(value)}")


def _boolean(where: str, value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int) and (found := words.get(str(value).lower())) is not None:
        return found
    raise Invalid(f"{where} must be true or false, not {_short.repr(value)}")


def _words(where: str, value: Any) -> list[str]:
    try:
        words = shlex.split(_text(where, value)) if isinstance(value, str) else value
    except ValueError as exc:
        raise Invalid(f"{where} cannot be split into words ({exc}): {_short.repr(value)}") from exc
    if not isinstance(words, list):
        raise Invalid(f"{where} must be a list of words or one string, not {_short.repr(value)}")
    return [_text(f"{where}[{i}]", word) for i, word in enumerate(words)]


def _bounded(where: str, parameter: Parameter, value: Number) -> Number:
    low, high = parameter.minimum, parameter.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        raise Invalid(f"{where} is {_short.repr(value)}; allowed: {_range(low, high)}")
    return value


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def _resources(recipe: Recipe, config: Mapping[str, Any], site: Site) -> Resources:
    """`config.resources.X`, or `config.X`, or the recipe's. `gpu: null` means a job without GPUs."""
    found: dict[str, Any] = {"time_limit": min(recipe.resources.time_limit, site.max_time_limit)}
    for key in _RESOURCES:
        places = (("config.resources", _mapping(config, "resources")), ("config", config))
        given = [(f"{place}.{key}", values[key]) for place, values in places if key in values]
        typed = [(w, _resource(key, w, v, recipe, site)) for w, v in given if v is not None or key == "gpu"]
        if typed:
            found[key] = _agreed(typed)
    return recipe.resources.model_copy(update=found)


def _resource(key: str, where: str, value: Any, recipe: Recipe, site: Site) -> int | str:
    if key == "memory":
        return _memory(where, value)
    number = 0 if value is None else _integer(where, value)
    low, high = _BOUNDS.get(key, (1, recipe.max_nodes if key == "nodes" else site.max_time_limit))
    if not low <= number <= high:
        unit = " minutes" if key == "time_limit" else ""
        raise Invalid(f"{where} is {_short.repr(number)}; allowed for {recipe.full_name}: {low} to {high}{unit}")
    return number


def _memory(where: str, value: Any) -> str:
    """Slurm's spelling: a number and a unit. A bare number is megabytes, as for sbatch."""
    known = isinstance(value, str | int) and not isinstance(value, bool)
    match = _MEMORY.fullmatch(str(value).strip()) if known else None
    if match is None:
        raise Invalid(f'{where} is {_short.repr(value)}; write a number and a unit, e.g. "64G"')
    number, unit = int(match[1]), match[2].upper()
    if not 64 <= number * _MEGABYTES[unit] <= 64 * 1024 * 1024:
        raise Invalid(f'{where} is {str(value)!r}, which is {number}{unit or "M"}; allowed: 64M to 64T, e.g. "64G"')
    return f"{number}{unit or 'M'}"


def _routing(recipe: Recipe, config: Mapping[str, Any]) -> str:
    value = config.get("routing")
    if value is None:
        return DEFAULT
    if value not in POLICIES:
        known = "; ".join(f"{name} ({policy.description})" for name, policy in POLICIES.items())
        raise Invalid(f"config.routing is {_short.repr(value)}; choose one of {known}")
    return str(value)


def _keep_alive(recipe: Recipe, config: Mapping[str, Any], site: Site) -> bool:
    """Whether a job is replaced before its limit. Raises Invalid where the next one could not run beside it."""
    value = config.get("keep_alive")
    if value is None or not _boolean("config.keep_alive", value):
        return False
    if recipe.volume_parameter is not None:
        raise Invalid(
            f"config.keep_alive cannot be true for {recipe.full_name}: the next job would need the volume while the "
            f"last one still writes to it. Leave keep_alive out and ask for a longer time_limit (at most "
            f"{site.max_time_limit} minutes); after the end, a new service with the same volume has the same data"
        )
    return True


def _idle_timeout(config: Mapping[str, Any], default: float | None) -> float | None:
    """Minutes; None for never, which is said as 0."""
    value = config.get("idle_timeout")
    if value is None:
        return default
    minutes = _number("config.idle_timeout", value)
    low, high = _IDLE_MINUTES
    if minutes != 0 and not low <= minutes <= high:
        raise Invalid(
            f"config.idle_timeout is {_short.repr(value)}; allowed: {low:g} to {high} minutes without a request, or 0 "
            "for a service that is not ended when it is idle"
        )
    return minutes or None


def _aliases(recipe: Recipe, config: Mapping[str, Any]) -> tuple[str, ...]:
    value = config.get("aliases")
    if value is None:
        return ()
    names = value if isinstance(value, list) else [value]
    if len(names) > _MOST_ALIASES or not all(isinstance(name, str) and _MODEL_NAME.fullmatch(name) for name in names):
        raise Invalid(
            f"config.aliases is {_short.repr(value)}; it is a list of at most {_MOST_ALIASES} names, each of letters, "
            "digits and _ . / @ + = : -"
        )
    return tuple(names)


def _account(config: Mapping[str, Any]) -> str | None:
    value = config.get("account")
    if value is None:
        return None
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise Invalid(f"config.account is {_short.repr(value)}; use letters, digits and . _ @ + : -")
    return value

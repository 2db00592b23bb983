"""The job's script: a pure function from a plan to text.

`#SBATCH` lines are read by sbatch, not by a shell, so quoting does not apply to them: their values are checked.
Everything else is bash, where every `{{ value }}` of a template comes out as one quoted word.
"""

import re
import shlex
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.confidential import is_secret
from orchestrator.config import SCRIPT_NAMES, Plan
from orchestrator.errors import Invalid
from orchestrator.model_cache import cache_variables
from orchestrator.recipes import ENVIRONMENT_NAME, Recipe, builtin_recipes
from orchestrator.runs import RunFolder
from orchestrator.settings import Engine, Runtime, SettingsError, Site
from orchestrator.volumes import volume_path

# What each job's file of secrets may hold, beside what its user sends.
_KEYS = ("VLLM_API_KEY", "HF_TOKEN")


class Bash(str):
    """Text that is bash already and must not be quoted."""

    __slots__ = ()


@dataclass(frozen=True)
class Target:
    """Where a script will run: its name for the scheduler and its folder, what the scheduler and the host give it."""

    job_name: str
    comment: str
    folder: RunFolder
    bind_host: str
    python: str
    cache_dir: Path
    offline: bool = False  # the model is complete in the jobs' cache: the engine need not ask the hub
    image: Path | None = None  # the file of the recipe's image, where it has been pulled

    def volume(self, plan: Plan) -> Path | None:
        """The plan's volume. It lies beside the run folders."""
        home = self.folder.path.parent.parent
        return None if plan.volume is None else volume_path(home, plan.engine, plan.volume)


def render(recipe: Recipe, plan: Plan, site: Site, target: Target) -> str:
    """The script of one job. Raises Invalid when a value cannot stand in it, SettingsError for a broken template."""
    engine = site.engines.get(plan.engine, Engine())
    runtime = engine.runtime or site.runtime
    exported = _environment(recipe, plan, site, target)
    environment = {name: value for name, value in exported.items() if not is_secret(name)}
    hidden = [name for name in (*exported, *plan.secrets) if is_secret(name) and name not in _KEYS]
    visible = plan.parameters.get("CUDA_VISIBLE_DEVICES")
    context: dict[str, Any] = {
        "directives": [Bash(line) for line in directives(plan, site, target)],
        "recipe": plan.recipe,
        "engine": plan.engine,
        "run_dir": str(target.folder.path),
        "volume": target.volume(plan),
        "bind_host": target.bind_host,
        "port": plan.port,
        "gpus": plan.gpus_per_replica or plan.resources.gpu,
        "gpus_per_replica": plan.gpus_per_replica,
        "replicas_per_node": plan.replicas_per_node,
        "total_replicas": plan.total_replicas,
        "nodes": plan.resources.nodes,
        "cpus": plan.resources.cpu,
        "p": plan.parameters,
        "served_model_name": plan.served_model_name,
        "served_names": plan.served_names,
        "environment": environment,
        "visible_devices": str(visible).split(",") if visible else [],
        "module_init": site.module_init,
        "modules": [*site.modules, *engine.modules],
        "command": _command(recipe, engine, runtime, target),
        "launcher": launcher(recipe, plan, site, target, [*environment, *hidden, *_KEYS, *recipe.exports]),
        "remove_container": [runtime, "rm", "--force", target.job_name] if runtime in ("docker", "podman") else [],
    }
    try:
        return _templates(recipe).get_template("job.sh.j2").render(context)
    except (jinja2.TemplateError, ArithmeticError, LookupError, OSError, TypeError, ValueError) as exc:
        lines = [f for f in traceback.extract_tb(exc.__traceback__) if f.filename.endswith(".j2")]
        where = f"{lines[-1].filename}, line {lines[-1].lineno}: " if lines else ""
        raise SettingsError(f"the template of {recipe.full_name} cannot be rendered: {where}{exc}") from exc


class Inside(jinja2.FileSystemLoader):
    """Templates of these folders. A link that leads out of them is no template."""

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        source, filename, current = super().get_source(environment, template)
        if not any(Path(filename).resolve().is_relative_to(Path(folder).resolve()) for folder in self.searchpath):
            raise jinja2.TemplateNotFound(template, f"{filename} is a link that leads out of its folder")
        return source, filename, current


def _templates(recipe: Recipe) -> jinja2.Environment:
    """The recipe's own folder before its book's before ours, so that a site can bring a base template of its own."""
    folders = [recipe.folder, recipe.folder.parent.parent, builtin_recipes()]
    return ImmutableSandboxedEnvironment(
        loader=Inside([str(folder) for folder in folders]),
        undefined=jinja2.StrictUndefined,
        finalize=_quoted,
        autoescape=False,  # bash, not HTML: `finalize` quotes
        comment_start_string="{##",  # bash writes ${#array[@]}
        comment_end_string="##}",
        keep_trailing_newline=True,
    )


def _quoted(value: Any) -> str:
    """One shell word; for a list its words. Raises Invalid for text that would leave its line."""
    if isinstance(value, Bash):
        return value
    if isinstance(value, list | tuple):
        return " ".join(_quoted(item) for item in value)
    if value is None:
        return "''"
    text = str(value)
    if any(c in text for c in "\n\r\0"):
        raise Invalid(f"a line break cannot stand in a job script: {text[:100]!r}")
    return shlex.quote(text)


def _environment(recipe: Recipe, plan: Plan, site: Site, target: Target) -> dict[str, str]:
    """What the script exports: the user's word before the engine's before the site's before the recipe's."""
    engine = site.engines.get(plan.engine, Engine())
    exported = {"SLUICE_CACHE_DIR": str(target.cache_dir)} | cache_variables(site, engine, target.cache_dir)
    if target.offline:
        exported["HF_HUB_OFFLINE"] = "1"
    exported |= recipe.environment | site.environment | engine.environment | plan.environment
    for name in exported:
        if not ENVIRONMENT_NAME.fullmatch(name) or SCRIPT_NAMES.fullmatch(name):
            raise SettingsError(
                f"{name!r} of {recipe.full_name} or of [site] cannot be an environment variable of a job"
            )
    return exported


def site_secrets(recipe: Recipe, site: Site) -> dict[str, str]:
    """What of the recipe's and the site's own variables must not stand in a script."""
    engine = site.engines.get(recipe.engine, Engine())
    every = recipe.environment | site.environment | engine.environment
    return {name: value for name, value in every.items() if is_secret(name)}


def _command(recipe: Recipe, engine: Engine, runtime: Runtime, target: Target) -> list[str]:
    """The words that start the engine, without its arguments. In a container `{python}` is the image's own."""
    if engine.command:
        return engine.command
    known = {"{python}": target.python if runtime == "none" else "python3"}
    own = recipe.command if runtime == "none" else recipe.container_command or recipe.command
    words = [known.get(word, word) for word in own]
    return [word.replace("{recipe_dir}", str(recipe.folder)) for word in words]


_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+:,/=&|()\[\]*-]{0,1000}")
_PATH = re.compile(r"/[A-Za-z0-9._@+:,/=~ -]{0,1000}")


def directives(plan: Plan, site: Site, target: Target) -> list[str]:
    """The `#SBATCH` lines. Raises Invalid when a value holds what sbatch would read as something else."""
    r = plan.resources
    options: list[tuple[str, str]] = [
        ("job-name", checked("job-name", target.job_name)),
        ("comment", checked("comment", target.comment)),
        ("chdir", checked_path(target.folder.path)),
        ("output", checked_path(target.folder.stdout)),
        ("error", checked_path(target.folder.stderr)),
        ("open-mode", "append"),
        ("nodes", str(r.nodes)),
        ("ntasks-per-node", "1"),
        ("cpus-per-task", str(r.cpu)),
        ("time", str(r.time_limit)),
    ]
    if site.request_memory:
        options.append(("mem", r.memory))
    if r.gpu:
        options.append(_gpu_request(r.gpu, r.nodes, site))
    partition = site.partition if r.gpu else site.cpu_partition or site.partition
    for name, value in (
        ("account", plan.account or site.account),
        ("partition", partition),
        ("qos", site.qos),
        ("constraint", site.constraint),
    ):
        if value:
            options.append((name, checked(name, value)))
    return [f"#SBATCH --{name}={value}" for name, value in options] + [f"#SBATCH {x}" for x in site.extra_directives]


def _gpu_request(gpus: int, nodes: int, site: Site) -> tuple[str, str]:
    kind = f"{checked('gpu_type', site.gpu_type)}:" if site.gpu_type else ""
    match site.gpu_request:
        case "gres":
            return "gres", f"gpu:{kind}{gpus}"
        case "gpus-per-node":
            return "gpus-per-node", f"{kind}{gpus}"
        case "gpus":
            return "gpus", f"{kind}{gpus * nodes}"


def checked(name: str, value: str) -> str:
    if not _WORD.fullmatch(value):
        raise Invalid(f"{name} is {value[:100]!r}; sbatch takes letters, digits and . _ @ + : , / = - there")
    return value


def checked_path(path: Path) -> str:
    """A path as sbatch reads it: % begins a pattern there and a space ends the value unless quoted."""
    text = str(path)
    if not _PATH.fullmatch(text):
        raise Invalid(
            f"sbatch cannot take the path {text!r}; choose an ORCHESTRATOR_HOME of letters, digits and . _ - /"
        )
    return f'"{text}"' if " " in text else text


def launcher(recipe: Recipe, plan: Plan, site: Site, target: Target, exported: list[str]) -> list[str]:
    """The words that put the engine's command into a container, [] for none."""
    engine = site.engines.get(plan.engine, Engine())
    runtime = engine.runtime or site.runtime
    if runtime == "none":
        return []
    image = target.image or image_of(recipe, plan, site)
    if image is None:
        raise Invalid(
            f"the site runs engines in {runtime}, but no image is known for {plan.engine}: "
            f"set [site.engines.{plan.engine}] image"
        )
    binds = _binds(plan, site, target)
    if runtime == "apptainer":
        gpu = ["--nv"] if plan.resources.gpu else []
        return ["apptainer", "exec", *gpu, *(word for bind in binds for word in ("--bind", bind)), str(image)]
    return [*_docker(runtime, plan, binds, target, exported), str(image).removeprefix("docker://")]


def image_of(recipe: Recipe, plan: Plan, site: Site) -> str | None:
    """The image that an engine runs in, where one is known."""
    return plan.image or site.engines.get(plan.engine, Engine()).image or recipe.image


def _docker(runtime: str, plan: Plan, binds: list[str], target: Target, exported: list[str]) -> list[str]:
    words: list[str] = [runtime, "run", "--rm", "--init", "--network=host", "--ipc=host"]
    words.append(Bash(f'--name={shlex.quote(target.job_name)}-"$1"'))  # $1 is the replica
    # Without root podman maps ids: only so does the user of the container own the user's files.
    words.append(Bash('--user="$(id -u):$(id -g)"') if runtime == "docker" else "--userns=keep-id")
    # The image knows neither this user nor a home of theirs, and engines cache below HOME under the name of USER.
    words += [f"--env=HOME={target.cache_dir}", Bash('--env=USER="$(id -un)"')]
    words += [f"--workdir={target.folder.path}", "--entrypoint="]
    if plan.resources.gpu and runtime == "docker":
        # docker wants the quotes inside the word: "device=0,1"
        words.append(
            Bash('--gpus="${CUDA_VISIBLE_DEVICES:+\\"device=}${CUDA_VISIBLE_DEVICES:-all}${CUDA_VISIBLE_DEVICES:+\\"}"')
        )
    elif plan.resources.gpu:
        words += ["--device=nvidia.com/gpu=all", "--env", "CUDA_VISIBLE_DEVICES"]
    words += [word for bind in binds for word in ("--volume", bind)]
    return words + [word for name in exported for word in ("--env", name)]


def _binds(plan: Plan, site: Site, target: Target) -> list[str]:
    folders = [str(target.folder.path), str(target.cache_dir), *site.bind]
    if volume := target.volume(plan):
        folders.append(str(volume))
    if plan.model and plan.model.startswith("/"):
        if ":" in plan.model or "," in plan.model:
            raise Invalid(f"the model {plan.model!r} cannot be shown to a container: its path holds a : or a comma")
        folders.append(f"{plan.model}:{plan.model}:ro")
    return [folder if ":" in folder else f"{folder}:{folder}" for folder in folders]

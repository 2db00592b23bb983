"""A first site file, written from a survey: TOML for `sluice orchestrator --config`. Pure.

Beside each value stands where it was found and what else could stand there; what is not known is a comment.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from gateway.survey.choice import Choice, Choices, choices, newest, own_folder, size
from gateway.survey.facts import Program, Slurm, Survey

_MOST_OTHERS = 8  # alternatives in one comment
_MOST_MINUTES = 7 * 24 * 60  # the setting's own default
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SERVER = ["-m", "vllm.entrypoints.openai.api_server"]


def site_file(survey: Survey) -> str:
    """The file's text. Whatever the survey holds, `orchestrator.settings` takes it."""
    chosen = choices(survey)
    lines = [
        *_head(survey),
        "",
        "[site]",
        *_queue(survey, chosen),
        "",
        *_programs(survey, chosen),
        *_engines(survey, chosen),
    ]
    return "\n".join(lines) + "\n"


def _head(survey: Survey) -> Iterator[str]:
    where = f"{_plain(survey.user)} on {_plain(survey.host)}" if survey.user else "an unknown login node"
    yield f"# Site settings, written from what was found as {where}."
    yield "# Each value says where it comes from; look at them before the first job. All settings: README.md, Settings."
    for line in survey.trouble:
        yield f"# Not found out: {_plain(line)}"
    yield ""
    slurm = survey.slurm
    if slurm is None:
        yield f"scheduler = {_text('local')} # there is no sinfo on the PATH: services are processes of this machine"
        return
    words = "" if slurm.answers else f", which did not answer: {_plain(slurm.words)}"
    yield f"scheduler = {_text('slurm')} # Slurm {_dotted(slurm.version)}{words}"
    yield from _state_folder(survey)


def _state_folder(survey: Survey) -> Iterator[str]:
    """Jobs write into it, so the compute nodes must see it."""
    home = next((one for one in survey.places if one.role == "home"), None)
    if home is not None and not home.shared:
        others = tuple(own_folder(one, survey.user) for one in survey.places if one.shared and one.writable)
        known = f"; {_some(others)} would be shared" if others else ""
        words = f"the state folder: {_plain(home.path)} is on {_plain(home.type)}, which only this machine may see"
        yield f'# home = "…" # {words}{known}'


def _queue(survey: Survey, chosen: Choices) -> Iterator[str]:
    slurm = survey.slurm
    if slurm is None:
        return
    if chosen.account:
        yield _line("account", chosen.account)
    else:
        yield f'# account = "…" # {_no_account(survey, slurm)}'
    if chosen.partition:
        yield _line("partition", chosen.partition)
    else:
        yield '# partition = "…" # sinfo lists none; without it Slurm takes its default'
    if chosen.cpu_partition:
        yield _line("cpu_partition", chosen.cpu_partition, "for services that ask for no GPU")
    yield from _qos(survey, chosen)
    yield from _gpus(chosen)
    if chosen.minutes is not None:
        where = f"of the partition {chosen.partition.value} or its QOS" if chosen.partition else ""
        yield f"max_time_limit = {max(1, chosen.minutes)} # minutes, the limit {where}"
    else:
        yield f"# max_time_limit = {_MOST_MINUTES} # minutes; Slurm tells no limit of the partition"


def _no_account(survey: Survey, slurm: Slurm) -> str:
    """Many sites name accounts as groups, but Slurm alone knows which of them are."""
    needed = "Slurm wants one" if "associations" in slurm.enforced else "jobs may need none"
    groups = tuple(name for name in survey.groups if name != survey.user)
    words = f"none is told by sacctmgr, scontrol or sshare; {needed}"
    return words + (f"; your groups are: {_some(groups)}" if groups else "")


def _qos(survey: Survey, chosen: Choices) -> Iterator[str]:
    if chosen.qos:
        yield _line("qos", chosen.qos)
        return
    account = chosen.account.value if chosen.account else ""
    known = {
        name: None for one in (survey.slurm.accounts if survey.slurm else ()) if one.name == account for name in one.qos
    }
    if known:
        yield f"# qos = {_text(next(iter(known)))} # without it your default is taken; there are: {_some(tuple(known))}"


def _gpus(chosen: Choices) -> Iterator[str]:
    kind = chosen.gpu_type
    if kind and not kind.others:
        yield _line("gpu_type", kind, "also for `sluice preflight`")
    elif kind:
        kinds = (kind.value, *kind.others)
        yield f"# gpu_type = {_text(kind.value)} # the partition has several, any of which is taken: {_some(kinds)}"
    yield '# gpu_request = "gres" # --gres=gpu:4; "gpus-per-node" and "gpus" write those options instead'


def _programs(survey: Survey, chosen: Choices) -> Iterator[str]:
    if chosen.module:
        yield f"modules = [{_text(chosen.module.value)}] # {_from(chosen.module)}"
        if survey.modules and survey.modules.init:
            yield f"module_init = {_text(survey.modules.init)} # so that batch shells know `module`"
    elif survey.modules:
        names = _some(survey.modules.names) or "none that we look for"
        yield f"# modules = [] # {_plain(survey.modules.kind)}; there are: {names}"
    hidden = newest(survey.modules.hidden if survey.modules else (), "apptainer")
    if hidden and not chosen.runtime:
        yield f"# {_plain(hidden[0])} wants other modules before it: `module spider {_plain(hidden[0])}` names them"
    if chosen.runtime:
        yield _line("runtime", chosen.runtime)
    else:
        yield f"runtime = {_text('none')} # no apptainer on the PATH or among the modules{_instead(survey.containers)}"
    if chosen.cache:
        yield _line("cache_dir", chosen.cache, "models and compile caches; the compute nodes must see it")
    else:
        yield f'# cache_dir = "…" # models lie in ~/.cache/sluicegate{_home_room(survey)}; no better folder was found'
    if survey.token_file:
        yield f"token_file = {_text(survey.token_file)} # for gated models of the Hugging Face Hub; it is there"
    else:
        yield '# token_file = "~/.cache/huggingface/token" # for gated models of the Hugging Face Hub; none is there'
    yield ""
    yield "# [site.environment]"
    yield '# HF_HUB_OFFLINE = "1" # for compute nodes without internet: download models on the login node first'


def _instead(containers: Sequence[Program]) -> str:
    names = tuple(one.name for one in containers)
    return f"; there is {_some(names)}, which this orchestrator starts only if you name it" if names else ""


def _home_room(survey: Survey) -> str:
    room = next((one.room for one in survey.places if one.role == "home" and one.room is not None), None)
    return "" if room is None else f", with room for {size(room)}"


# Engines


def _engines(survey: Survey, chosen: Choices) -> Iterator[str]:
    yield ""
    in_container = chosen.runtime is not None
    if in_container and survey.images:
        yield "[site.engines.vllm]"
        yield f"image = {_text(survey.images[0])} # {_from(Choice('', 'a file that looks like it', survey.images[1:]))}"
    elif survey.vllm:
        yield from _installed(survey, in_container)
    elif module := next(iter(newest(survey.modules.names if survey.modules else (), "vllm")), None):
        yield "[site.engines.vllm]"
        yield f"modules = [{_text(module)}] # module avail"
        yield f"command = [{', '.join(map(_text, ['python3', *_SERVER]))}]"
        if in_container:
            yield f"runtime = {_text('none')}"
    else:
        yield from _missing(chosen)
    if in_container:
        yield ""
        yield "[site.engines.llamacpp]"
        yield f"runtime = {_text('none')} # a plain Python program; it needs no image"


def _installed(survey: Survey, in_container: bool) -> Iterator[str]:
    best, *others = survey.vllm
    python = best.path.removesuffix("/vllm") + "/python"
    yield "[site.engines.vllm]"
    known = f" {_plain(best.version)}" if best.version else ""
    found = Choice("", f"vLLM{known} at {best.path}", tuple(one.path for one in others))
    yield f"command = [{', '.join(map(_text, [python, *_SERVER]))}] # {_from(found)}"
    if in_container:
        yield f"runtime = {_text('none')}"


def _missing(chosen: Choices) -> Iterator[str]:
    yield "# No vLLM was found. Bring it once, and name it here:"
    if chosen.runtime and chosen.runtime.value == "apptainer":
        yield "# (without an image, each job fetches it by itself, which wants internet on the compute nodes)"
        folder = _plain(chosen.cache.value) if chosen.cache else "~"
        yield f"#   apptainer pull {folder}/vllm-openai.sif docker://vllm/vllm-openai:v0.11.2"
        yield "# [site.engines.vllm]"
        yield f"# image = {_text(folder + '/vllm-openai.sif')}"
        return
    yield "#   uv venv ~/vllm && uv pip install --python ~/vllm/bin/python vllm"
    yield "# [site.engines.vllm]"
    yield f"# command = [{', '.join(map(_text, ['/home/…/vllm/bin/python', *_SERVER]))}]"


# TOML


def _line(name: str, choice: Choice, use: str = "") -> str:
    words = _from(choice)
    return f"{name} = {_text(choice.value)} # {f'{use}; {words}' if use else words}"


def _from(choice: Choice) -> str:
    words = _plain(choice.found)
    return words + (f"; also there: {_some(choice.others)}" if choice.others else "")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(_plain(name) for name in names[:_MOST_OTHERS])
    return shown + (f" and {len(names) - _MOST_OTHERS} more" if len(names) > _MOST_OTHERS else "")


def _text(value: str) -> str:
    """A basic string: JSON's escapes are TOML's too, but not for what lies outside of the first plane, or DEL."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(text: str) -> str:
    """For a comment or a value: what could end its line is replaced."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _dotted(numbers: Iterable[int]) -> str:
    return (
        ".".join(f"{one:02d}" if place == 1 else str(one) for place, one in enumerate(numbers)) or "of unknown version"
    )

"""What a survey has found, in lines for a person. Pure."""

from collections.abc import Iterator

from gateway.survey.choice import described, size
from gateway.survey.facts import Account, OwnJob, Partition, Place, Survey
from gateway.survey.facts import Slurm as Facts
from gateway.terminal import plain

_TIGHT_SECONDS = 24 * 3600  # of processor time: less, and a process that stays is killed some day
_TIGHT_MEMORY = 4 * 1024**3


def summary(survey: Survey) -> list[str]:
    """One fact a line; what is missing is said where somebody would look for it."""
    parts = (_machine, _python, _slurm, _software, _folders, _staying, _ours)
    return [" ".join(plain(line).split()) for part in parts for line in part(survey)]


def _machine(survey: Survey) -> Iterator[str]:
    libc = f", glibc {_dotted(survey.glibc)}" if survey.glibc else ""
    cpus = f", {survey.cpus} processors" if survey.cpus else ""
    yield f"{survey.user}@{survey.host}: {survey.system}, {survey.machine}{libc}{cpus}"
    for gpu in survey.gpus:
        yield f"GPU of this machine: {gpu}"


def _python(survey: Survey) -> Iterator[str]:
    usable = sorted((one for one in survey.pythons if one.usable and one.path), key=lambda one: one.version)
    if usable:
        best = usable[-1]
        yield f"Python {_dotted(best.version)} at {best.path}{'' if best.venv else ', without venv'}"
    else:
        old = max((one.version for one in survey.pythons if one.path), default=())
        yield f"no Python 3.11 or newer on the PATH{f', the newest is {_dotted(old)}' if old else ''}"
    modules = [one.module for one in survey.pythons if one.module and one.usable]
    if modules:
        yield f"Python by modules: {', '.join(modules)}"
    yield f"{survey.uv.version or 'uv'} at {survey.uv.path}" if survey.uv else "no uv"
    if survey.index:
        state = "can be reached" if survey.index.reachable else "cannot be reached"
        yield f"the package index {survey.index.url} {state} ({survey.index.words})"


def _slurm(survey: Survey) -> Iterator[str]:
    slurm = survey.slurm
    if slurm is None:
        yield "no Slurm: services would be processes of this machine"
        return
    version = ".".join(f"{part:02d}" if place == 1 else str(part) for place, part in enumerate(slurm.version))
    name = f" of {slurm.cluster}" if slurm.cluster else ""
    if not slurm.answers:
        yield f"Slurm {version}{name} does not answer: {slurm.words}"
        return
    path = ", found by a login shell only" if survey.needs_login_shell else ""
    accounting = {True: "; with accounting", False: "; without accounting", None: ""}[slurm.accounting]
    yield f"Slurm {version}{name}{path}{accounting}"
    for one in sorted(slurm.partitions, key=lambda one: not one.gpus):
        yield f"partition {one.name}: {described(one)}{_limit(one)}{_states(one)}"
    yield _accounts(slurm)


def _limit(one: Partition) -> str:
    if one.max_minutes is None:
        return ""
    days, hours = divmod(one.max_minutes, 1440)
    told = (f"{days} d", f"{hours // 60} h", f"{hours % 60} min")
    return ", at most " + (" ".join(word for word in told if not word.startswith("0 ")) or "0 min")


def _states(one: Partition) -> str:
    return "; " + ", ".join(f"{count} {state}" for state, count in one.states) if one.states else ""


def _accounts(slurm: Facts) -> str:
    if not slurm.accounts:
        needed = "associations" in slurm.enforced
        return f"no account is known{', but jobs need one: ask your site' if needed else '; jobs may need none'}"
    return f"accounts, by {slurm.accounts_from}: " + ", ".join(dict.fromkeys(_account(one) for one in slurm.accounts))


def _account(one: Account) -> str:
    return one.name + (" (default)" if one.default else "")


def _software(survey: Survey) -> Iterator[str]:
    modules = survey.modules
    if modules:
        names = ", ".join(modules.names[:12]) or "none of python, cuda, apptainer, vllm"
        yield f"modules by {modules.kind} {modules.version}: {names}"
    containers = [f"{one.version or one.name}{'' if one.works else ' (not for you)'}" for one in survey.containers]
    yield f"containers: {', '.join(containers)}" if containers else "no container runtime on the PATH"
    for image in survey.images:
        yield f"image: {image}"
    for one in survey.vllm:
        yield f"vLLM {one.version} at {one.path}".replace("  ", " ")


def _folders(survey: Survey) -> Iterator[str]:
    for place in survey.places:
        yield f"{place.role} {place.path} ({place.named}): {_place(place)}"


def _place(place: Place) -> str:
    words = [place.type or "file system unknown"]
    words += ["seen by several machines"] if place.shared else []
    words += [f"{size(place.free)} free"] if place.free is not None else []
    for quota in place.quotas:
        limit = "no limit" if quota.limit is None else f"of {size(quota.limit)}"
        words.append(f"quota of {quota.of}: {size(quota.used)} used, {limit}")
    return ", ".join(words if place.writable else [*words, "not writable"])


def _staying(survey: Survey) -> Iterator[str]:
    sessions, limits = survey.sessions, survey.limits
    if sessions.systemd_user:
        lingers = {True: "and lingers", False: "without lingering", None: "lingering unknown"}[sessions.lingers]
        yield f"systemd --user works, {lingers}"
    else:
        yield "no systemd --user"
    if sessions.kills:
        yield "processes are killed when their user logs out"
    if limits.cpu_seconds is not None and limits.cpu_seconds < _TIGHT_SECONDS:
        yield f"a process may use {limits.cpu_seconds} s of processor time"
    if limits.memory is not None and limits.memory < _TIGHT_MEMORY:
        yield f"memory is limited to {size(limits.memory)}"


def _ours(survey: Survey) -> Iterator[str]:
    for one in survey.installed:
        yield f"sluicegate {one.version or 'that does not start'} at {one.path}"
    if (process := survey.process) and (process.alive or process.elsewhere):
        yield f"an orchestrator runs on {process.host} as process {process.pid}"
    if survey.job:
        yield from _own_job(survey.job)
    for line in survey.trouble:
        yield f"not found out: {line}"


def _own_job(job: OwnJob) -> Iterator[str]:
    if job.words:
        yield f"an orchestrator is Slurm job {job.id}, or was: squeue does not say ({job.words})"
    elif job.waits:
        yield f"an orchestrator is Slurm job {job.id}, which waits: {job.waits}"
    elif job.state:
        yield f"an orchestrator is Slurm job {job.id} on {job.node}"


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)

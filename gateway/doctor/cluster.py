"""Checks of the login node and of what runs there: installation, orchestrator, Slurm, room, services, clock. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.doctor.finding import Finding, broken, odd, unknown, well
from gateway.doctor.reading import age, dotted, mapping, said_time
from gateway.doctor.seen import Seen
from gateway.link import LinkState
from gateway.survey.choice import size
from gateway.survey.facts import OLDEST_PYTHON, OwnJob, Place, Process, Survey

_NEEDED = 200 * 1024**2  # bytes in the home: database, scripts and logs
_COMFORTABLE = 2 * 1024**3
_LOADING_SECONDS = 30 * 60
_RECENT_SECONDS = 24 * 3600
_CLOCK_SECONDS = 30
_SHOWN = 5


def python(seen: Seen) -> Finding:
    survey = seen.survey
    if seen.alias is None:
        return well("python", "the one that runs this")
    if survey is None:
        return _no_survey(seen, "python")
    usable = [one for one in survey.pythons if one.usable]
    if usable:
        best = max(usable, key=lambda one: one.version)
        return well("python", f"{dotted(best.version)} at {best.path or f'the module {best.module}'}")
    newest = max((one.version for one in survey.pythons), default=())
    words = f"the newest one there is {dotted(newest)}" if newest else "there is none"
    fix = "look at `module avail python`; or bring one without root by uv (docs.astral.sh/uv): uv python install 3.12"
    level = odd if seen.orchestrator is not None or survey.installed else broken
    return level("python", f"{words}, and {dotted(OLDEST_PYTHON)} or newer is needed", fix)


def installation(seen: Seen) -> Finding:
    survey = seen.survey
    if seen.alias is None:
        return well("installation", f"{seen.here.version}, this one")
    if survey is None:
        return _no_survey(seen, "installation")
    good = [one for one in survey.installed if one.version]
    ours = seen.here.version
    if not survey.installed:
        if seen.orchestrator is not None or survey.process is not None or _lives(survey.job):
            return odd("installation", "there is none in the usual places, but an orchestrator runs", _install(seen))
        return broken("installation", "there is none", _install(seen))
    if not good:
        return broken("installation", f"{survey.installed[0].path} does not start", _install(seen))
    best = next((one for one in good if one.version == ours), good[0])
    if best.version != ours:
        return odd("installation", f"{best.path} is {best.version}, and this is {ours}", _install(seen))
    return well("installation", f"{best.version} at {best.path}")


def _install(seen: Seen) -> str:
    by_hand = f"python3 -m venv ~/sluicegate && ~/sluicegate/bin/pip install sluicegate=={seen.here.version}"
    return f"sluice connect {seen.alias}; or by hand, there: {by_hand}"


def _no_survey(seen: Seen, check: str) -> Finding:
    login = seen.login
    why = (login.not_tried or login.no_survey) if login else ""
    return unknown(check, why or "there was no login to look with")


# The orchestrator


def orchestrator(seen: Seen) -> Finding:
    health, survey = seen.orchestrator, seen.survey
    if health is not None:
        took = health.get("milliseconds")
        return well("orchestrator", "it answers" + (f" in {took:.0f} ms" if isinstance(took, int | float) else ""))
    error = seen.answers.error if seen.answers else ""
    if survey is None and seen.alias is not None and seen.link[0] != LinkState.UP:
        return unknown("orchestrator", "there is no connection to ask it by")
    if survey is None:
        return broken("orchestrator", f"none answers: {error or 'there is no answer'}", _start(seen))
    return _not_answering(seen, survey, error)


def _not_answering(seen: Seen, survey: Survey, error: str) -> Finding:
    if survey.job is not None:
        return broken("orchestrator", *_in_a_job(seen, survey.job, error))
    if survey.process is not None:
        return _silent(seen, survey.process, error)
    return broken("orchestrator", "none runs", _start(seen))


def _lives(job: OwnJob | None) -> bool:
    return job is not None and bool(job.state or job.words)


def _in_a_job(seen: Seen, job: OwnJob, error: str) -> tuple[str, str]:
    """What is said of an orchestrator that is a Slurm job of its own, and the fix."""
    there = f" on {seen.alias}" if seen.alias else ""
    connect = f"sluice connect {seen.alias or 'CLUSTER'} --how"
    if job.words:
        fix = f"`scontrol ping`{there} says whether slurmctld lives; ask the site. What runs goes on"
        return f"it is Slurm job {job.id}, and squeue does not say how that is: {job.words}", fix
    if job.waits:
        fix = f"wait: `squeue --start --jobs={job.id}`{there} may say how long; or without a job: {connect} detached"
        return f"it is Slurm job {job.id}, which waits: {job.waits}", fix
    if not job.state:
        fix = f"{connect} job; ~/.sluicegate/orchestrator.out{there} has its last words"
        return f"it was Slurm job {job.id}, which has ended", fix
    if not job.holds:
        fix = f"wait a minute; then look at ~/.sluicegate/orchestrator.out{there}"
        return f"Slurm job {job.id} has begun on {job.node}, and the orchestrator in it does not listen yet", fix
    fix = (
        f"does this work{there}: srun --overlap --jobid={job.id} hostname? If so, see ~/.sluicegate/orchestrator.log "
        f"and start it again: scancel {job.id}{there}, and {connect} job; services go on"
    )
    return f"it is in Slurm job {job.id} on {job.node}, and does not answer: {error or 'no answer'}", fix


def _silent(seen: Seen, process: Process, error: str) -> Finding:
    if process.alive:
        words = f"process {process.pid} runs there but does not answer: {error or 'no answer'}"
        where = f"on {seen.alias} " if seen.alias else ""
        fix = f"look at ~/.sluicegate/orchestrator.log; then {where}kill {process.pid}, and start it again: jobs go on"
        return broken("orchestrator", words, fix)
    if process.elsewhere:
        words = (
            f"it runs on {process.host}, and {seen.survey.host if seen.survey else seen.alias} cannot reach its socket"
        )
        return broken(
            "orchestrator", words, f"use that login node: HostName {process.host} for {seen.alias} in ~/.ssh/config"
        )
    return broken("orchestrator", f"it ran on {process.host} as process {process.pid}, and has ended", _start(seen))


def _start(seen: Seen) -> str:
    if seen.alias is None:
        return "start it: sluice orchestrator"
    by_hand = "nohup ~/sluicegate/bin/sluice orchestrator --config ~/site.toml >/dev/null 2>&1 &"
    return f"sluice connect {seen.alias}; or by hand, there: {by_hand}"


def version(seen: Seen) -> Finding:
    health = seen.orchestrator
    if health is None:
        return unknown("version", "the orchestrator does not answer")
    there, here = str(health.get("version", "")), seen.here.version
    running = str(seen.door.health.get("version", "")) if seen.door and seen.leads_here else ""
    if there in (running, here) and (not running or running == there):
        return well("version", f"gateway and orchestrator are {there}")
    words = f"the orchestrator is {there}, the gateway {running or here}"
    same = f"sluice connect {seen.alias}" if seen.alias else "start both again"
    return odd("version", words, f"bring the newer one to both sides: {same}; jobs go on")


def database(seen: Seen) -> Finding:
    health, answers = seen.orchestrator, seen.answers
    if health is None or answers is None:
        return unknown("database", "the orchestrator does not answer")
    watcher = mapping(health.get("watcher"))
    trouble = str(watcher.get("trouble") or "")
    if answers.services is None:
        fix = "look at the quota and at orchestrator.log in ~/.sluicegate; docs/operations.md, Recover"
        return broken("database", answers.services_error or "services cannot be read", fix)
    if trouble and not watcher.get("stale_since"):
        return broken(
            "database", f"nothing can be recorded: {trouble}", "make room where ~/.sluicegate lies; what runs goes on"
        )
    return well("database", "services can be read")


# The scheduler


def scheduler(seen: Seen) -> Finding:
    health, survey = seen.orchestrator, seen.survey
    if health is None:
        return _scheduler_by_survey(seen)
    watcher = mapping(health.get("watcher"))
    if health.get("scheduler") == "local":
        return well("scheduler", "plain processes of that machine")
    since, trouble = watcher.get("stale_since"), str(watcher.get("trouble") or "")
    where = f"on {seen.alias}" if seen.alias else "here"
    if since:
        fix = f"`scontrol ping` {where} says whether slurmctld lives; ask the site. Nothing is lost meanwhile"
        return broken("scheduler", f"Slurm has not answered since {said_time(since)}: {trouble}".rstrip(": "), fix)
    if watcher.get("late"):
        fix = "see orchestrator.log in ~/.sluicegate; start the orchestrator again, jobs go on"
        return broken(
            "scheduler", f"the orchestrator has not asked Slurm since {said_time(watcher.get('last_look'))}", fix
        )
    if survey and survey.slurm and not survey.slurm.answers:  # without jobs of ours nobody has asked it
        return _scheduler_by_survey(seen)
    told = f"Slurm {dotted(survey.slurm.version)}" if survey and survey.slurm and survey.slurm.version else "Slurm"
    since = age(watcher.get("last_look"), seen.now)
    return well(
        "scheduler", f"{told} answers" + (f", the last time {max(0, since):.0f} s ago" if since is not None else "")
    )


def _scheduler_by_survey(seen: Seen) -> Finding:
    survey = seen.survey
    if survey is None:
        return unknown("scheduler", "the orchestrator does not answer, and there was no login to look with")
    if survey.slurm is None:
        return unknown("scheduler", "there is no Slurm on that machine's PATH")
    if not survey.slurm.answers:
        fix = "`scontrol ping` there says whether slurmctld lives; ask the site. What runs goes on"
        return broken("scheduler", f"Slurm does not answer: {survey.slurm.words}", fix)
    return well("scheduler", f"Slurm {dotted(survey.slurm.version)} answers")


def account(seen: Seen) -> Finding:
    answers = seen.answers
    if answers is None or answers.health is None:
        return unknown("account", "the orchestrator does not answer")
    if answers.health.get("scheduler") == "local":
        return unknown("account", "plain processes need none")
    if answers.rehearsal is None:
        return unknown("account", answers.rehearsal_error or "Slurm was not asked")
    verdicts = {str(one.get("check")): one for one in answers.rehearsal}
    for check in ("script", "scheduler"):
        one = verdicts.get(check, {})
        if one.get("level") == "error":
            fix = f"correct account, partition, qos or gpu_type in [site] of the settings file{_choices(seen)}"
            return broken("account", str(one.get("message")), fix)
    told = verdicts.get("scheduler", {})
    if told.get("level") != "ok":
        return unknown("account", str(told.get("message") or "Slurm did not say"))
    return well("account", "Slurm would take a job")


def _choices(seen: Seen) -> str:
    slurm = seen.survey.slurm if seen.survey else None
    if slurm is None:
        return ""
    accounts = ", ".join(dict.fromkeys(one.name for one in slurm.accounts))
    partitions = ", ".join(one.name for one in slurm.partitions if one.gpus)
    told = [
        f"your accounts: {accounts}" if accounts else "",
        f"partitions with GPUs: {partitions}" if partitions else "",
    ]
    return f" ({'; '.join(filter(None, told))})" if any(told) else ""


# Folders, services, clock


def home(seen: Seen) -> Finding:
    survey = seen.survey
    if survey is None:
        return _no_survey(seen, "home")
    place = next((one for one in survey.places if one.role == "home"), None)
    if place is None:
        return unknown("home", "the file system of the home did not answer in time", "ask the site; try again")
    if not place.writable:
        return broken(
            "home", f"{place.path} cannot be written", "ask the site, or set ORCHESTRATOR_HOME to another folder"
        )
    return _room(place)


def _room(place: Place) -> Finding:
    fix = f"make room in {place.path}, or set ORCHESTRATOR_HOME and [site] cache_dir to another file system"
    if (files := _files_left(place)) is not None and files < 100:
        return broken("home", f"the quota leaves {files} files in {place.path}", fix)
    if place.room is None:
        return unknown("home", f"nobody tells how much room there is in {place.path}")
    words = f"{size(place.room)} left in {place.path}" + (" by quota" if place.room != place.free else "")
    if place.room < _NEEDED:
        return broken("home", f"only {words}", fix)
    return odd("home", f"only {words}", fix) if place.room < _COMFORTABLE else well("home", words)


def _files_left(place: Place) -> int | None:
    left = [
        one.files_limit - one.files for one in place.quotas if one.files_limit is not None and one.files is not None
    ]
    return min(left, default=None)


def services(seen: Seen) -> Iterator[Finding]:
    """One for all, then one for each that has failed within a day."""
    answers = seen.answers
    if answers is None or answers.services is None:
        yield unknown("services", "the orchestrator does not tell of them")
        return
    counted: dict[str, int] = {}
    for one in answers.services:
        counted[str(one.get("status"))] = counted.get(str(one.get("status")), 0) + 1
    alive = {status: count for status, count in counted.items() if status in ("pending", "configuring", "running")}
    yield well("services", ", ".join(f"{count} {status}" for status, count in alive.items()) or "none is there")
    failed = [one for one in answers.services if _failed_lately(one, seen.now)]
    for one in failed[:_SHOWN]:
        found = mapping(one.get("diagnosis"))
        words = str(found.get("sentence") or one.get("reason") or one.get("status"))
        advice = str(found.get("advice") or f"sluice logs {one.get('id')} --tail 50")
        yield odd("services", f"{one.get('id')} {one.get('recipe_name')} has failed: {words}", advice)


def _failed_lately(service: Mapping[str, Any], now: float) -> bool:
    ended = age(mapping(service.get("job")).get("ended_at") or service.get("created_at"), now)
    return service.get("status") in _FAILED and (ended is None or ended < _RECENT_SECONDS)


_FAILED = ("failed", "timeout", "node_fail", "out_of_memory", "lost")


def engines(seen: Seen) -> Iterator[Finding]:
    """Running means that the engine answers; one whose job runs for long without an answer is named."""
    answers = seen.answers
    if answers is None or answers.services is None:
        yield unknown("engines", "the orchestrator does not tell of them")
        return
    ready = [one for one in answers.services if one.get("status") == "running"]
    late = [one for one in answers.services if _loads_for_long(one, seen.now)]
    for one in late[:_SHOWN]:
        where = ", ".join(map(str, one.get("nodes") or []))
        words = f"{one.get('id')} runs on {where} but does not answer: {one.get('reason')}"
        fix = f"sluice logs {one.get('id')} --tail 50; can the login node reach that node's ports?"
        yield broken("engines", words, fix)
    if ready or not late:
        yield well("engines", f"{len(ready)} answer{'s' if len(ready) == 1 else ''}" if ready else "none runs")


def _loads_for_long(service: Mapping[str, Any], now: float) -> bool:
    job = mapping(service.get("job"))
    since = age(job.get("started_at"), now)
    return service.get("status") == "configuring" and since is not None and since > _LOADING_SECONDS


def clock(seen: Seen) -> Finding:
    own = seen.login.clock if seen.login else None
    told = seen.answers.clock if seen.answers else None
    ahead = own if own is not None else told
    if ahead is None:
        return unknown("clock", "nobody there has told the time")
    if abs(ahead) < _CLOCK_SECONDS:
        return well("clock", "this machine and the login node agree")
    side = "ahead of" if ahead > 0 else "behind"
    fix = "set this machine's clock by NTP (`timedatectl`); times in tables and the end of keys are off by that"
    return odd("clock", f"the login node is {abs(ahead):.0f} s {side} this machine", fix)

"""The small Slurm job that an orchestrator itself may be, where a login node keeps no processes: its script.

`python -m orchestrator.own_job --config FILE STATE` prints it, for `sluice connect`, which submits it.
"""

import argparse
import shlex
import sys
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.script import checked, checked_path
from orchestrator.settings import Site, read_settings

NAME = "sluicegate-orchestrator"
_NOT_OURS = ("--exclusive", "--gres", "--gpus", "--nodes", "--ntasks", "--mem", "--cpus")  # they are for engines

# USR1 comes two minutes before the time limit, USR2 from an upgrade, TERM from scancel and `scontrol requeue`.
# Not `exec`: bash has to be there for the signals. A `wait` that a signal cuts short is begun again.
_BODY = """\
umask 077
for place in /tmp "${{TMPDIR:-/tmp}}" /dev/shm; do
    folder=$(mktemp -d "$place/sluicegate.XXXXXXXX") && break
done
[ -n "$folder" ] || exit 1
trap 'rm -rf "$folder"' EXIT
export ORCHESTRATOR_JOB=$SLURM_JOB_ID ORCHESTRATOR_SOCKET=$folder/orchestrator.sock
holder={holder} next='' child=''
end() {{
    next=$1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}}
trap 'end requeue' USR1
trap 'end again' USR2
trap 'end stop' TERM INT
while :; do
    if grep -qs '"job": "'"$SLURM_JOB_ID"'"' "$holder"; then rm -f "$holder"; fi # of an earlier start, which has ended
    {serve} job &
    child=$!
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done
    wait "$child"
    code=$?
    child=''
    case $next in
        again) next='' && continue ;;
        requeue) {slurm} scontrol requeue "$SLURM_JOB_ID" && sleep 60 ;;
        '') [ $code != 0 ] && [ $code != 2 ] && sleep 5 && [ -z "$next" ] && continue ;; # it crashed; 2: the settings
    esac
    exit $code
done
"""


def script(site: Site, state: Path) -> str:
    """The script, for a state folder that `sluice connect` has made. Pure. Raises Invalid for what sbatch would not
    read as it is meant."""
    names = {"serve": "bin/serve", "slurm": "bin/slurm", "holder": "orchestrator.holder"}
    paths = {name: shlex.quote(str(state / path)) for name, path in names.items()}
    return "#!/bin/bash\n" + "\n".join(directives(site, state)) + "\n\n" + _BODY.format(**paths)


def directives(site: Site, state: Path) -> list[str]:
    """The `#SBATCH` lines. The time limit is the site's only where its file says one: else the partition's own."""
    options = [
        ("job-name", NAME),
        ("chdir", checked_path(state)),
        ("output", checked_path(state / "orchestrator.out")),
        ("open-mode", "append"),
        ("nodes", "1"),
        ("ntasks", "1"),
        ("cpus-per-task", "1"),
        ("signal", "B:USR1@120"),
    ]
    if site.request_memory:
        options.append(("mem", "2G"))
    if "max_time_limit" in site.model_fields_set:
        options.append(("time", str(site.max_time_limit)))
    for name, value in (
        ("account", site.account),
        ("partition", site.cpu_partition or site.partition),
        ("qos", site.qos),
        ("constraint", site.constraint),
    ):
        if value:
            options.append((name, checked(name, value)))
    further = [line for line in site.extra_directives if not line.startswith(_NOT_OURS)]
    lines = [f"#SBATCH --{name}={value}" for name, value in options] + ["#SBATCH --requeue"]
    return lines + [f"#SBATCH {line}" for line in further]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.own_job", description=__doc__)
    parser.add_argument("--config", type=Path)
    parser.add_argument("state", type=Path)
    options = parser.parse_args(argv)
    try:
        settings = read_settings(options.config)
        if settings.scheduler != "slurm":
            sys.stderr.write(f"{options.config} says {settings.scheduler!r}: there is no Slurm to be a job of\n")
            return 2
        sys.stdout.write(script(settings.site, options.state.absolute()))
    except OrchestratorError as exc:  # SettingsError is one, too
        sys.stderr.write(f"{exc}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

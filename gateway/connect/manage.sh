# What `sluice connect` and the gateway do where the orchestrator is. Read by `sh -s -- VERB STATE …`; nothing of ours
# need be there. STATE is the state folder, below the home unless it is absolute. What is told are lines
# `sluice:NAME=VALUE`; all else on standard output is a login shell's. Exit 1 after `sluice:error=…`.
# shellcheck disable=SC2015,SC2016 # `a && b || fail` is meant so; what is written into scripts is not for this shell
set -u
umask 077
LC_ALL=C
export LC_ALL
verb=$1
state=$2
shift 2
case $state in /*) ;; *) state=$HOME/$state ;; esac
unit=sluicegate.service
units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
if [ -z "${XDG_RUNTIME_DIR:-}" ] && [ -d "/run/user/$(id -u)" ]; then
    XDG_RUNTIME_DIR=/run/user/$(id -u)
    export XDG_RUNTIME_DIR
fi

tell() { printf 'sluice:%s=%s\n' "$1" "$2"; }

fail() {
    tell error "$1"
    exit 1
}

# The last words of what failed, each a line.
words() { tail -n 12 "$1" 2>/dev/null | while IFS= read -r line; do tell words "$line"; done; }

quoted() { printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }

# Of a process: when it was started, in ticks of the kernel. Empty when it is gone.
ticks() {
    case $1 in '' | *[!0-9]*) return ;; esac
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" && $1 != "X" { print $20 }'
}

holder() { sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\).*/\1/p' "$state/orchestrator.holder" 2>/dev/null; }

# One of Slurm's commands, as the orchestrator sees them.
slurm() { if [ -x "$state/bin/slurm" ]; then "$state/bin/slurm" "$@"; else "$@"; fi; }

# Sets job, pid, where, running and waits: yes, no, queued (a job of its own that waits for what `waits` says), or
# elsewhere (another machine has touched the folder within two minutes).
look() {
    running=no pid='' where='' waits='' since=''
    job=$(holder job)
    if [ -z "$job" ] && [ ! -f "$state/orchestrator.holder" ]; then job=$(cat "$state/orchestrator.job" 2>/dev/null); fi
    if [ -n "$job" ]; then look_at_job; else look_at_process; fi
}

# A job that squeue does not list has ended, whatever it has left behind. The holder of a job that runs is this start's: the
# job's script removes one of an earlier start. Names of machines are not compared, as Slurm's may be others than their own.
look_at_job() {
    line=$(slurm squeue --noheader "--user=$(id -u)" '--format=%i|%T|%N|%S|%r' 2>&1) || fail "squeue does not say how job $job is: $line"
    line=$(printf '%s\n' "$line" | grep "^$job|") || {
        job=''
        return 0
    }
    where=$(printf %s "$line" | cut -d '|' -f 3)
    waits=$(printf %s "$line" | awk -F '|' '{ print $2 " (" $5 ")" }')
    running=queued
    case $line in "$job|RUNNING|"*) ;; *) return 0 ;; esac
    waits='RUNNING (the orchestrator is about to listen)'
    [ "$(holder job)" = "$job" ] || return 0
    running=yes waits='' pid=$(holder pid)
    since=$(printf %s "$line" | cut -d '|' -f 4)
}

look_at_process() {
    [ -f "$state/orchestrator.holder" ] || return 0
    where=$(holder host)
    if [ "$(holder boot)" = "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" ]; then
        pid=$(holder pid)
        started=$(holder started)
        if [ -n "$started" ] && [ "$(ticks "$pid")" = "$started" ]; then running=yes; fi
    elif [ -n "$(find "$state/orchestrator.holder" -mmin -2 2>/dev/null)" ]; then
        running=elsewhere
    fi
}

# What `serve` has put into the environment of the running process: its version's name, and how it was started.
mark() {
    [ -n "$job" ] && echo "$(holder version) job" && return 0
    tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | sed -n 's/^SLUICE_STARTED=//p'
}

status() {
    tell state "$state"
    tell host "$(uname -n)"
    tell system "$(uname -s)"
    current=$(readlink "$state/current" 2>/dev/null) && tell installed "${current##*/}"
    if [ -n "${current:-}" ]; then
        version=$("$state/current/bin/python" -c 'import orchestrator; print(orchestrator.__version__)' 2>/dev/null) \
            && tell version "$version"
    fi
    for one in "$state"/versions/*; do [ -d "$one" ] && tell present "${one##*/}"; done
    for one in "$state"/packages/*; do [ -d "$one" ] && tell packages "${one##*/}"; done
    for one in "$state"/python/*/bin/python3; do [ -x "$one" ] && tell python "$one"; done
    [ -f "$state/site.toml" ] && tell site yes
    [ -S "$state/orchestrator.sock" ] && tell socket "$state/orchestrator.sock"
    look
    tell running "$running"
    if [ "$running" = no ]; then
        [ -f "$state/orchestrator.job" ] && tell before job # it was not stopped: its job has ended
        return 0
    fi
    tell where "$where"
    [ -n "$job" ] && tell job "$job"
    [ -n "$waits" ] && tell waits "$waits"
    [ "$running" = yes ] || return 0
    tell pid "$pid"
    mark=$(mark)
    tell mark "$mark"
    if [ -n "$job" ]; then
        tell socket "$(holder socket)"
        tell since "$since"
        return 0
    fi
    seconds=$(ps -o etimes= -p "$pid" 2>/dev/null | tr -d ' ')
    [ -n "$seconds" ] && tell since "$(($(date +%s) - seconds))"
    return 0
}

# Whether what is installed as $1 is whole.
check() {
    python=$state/versions/$1/bin/python
    "$python" -c 'import gateway.cli, orchestrator.app' >"$state/.check" 2>&1 || {
        words "$state/.check"
        rm -f "$state/.check"
        fail "what is installed as $1 does not start"
    }
    rm -f "$state/.check"
}

# Nothing of an interrupted installation stays.
tidy() {
    mkdir -p "$state" || fail "cannot make the folder $state"
    chmod 700 "$state"
    for one in "$state"/versions/.*.part "$state"/packages/.*.part "$state"/python/.*.part; do
        [ -d "$one" ] && rm -rf "$one"
    done
    return 0
}

# $1: the packages' name, $2: a Python, $3: uv, or "". What the index has, as seen from here, into a folder of its own.
index() {
    part=$state/packages/.$1.part
    mkdir -p "$part" || fail "cannot make the folder $part"
    set -- "$1" "$2" "$3" --target "$part" --requirement "$state/incoming/requirements.txt" \
        --constraint "$state/incoming/constraints.txt"
    name=$1 python=$2 uv=$3
    shift 3
    log=$state/incoming/index.log
    if [ -n "$uv" ]; then
        "$uv" pip install --python "$python" --only-binary=:all: "$@" >"$log" 2>&1
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --disable-pip-version-check --no-input --only-binary=:all: "$@" >"$log" 2>&1
    else
        "$python" -m venv "$part.venv" >"$log" 2>&1 \
            && "$part.venv/bin/python" -m pip install --disable-pip-version-check --no-input --only-binary=:all: \
                "$@" >>"$log" 2>&1
    fi
    code=$?
    rm -rf "$part.venv"
    if [ $code != 0 ]; then
        words "$log"
        rm -rf "$part"
        fail "the package index has not given what is needed"
    fi
    mv -T "$part" "$state/packages/$name" || fail "cannot finish $state/packages/$name"
}

# $1: the version's name, $2: a Python, $3: its packages' name; or "": $4: LD_LIBRARY_PATH for that Python, $5: the PATH with
# Slurm's commands. The wheel is in `incoming`.
install() {
    part=$state/versions/.$1.part
    log=$state/incoming/install.log
    [ -n "$4" ] && LD_LIBRARY_PATH=$4 && export LD_LIBRARY_PATH
    rm -rf "$part"
    mkdir -p "$state/versions" && "$2" -m venv --without-pip "$part" >"$log" 2>&1 || {
        words "$log"
        fail "$2 cannot make a virtual environment in $part"
    }
    site=$("$part/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || fail "$part/bin/python does not run"
    "$part/bin/python" -m zipfile -e "$state"/incoming/*.whl "$site" >"$log" 2>&1 || {
        words "$log"
        fail "cannot unpack the wheel into $site"
    }
    printf '%s\n' "$state/packages/$3" >"$site/sluicegate-packages.pth"
    "$part/bin/python" -c 'import gateway.cli, orchestrator.app' >"$log" 2>&1 || {
        words "$log"
        rm -rf "$part"
        fail "what was installed does not start"
    }
    printf '#!/bin/sh\nexec "%s" -c "from gateway.cli import main; main()" "$@"\n' '$(dirname "$0")/python' >"$part/bin/sluice"
    chmod 700 "$part/bin/sluice"
    if [ -e "$state/versions/$1" ]; then rm -rf "$state/versions/$1"; fi
    mv -T "$part" "$state/versions/$1" || fail "cannot finish $state/versions/$1"
    scripts "$4" "${5:-$PATH}"
    rm -rf "$state/incoming"
}

# $1, $2: as $4 and $5 of `install`. `bin/sluice`, which is the current version's, `bin/serve`, which starts the
# orchestrator, and `bin/slurm`, which runs one of Slurm's commands. What the last two run is no part of the job that
# they may be called in.
scripts() {
    mkdir -p "$state/bin"
    {
        printf '#!/bin/sh\n# The current version. Written by sluice connect.\n'
        [ -n "$1" ] && printf 'LD_LIBRARY_PATH=%s\nexport LD_LIBRARY_PATH\n' "$(quoted "$1")"
        printf 'home=$(cd -P %s && pwd) || exit 1\n' "$(quoted "$state/current")"
        printf 'exec "$home/bin/python" -c "from gateway.cli import main; main()" "$@"\n'
    } >"$state/bin/.sluice"
    {
        printf '#!/bin/sh\n# serve HOW: becomes the orchestrator. Written by sluice connect.\n'
        printf 'ORCHESTRATOR_HOME=%s\n' "$(quoted "$state")"
        outside "$2"
        [ -n "$1" ] && printf 'LD_LIBRARY_PATH=%s\nexport LD_LIBRARY_PATH\n' "$(quoted "$1")"
        printf 'home=$(cd -P %s && pwd) || exit 1\n' "$(quoted "$state/current")"
        printf 'SLUICE_STARTED="${home##*/} $1"\nexport PATH ORCHESTRATOR_HOME SLUICE_STARTED\n'
        printf 'exec "$home/bin/python" -m orchestrator --config %s\n' "$(quoted "$state/site.toml")"
    } >"$state/bin/.serve"
    {
        printf '#!/bin/sh\n# slurm COMMAND …: one of its commands, as the orchestrator sees them. Written by sluice connect.\n'
        outside "$2"
        printf 'export PATH SLURM_TIME_FORMAT=%%s\nexec "$@"\n'
    } >"$state/bin/.slurm"
    chmod 700 "$state/bin/.sluice" "$state/bin/.serve" "$state/bin/.slurm"
    mv -f "$state/bin/.slurm" "$state/bin/slurm"
    mv -f "$state/bin/.sluice" "$state/bin/sluice"
    mv -f "$state/bin/.serve" "$state/bin/serve"
}

# $1: the PATH. Lines of a script: what makes Slurm's commands what they are on the login node.
outside() {
    printf 'for one in $(env | sed -n "s/^\\(S[A-Z]*_[A-Z0-9_]*\\)=.*/\\1/p"); do\n'
    printf '    case $one in SLURM_CONF | SLURM_CLUSTERS) ;; SLURM*_* | SBATCH_* | SRUN_* | SQUEUE_* | SCANCEL_*) unset "$one" ;; esac\n'
    printf 'done\nPATH=%s\n' "$(quoted "$1")"
    [ -n "${SLURM_CONF:-}" ] && printf 'SLURM_CONF=%s\nexport SLURM_CONF\n' "$(quoted "$SLURM_CONF")"
    return 0
}

# $1: the version's name. In one step, for whoever starts it at this moment.
switch() {
    ln -sfn "versions/$1" "$state/.current.$$" && mv -Tf "$state/.current.$$" "$state/current" \
        || fail "cannot make $state/current"
}

# Keep the three newest versions: jobs in the queue may still name them.
prune() {
    count=0
    # shellcheck disable=SC2045 # the names are ours
    for one in $(ls -t "$state/versions" 2>/dev/null); do
        count=$((count + 1))
        if [ $count -gt 3 ] && [ "versions/$one" != "$(readlink "$state/current")" ]; then
            rm -rf "${state:?}/versions/$one" && tell removed "$one"
        fi
    done
    for one in "$state"/packages/*; do
        [ -d "$one" ] || continue
        grep -qsxF "$one" "$state"/versions/*/lib*/python*/site-packages/sluicegate-packages.pth && continue
        rm -rf "$one"
    done
    return 0
}

# $1: how; `again`: as it was started before. $2, for `beside`: a Python.
start() {
    look
    case $running in
        yes) tell already "$pid" && return 0 ;;
        queued)
            case $1 in
                job | again) await "${2:-$state/current/bin/python}" && return 0 ;;
                *) end_job ;; # it is to be started another way
            esac
            ;;
        elsewhere) fail "an orchestrator has this folder on $where: stop it there, or reach the cluster by that login node" ;;
    esac
    log=$state/orchestrator.out
    child=''
    python=${2:-$state/current/bin/python}
    way=$1
    if [ "$way" = again ]; then
        way=detached
        [ -f "$state/orchestrator.job" ] && way=job
        grep -qsF "\"$state/bin/serve\"" "$units/$unit" && way=systemd
    fi
    # A holder whose job has ended keeps nobody out.
    [ -n "$(holder job)" ] && rm -f "$state/orchestrator.holder"
    [ "$way" = job ] || rm -f "$state/orchestrator.job"
    case $way in
        systemd)
            mkdir -p "$units"
            {
                printf '# Written by sluice connect.\n[Unit]\nDescription=The orchestrator of Sluicegate\n\n[Service]\n'
                printf 'ExecStart="%s" systemd\nRestart=on-failure\nRestartSec=5\nKillMode=mixed\n' "$state/bin/serve"
                printf 'TimeoutStopSec=30\n\n[Install]\nWantedBy=default.target\n'
            } >"$units/$unit"
            systemctl --user daemon-reload >"$log" 2>&1 && systemctl --user enable --now "$unit" >>"$log" 2>&1 || {
                words "$log"
                fail "systemd does not start $unit"
            }
            ;;
        detached)
            if command -v setsid >/dev/null 2>&1; then
                setsid nohup "$state/bin/serve" detached </dev/null >"$log" 2>&1 &
            else
                nohup "$state/bin/serve" detached </dev/null >"$log" 2>&1 &
            fi
            child=$!
            ;;
        job) submit ;;
        beside) # this machine's own gateway starts the orchestrator that is installed with it
            set -- "$python" -m orchestrator
            [ -f "$state/site.toml" ] && set -- "$@" --config "$state/site.toml"
            SLUICE_STARTED='beside beside' ORCHESTRATOR_HOME=$state setsid nohup "$@" </dev/null >"$log" 2>&1 &
            child=$!
            ;;
        *) fail "no such way to start: $way" ;;
    esac
    await "$python"
}

# The orchestrator as a job of its own. `orchestrator.job` has its number until it is stopped.
submit() {
    : >"$log"
    ORCHESTRATOR_HOME=$state "$state/current/bin/python" -m orchestrator.own_job --config "$state/site.toml" "$state" >"$state/.job" 2>"$log" || {
        words "$log"
        fail "there is no script for a job of the orchestrator"
    }
    number=$(slurm sbatch --parsable "$state/.job" 2>"$log") || {
        words "$log"
        fail "Slurm does not take the orchestrator as a job"
    }
    rm -f "$state/.job"
    number=$(printf '%s\n' "$number" | tail -n 1)
    echo "${number%%;*}" >"$state/orchestrator.job"
}

# $1: a Python. Whether somebody listens at the socket; a killed orchestrator leaves one where nobody does.
answers() {
    [ -n "$job" ] && return 0 # at a socket of another machine; the gateway sees that
    [ -S "$state/orchestrator.sock" ] || return 1
    "$1" -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$state/orchestrator.sock" 2>/dev/null
}

# $1: a Python. Until it has the folder and its socket; what it said when it ended instead.
await() {
    count=0
    while [ $count -lt 150 ]; do
        look
        if [ "$running" = yes ] && answers "$1"; then
            tell pid "$pid"
            [ -n "$job" ] && tell job "$job"
            return 0
        fi
        if [ -n "$child" ] && [ -z "$(ticks "$child")" ]; then break; fi
        [ -f "$state/orchestrator.job" ] && [ "$running" = no ] && break
        count=$((count + 1))
        sleep 0.2
    done
    if [ "$running" = queued ]; then # nothing has gone wrong
        tell job "$job"
        tell waits "$waits"
        return 0
    fi
    words "${log:=$state/orchestrator.out}"
    [ -n "$child" ] || [ -f "$state/orchestrator.job" ] || journalctl --user -q -n 12 -o cat -u "$unit" 2>/dev/null | while IFS= read -r line; do tell words "$line"; done
    fail "the orchestrator has not started"
}

stop() {
    look
    case $running in
        no) tell already stopped && return 0 ;;
        queued) end_job && return 0 ;;
        elsewhere) fail "the orchestrator runs on $where: stop it there, or reach the cluster by that login node" ;;
    esac
    if [ -n "$job" ]; then end_job && return 0; fi
    victim=$pid
    case $(mark) in
        *' systemd') systemctl --user disable --now "$unit" >/dev/null 2>&1 ;;
        *) kill -TERM "$victim" 2>/dev/null ;;
    esac
    count=0
    while [ "$running" = yes ] && [ "$pid" = "$victim" ] && [ $count -lt 150 ]; do
        count=$((count + 1))
        sleep 0.1
        look
    done
    [ "$running" = yes ] && [ "$pid" = "$victim" ] && fail "process $victim has not ended within 15 s"
    tell stopped "$victim"
}

# Slurm ends it: with SIGTERM first, on which the orchestrator leaves the folder as it should be.
end_job() {
    victim=$job
    slurm scancel "$job" >"$state/.scancel" 2>&1 || {
        words "$state/.scancel"
        fail "Slurm does not end job $job"
    }
    rm -f "$state/.scancel" "$state/orchestrator.job"
    count=0
    while [ "$job" = "$victim" ] && [ $count -lt 90 ]; do
        case $waits in COMPLETING*) [ -f "$state/orchestrator.holder" ] || break ;; esac
        count=$((count + 1))
        sleep 0.5
        look
    done
    [ "$job" = "$victim" ] && [ -f "$state/orchestrator.holder" ] && fail "job $victim has not ended within 45 s"
    tell stopped "job $victim"
}

# $1: the version's name. The job stays, and need not wait in the queue again: its script starts the new version.
renew() {
    was=$pid
    switch "$1"
    slurm scancel --batch --signal=USR2 "$job" >/dev/null 2>&1 || fail "Slurm does not signal job $job"
    count=0
    while [ $count -lt 300 ]; do
        count=$((count + 1))
        sleep 0.1
        now=$(holder pid)
        [ -n "$now" ] && [ "$now" != "$was" ] && [ "$(holder job)" = "$job" ] && tell pid "$now" && tell job "$job" && return 0
    done
    words "$state/orchestrator.out"
    fail "the orchestrator has not started again in job $job"
}

# $1: the version's name, $2: how to start. The gap is as short as the two are.
replace() {
    look
    if [ "$running" = yes ] && [ -n "$job" ] && [ "$2" = job ]; then
        renew "$1"
        return 0
    fi
    stop
    switch "$1"
    start "$2"
}

# $1: uv, $2: the version. A Python of its own for us.
bring() {
    mkdir -p "$state/python"
    log=$state/python/uv.log
    UV_PYTHON_INSTALL_DIR=$state/python "$1" python install --no-bin "$2" >"$log" 2>&1 \
        || UV_PYTHON_INSTALL_DIR=$state/python "$1" python install "$2" >"$log" 2>&1 || {
        words "$log"
        fail "uv cannot bring Python $2"
    }
    for one in "$state"/python/*/bin/python3; do [ -x "$one" ] && tell python "$one"; done
    rm -f "$log"
}

# $1: a path, below the home unless it is absolute. Which Python that is.
version() {
    python=$1
    case $python in /*) ;; *) python=$HOME/$python ;; esac
    number=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || fail "$python is no Python that runs"
    tell python "$python"
    tell version "$number"
}

# $1: a file in the state folder. Where it is, made a program.
program() {
    chmod 700 "$state/$1" || fail "there is no $state/$1"
    tell program "$state/$1"
}

# Whether the user's systemd goes on after the logout, which most sites let their users say.
linger() {
    loginctl enable-linger >/dev/null 2>&1 || true
    tell lingers "$(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null)"
}

# $1: a module, $2: the file that makes `module` known. Where its Python is.
module_python() {
    # shellcheck disable=SC1090 # it is the site's
    [ -n "$2" ] && . "$2" >/dev/null 2>&1
    module load "$1" >/dev/null 2>&1 || fail "module load $1 fails"
    found=$(command -v python3) || fail "the module $1 brings no python3"
    tell python "$found"
    tell libraries "${LD_LIBRARY_PATH:-}"
    tell version "$("$found" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')"
}

case $verb in
    status) status ;;
    check) check "$@" ;;
    tidy) tidy ;;
    index) index "$@" ;;
    install) install "$@" ;;
    switch) switch "$@" ;;
    prune) prune ;;
    start) start "$@" ;;
    stop) stop ;;
    replace) replace "$@" ;;
    bring) bring "$@" ;;
    version) version "$@" ;;
    program) program "$@" ;;
    linger) linger ;;
    module) module_python "$@" ;;
    *) fail "no such verb: $verb" ;;
esac

#!/bin/sh
# What is on this login node, for `gateway.survey.read`. It looks, changes nothing, and ends with 0. Any POSIX shell
# runs it, also from standard input (`sh -s`): all of it is functions, and the last line starts them.
#
# Arguments, all optional: `brief` leaves out modules, containers and the package index, `whole` does not; the
# orchestrator's state folder, below the home unless it is absolute; the most seconds that a question may take.
#
# Each question is asked in the background with a time limit of its own and writes into a file: a command that hangs on
# a dead file system, which no signal ends, keeps neither the others nor the connection waiting.

MARK='#sluice#'
LC_ALL=C
export LC_ALL
umask 077
count=0

main() {
  BRIEF=0
  [ "${1:-}" != brief ] || BRIEF=1
  STATE=${2:-.sluicegate}
  MOST=${3:-60}
  STARTED=$(date +%s)
  ME=$(id -un 2>/dev/null)
  HOME=${HOME:-$(cd && pwd)}
  export HOME
  case $STATE in /*) ;; *) STATE=$HOME/$STATE ;; esac
  printf '%s survey 1\n' "$MARK"
  if make_folder; then
    trap 'rm -rf "$FOLDER"' EXIT
    trap 'end_all; exit 0' HUP INT TERM
    ask login 20 q_login
    gather
    use_login "$FOLDER/1.out"
    ask_all
    gather
    show_all
  else
    printf '%s trouble no folder for temporary files can be made in /tmp, /dev/shm or %s\n' "$MARK" "$HOME"
  fi
  printf '%s complete\n' "$MARK"
}

make_folder() {
  for parent in "${TMPDIR:-/tmp}" /tmp /dev/shm "$HOME"; do
    FOLDER=$parent/.sluice-survey.$$.$(date +%s)
    mkdir -m 700 "$FOLDER" 2>/dev/null && return 0
  done
  return 1
}

# Asking: NAME SECONDS FUNCTION [ARGUMENT...]. Some at a time: accounts may have few processes.

ask() {
  while look && [ "$running" -ge 12 ]; do pause; done
  count=$((count + 1))
  file=$FOLDER/$count
  printf '%s\n' "$1" >"$file.name"
  printf '%s %s\n' $(($2 < MOST ? $2 : MOST)) "$now" >"$file.limit"
  shift 2
  (
    "$@"
    printf '%s\n' $? >"$file.ended"
  ) >"$file.out" 2>&1 </dev/null &
  printf '%s\n' $! >"$file.pid"
}

# Wait until each question has its answer, or has had its time.
gather() {
  while look && [ "$running" -gt 0 ]; do pause; done
}

pause() { sleep 0.1 2>/dev/null || sleep 1; }

# Sets `now` and how many are `running`; ends those whose time is over, or all after 75 s.
look() {
  now=$(date +%s)
  running=0
  number=1
  while [ "$number" -le "$count" ]; do
    one=$FOLDER/$number
    if ! [ -s "$one.ended" ]; then
      read -r limit began <"$one.limit"
      if [ $((now - began)) -ge "$limit" ] || [ $((now - STARTED)) -ge 75 ]; then
        kill_tree "$(cat "$one.pid")"
        printf 'late\n' >"$one.ended"
      else
        running=$((running + 1))
      fi
    fi
    number=$((number + 1))
  done
}

kill_tree() {
  for child in $(ps -A -o pid= -o ppid= 2>/dev/null | awk -v parent="$1" '$2 == parent { print $1 }'); do
    kill_tree "$child"
  done
  kill -9 "$1" 2>/dev/null
}

end_all() {
  number=1
  while [ "$number" -le "$count" ]; do
    [ -s "$FOLDER/$number.ended" ] || kill_tree "$(cat "$FOLDER/$number.pid")"
    number=$((number + 1))
  done
}

show_all() {
  number=1
  while [ "$number" -le "$count" ]; do
    one=$FOLDER/$number
    printf '%s begin %s\n' "$MARK" "$(cat "$one.name")"
    head -c 200000 "$one.out" | sed "s/^$MARK/ $MARK/"
    printf '\n%s end %s\n' "$MARK" "$(cat "$one.ended")"
    number=$((number + 1))
  done
}

say() { printf '%s=%s\n' "$1" "$2"; }

has() { command -v "$1" >/dev/null 2>&1; }

# The environment of a login shell: a session that only runs a command often has no PATH to Slurm, and no $SCRATCH.

q_login() {
  shell=$(command -v bash || command -v sh)
  # shellcheck disable=SC2016 # the login shell expands them
  "$shell" -lc 'printf "\nsluice-path:%s\n" "$PATH"
    env | grep -E "^([A-Z_]*(SCRATCH|WORK|PROJECT|PROJ|STORE|DATA|SCRDIR|WRKDIR)[A-Z_0-9]*|PIP_INDEX_URL|UV_INDEX_URL|UV_DEFAULT_INDEX|HF_HOME|SLURM_CONF|[a-z]+_proxy|[A-Z]+_PROXY)=/*" | sed "s/^/sluice-env:/"' 2>/dev/null |
    grep '^sluice-' | grep -v 'sluice-env:BASH_FUNC'
  has sinfo && say plain-sinfo "$(command -v sinfo)"
  :
}

# Of these variables only folders are printed; what programs below need of the others they get by the environment.
use_login() {
  while IFS= read -r line; do
    case $line in
      sluice-path:*) PATH=${line#sluice-path:}:$PATH ;;
      sluice-env:*=*)
        pair=${line#sluice-env:}
        name=${pair%%=*}
        eval "$name=\${pair#*=} && export $name"
        ;;
    esac
  done <"$1"
  export PATH
  ME_FOLDERS=$(sed -n 's/^sluice-env:\([A-Z_0-9]*=\/.*\)/\1/p' "$1" | grep -Ev '^(SLURM_CONF|HF_HOME|PIP_|UV_|XDG_)')
  sed '/^sluice-env:/d' "$1" >"$1.plain" && mv "$1.plain" "$1"
}

ask_all() {
  ask host 10 q_host
  ask python 20 q_python
  if has sinfo; then
    ask slurm-version 15 sinfo --version
    ask sinfo 20 sinfo -h -o '%R|%P|%a|%l|%D|%T|%G|%c|%m|%f'
    ask partitions 20 scontrol -o show partition
    ask config 20 q_config
    ask assoc 20 sacctmgr -nP show assoc where user="$ME" format=Cluster,Account,Partition,QOS,DefaultQOS
    ask default-account 20 sacctmgr -nP show user "$ME" format=DefaultAccount
    ask qos 20 sacctmgr -nP show qos format=Name,MaxWall
    ask assoc-cache 20 scontrol -o show assoc_mgr users="$ME" flags=assoc
    ask sshare 20 sshare -U -n -P -o Account,User
  fi
  ask_places
  ask quota 10 q_quota
  ask lfs-quota 15 q_lfs_quota
  ask mmlsquota 10 q_mmlsquota
  ask sessions 10 q_sessions
  ask limits 5 cat /proc/self/limits
  ask cgroup 5 q_cgroup
  ask installed 20 q_installed
  ask orchestrator 15 q_orchestrator
  [ "$BRIEF" = 1 ] || ask_more
}

ask_more() {
  ask uv 8 q_uv
  ask index 20 q_index
  ask modules 20 q_modules
  ask module-names 30 q_module_names avail
  ask module-spider 40 q_module_names spider
  for program in apptainer singularity docker podman; do
    ask container 10 q_container "$program"
  done
  ask vllm 10 q_vllm
  ask gpus 15 q_gpus
  ask token 5 q_token
}

q_host() {
  say host "$(hostname 2>/dev/null || uname -n)"
  say user "$ME"
  say home "$HOME"
  say shell "$SHELL"
  say machine "$(uname -m)"
  say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version 2>&1 | sed -n 1p)"
  # shellcheck disable=SC1091
  say system "$( (. /etc/os-release && printf '%s' "$PRETTY_NAME") 2>/dev/null || uname -sr)"
  say clock "$(date +%s)"
  say cpus "$(getconf _NPROCESSORS_ONLN 2>/dev/null)"
  say groups "$(id -Gn 2>/dev/null)"
}

# Programs

PYTHON='
import os, sys
def has(*names):
    try:
        for name in names:
            __import__(name)
        return 1
    except Exception:
        return 0
version = ".".join(str(part) for part in sys.version_info[:3])
found = (sys.argv[1], version, has("venv", "ensurepip"), has("ssl", "sqlite3", "ctypes", "zlib"), os.path.realpath(sys.executable))
print("python=%s|%s|%d|%d|%s" % found)
'

q_python() {
  seen=:
  for folder in $(printf '%s' "$PATH" | tr ':' ' ') "$HOME/.local/bin" "$HOME"/miniconda3/bin "$HOME"/miniforge3/bin \
    "$HOME"/.local/share/uv/python/*/bin /usr/local/bin /opt/python*/bin /opt/*/python*/bin; do
    for one in "$folder"/python3 "$folder"/python3.[0-9] "$folder"/python3.[0-9][0-9]; do
      [ -x "$one" ] || continue
      real=$(readlink -f "$one" 2>/dev/null || printf '%s' "$one")
      case $seen in *":$real:"*) continue ;; esac
      seen=$seen$real:
      "$one" -I -S -c "$PYTHON" "$one" 2>/dev/null
    done
  done
  :
}

q_uv() {
  for one in "$(command -v uv)" "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv"; do
    [ -x "$one" ] || continue
    say uv "$one|$("$one" --version 2>/dev/null)"
    return 0
  done
}

# Asked without the credentials that may stand in its URL: an answer of any status says that there is a way.
q_index() {
  url=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-${PIP_INDEX_URL:-}}}
  [ -n "$url" ] || url=$(sed -n 's/^[[:space:]]*index[-_]url[[:space:]]*[=:][[:space:]]*//p' \
    "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf" /etc/pip.conf /etc/xdg/pip/pip.conf 2>/dev/null | sed -n 1p)
  url=$(printf '%s' "${url:-https://pypi.org/simple/}" | sed 's|//[^/@]*@|//|')
  say url "$url"
  if has curl; then
    answer=$(curl -sSI -o /dev/null --connect-timeout 5 --max-time 10 -w 'status=%{http_code}' "$url" 2>&1)
    printf '%s\n' "$answer" | sed 's/status=000$//'
  elif has wget; then
    wget --spider -S -T 8 -t 1 "$url" 2>&1 | sed -n 's|^ *HTTP/[0-9.]* \([0-9]*\).*|status=\1|p; s/^wget: //p'
  else
    echo 'neither curl nor wget is here to ask it'
  fi
}

q_container() {
  path=$(command -v "$1") || return 0
  works=1
  [ "$1" != docker ] || docker info >/dev/null 2>&1 || works=0
  say container "$1|$path|$works|$("$1" --version 2>/dev/null | sed -n 1p)"
}

# Not `vllm --version`, which imports all of torch: its version is in the name of a folder beside it.
q_vllm() {
  for one in "$(command -v vllm)" "$HOME"/*/bin/vllm "$HOME"/.venv/bin/vllm "$HOME"/.conda/envs/*/bin/vllm \
    "$HOME"/mini*3/envs/*/bin/vllm "$HOME"/venvs/*/bin/vllm; do
    [ -x "$one" ] || continue
    version=$(printf '%s\n' "${one%/bin/*}"/lib/python3*/site-packages/vllm-*.dist-info | sed -n 's|.*/vllm-\(.*\)\.dist-info$|\1|p' | sed -n 1p)
    [ "$version" != '*' ] || version=
    say vllm "$one|$version"
  done
  :
}

q_gpus() {
  has nvidia-smi || return 0
  nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null | sed 's/^/gpu=/'
}

q_token() {
  token=${HF_HOME:-$HOME/.cache/huggingface}/token
  [ ! -s "$token" ] || say token "$token"
}

q_installed() {
  for one in "$STATE/bin/sluice" "$STATE/current/bin/sluice" "$HOME/sluicegate/bin/sluice" "$HOME/.local/bin/sluice" "$(command -v sluice)"; do
    [ -x "$one" ] || continue
    say installed "$one|$("$one" --version 2>/dev/null | sed -n 1p)"
  done
  :
}

# Who holds the state folder, as orchestrator.holder says: a process here, or one on another login node, which touches
# the file every few seconds, or a Slurm job of its own, which orchestrator.job names before it has the folder.
q_orchestrator() {
  [ ! -S "$STATE/orchestrator.sock" ] || say socket "$STATE/orchestrator.sock"
  job=$(holder job)
  holds=1
  if ! [ -e "$STATE/orchestrator.holder" ]; then
    job=$(cat "$STATE/orchestrator.job" 2>/dev/null)
    holds=0
  fi
  if [ -n "$job" ]; then
    q_job "$job|$holds"
    return 0
  fi
  [ -r "$STATE/orchestrator.holder" ] || return 0
  pid=$(holder pid)
  alive=0
  elsewhere=0
  if [ "$(holder boot)" = "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" ]; then
    ticks=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | awk '{ print $20 }')
    [ -z "$ticks" ] || [ "$ticks" != "$(holder started)" ] || alive=1
  elif [ -n "$(find "$STATE/orchestrator.holder" -mmin -2 2>/dev/null)" ]; then
    elsewhere=1
  fi
  say process "$(holder host)|$pid|$alive|$elsewhere"
}

holder() {
  sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p" "$STATE/orchestrator.holder" 2>/dev/null | sed -n 1p
}

# NUMBER|HOLDS: what squeue lists of that job, nothing when it has ended; or why it does not say.
q_job() {
  if [ -x "$STATE/bin/slurm" ]; then set -- "$1" "$STATE/bin/slurm" squeue; else set -- "$1" squeue; fi
  told=$1
  shift
  if listed=$("$@" --noheader "--user=$(id -u)" '--format=%i|%T|%N|%r' 2>&1); then
    say job "$told|$(printf '%s\n' "$listed" | sed -n "s/^${told%%|*}|//p")"
  else
    say job "$told||||$(printf '%s\n' "$listed" | sed -n 1p)"
  fi
}

# Slurm and modules

q_config() {
  scontrol show config 2>&1 |
    grep -E '^(AccountingStorageType|AccountingStorageEnforce|ClusterName|SLURM_VERSION|SelectType |SelectType=)|error'
}

# shellcheck disable=SC2016 # for another shell
FIND_MODULE='
  found=
  if ! type module >/dev/null 2>&1; then
    for init in "$LMOD_PKG/init/bash" "$MODULESHOME/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \
      /etc/profile.d/modules.sh /usr/share/lmod/lmod/init/bash /usr/share/modules/init/bash /usr/share/Modules/init/bash; do
      [ -r "$init" ] && . "$init" >/dev/null 2>&1 && break
    done
  fi
  type module >/dev/null 2>&1 || exit 0
'

q_modules() {
  has bash || return 0
  bash -lc "$FIND_MODULE"'
    printf "\nsluice-lmod=%s\nsluice-tmod=%s\nsluice-home=%s\n" "$LMOD_VERSION" "$MODULES_CMD" "$MODULESHOME"
    for init in "$LMOD_PKG/init/bash" "$MODULESHOME/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \
      /etc/profile.d/modules.sh /usr/share/lmod/lmod/init/bash /usr/share/modules/init/bash /usr/share/Modules/init/bash; do
      [ -r "$init" ] && printf "sluice-init=%s\n" "$init" && break
    done
    module --version 2>&1 | sed -n "s/^/sluice-version=/p"' 2>/dev/null | sed -n 's/^sluice-//p'
}

q_module_names() {
  has bash || return 0
  # shellcheck disable=SC2016
  [ "$1" = avail ] || lmod='[ -n "$LMOD_VERSION" ] || exit 0;'
  bash -lc "$FIND_MODULE ${lmod:-} module -t $1 2>&1" 2>&1 |
    grep -iE '(^|[/_-])(python|cuda|apptainer|singularity|singularity-?ce|vllm|uv|conda|miniforge3?)([/(]|-?[0-9]|$)' |
    sed -n '1,300p'
}

# Folders: those that the login shell names, and those that sites usually have.

ask_places() {
  ask place 8 q_place home "\$HOME" "$HOME"
  while IFS='=' read -r name folder; do
    [ -n "$folder" ] || continue
    case $name in *SCRATCH* | *SCRDIR* | *WRKDIR*) role=scratch ;; *) role=project ;; esac
    ask place 8 q_place "$role" "\$$name" "$folder"
  done <<EOT
$ME_FOLDERS
EOT
  for base in /scratch /lustre/scratch /gpfs/scratch /project/scratch /p/scratch /mnt/scratch /scratch/users /scratch-shared; do
    ask place 8 q_below scratch "$base"
  done
  for base in /work /project /projects /proj /project/home /p/project /p/project1 /gpfs/projects /data /workspace; do
    ask place 8 q_below project "$base"
  done
}

q_below() {
  for name in "$ME" $(id -Gn); do
    [ ! -x "$2/$name" ] || q_place "$1" "$2" "$2/$name"
    [ "$name" = "$ME" ] || [ ! -x "$2/$name/$ME" ] || q_place "$1" "$2" "$2/$name/$ME"
  done
}

# ROLE, WHAT NAMES IT, FOLDER
q_place() {
  [ -d "$3" ] || return 0
  real=$(cd -P "$3" 2>/dev/null && pwd -P)
  writable=0
  [ ! -w "$3" ] || writable=1
  if line=$(df -PTk "$3" 2>/dev/null | sed -n '$p') && [ -n "$line" ]; then
    df=$(printf '%s\n' "$line" | awk '{ print $2 "|" $3 "|" $5 "|" $1 "|" $7 }')
  else
    df=$(stat -f -c %T "$3" 2>/dev/null)$(df -Pk "$3" 2>/dev/null | sed -n '$p' | awk '{ print "|" $2 "|" $4 "|" $1 "|" $6 }')
  fi
  say place "$1|$2|$3|$real|$writable|$df"
  for image in "$3"/*vllm*.sif "$3"/images/*vllm*.sif "$3"/containers/*vllm*.sif "$3"/sif/*vllm*.sif; do
    [ ! -r "$image" ] || say image "$image"
  done
}

q_quota() {
  has quota || return 0
  quota -w 2>&1
}

q_lfs_quota() {
  has lfs || return 0
  awk '$3 == "lustre" { print $2 }' /proc/mounts | sort -u | sed -n '1,6p' | while IFS= read -r mount; do
    lfs quota -u "$ME" "$mount" 2>&1
    for group in $(id -Gn | tr ' ' '\n' | sed -n '1,8p'); do
      lfs quota -g "$group" "$mount" 2>&1
    done
  done
  printf '%s\n' "$ME_FOLDERS" | while IFS='=' read -r name folder; do
    [ -n "$folder" ] || continue
    number=$(lfs project -d "$folder" 2>/dev/null | awk '{ print $1 }')
    case $number in '' | 0 | *[!0-9]*) continue ;; esac
    lfs quota -p "$number" "$folder" 2>&1
  done
}

q_mmlsquota() {
  has mmlsquota || return 0
  mmlsquota --block-size K 2>&1
}

# What becomes of a process that stays when its user logs out

q_sessions() {
  XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
  export XDG_RUNTIME_DIR
  has systemctl && say manager "$(systemctl --user is-system-running 2>/dev/null)"
  if [ -e "/var/lib/systemd/linger/$ME" ]; then
    say Linger yes
  elif has loginctl; then
    loginctl show-user "$ME" -p Linger 2>/dev/null
  fi
  has busctl && say bus "$(busctl get-property org.freedesktop.login1 /org/freedesktop/login1 \
    org.freedesktop.login1.Manager KillUserProcesses 2>/dev/null)"
  cat /usr/lib/systemd/logind.conf.d/*.conf /etc/systemd/logind.conf /run/systemd/logind.conf.d/*.conf \
    /etc/systemd/logind.conf.d/*.conf 2>/dev/null | sed -n 's/^[[:space:]]*\(KillUserProcesses\)[[:space:]]*=/\1=/p'
  has tmux && say tmux "$(command -v tmux)"
  :
}

q_cgroup() {
  path=$(sed -n 's/^0:://p' /proc/self/cgroup)
  while [ -n "$path" ] && [ "$path" != / ]; do
    for name in memory.max pids.max; do
      [ ! -r "/sys/fs/cgroup$path/$name" ] || say "$name" "$(cat "/sys/fs/cgroup$path/$name")"
    done
    path=${path%/*}
  done
  old=/sys/fs/cgroup/memory/user.slice/user-$(id -u).slice/memory.limit_in_bytes
  [ ! -r "$old" ] || say memory.max "$(cat "$old")"
}

main "$@"

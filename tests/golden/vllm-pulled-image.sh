#!/bin/bash
#SBATCH --job-name=sluice-0190b2c4
#SBATCH --comment=sluicegate:0190b2c4
#SBATCH --chdir=/home/ada/.sluicegate/runs/0190b2c4
#SBATCH --output=/home/ada/.sluicegate/runs/0190b2c4/stdout.log
#SBATCH --error=/home/ada/.sluicegate/runs/0190b2c4/stderr.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=15
#SBATCH --mem=64G
#SBATCH --gres=gpu:4

# Rendered by Sluicegate from inference/vllm-single-node. To bash the lines above are comments: this file runs the same
# under sbatch and as a plain process.
# shellcheck disable=SC2329 # shellcheck does not see the functions that a trap calls
set -uo pipefail
umask 077

RUN=/home/ada/.sluicegate/runs/0190b2c4
JOB=${SLURM_JOB_ID:-${SLUICE_JOB_ID:-0}}
NODE=${SLURMD_NODENAME:-localhost}
# One entry for each engine of this node, by its number in the service.
ENGINES=() PORTS=() GPUS=() STATES=() STARTS=()
SIGNAL=

say() { printf '%s sluicegate: %s\n' "$(date '+%Y-%m-%dT%H:%M:%S%z')" "$*" >&2; }

cd "$RUN" || exit 73

# A job of several nodes runs this script once, and then once more on each of its nodes.
PART=${SLUICE_PART:-}
PUBLISHED=endpoints.json
if [ -n "$PART" ]; then
  PUBLISHED=endpoints.$PART.json
else
  # One submission, one server: should the scheduler have taken the script twice, the second job ends here. The same job
  # started again after a requeue goes on. A hard link appears at once and whole, also on NFS, where its answer may be
  # lost: so what counts is not whether `ln` says yes, but whose file it is. Its content is for the other job's log.
  CLAIM=claim.$JOB
  if ! [ claim -ef "$CLAIM" ]; then
    if ! printf '%s\n' "$JOB" >"$CLAIM"; then
      say "cannot write $RUN/$CLAIM"
      exit 73
    fi
    # Where there are no hard links a file that must be new has to do.
    ln "$CLAIM" claim 2>/dev/null || [ -e claim ] || (set -C && printf '%s\n' "$JOB" >claim) 2>/dev/null
  fi
  CLAIMANT=$(cat claim 2>/dev/null)
  if ! [ claim -ef "$CLAIM" ] && [ "$CLAIMANT" != "$JOB" ]; then
    rm -f "$CLAIM"
    if [ -z "$CLAIMANT" ]; then
      say "$RUN/claim does not say which job serves this submission; job $JOB ends"
      exit 73
    fi
    say "job $CLAIMANT already serves this submission; job $JOB ends"
    exit 0
  fi
  rm -f exit.json endpoints*.json
fi

# Written by rename, so that a reader on another node sees the old file or the new one.
write_exit() {
  [ -z "$PART" ] || return 0
  printf '{"job_id": "%s", "exit_code": %d, "signal": "%s", "ended_at": %d}\n' \
    "$JOB" "$1" "$SIGNAL" "$(date +%s)" >exit.json.tmp && mv -f exit.json.tmp exit.json
}

# Where the engines of this node listen, and how each of them is. A list of GPUs may hold indices or UUIDs.
publish() {
  local i comma=
  {
    printf '{"job_id": "%s", "node": "%s", "restarts": %d, "endpoints": [' \
      "$JOB" "$NODE" "${SLURM_RESTART_COUNT:-0}"
    for i in "${!PORTS[@]}"; do
      printf '%s{"replica": %d, "port": %d, "gpus": "%s", "starts": %d, "state": "%s"}' \
        "$comma" "$i" "${PORTS[i]}" "${GPUS[i]}" "${STARTS[i]}" "${STATES[i]}"
      comma=', '
    done
    printf ']}\n'
  } >"$PUBLISHED.tmp" && mv -f "$PUBLISHED.tmp" "$PUBLISHED"
}

alive() {
  local i
  for i in "${!ENGINES[@]}"; do
    if kill -0 "${ENGINES[i]}" 2>/dev/null; then return 0; fi
  done
  return 1
}
stop_engines() {
  local i
  alive || return 0
  kill -TERM "${ENGINES[@]}" 2>/dev/null
  for _ in {1..100}; do
    alive || return 0
    sleep 0.1
  done
  say "an engine ignored SIGTERM for 10 s; killing it"
  kill -KILL "${ENGINES[@]}" 2>/dev/null
}

finish() {
  local code=$?
  trap - EXIT
  trap '' TERM INT HUP
  # Before the engine is asked to end: whoever ended us may not wait for it.
  write_exit "$code"
  stop_engines
  say "ended with exit code $code${SIGNAL:+ after SIG$SIGNAL}"
  exit "$code"
}
on_signal() {
  SIGNAL=$1
  exit "$2"
}
trap finish EXIT
trap 'on_signal TERM 143' TERM
trap 'on_signal INT 130' INT
trap 'on_signal HUP 129' HUP

fail() {
  say "$@"
  exit 1
}

# The port asked for, or the next one that nobody has and no other job of ours has claimed on this node; in steps as wide
# as the group, so that two replicas of one job never have the same port. The claim is a lock held by this shell.
EPHEMERAL=(32768 60999)
read -r -a EPHEMERAL 2>/dev/null </proc/sys/net/ipv4/ip_local_port_range
has() { # port, states
  grep -qsE "^ *[0-9]+: [0-9A-F]+:$(printf '%04X' "$1") [0-9A-F]+:[0-9A-F]{4} $2 " /proc/net/tcp /proc/net/tcp6
}
listening() { # port
  has "$1" 0A
}
taken() { # port
  # The near end of somebody's own connection cannot be listened on either, but for TIME_WAIT (06). Outside of the range
  # of such ends a connection is one of an engine that was here before.
  listening "$1" || { [ "$1" -ge "${EPHEMERAL[0]}" ] && [ "$1" -le "${EPHEMERAL[1]}" ] && has "$1" '0[1-57-9A-C]'; }
}
LOCKS=/tmp/sluicegate-$UID
mkdir -m 700 "$LOCKS" 2>/dev/null
if [ ! -O "$LOCKS" ] || [ -L "$LOCKS" ] || ! command -v flock >/dev/null; then LOCKS=; fi
CLAIMS=()
choose_port() { # first wish, replica
  local claim=${CLAIMS[$2]:-}
  if [ -n "$claim" ]; then
    exec {claim}>&-
    CLAIMS[$2]=
  fi
  for ((PORT = $1; PORT <= 65535 && PORT < $1 + 500 * 1; PORT += 1)); do
    taken "$PORT" && continue
    [ -n "$LOCKS" ] || return 0
    exec {claim}>"$LOCKS/$NODE-$PORT.lock" || return 0
    if flock -n "$claim" && ! taken "$PORT"; then
      CLAIMS[$2]=$claim
      return 0
    fi
    exec {claim}>&-
  done
  fail "no free port for replica $2 from $1 on, on $NODE"
}

export SLUICE_CACHE_DIR=/home/ada/.cache/sluicegate
export HF_HUB_OFFLINE=0
export VLLM_LOGGING_LEVEL=INFO
export VLLM_NO_USAGE_STATS=1
export DO_NOT_TRACK=1
# Keys and tokens: never in this file, a command line or a log.
if [ -r "$RUN/secrets.env" ]; then
  set -a
  # shellcheck disable=SC1091
  . "$RUN/secrets.env"
  set +a
fi
# vLLM's own check of the key leaves some paths out; this one, which vLLM loads, leaves out /health alone.
if [ -z "$PART" ]; then
  mkdir -p guard || fail "cannot make the folder $RUN/guard"
  cat >guard/sluicegate_guard.py <<'END_OF_GUARD' || fail "cannot write $RUN/guard/sluicegate_guard.py"
"""What asks for the engine's key, inside the engine: vLLM's own check leaves some paths out, /invocations among them.

A job's script writes this file into the run folder, and vLLM loads it by `--middleware sluicegate_guard.Guard`. It runs
under vLLM's interpreter, whichever that is: the standard library only. The key is VLLM_API_KEY.
"""

import hmac
import os

OPEN = "/health"  # says nothing but whether the engine serves
REFUSED = b'{"error":"Unauthorized"}'
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(REFUSED)),
    (b"www-authenticate", b"Bearer"),
]


class Guard:
    """An ASGI middleware. Every path but /health wants `Authorization: Bearer` and the key, by every method."""

    def __init__(self, app):
        self.app = app
        self.key = os.environ.get("VLLM_API_KEY", "").encode()
        if not self.key:
            raise RuntimeError("VLLM_API_KEY is not set: this engine would answer everybody who reaches its port")

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or self._open(scope) or self._knows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": HEADERS})
            await send({"type": "http.response.body", "body": REFUSED})

    def _open(self, scope):
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return scope["type"] == "http" and path == OPEN

    def _knows(self, scope):
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self.key)
END_OF_GUARD
fi
# Runs in the engine's place, in its container where there is one.
guarded() { # the guard's folder, the words that start vLLM
  export PYTHONPATH=$1${PYTHONPATH:+:$PYTHONPATH}
  shift
  exec "$@"
}

engine() { # replica
  local claim
  export CUDA_VISIBLE_DEVICES=${GPUS[$1]}
  [ -n "$CUDA_VISIBLE_DEVICES" ] || unset CUDA_VISIBLE_DEVICES
  for claim in "${CLAIMS[@]}"; do
    [ -z "$claim" ] || exec {claim}>&-
  done
  exec apptainer exec --nv --bind /home/ada/.sluicegate/runs/0190b2c4:/home/ada/.sluicegate/runs/0190b2c4 --bind /home/ada/.cache/sluicegate:/home/ada/.cache/sluicegate /images/vllm--vllm-openai--v0.11.2.sif bash -c "$(declare -f guarded)"$'\nguarded "$@"' guarded "$RUN/guard" python3 -m vllm.entrypoints.openai.api_server \
    --middleware sluicegate_guard.Guard \
    --model Qwen/Qwen2.5-0.5B-Instruct \
    --served-model-name Qwen/Qwen2.5-0.5B-Instruct \
    --host 0.0.0.0 \
    --port "$PORT" \
    --tensor-parallel-size 4 \
    --gpu-memory-utilization 0.9
}

# Start one engine in the background, on the port wished for or another one.
start() { # replica, port
  choose_port "$2" "$1"
  PORTS[$1]=$PORT STATES[$1]=up STARTS[$1]=$((${STARTS[$1]:-0} + 1))
  publish
  say "job $JOB on $NODE: starting" vllm "on port $PORT (replica $1, start ${STARTS[$1]})"
  engine "$1" &
  ENGINES[$1]=$!
}

GPUS[0]=${CUDA_VISIBLE_DEVICES:-}
WISH=8001
for _ in 1 2 3; do
  start 0 "$WISH"
  wait "${ENGINES[0]}"
  CODE=$?
  unset "ENGINES[0]" # its pid may be another process's by now
  # Somebody else took the port between our look and the engine's bind: it is taken although our engine is gone.
  if [ "$CODE" -ne 0 ] && taken "$PORT"; then
    say "port $PORT was taken by another process; trying the next one"
    WISH=$((PORT + 1))
    continue
  fi
  break
done
say "the engine ended with exit code $CODE"
exit "$CODE"

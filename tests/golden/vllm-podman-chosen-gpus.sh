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
#SBATCH --account=other

# Rendered by Sluicegate from inference/vllm-single-node. To bash the lines above are comments: this file runs the same
# under sbatch and as a plain process.
# shellcheck disable=SC2329 # shellcheck does not see the functions that a trap calls
set -uo pipefail
umask 077

RUN=/home/ada/.sluicegate/runs/0190b2c4
JOB=${SLURM_JOB_ID:-${SLUICE_JOB_ID:-0}}
NODE=${SLURMD_NODENAME:-localhost}
ENGINE=
SIGNAL=

say() { printf '%s sluicegate: %s\n' "$(date '+%Y-%m-%dT%H:%M:%S%z')" "$*" >&2; }

cd "$RUN" || exit 73

# One submission, one server: should the scheduler have taken the script twice, the second job ends here. The same job
# started again after a requeue goes on.
if mkdir claim 2>/dev/null; then
  echo "$JOB" >claim/job
elif [ "$(cat claim/job 2>/dev/null)" != "$JOB" ]; then
  say "job $(cat claim/job 2>/dev/null) already serves this submission; job $JOB ends"
  exit 0
fi
rm -f exit.json endpoints.json

# Written by rename, so that a reader on another node sees the old file or the new one.
write_exit() {
  printf '{"job_id": "%s", "exit_code": %d, "signal": "%s", "ended_at": %d}\n' \
    "$JOB" "$1" "$SIGNAL" "$(date +%s)" >exit.json.tmp && mv -f exit.json.tmp exit.json
}

# CUDA_VISIBLE_DEVICES is the scheduler's list; it may hold indices or UUIDs.
publish() {
  printf '{"job_id": "%s", "node": "%s", "restarts": %d, "endpoints": [{"replica": 0, "port": %d, "gpus": "%s"}]}\n' \
    "$JOB" "$NODE" "${SLURM_RESTART_COUNT:-0}" "$PORT" "${CUDA_VISIBLE_DEVICES:-}" >endpoints.json.tmp &&
    mv -f endpoints.json.tmp endpoints.json
}

stop_engine() {
  [ -n "$ENGINE" ] && kill -0 "$ENGINE" 2>/dev/null || return 0
  kill -TERM "$ENGINE" 2>/dev/null
  for _ in {1..100}; do
    kill -0 "$ENGINE" 2>/dev/null || return 0
    sleep 0.1
  done
  say "the engine ignored SIGTERM for 10 s; killing it"
  kill -KILL "$ENGINE" 2>/dev/null
  podman rm --force sluice-0190b2c4 >/dev/null 2>&1 # the client is dead, the container is not
}

finish() {
  local code=$?
  trap - EXIT
  trap '' TERM INT HUP
  # Before the engine is asked to end: whoever ended us may not wait for it.
  write_exit "$code"
  stop_engine
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

# The port asked for, or the next one that nobody listens on and no other job of ours has claimed on this node. The claim
# is a lock that ends with the last process that holds it.
listening() {
  grep -qsE "^ *[0-9]+: [0-9A-F]+:$(printf '%04X' "$1") [0-9A-F]+:0000 0A" /proc/net/tcp /proc/net/tcp6
}
LOCKS=/tmp/sluicegate-$UID
mkdir -m 700 "$LOCKS" 2>/dev/null
if [ ! -O "$LOCKS" ] || [ -L "$LOCKS" ] || ! command -v flock >/dev/null; then LOCKS=; fi
choose_port() {
  for ((PORT = $1; PORT <= 65535 && PORT < $1 + 500; PORT++)); do
    listening "$PORT" && continue
    [ -n "$LOCKS" ] || return 0
    exec {LOCK}>"$LOCKS/$NODE-$PORT.lock" || return 0
    if flock -n "$LOCK" && ! listening "$PORT"; then return 0; fi
    exec {LOCK}>&-
  done
  fail "no free port between $1 and $((PORT - 1)) on $NODE"
}

export SLUICE_CACHE_DIR=/home/ada/.cache/sluicegate
export HF_HOME=/home/ada/.cache/sluicegate/huggingface
export VLLM_CACHE_ROOT=/home/ada/.cache/sluicegate/vllm
export VLLM_LOGGING_LEVEL=INFO
export VLLM_NO_USAGE_STATS=1
export DO_NOT_TRACK=1
export GREETING='it'"'"'s "$HOME" `id` \'
# The GPUs chosen by the user are places in the list that the scheduler allocated.
IFS=, read -r -a ALLOCATED <<<"${CUDA_VISIBLE_DEVICES:-}"
PLACES=(0 1)
CHOSEN=
for place in "${PLACES[@]}"; do
  [ "${#ALLOCATED[@]}" -eq 0 ] || [ -n "${ALLOCATED[$place]:-}" ] ||
    fail "CUDA_VISIBLE_DEVICES asks for GPU $place, but this job has ${#ALLOCATED[@]}: ${CUDA_VISIBLE_DEVICES:-}"
  CHOSEN+=${CHOSEN:+,}${ALLOCATED[$place]:-$place}
done
export CUDA_VISIBLE_DEVICES=$CHOSEN
# Keys and tokens: never in this file, a command line or a log.
if [ -r "$RUN/secrets.env" ]; then
  set -a
  # shellcheck disable=SC1091
  . "$RUN/secrets.env"
  set +a
fi

engine() {
  exec podman run --rm --init --network=host --ipc=host --name=sluice-0190b2c4 --userns=keep-id --env=HOME=/home/ada/.cache/sluicegate --env=USER="$(id -un)" --workdir=/home/ada/.sluicegate/runs/0190b2c4 --entrypoint= --device=nvidia.com/gpu=all --env CUDA_VISIBLE_DEVICES --volume /home/ada/.sluicegate/runs/0190b2c4:/home/ada/.sluicegate/runs/0190b2c4 --volume /home/ada/.cache/sluicegate:/home/ada/.cache/sluicegate --volume '/data/my models/qwen:/data/my models/qwen:ro' --env SLUICE_CACHE_DIR --env HF_HOME --env VLLM_CACHE_ROOT --env VLLM_LOGGING_LEVEL --env VLLM_NO_USAGE_STATS --env DO_NOT_TRACK --env GREETING --env VLLM_API_KEY --env HF_TOKEN vllm/vllm-openai:v0.11.2 python3 -m vllm.entrypoints.openai.api_server \
    --model '/data/my models/qwen' \
    --served-model-name chat \
    --host 0.0.0.0 \
    --port "$PORT" \
    --tensor-parallel-size 2 \
    --gpu-memory-utilization 0.9 \
    --chat-template '{{ '"'"'it'"'"''"'"'s'"'"' }} $(id)' '' '#' '~'
}

WISH=8001
for attempt in 1 2 3; do
  choose_port "$WISH"
  publish
  say "job $JOB on $NODE: starting" vllm "on port $PORT (attempt $attempt)"
  engine &
  ENGINE=$!
  wait "$ENGINE"
  CODE=$?
  ENGINE=
  # Somebody else took the port between our look and the engine's bind: it is taken although our engine is gone.
  if [ "$CODE" -ne 0 ] && listening "$PORT"; then
    say "port $PORT was taken by another process; trying the next one"
    WISH=$((PORT + 1))
    continue
  fi
  break
done
say "the engine ended with exit code $CODE"
exit "$CODE"

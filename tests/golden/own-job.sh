#!/bin/bash
#SBATCH --job-name=sluicegate-orchestrator
#SBATCH --chdir=/home/ada/.sluicegate
#SBATCH --output=/home/ada/.sluicegate/orchestrator.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --signal=B:USR1@120
#SBATCH --mem=2G
#SBATCH --time=2880
#SBATCH --account=p200
#SBATCH --partition=cpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=course

umask 077
for place in /tmp "${TMPDIR:-/tmp}" /dev/shm; do
    folder=$(mktemp -d "$place/sluicegate.XXXXXXXX") && break
done
[ -n "$folder" ] || exit 1
trap 'rm -rf "$folder"' EXIT
export ORCHESTRATOR_JOB=$SLURM_JOB_ID ORCHESTRATOR_SOCKET=$folder/orchestrator.sock
holder=/home/ada/.sluicegate/orchestrator.holder next='' child=''
end() {
    next=$1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap 'end requeue' USR1
trap 'end again' USR2
trap 'end stop' TERM INT
while :; do
    if grep -qs '"job": "'"$SLURM_JOB_ID"'"' "$holder"; then rm -f "$holder"; fi # of an earlier start, which has ended
    /home/ada/.sluicegate/bin/serve job &
    child=$!
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done
    wait "$child"
    code=$?
    child=''
    case $next in
        again) next='' && continue ;;
        requeue) /home/ada/.sluicegate/bin/slurm scontrol requeue "$SLURM_JOB_ID" && sleep 60 ;;
        '') [ $code != 0 ] && [ $code != 2 ] && sleep 5 && [ -z "$next" ] && continue ;; # it crashed; 2: the settings
    esac
    exit $code
done

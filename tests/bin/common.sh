# Sourced by the fake Slurm commands: a controller whose jobs are one-line files in $HOME/slurm/jobs.
# A file $HOME/slurm/NAME.sh is sourced first by the command NAME: how a test makes it refuse, hang or say odd things.
set -u
COMMAND=${0##*/}
STATE=$HOME/slurm
US=$'\x1f'
printf '%s\n' "$COMMAND $*" >>"$STATE/calls"
env -0 >"$STATE/$COMMAND.env"
if [ -f "$STATE/$COMMAND.sh" ]; then . "$STATE/$COMMAND.sh"; fi

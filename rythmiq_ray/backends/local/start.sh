# Starts the wrapper, in the working directory, as a process that nobody waits for; prints its process group.
#
#   $1  the descriptor of the job's entry in the ledger; whatever has it open holds the entry's lock
#   $2  the file for what the wrapper prints
#
# This shell ends at once, so that what it started is no child of a Ray worker, which would take it along at its end.

set -m # what runs in the background has a process group of its own, and takes signals as usual
{
    trap : HUP INT TERM # for the wrapper to act on, whose end is waited for
    bash run.sh >"$2" 2>&1
    printf '{"exit_code":%d,"finished_at":"%s"}\n' "$?" "$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ)" >&"$1"
} </dev/null >/dev/null 2>&1 &
printf '%d\n' "$!"

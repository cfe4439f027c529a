#!/usr/bin/env bash
# Run a training job on several GPU hosts without a scheduler, one process a host:
#     bash launch/hosts.sh gpu-1,gpu-2 sft --config sft_7b --output /shared/runs/sft_7b
# The hosts are reached by ssh without a password, have this project in the same folder, and see the
# same data and output. The first one must reach itself and be reached by the others under its name.
# `localhost` runs here, without ssh; named several times, in several processes (for a trial).
# The output of host N goes to runs/hosts/host-N.log; that of host 0 is printed, too.
# If a process is lost, all end, stopped ones are killed, and the job starts again and continues from
# its last checkpoint (launch/retry.sh). On Ctrl-C or SIGTERM the job saves and stops; started again,
# it continues from there.
# --dry-run, before the hosts, prints what would run. EXTRA=cuda13 selects that CUDA (default: cuda12;
# none: install nothing, run $PYTHON). PORT=N: of the first host (default: another one every time).
set -euo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then dry=1 && shift; fi
if [ $# -lt 2 ]; then
    echo "usage: bash launch/hosts.sh [--dry-run] HOST,HOST,... JOB [--config NAME] [--KEY VALUE ...]" >&2
    exit 2
fi
IFS=, read -ra hosts <<<"$1"
job=$2
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
# shellcheck source=retry.sh
source "$root/launch/retry.sh"
logs="$root/runs/hosts"
extra=${EXTRA:-cuda12}
if [ "$extra" = none ]; then python=${PYTHON:-$python}; fi

# command N PORT: what host N runs.
command() {
    local install=: pid="$logs/host-$1.pid"
    if [ "$extra" != none ]; then
        install="source launch/venv.sh && install package --editable $(printf %q "${root}[train,$extra]")"
    fi
    printf '%s' "cd $(printf %q "$root") && $install && mkdir -p runs/hosts && " \
        "echo \$\$ >$(printf %q "$pid") && exec env UGC_JAX_PROCESSES=${#hosts[@]} " \
        "UGC_JAX_PROCESS=$1 JAX_COORDINATOR_ADDRESS=${hosts[0]}:$2 $(printf %q "$python") " \
        "-m ugc_jax.cli $(printf '%q ' "$job" --distributed "${words[@]}")"
}

# on HOST COMMAND: run it there, in place of this shell.
on() {
    if [ "$1" = localhost ]; then exec bash -c "$2"; fi
    exec ssh -o BatchMode=yes "$1" "bash -c $(printf %q "$2")"
}

# signal NUMBER SIGNAL: send it to the process of a host.
signal() {
    (on "${hosts[$1]}" "kill -$2 \$(cat $(printf %q "$logs/host-$1.pid"))") </dev/null || true
}

kill_host() {
    signal "$1" KILL
}

stop() {
    echo "stopping the job on all hosts; it saves first" >&2
    signal 0 TERM # all agree on the step to stop after
}

start() {
    local port=${PORT:-$((20000 + RANDOM % 20000))} number pids=()
    for number in "${!hosts[@]}"; do
        (on "${hosts[number]}" "$(command "$number" "$port")") \
            >>"$logs/host-$number.log" 2>&1 </dev/null &
        pids+=($!)
    done
    all_of "${GRACE:-60}" kill_host "${pids[@]}"
}

words=("$@")
if [ -n "$dry" ]; then
    for number in "${!hosts[@]}"; do
        echo "# host $number, on ${hosts[number]}:"
        command "$number" "${PORT:-PORT}"
        echo
    done
    exit 0
fi
mkdir -p "$logs"
rm -f "$logs"/host-*.log
echo "$job on ${#hosts[@]} hosts; logs in $logs"
trap stop INT TERM
print_log "$logs/host-0.log"
retry start

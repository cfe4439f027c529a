#!/usr/bin/env bash
# Run a training job on every host of a Cloud TPU slice:
#     bash launch/tpu_vm.sh NAME ZONE sft --config sft_3b \
#         --data.train gs://BUCKET/records --output gs://BUCKET/run
# Copies this folder to the hosts, installs it there (minutes the first time) and starts the job on
# all of them. Data and output must be accessible from every host, such as gs://BUCKET/...
# The output of host N goes to runs/tpu_vm/NAME/host-N.log; that of host 0 is printed, too.
# If a process is lost, all end, what is left is killed, and the job starts again and continues from
# its last checkpoint (launch/retry.sh). On Ctrl-C or SIGTERM it saves and stops.
# SETUP="COMMAND" runs first on each host, such as SETUP="sudo apt-get install -y python3.11-venv".
# --dry-run, before NAME, prints the commands. launch/tpu_queued.sh rents the slice, too.
set -euo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then dry=1 && shift; fi
if [ $# -lt 3 ]; then
    echo "usage: bash launch/tpu_vm.sh [--dry-run] NAME ZONE JOB [--config NAME] [--KEY VALUE ...]" >&2
    exit 2
fi
name=$1 zone=$2 job=$3
shift 3

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=retry.sh
source "$root/launch/retry.sh"
logs="$root/runs/tpu_vm/$name"

# tpu VERB ARGUMENTS...
tpu() {
    gcloud compute tpus tpu-vm "$1" --zone="$zone" "${@:2}"
}

# What each host runs.
remote="set -e
mkdir -p ugc_jax
tar -xzf ugc_jax.tar.gz -C ugc_jax
cd ugc_jax
${SETUP:-:}
source launch/venv.sh
install package --editable \"\${root}[train,gcs,tpu]\"
exec \"\$python\" -m ugc_jax.cli $(printf '%q ' "$job" --distributed "$@")"

copy() {
    tar -czf "$archive" -C "$root" --exclude=./.venv --exclude=./.git --exclude=./runs --exclude=./records .
    tpu scp "$archive" "$name:ugc_jax.tar.gz" --worker=all
}

if [ -n "$dry" ]; then
    gcloud() {
        printf '%q ' gcloud "$@"
        echo
    }
    echo "# a copy of $root to all hosts of $name:"
    tpu scp ugc_jax.tar.gz "$name:ugc_jax.tar.gz" --worker=all
    echo "# on every host N:"
    tpu ssh "$name" --worker=N --command=...
    echo "$remote"
    exit 0
fi

mkdir -p "$logs"
hosts="$(tpu describe "$name" --format='value(networkEndpoints.len())')"
echo "[1/2] copying to $hosts hosts of $name"
archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"' EXIT
copy

echo "[2/2] $job on all hosts; logs in $logs"

# end HOST|all SIGNAL: send a signal to the job's process.
end() {
    tpu ssh "$name" --worker="$1" --command="pkill -$2 -f 'ugc_jax[.]cli'" </dev/null || true
}

kill_host() {
    end "$1" KILL
}

stop() {
    echo "stopping the job on all hosts; it saves first" >&2
    end all TERM
}

start() {
    local host pids=()
    for ((host = 0; host < hosts; host++)); do
        tpu ssh "$name" --worker="$host" --command="$remote" \
            >"$logs/host-$host.log" 2>&1 </dev/null &
        pids+=($!)
    done
    all_of "${GRACE:-60}" kill_host "${pids[@]}"
}

trap stop INT TERM
print_log "$logs/host-0.log" "rm -f $(printf %q "$archive")"
retry start

#!/usr/bin/env bash
# Run a training job on every host of a Cloud TPU slice:
#     bash launch/tpu_vm.sh NAME ZONE sft --config sft_3b \
#         --data.train gs://BUCKET/records --output gs://BUCKET/run
# Copies this folder to the hosts, installs it there (minutes the first time) and starts the job on
# all of them. Data and output must be accessible from every host, such as gs://BUCKET/...
# The output of host N goes to runs/tpu_vm/NAME/host-N.log; that of host 0 is printed, too.
# On Ctrl-C or SIGTERM the job saves and stops; started again, it continues from there.
# SETUP="COMMAND" runs first on each host, such as SETUP="sudo apt-get install -y python3.11-venv".
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: bash launch/tpu_vm.sh NAME ZONE JOB [--config NAME] [--KEY VALUE ...]" >&2
    exit 2
fi
name=$1 zone=$2 job=$3
shift 3

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
logs="$root/runs/tpu_vm/$name"
mkdir -p "$logs"

# tpu VERB ARGUMENTS...
tpu() {
    gcloud compute tpus tpu-vm "$1" --zone="$zone" "${@:2}"
}

hosts="$(tpu describe "$name" --format='value(networkEndpoints.len())')"
echo "[1/2] copying to $hosts hosts of $name"
archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"' EXIT
tar -czf "$archive" -C "$root" --exclude=./.venv --exclude=./.git --exclude=./runs --exclude=./records .
tpu scp "$archive" "$name:ugc_jax.tar.gz" --worker=all

echo "[2/2] $job on all hosts; logs in $logs"
remote="set -e
mkdir -p ugc_jax
tar -xzf ugc_jax.tar.gz -C ugc_jax
cd ugc_jax
${SETUP:-:}
source launch/venv.sh
install package --editable \"\${root}[train,gcs,tpu]\"
exec \"\$python\" -m ugc_jax.cli $(printf '%q ' "$job" --distributed "$@")"

pids=()
for ((host = 0; host < hosts; host++)); do
    tpu ssh "$name" --worker="$host" --command="$remote" \
        >"$logs/host-$host.log" 2>&1 </dev/null &
    pids+=($!)
done

# shellcheck disable=SC2329 # called by the trap
stop() {
    echo "stopping the job on all hosts; it saves first" >&2
    tpu ssh "$name" --worker=all --command="pkill -TERM -f 'ugc_jax[.]cli'" </dev/null || true
}
trap stop INT TERM

tail --pid="${pids[0]}" -n +1 -F "$logs/host-0.log" 2>/dev/null &
status=0
for host in "${!pids[@]}"; do
    pid=${pids[host]} code=0
    while kill -0 "$pid" 2>/dev/null; do
        wait "$pid" || true # a signal ends it early
    done
    wait "$pid" || code=$?
    if [ $code -ne 0 ]; then
        echo "host $host ended with status $code; see $logs/host-$host.log" >&2
        status=$code
    fi
done
exit $status

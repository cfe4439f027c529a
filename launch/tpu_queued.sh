#!/usr/bin/env bash
# Rent a Cloud TPU slice as a queued resource, and run a training job on it until it is done:
#     bash launch/tpu_queued.sh NAME ZONE v5e:4x4 sft --config sft_7b \
#         --data.train gs://BUCKET/records --output gs://BUCKET/run
# The slice may be `auto`: the smallest one that holds the config, for those of configs/ (3B and 7B).
# Waits until the slice is there, then does what launch/tpu_vm.sh does. When the slice is taken away
# (preempted, repaired), it is asked for again and the job continues from its last checkpoint.
# Once the job is done, the slice is deleted; after Ctrl-C it stays (KEEP=1: always).
# SPOT=1 takes spot capacity. RUNTIME=VERSION: other software than the usual of that generation.
# --dry-run, before NAME, prints the commands.
set -euo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then dry=1 && shift; fi
if [ $# -lt 4 ]; then
    echo "usage: bash launch/tpu_queued.sh [--dry-run] NAME ZONE SLICE|auto JOB [--config NAME] [--KEY VALUE ...]" >&2
    exit 2
fi
launch="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=retry.sh
source "$launch/retry.sh"
# shellcheck source=slices.sh
source "$launch/slices.sh"
name=$1 zone=$2 slice=$3
shift 3
slice=$(chosen "$slice" "$@")
kind=$(type_of "$slice")

# queued VERB ARGUMENTS...
queued() {
    gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"
}

# shellcheck disable=SC2329 # called by ready
state() {
    queued describe --format='value(state.state)' 2>/dev/null || echo NONE
}

remove() {
    queued delete --force --quiet
}

create=(create --node-id="$name" --accelerator-type="$kind"
    --runtime-version="${RUNTIME:-$(runtime_of "$slice")}")
if [ -n "${SPOT:-}" ]; then create+=(--spot); fi

# ready: have the slice; waits in the queue.
# shellcheck disable=SC2329 # called by start
ready() {
    local now before=""
    while true; do
        now=$(state)
        if [ "$now" != "$before" ]; then echo "$name ($kind): $now" >&2; fi
        before=$now
        case $now in
        ACTIVE) return ;;
        NONE) queued "${create[@]}" ;;
        FAILED | SUSPENDED) remove ;; # taken away; this name cannot be used again before
        esac
        sleep "${POLL:-30}"
    done
}

# shellcheck disable=SC2329 # called by retry
start() {
    ready && RETRIES=0 bash "$launch/tpu_vm.sh" "$name" "$zone" "${words[@]}"
}

words=("$@")
if [ -n "$dry" ]; then
    gcloud() {
        printf '%q ' gcloud "$@"
        echo
    }
    echo "# until it is ACTIVE:"
    queued "${create[@]}"
    bash "$launch/tpu_vm.sh" --dry-run "$name" "$zone" "$@"
    echo "# once the job is done:"
    remove
    exit 0
fi
status=0
retry start || status=$?
case $status in
130 | 143) echo "$name stays; delete it with: gcloud compute tpus queued-resources delete $name --zone=$zone --force" >&2 ;;
*) if [ -z "${KEEP:-}" ]; then remove; fi ;;
esac
exit $status

# shellcheck shell=bash
# Sourced by the launch scripts: start again what ended early. A run that is started again goes on
# from its last checkpoint.
# RETRIES=N: starts after the first (default 20). PAUSE=SECONDS: before each (default 10).
# GRACE=SECONDS: for the other hosts after one has failed (default 60).

# retry COMMAND...: run it, and again while its status says that another start may succeed: not
# after success (0), a user's mistake (2), Ctrl-C (130) or SIGTERM (143).
retry() {
    local attempt status
    for ((attempt = 1; ; attempt++)); do
        status=0
        "$@" || status=$?
        case $status in
        0 | 2 | 130 | 143) return $status ;;
        esac
        if ((attempt > ${RETRIES:-20})); then
            echo "status $status after $attempt starts; no further one (RETRIES=${RETRIES:-20})" >&2
            return $status
        fi
        echo "status $status; start $((attempt + 1)) in ${PAUSE:-10} s" >&2
        sleep "${PAUSE:-10}"
    done
}

# print_log FILE [COMMAND]: print what comes to a file until this script ends, which runs COMMAND.
print_log() {
    touch "$1"
    tail -n +1 -F "$1" 2>/dev/null &
    # shellcheck disable=SC2064 # its id now
    trap "sleep 0.3; kill $! 2>/dev/null || true; ${2:-:}" EXIT
}

# worse A B: the status that stands for both: of a user's mistake, else of a stop, else the first.
worse() {
    local status
    for status in 2 130 143; do
        if [ "$1" -eq $status ] || [ "$2" -eq $status ]; then
            echo $status
            return
        fi
    done
    if [ "$1" -ne 0 ]; then echo "$1"; else echo "$2"; fi
}

# all_of GRACE KILL PID...: wait for processes, each with its number as its place; returns their
# status. Once one has ended with a failure, the others have GRACE seconds; then `KILL NUMBER` is
# called for each that is left (one that is stopped ends no other way).
all_of() {
    local grace=$1 kill=$2 number code status=0 failed=""
    shift 2
    local pids=("$@") left=$#
    while ((left)); do
        for number in "${!pids[@]}"; do
            if kill -0 "${pids[number]}" 2>/dev/null; then continue; fi
            code=0
            wait "${pids[number]}" || code=$?
            unset "pids[number]"
            left=$((left - 1))
            if ((code)); then
                echo "host $number ended with status $code; see its log" >&2
                failed=${failed:-$SECONDS}
                status=$(worse "$status" "$code")
            fi
        done
        if [ -n "$failed" ] && ((left && SECONDS - failed >= grace)); then
            for number in "${!pids[@]}"; do
                echo "host $number has not ended in $grace s; it is killed" >&2
                "$kill" "$number"
            done
            grace=$((grace + 30))
        fi
        sleep 0.2
    done
    return "$status"
}

#!/usr/bin/env bash
# From nothing to captions: bash launch/quickstart.sh [clip.mp4 ...]
# Makes .venv, a tiny random checkpoint and a short clip with picture and sound (or takes your
# clips), shows what the model sees of them and captions them. All results go to runs/quickstart;
# delete that folder to start afresh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

run="$root/runs/quickstart"
checkpoint="$run/checkpoint"
steps="$run/steps.txt"
ugc_jax=("$python" -m ugc_jax.cli)
mkdir -p "$run"
: >"$steps"

# step NUMBER NAME: announce a step, and note how long the one before took.
begun=$SECONDS current=
step() {
    if [ -n "$current" ]; then
        echo "      $((SECONDS - begun)) s"
        echo "$current $((SECONDS - begun))" >>"$steps"
    fi
    begun=$SECONDS current="${2:-}"
    if [ -n "$current" ]; then echo && echo "[$1/5] ${3}"; fi
}

step 1 install "installing into $root/.venv (minutes the first time)"
install package --editable "$root"

step 2 init "tiny checkpoint in $checkpoint"
if [ ! -f "$checkpoint/config.json" ]; then
    "${ugc_jax[@]}" init --config.size=tiny --config.output="$checkpoint"
fi

clips=("$@")
if [ ${#clips[@]} -eq 0 ]; then
    clips=("$run/clip.mp4")
    step 3 clip "8 s of moving picture with sound in ${clips[0]}"
    if [ ! -f "${clips[0]}" ]; then
        "$python" - "${clips[0]}" <<'END'
import sys
from ugc_jax.data.synthetic import write_clip

write_clip(sys.argv[1], seconds=8)
END
    fi
else
    step 3 clip "your clips: ${clips[*]}"
fi

step 4 inspect "what the model sees"
"${ugc_jax[@]}" inspect --config.checkpoint="$checkpoint" -- "${clips[@]}"
"${ugc_jax[@]}" inspect --config.checkpoint="$checkpoint" --config.json=true -- "${clips[@]}" \
    >"$run/inspect.jsonl"

step 5 caption "captions"
"${ugc_jax[@]}" caption --config.checkpoint="$checkpoint" --config.output="$run/captions.jsonl" \
    --config.max_new_tokens=64 --config.report="$run/report.json" -- "${clips[@]}"
step

"$python" "$root/launch/summary.py" "$run" "${clips[@]}"

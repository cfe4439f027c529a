#!/usr/bin/env bash
# Train a tiny audio-visual captioner from random weights: bash launch/quickstart.sh [clip.mp4 ...]
# Makes .venv, a world of 2200 short clips with sound, records of them and a tiny random model;
# trains the model on them by SFT and then by GRPO, and captions held-out clips: before, after each
# of the two, without sound and without picture. It scores the captions, makes a page of them, and
# captions your clips, if you name some. Takes less than a quarter of an hour on two cores.
# Results go to runs/quickstart; a stopped run continues when started again; delete that folder to
# start from the beginning.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

run="$root/runs/quickstart"
steps="$run/steps.txt"
mkdir -p "$run"
: >"$steps"

ugc_jax() {
    "$python" -m ugc_jax.cli "$@"
}

# step NUMBER NAME TEXT: announce a step, and write down how long the previous one took.
started=$SECONDS current=
step() {
    if [ -n "$current" ]; then
        echo "      $((SECONDS - started)) s"
        echo "$current $((SECONDS - started))" >>"$steps"
    fi
    started=$SECONDS current="${2:-}"
    if [ -n "$current" ]; then echo && echo "[$1/10] $3"; fi
}

# caption NAME CHECKPOINT CLIPS: to NAME.jsonl.
caption() {
    ugc_jax caption --config world:caption --checkpoint "$2" \
        --output "$run/$1.jsonl" --report "$run/$1.json" -- "$3"
}

step 1 install "installing into $root/.venv (minutes the first time)"
install package --editable "${root}[train,eval]"

step 2 init "a tiny random model in $run/start"
if [ ! -f "$run/start/config.json" ]; then
    ugc_jax init --size tiny --output "$run/start"
fi

step 3 world "clips with sound, and captions that can be checked, in $run/world"
ugc_jax world --output "$run/world"
for ablation in mute blank; do
    ugc_jax world --output "$run/$ablation" --train 0 --$ablation
done

step 4 extract "frames and log-mel as records in $run/records"
for split in train test; do
    ugc_jax extract --config world --output "$run/records/$split" \
        "$run/world/$split.jsonl"
done

step 5 before "captions of the test clips by the random model"
caption before "$run/start" "$run/world/test"

step 6 sft "training on the captions (SFT)"
ugc_jax sft --config "tiny:$run"

step 7 grpo "training on rewards of its own captions (GRPO)"
caption sft "$run/sft/model" "$run/world/test"
ugc_jax grpo --config "grpo_tiny:$run"

step 8 after "captions of the test clips, of the same without sound, of the same without picture"
caption grpo "$run/grpo/model" "$run/world/test"
for ablation in mute blank; do
    caption "$ablation" "$run/grpo/model" "$run/$ablation/test"
done

step 9 report "scores of the captions, and a page of them"
mkdir -p "$run/results"
results=()
for column in before:before sft:SFT grpo:GRPO mute:"no sound" blank:"no picture"; do
    name="${column%%:*}"
    ugc_jax evaluate --qa "$run/world/test.jsonl" --predictions "$run/$name.jsonl" \
        --name "${column#*:}" --output "$run/results/$name.json" \
        >"$run/results/$name.txt"
    results+=("$run/results/$name.json")
done
ugc_jax compare "${results[1]}" "${results[2]}"
# the page sorts by the first result
ugc_jax report --output "$run/report.html" --videos "$run/world/test" \
    --runs "$run/sft,$run/grpo" --fold before \
    -- "${results[2]}" "${results[1]}" "${results[0]}" "${results[3]}" "${results[4]}"

step 10 yours "your clips"
if [ $# -gt 0 ]; then
    ugc_jax inspect --checkpoint "$run/grpo/model" -- "$@"
    ugc_jax caption --checkpoint "$run/grpo/model" --output "$run/yours.jsonl" \
        --max_new_tokens 64 -- "$@"
else
    echo "      none; bash launch/quickstart.sh clip.mp4 captions one"
fi
step

"$python" "$root/launch/summary.py" "$run" "$@"

#!/usr/bin/env bash
# Train a tiny audio-visual captioner from random weights: bash launch/quickstart.sh [--fast] [clip.mp4 ...]
# Makes .venv, a world of 2200 short clips with sound, records of them and a tiny random model;
# trains the model on them by SFT and then by GRPO, and captions held-out clips: before, after each
# of the two, without sound and without picture. It scores the captions, makes a page of them, and
# captions your clips, if you name some. Takes about eight minutes on two cores.
# --fast: 660 clips and SFT alone, in about two minutes.
# Results go to runs/quickstart (runs/quickstart-fast); a stopped run continues when started again;
# delete that folder to start from the beginning.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

fast=
if [ "${1:-}" = "--fast" ]; then
    fast=1
    shift
fi
case "${1:-}" in
-h | --help)
    sed -n '2,10s/^# //p' "${BASH_SOURCE[0]}"
    exit
    ;;
-*)
    echo "quickstart.sh: unknown option $1; --fast is the only one" >&2
    exit 2
    ;;
esac

run="$root/runs/quickstart" train=2000 test=200 total=10 incomplete=0.6
columns=(before:before sft:SFT grpo:GRPO mute:"no sound" blank:"no picture")
if [ -n "$fast" ]; then
    run="$root/runs/quickstart-fast" train=600 test=60 total=8 incomplete=0
    columns=(before:before sft:SFT)
fi
steps="$run/steps.txt"
if [ -n "$fast" ]; then
    echo "A tour in about two minutes (and one or two to install, the first time): $((train + test))"
    echo "synthetic clips with sound, a model trained on them by SFT, scores, and a page."
else
    echo "A tour in about seven minutes on two cores (and one or two to install, the first time):"
    echo "$((train + test)) synthetic clips with sound, a model trained on them by SFT and GRPO, scores, and"
    echo "a page. --fast shows the first half of it in two minutes."
fi
echo "Everything goes to ${run#"$root/"}; Ctrl-C stops, and the same command goes on."
mkdir -p "$run"
: >"$steps"

ugc_jax() {
    "$python" -m ugc_jax.cli "$@"
}

# step NAME TEXT: announce a step, and write down how long the previous one took.
started=$SECONDS current='' number=0
step() {
    if [ -n "$current" ]; then
        echo "      $((SECONDS - started)) s"
        echo "$current $((SECONDS - started))" >>"$steps"
    fi
    started=$SECONDS current="${1:-}"
    if [ -n "$current" ]; then
        number=$((number + 1))
        local bar=''
        for ((i = 1; i <= total; i++)); do
            if ((i <= number)); then bar+='='; else bar+='.'; fi
        done
        echo
        echo "[$bar] $number/$total  $2"
    fi
}

# caption NAME CHECKPOINT CLIPS: to NAME.jsonl.
caption() {
    ugc_jax caption --config world:caption --checkpoint "$2" \
        --output "$run/$1.jsonl" --report "$run/$1.json" -- "$3"
}

step install "installing into $root/.venv (minutes the first time)"
install package --editable "${root}[train,eval]"

step init "a tiny random model in $run/start"
if [ ! -f "$run/start/config.json" ]; then
    ugc_jax init --size tiny --output "$run/start"
fi

step world "clips with sound, and captions that can be checked, in $run/world"
ugc_jax world --output "$run/world" --train "$train" --test "$test" --incomplete "$incomplete"
if [ -z "$fast" ]; then
    for ablation in mute blank; do
        ugc_jax world --output "$run/$ablation" --train 0 --$ablation
    done
fi

step extract "frames and log-mel as records in $run/records"
for split in train test; do
    ugc_jax extract --config world --output "$run/records/$split" \
        "$run/world/$split.jsonl"
done

step before "captions of the test clips by the random model"
caption before "$run/start" "$run/world/test"

step sft "training on the captions (SFT)"
ugc_jax sft --config "tiny:$run"
caption sft "$run/sft/model" "$run/world/test"
model="$run/sft/model" runs="$run/sft"

if [ -z "$fast" ]; then
    step grpo "training on rewards of its own captions (GRPO)"
    ugc_jax grpo --config "grpo_tiny:$run"
    model="$run/grpo/model" runs="$run/sft,$run/grpo"

    step after "captions of the test clips, of the same without sound, of the same without picture"
    caption grpo "$model" "$run/world/test"
    for ablation in mute blank; do
        caption "$ablation" "$model" "$run/$ablation/test"
    done
fi

step report "scores of the captions, and a page of them"
mkdir -p "$run/results"
results=()
for column in "${columns[@]}"; do
    name="${column%%:*}"
    ugc_jax evaluate --qa "$run/world/test.jsonl" --predictions "$run/$name.jsonl" \
        --name "${column#*:}" --output "$run/results/$name.json" \
        >"$run/results/$name.txt"
    results+=("$run/results/$name.json")
done
if [ -z "$fast" ]; then ugc_jax compare "${results[1]}" "${results[2]}"; fi
# the page sorts by the first result: the trained model
ordered=("${results[1]}" "${results[0]}")
if [ -z "$fast" ]; then
    ordered=("${results[2]}" "${results[1]}" "${results[0]}" "${results[3]}" "${results[4]}")
fi
ugc_jax report --output "$run/report.html" --videos "$run/world/test" --runs "$runs" \
    --fold before -- "${ordered[@]}"

step yours "your clips"
if [ $# -gt 0 ]; then
    ugc_jax inspect --checkpoint "$model" -- "$@"
    ugc_jax caption --checkpoint "$model" --output "$run/yours.jsonl" \
        --max_new_tokens 64 -- "$@"
else
    echo "      none; bash launch/quickstart.sh clip.mp4 captions one"
fi
step

"$python" "$root/launch/summary.py" "$run" "$@"

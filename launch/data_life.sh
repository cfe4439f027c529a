#!/usr/bin/env bash
# The whole life of a data set, offline, in the synthetic world: bash launch/data_life.sh
# 1. 200 clips without captions are labelled by a local server that speaks Gemini's protocol and errs
#    at a known rate (ERRORS of the statements; default 0.1). Verification is compared with the
#    truth. 100 clips are selected, extracted and trained on.
# 2. 40 other clips are annotated in a web page, each by two of three people, scripts with known error rates that
#    type into headless Chromium. What they disagree on is decided, questions are proposed and
#    accepted, the benchmark is exported, and the model of 1 is scored on it.
# Needs Chromium with its driver (Debian: apt install chromium-driver). Takes at most ten minutes on
# two cores. Results go to runs/data_life; a stopped run continues when started again; delete that
# folder to start from the beginning.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

run="$root/runs/data_life"
errors="${ERRORS:-0.1}"
mkdir -p "$run"

ugc_jax() {
    "$python" -m ugc_jax.cli "$@"
}

# part NAME ...: a part of this script that is not a job.
part() {
    "$python" "$root/launch/data_life.py" "$@"
}

started=$SECONDS
step() {
    echo && echo "[$1/9, $((SECONDS - started)) s] $2"
}

step 1 "a world of clips, and a tiny random model, in $run"
install data_life --editable "${root}[train,eval,label,gemini,web]" "selenium>=4.20"
ugc_jax world --output "$run/world" --train 200 --test 40
if [ ! -f "$run/start/config.json" ]; then
    ugc_jax init --size tiny --output "$run/start"
fi

step 2 "labels by a teacher that errs in $errors of its statements"
part label "$run/world/train.jsonl" "$run/labels.jsonl" "$errors"

step 3 "what verification caught"
part caught "$run/world/train.jsonl" "$run/labels.jsonl" "$errors"

step 4 "half of the labels are selected"
ugc_jax select --config world --clip.question=None "$run/labels.jsonl" --count 100 \
    --checkpoint "$run/start" --output "$run/train.jsonl" --pictures 40 --quota music=yes:20%-

step 5 "training on them"
ugc_jax extract --config world --output "$run/records" "$run/train.jsonl"
ugc_jax sft --config "tiny:$run" --data.train "$run/records" --data.eval none --loop.steps 600
ugc_jax caption --config world:caption --checkpoint "$run/sft/model" \
    --output "$run/captions.jsonl" -- "$run/world/test"

step 6 "three people annotate the other clips in three stages"
part annotate "$run/world/test.jsonl" "$run/project"

step 7 "export"
ugc_jax annotate "$run/world/test" --output "$run/project" --export "$run/benchmark"
part agreed "$run/world/test.jsonl" "$run/benchmark"

step 8 "the model on the benchmark that people made"
part answers "$run/captions.jsonl" "$run/answers"
ugc_jax evaluate --qa "$run/benchmark/qa" --task bgm,ocr --predictions "$run/answers" \
    --name "trained on 100 labels" --output "$run/result.json"

step 9 "its captions against the truth, and a page of both"
ugc_jax evaluate --qa "$run/world/test.jsonl" --predictions "$run/captions.jsonl" \
    --name "trained on 100 labels" --output "$run/world.json"
ugc_jax report --output "$run/report.html" --videos "$run/world/test" \
    -- "$run/result.json" "$run/world.json"
echo && echo "all of it took $((SECONDS - started)) s; see $run/train.html and $run/report.html"

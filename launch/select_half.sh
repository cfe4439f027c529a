#!/usr/bin/env bash
# Compare half of the clips chosen by `ugc-jax select` with a random half: bash launch/select_half.sh
# [SEED ...]. The pool is CLIPS (default 400) clips of the synthetic world and, as in a folder that was
# collected, reposts: a share of them (REPOSTS, default 0.5) once more at a lower quality. For each
# seed (default: 0, 1 and 2) the encoders of a random tiny model choose half of the pool; the model is
# trained for STEPS steps (default 600) on these, and on as many random ones, and both caption 200
# unseen clips. Takes about four minutes a seed on two cores. Results go to runs/select_half; a
# stopped run continues when started again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

run="$root/runs/select_half"
clips="${CLIPS:-400}" steps="${STEPS:-600}"
mkdir -p "$run"

ugc_jax() {
    "$python" -m ugc_jax.cli "$@"
}

install package --editable "${root}[train,eval,label]"
ugc_jax world --output "$run/world" --train "$clips" --test 200
"$python" "$root/launch/select_half.py" pool "$run/world/train.jsonl" "$run/world/pool.jsonl" \
    "${REPOSTS:-0.5}"
half=$(($(wc -l <"$run/world/pool.jsonl") / 2))
[ $# -gt 0 ] || set -- 0 1 2
for seed in "$@"; do
    own="$run/seed$seed"
    mkdir -p "$own"
    if [ ! -f "$own/start/config.json" ]; then
        ugc_jax init --size tiny --seed "$seed" --output "$own/start"
    fi
    ugc_jax select --config world --clip.question=None "$run/world/pool.jsonl" --count "$half" \
        --checkpoint "$own/start" --media "$run/world" --output "$own/selected.jsonl" --pictures 0
    "$python" "$root/launch/select_half.py" random "$run/world/pool.jsonl" "$own/selected.jsonl" \
        "$own/random.jsonl" "$seed"
    for name in selected random; do
        ugc_jax extract --config world --media "$run/world" --output "$own/records/$name" \
            "$own/$name.jsonl"
        ugc_jax sft --config "tiny:$own" --output "$own/$name" --data.train "$own/records/$name" \
            --data.eval none --data.seed "$seed" --loop.steps "$steps"
        ugc_jax caption --config world:caption --checkpoint "$own/$name/model" \
            --output "$own/captions/$name.jsonl" -- "$run/world/test"
        ugc_jax evaluate --qa "$run/world/test.jsonl" --name "$name half" \
            --predictions "$own/captions/$name.jsonl" --output "$own/$name.json" >"$own/$name.txt"
    done
done
"$python" "$root/launch/select_half.py" compare "$run"

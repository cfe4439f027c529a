#!/usr/bin/env bash
# Measure what GRPO adds to a short SFT for each seed: bash launch/short_sft.sh [SEED ...]
# Uses the world, the records and the random model of launch/quickstart.sh, which must run first. For
# each seed (default: 0, 1 and 2) a model is trained by SFT on the first 300 captioned clips for two
# minutes, then by GRPO on the rewards of its own captions of all 2000 clips for six.
# Results go to runs/short_sft; a stopped run continues when started again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

quick="$root/runs/quickstart"
run="$root/runs/short_sft"
if [ ! -d "$quick/records/train" ]; then
    echo "short_sft.sh: $quick/records does not exist; run bash launch/quickstart.sh first" >&2
    exit 2
fi
install package --editable "${root}[train,eval]"
mkdir -p "$run"

ugc_jax() {
    "$python" -m ugc_jax.cli "$@"
}

# caption OUTPUT CHECKPOINT: the clips of the test split.
caption() {
    ugc_jax caption --config world:caption --checkpoint "$2" \
        --output "$1" --report "${1%.jsonl}.json" -- "$quick/world/test"
}

if [ ! -f "$run/records/shards.json" ]; then
    head -n 300 "$quick/world/train.jsonl" >"$quick/world/train_300.jsonl"
    ugc_jax extract --config world --output "$run/records" \
        "$quick/world/train_300.jsonl"
fi
# Steps after which F1 of the test clips is 70 to 75 %, which depend on the seed.
sft_steps=([0]=550 [1]=550 [2]=440)
[ $# -gt 0 ] || set -- 0 1 2
for seed in "$@"; do
    own="$run/seed$seed"
    ugc_jax sft --config "tiny:$quick" --output "$own/sft" \
        --data.train "$run/records" --data.seed "$seed" \
        --loop.steps "${sft_steps[$seed]:-500}"
    caption "$own/before.jsonl" "$own/sft/model"
    ugc_jax grpo --config "grpo_tiny:$quick" --checkpoint "$own/sft" \
        --output "$own/grpo" --data.seed "$seed" --rollout.sampling.seed "$seed" \
        --loop.steps 800
    caption "$own/after.jsonl" "$own/grpo/model"
done
"$python" "$root/launch/short_sft.py" "$quick/world/test.jsonl" "$run"

#!/usr/bin/env bash
# Repeat the training of launch/quickstart.sh: bash launch/quickstart_seeds.sh [SEED ...]
# Uses the world and the records of launch/quickstart.sh, which must run first. For each seed
# (default: 0 to 4) it makes a random model and trains it by SFT and GRPO as the quickstart does; the
# seed is that of the weights, of the order of the clips and of the samples. Six minutes a seed.
# Results go to runs/quickstart_seeds, their table to table.md; a stopped run continues when started
# again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

quick="$root/runs/quickstart"
run="$root/runs/quickstart_seeds"
if [ ! -d "$quick/records/train" ]; then
    echo "quickstart_seeds.sh: $quick/records does not exist; run bash launch/quickstart.sh" >&2
    exit 2
fi
install package --editable "${root}[train,eval]"

ugc_jax() {
    "$python" -m ugc_jax.cli "$@"
}

# caption OUTPUT CHECKPOINT: the clips of the test split.
caption() {
    ugc_jax caption --config world:caption --checkpoint "$2" \
        --output "$1" --report "${1%.jsonl}.json" -- "$quick/world/test"
}

[ $# -gt 0 ] || set -- 0 1 2 3 4
for seed in "$@"; do
    own="$run/seed$seed"
    mkdir -p "$own"
    # as in the quickstart's folder, for evidence_check.py
    for name in world records; do ln -sfn "$quick/$name" "$own/$name"; done
    if [ ! -f "$own/start/config.json" ]; then
        ugc_jax init --size tiny --seed "$seed" --output "$own/start"
    fi
    ugc_jax sft --config "tiny:$own" --data.seed "$seed"
    caption "$own/sft.jsonl" "$own/sft/model"
    ugc_jax grpo --config "grpo_tiny:$own" --data.seed "$seed" --rollout.sampling.seed "$seed"
    caption "$own/grpo.jsonl" "$own/grpo/model"
done
"$python" "$root/launch/quickstart_seeds.py" "$quick/world/test.jsonl" "$run"

#!/usr/bin/env bash
# The paper (arXiv 2507.11336) as one run: bash launch/paper.sh --data DIR --videos DIR
# Prints what it would do, for how long and on what; with --go it does it: the released rows ->
# records -> SFT -> GRPO -> answers and scores on UGC-VideoCap -> a page beside the published table.
# --rl-only, --sft-10k and --sft-20k are the paper's ablations; --toy runs everything in minutes on
# synthetic clips and a tiny model; --help lists the rest. docs/paper.md explains the steps.
# Results go to runs/paper; a stopped run continues when started again, and finished steps are
# skipped. EXTRA=tpu bash launch/paper.sh --go ... installs for that accelerator (or cuda12, cuda13).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

for word in "$@"; do
    if [ "$word" = --go ]; then
        install package --editable "${root}[train,eval,judge${EXTRA:+,$EXTRA}]"
    fi
done
if ! usable "$python"; then # a dry run installs nothing and needs only a Python
    python="$(find_python)"
fi
exec "$python" "$root/launch/paper.py" "$@"

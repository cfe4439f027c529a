#!/usr/bin/env bash
# Measure a GPU or TPU host in at most eight minutes, without a network:
#     bash launch/accelerator_check.sh [--size 3b|mid|tiny] [--minutes 8] [--output DIR]
#         [--sections generation attention grpo sft transformers]
# Prefill, encoders, decoding of 1, 8, 32 and 64 prompts, attention against plain XLA, steps of GRPO
# and SFT (of an adapter and of the whole decoder), and transformers beside them, with random weights
# that are made on the device (docs/performance.md). The table goes to
# runs/accelerator_check/table.md and table.json, line by line: a run that is stopped has what it had.
# Uses $PYTHON, or .venv, or python3, whichever has jax and the package's other needs.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

for candidate in ${PYTHON:+"$PYTHON"} "$root/.venv/bin/python" python3; do
    if "$candidate" -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("jax", "flax", "optax"))))' 2>/dev/null; then
        export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
        exec "$candidate" "$root/launch/accelerator_check.py" "$@"
    fi
done
cat >&2 <<END
accelerator_check.sh: no Python with the package's needs was found (tried \$PYTHON, .venv, python3).
Install them: python3 -m pip install -e "${root}[train,cuda12]" (or cuda13, tpu)
END
exit 2

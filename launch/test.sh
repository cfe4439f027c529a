#!/usr/bin/env bash
# Run every check: formatting, lint, tests. Arguments go to pytest:
#     bash launch/test.sh tests/test_cli.py -k help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

echo "[1/3] environment in $root/.venv"
# torch is installed first and alone, so that pip takes a CPU build where it is configured for one.
install torch torch==2.13.0
install test --editable "${root}[test]"
cd "$root"

echo "[2/3] ruff"
"$python" -m ruff check .
"$python" -m ruff format --check .

echo "[3/3] pytest, two files at a time"
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

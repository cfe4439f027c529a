"""Kill a training run repeatedly (`kill -9`) at random times, and check that nothing is lost.

    bash launch/quickstart.sh
    python launch/kill_resume.py runs/quickstart

The sft job of the tiny recipe runs once to its end. Then it runs in another folder, is killed,
resumed, killed, ... After the last kill it runs to its end, and its results must be the same: the
metrics of every step and every byte of the exported model. Exit status 1 if they differ.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from kills import kill_and_continue

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("step", "loss", "accuracy", "grad_norm", "learning_rate")


def start(quick: Path, output: Path, steps: int) -> subprocess.Popen:
    """Start the job; its output goes to OUTPUT.log."""
    settings = {
        "config": f"{ROOT}/configs/tiny.py:{quick}",
        "config.output": output,
        "config.data.eval": "none",
        "config.loop.steps": steps,
        "config.loop.log_every": 1,
        "config.loop.save_every": 7,
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    with open(f"{output}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ugc_jax.cli", "sft", *words], stdout=log, stderr=log, cwd=ROOT
        )


def finish(process: subprocess.Popen, output: Path) -> dict:
    """Wait for the job; returns the metrics of its steps and the hash of its model."""
    if status := process.wait():
        sys.exit(f"the job ended with status {status}; see {output}.log")
    lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    metrics = [{name: line[name] for name in METRICS} for line in lines]
    digest = hashlib.sha256()
    for file in sorted((output / "model").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return {"metrics": metrics, "model": digest.hexdigest()}


def latest(output: Path) -> int:
    """Return the step of the latest complete checkpoint, 0 without one."""
    names = (folder.name for folder in output.glob("checkpoints/*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("quickstart", type=Path, help="folder of the tiny model and its records")
    parser.add_argument("--output", type=Path, default=Path("runs/kill_resume"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quick, folder = args.quickstart.resolve(), args.output.resolve()
    if folder.exists():
        sys.exit(f"{folder}: exists already; delete it, or choose another --output")
    folder.mkdir(parents=True)

    start_time = time.monotonic()
    whole = finish(start(quick, folder / "whole", args.steps), folder / "whole")
    seconds = time.monotonic() - start_time
    print(f"{args.steps} steps without a kill: {seconds:.0f} s", flush=True)

    killed = folder / "killed"
    ends, _ = kill_and_continue(
        start=lambda: start(quick, killed, args.steps),
        finish=lambda process: finish(process, killed),
        kept=lambda: latest(killed),
        remove=lambda: shutil.rmtree(killed),
        expected=whole,
        seconds=seconds,
        kills=args.kills,
        seed=args.seed,
    )
    print(f"{args.kills} kills, {ends} runs to the end, each equal to the one without kills")


if __name__ == "__main__":
    main()

"""Kill a training again and again, and see that nothing is lost: `kill -9` at random moments.

    bash launch/quickstart.sh
    python launch/kill_resume.py runs/quickstart

The tiny recipe's sft job runs once without disturbance. Then it runs in another folder, is killed,
goes on, is killed, ... After the last kill it may end, and what it leaves must be the same: the
figures of every step and every byte of the exported model. Exit status 1 where it is not.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("step", "loss", "accuracy", "grad_norm", "learning_rate")


def start(quick: Path, output: Path, steps: int) -> subprocess.Popen:
    """The job; what it says goes to OUTPUT.log."""
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
    """What the run leaves: the figures of its steps, and the sum of its model's bytes."""
    if status := process.wait():
        sys.exit(f"the job ended with status {status}; {output}.log says why")
    lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    figures = [{name: line[name] for name in FIGURES} for line in lines]
    digest = hashlib.sha256()
    for file in sorted((output / "model").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return {"figures": figures, "model": digest.hexdigest()}


def latest(output: Path) -> int:
    """Step of the latest complete checkpoint, 0 without one."""
    names = (folder.name for folder in output.glob("checkpoints/*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("quickstart", type=Path, help="folder of the tiny model and its records")
    parser.add_argument("--output", type=Path, default=Path("runs/kill_resume"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    quick, folder = given.quickstart.resolve(), given.output.resolve()
    if folder.exists():
        sys.exit(f"{folder}: is there already; delete it, or choose another --output")
    folder.mkdir(parents=True)
    moments = random.Random(given.seed)

    begun = time.monotonic()
    whole = finish(start(quick, folder / "whole", given.steps), folder / "whole")
    seconds = time.monotonic() - begun
    print(f"{given.steps} steps without disturbance: {seconds:.0f} s", flush=True)

    killed, ends, kept = folder / "killed", 0, 0  # kept: the latest checkpoint
    bar = tqdm(total=given.kills, desc="kills", unit="kill")
    while True:
        process = start(quick, killed, given.steps)
        if bar.n < given.kills:
            try:
                process.wait(moments.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                bar.update()
                before, kept = kept, latest(killed)
                if kept < before:
                    sys.exit(f"{killed}: checkpoint {before} is lost")
                continue
        if finish(process, killed) != whole:
            sys.exit(f"{killed}: differs from {folder / 'whole'}")
        ends += 1
        if bar.n == given.kills:
            break
        shutil.rmtree(killed)  # it came to its end before its time: again from the beginning
        kept = 0
    bar.close()
    print(f"{given.kills} kills, {ends} runs to the end, each equal to the undisturbed one")


if __name__ == "__main__":
    main()

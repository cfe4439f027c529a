"""Kill a run of `caption` repeatedly (`kill -9`) at random times, and check that nothing is lost.

    bash launch/quickstart.sh
    python launch/kill_caption.py runs/quickstart/grpo/model runs/quickstart/world/test

The job captions the clips once to its end. Then it writes another file, is killed, continues,
killed, ... After the last kill it runs to its end, and its file must have every clip once, with the
tokens of the run without kills. Exit status 1 if it differs. Further words are settings of caption.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from kills import kill_and_continue

ROOT = Path(__file__).resolve().parents[1]


def start(args: argparse.Namespace, output: Path) -> subprocess.Popen:
    """Start the job; its log goes to OUTPUT.log."""
    words = ["--checkpoint", args.checkpoint, "--output", output, "--token_ids"]
    command = [sys.executable, "-m", "ugc_jax.cli", "caption", *words, *args.words, args.clips]
    with open(f"{output}.log", "a") as log:
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=ROOT)


def finish(process: subprocess.Popen, output: Path) -> dict:
    """Wait for the job; returns the tokens, or the error, of each clip."""
    if status := process.wait():
        sys.exit(f"the job ended with status {status}; see {output}.log")
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    tokens = {line["video"]: line.get("token_ids", line.get("error")) for line in lines}
    if len(tokens) < len(lines):
        sys.exit(f"{output}: {len(lines)} lines of {len(tokens)} clips")
    return tokens


def captioned(output: Path) -> int:
    """Return how many whole lines are in a file."""
    return output.read_bytes().count(b"\n") if output.exists() else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=lambda word: Path(word).resolve())
    parser.add_argument("clips", type=lambda word: Path(word).resolve(), help="folder of clips")
    parser.add_argument("--output", type=Path, default=Path("runs/kill_caption"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args, args.words = parser.parse_known_args()
    folder = args.output.resolve()
    if folder.exists():
        sys.exit(f"{folder}: exists already; delete it, or choose another --output")
    folder.mkdir(parents=True)

    whole, output = folder / "whole.jsonl", folder / "killed.jsonl"
    finish(start(args, whole), whole)  # fills the compilation cache, so that the next is timed
    whole.unlink()
    begun = time.monotonic()
    expected = finish(start(args, whole), whole)
    seconds = time.monotonic() - begun
    print(f"{len(expected)} clips without a kill: {seconds:.0f} s", flush=True)

    ends, seen = kill_and_continue(
        start=lambda: start(args, output),
        finish=lambda process: finish(process, output),
        kept=lambda: captioned(output),
        remove=output.unlink,
        expected=expected,
        seconds=seconds,
        kills=args.kills,
        seed=args.seed,
    )
    written = sum(before < after < len(expected) for before, after in seen)
    print(
        f"{args.kills} kills, {written} of them after new captions and before the last; {ends} "
        "runs to the end, each with the clips and the tokens of the run without kills"
    )


if __name__ == "__main__":
    main()

"""The parts of select_half.sh that are no jobs: a random half, and the differences of all seeds."""

import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from ugc_jax import files
from ugc_jax.evals.intervals import interval
from ugc_jax.evals.results import read_result

REMEDY = "run select_half.sh again"


def choose_random(labels: Path, selected: Path, output: Path, seed: int):
    """Write as many random rows as were selected."""
    rows = [line.value for line in files.read_lines(labels, REMEDY)]
    count = sum(1 for _ in files.read_lines(selected, REMEDY))
    files.write_text(output, files.to_lines(random.Random(seed).sample(rows, count)))


def scores(path: Path) -> dict[str, float]:
    """F1 of each clip, in percent; a clip without a caption has 0."""
    return {clip["id"]: clip.get("score", 0.0) for clip in read_result(path)["clips"]["world"]}


def line(label: str, differences: list[float]) -> str:
    low, high = interval(differences)
    return f"{label:<12}{fmean(differences):>+8.2f}   {low:+.2f} to {high:+.2f}"


def compare(run: Path):
    """Print the differences of F1, clip by clip, with their 95 % bootstrap intervals."""
    by_clip = defaultdict(list)
    print("selected half against a random half, F1 of unseen clips in points, 95 % interval")
    for folder in sorted(run.glob("seed*")):
        if not (folder / "random.json").exists():
            continue
        one, other = (scores(folder / f"{name}.json") for name in ("selected", "random"))
        found = {clip: one[clip] - other[clip] for clip in one}
        for clip, difference in found.items():
            by_clip[clip].append(difference)
        means = f"   ({fmean(one.values()):.1f} and {fmean(other.values()):.1f})"
        print(line(folder.name, list(found.values())) + means)
    # Clips are resampled, seeds are not: of three, an interval over seeds would say little.
    print(line("all seeds", [fmean(one) for one in by_clip.values()]))


if __name__ == "__main__":
    part, *words = sys.argv[1:]
    if part == "random":
        choose_random(*map(Path, words[:3]), int(words[3]))
    else:
        compare(Path(words[0]))

"""How right evidence is on the synthetic world: python launch/evidence_check.py RUN [RUN ...]

Options: [--models sft,grpo] [--clips 200] [--output FILE.json]

RUN is a folder of launch/quickstart.sh (runs/quickstart), with models in sft/model and grpo/model
and clips in world/test; several, such as of other seeds, are set side by side. The models should be
trained with hide_media. Prints, for each attribute, the share of its words with the verdict that is
right, and how well words that are wrong are found as unsupported. The order of shape and sound
("first") needs both where the sound begins at the middle time; elsewhere it is heard ("first, by
sound").
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean

from ugc_jax import Captioner, files
from ugc_jax.toy.evidence import RESTS, Figures, measure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--models", default="sft,grpo", help="which of a run's models")
    parser.add_argument("--clips", type=int, default=200, help="test clips of each run")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    written = {}
    for model in arguments.models.split(","):
        figures = [
            measured(run, model, arguments.clips, seed) for seed, run in enumerate(arguments.runs)
        ]
        shares = {
            f"{name}, {verdict}": [one.accuracy(name) for one in figures]
            for name, verdict in RESTS.items()
        }
        for name, values in shares.items():
            row(name, [f"{100 * value:.1f} %" for value in values], values)
        values = [one.auroc for one in figures]
        row("wrong word", [f"{value:.4f}" for value in values], values, "AUROC")
        for place, one in enumerate(figures):
            confused(place, one)
        written[model] = {"accuracy": shares, "auroc": values}
    if arguments.output is not None:
        files.write_json(arguments.output, written, indent=1)


def measured(run: Path, model: str, clips: int, seed: int) -> Figures:
    """Measure one model on a run's test clips."""
    lines = files.read_lines(run / "world/test.jsonl", "run quickstart.sh")
    rows = [line.value for line in lines][:clips]
    if any("begins" not in row for row in rows):
        sys.exit(f"{run}/world is of an earlier state; delete {run} and run quickstart.sh")
    captioner = Captioner.from_pretrained(run / model / "model")
    figures = measure(captioner, run / "world", rows, seed, max_new_tokens=64)
    print(f"{run}, {model}: measured on {len(rows)} clips", flush=True)
    return figures


def row(name: str, texts: list[str], values: list[float], unit: str = ""):
    print(f"{name:<22}" + "".join(f"{text:>10}" for text in texts), end="")
    print(f"{fmean(values):>12.4f} mean {unit}")


def confused(place: int, figures: Figures):
    """What was said of words with another verdict, and the shares of right captions."""
    wrong = {
        name: {said: count for said, count in counts.items() if said != RESTS[name]}
        for name, counts in figures.verdicts.items()
    }
    print(f"{place}: other verdicts: { ({name: said for name, said in wrong.items() if said}) }")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in figures.shares.items())
    print(f"{place}: content words of right captions: {shares}")


if __name__ == "__main__":
    main()

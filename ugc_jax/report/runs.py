"""Training runs for a page: curves of their metrics, and the completions of GRPO by group."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.report import plots

REMEDY = "name the folder of a run of sft or grpo"
STEPS = 40  # of which completions are kept, evenly chosen from all
# Title, unit -> metrics of the curves, as in metrics.jsonl. rewards/*/mean: of every function.
CURVES = (
    ("Loss", ("loss", "eval_loss")),
    ("Share of right tokens", ("accuracy", "eval_accuracy")),
    ("Reward", ("reward", "eval_reward", "rewards/*/mean")),
    ("Tokens of a completion", ("completion_tokens", "eval_completion_tokens")),
    ("KL to the reference", ("kl",)),
    ("Entropy", ("entropy",)),
    ("Cut off, or of equal rewards", ("truncated", "zero_std_groups")),
    ("Norm of the gradient", ("grad_norm",)),
)


class Run(NamedTuple):
    """A run for the page. plots: {"title", "svg", "text"} of each curve.

    steps: [{"step", "groups": [{"clip", "prompt", "completions": [...]}]}], of GRPO.
    """

    name: str
    plots: list[dict]
    steps: list[dict]


def read_run(folder: str) -> Run:
    """Read the metrics and completions of a run. Raises UserError if the folder is of none."""
    path = Path(folder)
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"runs: {folder} has no metrics.jsonl; {REMEDY}")
    series = _series(metrics)
    return Run(path.name or str(path), list(_curves(path.name, series)), _groups(path))


def _rows(path: Path) -> list[dict]:
    """The rows of a file of a run; a half-written last line, of a run under way, is left out."""
    lines = list(files.read_lines(path, REMEDY, errors="replace"))
    rows = [line.value for line in lines]
    if rows and not isinstance(rows[-1], dict):
        rows.pop()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}:{number}: has no step; {REMEDY}")
    return rows


def _series(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Metric -> (steps, values), the finite ones; of a step that was run twice the last value."""
    found: dict[str, dict[int, float]] = {}
    for row in _rows(path):
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value) and name != "step":
                found.setdefault(name, {})[row["step"]] = float(value)
    return {
        name: (sorted(values), [values[step] for step in sorted(values)])
        for name, values in found.items()
    }


def _curves(run: str, series: dict[str, tuple[list[int], list[float]]]):
    """Yield the plots of CURVES that the run has values of."""
    for title, wanted in CURVES:
        lines = {}
        for name in wanted:
            start, star, end = name.partition("*")
            for metric, values in series.items():
                whole = metric.startswith(start) and metric.endswith(end) and bool(star)
                if metric == name or whole:
                    lines[metric] = values
        if not lines:
            continue
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, (_, values) in lines.items())
        label = f"{title} of {run}, by step."
        yield {"title": title, "svg": plots.curves(lines, label), "text": f"At the end: {last}."}


def _groups(path: Path) -> list[dict]:
    """The groups of completions of some steps, the last step included; [] without any."""
    file = path / "completions.jsonl"
    if not file.is_file():
        return []
    steps: dict[int, dict[tuple, dict]] = {}
    for row in _rows(file):
        groups = steps.setdefault(row["step"], {})
        key = row.get("clip"), row.get("prompt")
        group = groups.setdefault(key, {"clip": str(key[0]), "prompt": key[1], "completions": {}})
        # A step that was broken off and run again has its completions twice: the last ones count.
        group["completions"][row.get("sample")] = {
            name: value
            for name, value in row.items()
            if name not in ("step", "clip", "prompt", "sample") and value is not None
        }
    chosen = _evenly(sorted(steps), STEPS)
    return [
        {
            "step": step,
            "groups": [
                group | {"completions": list(group["completions"].values())}
                for group in steps[step].values()
            ],
        }
        for step in chosen
    ]


def _evenly(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, the first and the last included."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]

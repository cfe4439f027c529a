"""The scored clips of a task -> its score, intervals and further facts; a result as a table."""

import math
from collections import Counter
from collections.abc import Sequence

from ugc_jax.evals.intervals import interval
from ugc_jax.evals.tasks import Task

# The columns whose mean is "Avg." in the paper's table 2 (the OCR fraction counts as percent).
AVERAGED = {
    "voice_source": ("score",),
    "tone": ("score",),
    "ocr": ("score",),
    "background": ("score",),
    "objects": ("score",),
    "final_caption": ("audio", "visual", "details"),
}


def summarize(
    task: Task,
    clips: Sequence[dict],
    protocol: dict,
    noise: float | None = None,
    notes: Sequence[str] = (),
) -> dict:
    """The facts of a task in a result.

    clips: one a sample: {"id", "score" and the task's columns, or "failure"}, and what the task's
      `Form.facts` reads. Means are over the clips with a score; "floor" is the score with each
      failure counted as zero.
    protocol: the settings that must be equal for two scores to compare.
    noise: standard deviation of the score from one judging to the next; None if judged once.
    """
    scored = [clip for clip in clips if "score" in clip]
    failures = Counter(clip["failure"] for clip in clips if "score" not in clip)
    means, intervals = {}, {}
    for name in ("score", *task.form.columns):
        values = [clip[name] for clip in scored if name in clip]
        means[name] = math.fsum(values) / len(values) if values else None
        intervals[name] = list(interval(values)) if len(values) > 1 else None
    facts = means | {
        "unit": task.form.unit,
        "n": len(scored),
        "failed": sum(failures.values()),
        "failures": dict(failures),
        "floor": means["score"] * len(scored) / len(clips) if scored else None,
        "interval": intervals.pop("score"),
        "intervals": intervals,
        "noise": noise,
        "metric": task.form.metric,
        "protocol": protocol,
    }
    extra = task.form.facts(task.samples, scored) if task.form.facts else {}
    return (
        facts
        | extra
        | {
            "flags": extra.get("flags", []),
            "notes": [*notes, *extra.get("notes", [])],
        }
    )


def average(tasks: dict[str, dict]) -> float | None:
    """ "Avg." of the paper's table 2 in percent; None unless all of its eight columns exist."""
    values = []
    for name, columns in AVERAGED.items():
        task = tasks.get(name, {})
        scale = 100 if task.get("unit") == "fraction" else 1
        values += [None if task.get(c) is None else scale * task[c] for c in columns]
    return None if None in values else sum(values) / len(values)


def result_table(result: dict) -> str:
    """A result as text for a terminal."""
    lines = [
        f"{'':<18}{'score':>8}  {'95 % interval':<17}{'n':>6}{'failed':>8}  {'majority guess':<18}"
    ]
    for name, task in result["tasks"].items():
        for column in ("score", *task["intervals"]):
            lines.append(_line(name, task, column).rstrip())
        lines += [f"  ! {text}" for text in _warnings(task)]
        lines += [f"    {text}" for text in _remarks(task)]
    if result["average"] is not None:
        lines.append(f"{'average':<18}{result['average']:>8.2f}  (of the paper's eight columns)")
    lines += [f"{name}: not scored, {why}" for name, why in result["unscored"].items()]
    return "\n".join(lines)


def score_rows(result: dict) -> list[tuple[str, str, str, str, str]]:
    """A result as text for a table: (task, score, 95 % interval, clips, failed) a row."""
    rows = []
    for name, task in result["tasks"].items():
        rows.append((name, *_figures(task, "score"), str(task["n"]), str(task["failed"])))
        for column in task["intervals"]:
            rows.append((f"{name}: {column}", *_figures(task, column), "", ""))
    if result.get("average") is not None:
        rows.append(("average", f"{result['average']:.2f}", "", "", ""))
    return rows


def _figures(task: dict, column: str) -> tuple[str, str]:
    """A column's mean and its interval, as text."""
    digits = 3 if task["unit"] == "fraction" else 2
    bounds = task["interval"] if column == "score" else task["intervals"][column]
    value = "-" if task[column] is None else f"{task[column]:.{digits}f}"
    span = "-" if bounds is None else "{:.{d}f} to {:.{d}f}".format(*bounds, d=digits)
    return value, span


def _line(name: str, task: dict, column: str) -> str:
    is_score = column == "score"
    value, span = _figures(task, column)
    line = f"{name if is_score else f'  {column}':<18}{value:>8}  {span:<17}"
    if not is_score:
        return line
    line += f"{task['n']:>6}{task['failed']:>8}  "
    if task.get("majority"):
        line += "{score:.2f} ({answer})".format(**task["majority"])
    return line


def _warnings(task: dict) -> list[str]:
    """Reasons why the numbers may mislead."""
    warnings = list(task["flags"])
    if task["failed"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in task["failures"].items())
        digits = 3 if task["unit"] == "fraction" else 2
        floor = "" if task["floor"] is None else f"; {task['floor']:.{digits}f} if they were zeros"
        warnings.append(f"failed, and not in the means: {kinds}{floor}")
    return warnings


def _remarks(task: dict) -> list[str]:
    """Further facts of a task: protocol, recall, noise and notes."""
    remarks = []
    if task["protocol"]:
        remarks.append(", ".join(f"{name} {value}" for name, value in task["protocol"].items()))
    if task.get("recall"):
        shares = (f"{answer} {share:.1f}" for answer, share in task["recall"].items())
        remarks.append(f"right of each answer: {', '.join(shares)}")
    if task["noise"] is not None:
        remarks.append(f"judge noise: {task['noise']:.2f} (standard deviation of one judging)")
    return remarks + task["notes"]

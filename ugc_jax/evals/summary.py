"""The scored clips of a task -> its score, intervals and further facts; a result as a table."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ugc_jax.evals.intervals import interval, mean
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
      `Form.facts` reads. Means are over the clips with a score, each with its "weight", if any;
      samples of one "clip" are not independent. "floor" is the score with each failure counted as
      the worst, zero for most tasks.
    protocol: the settings that must be equal for two scores to compare.
    noise: standard deviation of the score from one judging to the next; None if judged once.
    """
    scored = [clip for clip in clips if "score" in clip]
    failures = Counter(clip["failure"] for clip in clips if "score" not in clip)
    means, intervals = {}, {}
    for name in ("score", *task.form.columns):
        having = [clip for clip in scored if name in clip]
        values, how = [clip[name] for clip in having], (weights(having), groups(having))
        means[name] = mean(values, how[0])
        bounds = interval(values, *how)
        intervals[name] = None if bounds is None else list(bounds)
    facts = means | {
        "unit": task.form.unit,
        "n": len(scored),
        "failed": sum(failures.values()),
        "failures": dict(failures),
        "floor": _floor(means["score"], clips, task.form.worst),
        "interval": intervals.pop("score"),
        "intervals": intervals,
        "noise": noise,
        "metric": task.form.metric,
        "protocol": protocol,
    }
    if task.form.lower:
        facts |= {"lower": list(task.form.lower), "worst": task.form.worst}
    extra = task.form.facts(task.samples, scored) if task.form.facts else {}
    return (
        facts
        | extra
        | {
            "flags": extra.get("flags", []),
            "notes": [*notes, *extra.get("notes", [])],
        }
    )


def weights(clips: Sequence[Mapping]) -> list[float] | None:
    """The weights of clips of a result in a mean; None where all are equal."""
    found = [clip.get("weight", 1) for clip in clips]
    return found if len(set(found)) > 1 else None


def groups(clips: Sequence[Mapping]) -> list[str] | None:
    """The clips of samples of a result; None where each is of a clip of its own."""
    return [clip["clip"] for clip in clips] if clips and all("clip" in c for c in clips) else None


def _floor(score: float | None, clips: Sequence[dict], worst: float) -> float | None:
    """The score with each failure counted as `worst`."""
    if score is None:
        return None
    counted = sum(clip.get("weight", 1) for clip in clips if "score" in clip)
    failed = sum(clip.get("weight", 1) for clip in clips if "score" not in clip)
    return (score * counted + worst * failed) / (counted + failed)


def as_worst(task: dict) -> str:
    """How the floor of a task in a result counts its failures, in words."""
    return f"if they counted as {task['worst']:g}" if task.get("worst") else "if they were zeros"


def average(tasks: dict[str, dict]) -> float | None:
    """ "Avg." of the paper's table 2 in percent; None unless all of its eight columns exist."""
    values = []
    for name, columns in AVERAGED.items():
        task = tasks.get(name, {})
        scale = 100 if task.get("unit") == "fraction" else 1
        values += [None if task.get(c) is None else scale * task[c] for c in columns]
    return None if None in values else sum(values) / len(values)


EVIDENCE = ("heard", "seen", "unsupported")  # verdicts on words that have a column
EVIDENCE_TITLE = " / ".join(EVIDENCE)


def evidence_figures(task: dict) -> str | None:
    """The percent of words by EVIDENCE in the captions of a task; None without evidence."""
    told = task.get("evidence")
    return told and " / ".join(f"{told[name]:.1f}" for name in EVIDENCE)


def result_table(result: dict) -> str:
    """A result as text for a terminal."""
    head = (
        f"{'':<18}{'score':>8}  {'95 % interval':<17}{'n':>6}{'failed':>8}  {'majority guess':<18}"
    )
    has_evidence = any(task.get("evidence") for task in result["tasks"].values())
    lines = [f"{head}{EVIDENCE_TITLE}, %" if has_evidence else head]
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
    guess = "{score:.2f} ({answer})".format(**task["majority"]) if task.get("majority") else ""
    return f"{line}{task['n']:>6}{task['failed']:>8}  {guess:<18}{evidence_figures(task) or ''}"


def _warnings(task: dict) -> list[str]:
    """Reasons why the numbers may mislead."""
    warnings = list(task["flags"])
    if task["failed"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in task["failures"].items())
        digits = 3 if task["unit"] == "fraction" else 2
        floor = "" if task["floor"] is None else f"; {task['floor']:.{digits}f} {as_worst(task)}"
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
    if told := task.get("evidence"):
        remarks.append(
            f"evidence by {told['model']} in {told['n']} captions"
            + (f", {told['missing']} without a clip" if told["missing"] else "")
            + (f", {told['failed']} not explained ({told['error']})" if told.get("failed") else "")
        )
    if task["noise"] is not None:
        remarks.append(f"judge noise: {task['noise']:.2f} (standard deviation of one judging)")
    return remarks + task["notes"]

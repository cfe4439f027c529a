"""The tables of a page of results: their columns and cells."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from ugc_jax.evals.benchmarks import events
from ugc_jax.evals.benchmarks.table import BENCHMARKS
from ugc_jax.evals.results import column_names
from ugc_jax.evals.structured import SUFFIX
from ugc_jax.evals.summary import EVIDENCE_TITLE, evidence_figures
from ugc_jax.report import published

EVIDENCE = "evidence"  # field of a column that is no score
Members = Sequence[tuple[int, str, dict]]  # (number in the page, name, result) of one benchmark


class Display(NamedTuple):
    """How a page displays a task.

    title: the displayed name. order: of the columns, unless the result's order with the score last.
    score: title of the score beside columns. lengths: the texts whose lengths are plotted.
    For a task that is a benchmark of its own: heading: the displayed name of the benchmark;
    compares: a sentence on which rows compare, instead of those on judges and published rows.
    """

    title: str
    order: tuple[str, ...] = ()
    score: str = "average"
    lengths: Literal["", "predictions", "both"] = ""
    heading: str = ""
    compares: str = ""


Displays = Mapping[str, Display]  # by task, in the order of the table

DISPLAYS = {  # of UGC-VideoCap
    "voice_source": Display("Voice source"),
    "tone": Display("Tone"),
    "bgm": Display("BGM"),
    "ocr": Display("OCR"),
    "background": Display("Background"),
    "objects": Display("Objects"),
    "audio_caption": Display("Audio caption", lengths="both"),
    "visual_caption": Display("Visual caption", lengths="both"),
    "final_caption": Display("Caption", ("audio", "visual", "details", "score"), lengths="both"),
    **{  # captions by the units of the reference
        f"{name}{SUFFIX}": Display(
            f"{title} by units", ("audio", "visual", "contradicted", "score"), score="told"
        )
        for name, title in (
            ("audio_caption", "Audio caption"),
            ("visual_caption", "Visual caption"),
            ("final_caption", "Caption"),
        )
    },
} | {
    one.task: Display(
        one.title,
        (*one.kind.form.columns, "score"),
        score="their sum" if one.kind.form.columns else "score",
        lengths="predictions" if one.kind is events.KIND else "",  # else one a question
        heading=one.title,
        compares=f"Published scores were judged by {one.judge}: only rows with the same judge, "
        "temperature and prompt compare.",
    )
    for one in BENCHMARKS.values()
}


class Column(NamedTuple):
    """A column of the table: the score of a task or one of its columns."""

    task: str
    field: str

    @property
    def key(self) -> str:
        """The key in `published.Row.scores`."""
        return self.task if self.field == "score" else f"{self.task}.{self.field}"


class Cell(NamedTuple):
    """href: of the clips. lines: in small print below. failed: number of failed clips.

    weak: the difference is not significant.
    """

    text: str
    href: str = ""
    lines: tuple[str, ...] = ()
    failed: int = 0
    weak: bool = False


def display(task: str, displays: Displays) -> Display:
    """How a task is displayed; an unknown one by its name."""
    return displays.get(task) or Display(task.replace("_", " "))


def column_title(name: str) -> str:
    """The displayed name of a column."""
    return (
        name.replace("_", " ")
        .replace("rouge l", "ROUGE-L")
        .replace("rouge ", "ROUGE-")
        .replace("bleu ", "BLEU-")
    )


def in_order(tasks: Iterable[str], displays: Displays) -> list[str]:
    """Tasks in the table's order, unknown ones last."""
    known = list(displays)
    return sorted(tasks, key=lambda task: known.index(task) if task in known else len(known))


def all_tasks(results: Iterable[dict], displays: Displays) -> list[str]:
    """The tasks that at least one result has, in the table's order."""
    return in_order(dict.fromkeys(task for one in results for task in one["tasks"]), displays)


def benchmark(result: dict, displays: Displays) -> str:
    """The benchmark of a result, as a heading."""
    headings = (display(task, displays).heading for task in result["tasks"])
    own = next(filter(None, headings), None)
    return own or str(result.get("benchmark") or "UGC-VideoCap")


def field_title(column: Column, displays: Displays) -> str:
    """The displayed name of a column below that of its task."""
    if column.field == EVIDENCE:
        return f"words {EVIDENCE_TITLE}, %"
    if column.field != "score":
        return column_title(column.field)
    return display(column.task, displays).score


def main_task(result: dict, displays: Displays) -> str | None:
    """The task to display first: the caption, or else the result's last one in the table."""
    names = in_order(result["tasks"], displays)
    return "final_caption" if "final_caption" in names else names[-1] if names else None


# ---- scores --------------------------------------------------------------------------------------


def score_columns(results: Sequence[dict], displays: Displays) -> list[Column]:
    """The columns that at least one result has, without the single measures of OCR."""
    found = []
    for task in all_tasks(results, displays):
        having = [result["tasks"][task] for result in results if task in result["tasks"]]
        names = dict.fromkeys(name for facts in having for name in column_names(facts))
        names = {} if task == "ocr" else names
        order = display(task, displays).order or ("score",)
        last = [name for name in order if name in names or name == "score"]
        rest = [name for name in names if name not in last]
        found += [Column(task, name) for name in (*rest, *last)]
    return found


def labels(shown: Sequence[Column], displays: Displays) -> list[str]:
    """Names of columns outside the table, with as much of task and column as tells them apart."""
    fields, names = Counter(column.task for column in shown), []
    for column in shown:
        title, field = display(column.task, displays).title, field_title(column, displays)
        if fields[column.task] > 1:
            title = f"{title}: {field}" if len(fields) > 1 else field
        names.append(f"{title} × 100" if column.task == "ocr" else title)
    return names


def percent(result: dict, column: Column) -> tuple[float | None, list[float] | None]:
    """(score, interval) of a column in 0..100; None where the result has none."""
    facts = result["tasks"].get(column.task, {})
    score, bounds = _figure(facts, column.field)
    scale = 100 if facts.get("unit") == "fraction" else 1
    return (
        None if score is None else scale * score,
        None if bounds is None else [scale * bound for bound in bounds],
    )


def published_values(column: Column) -> list[float]:
    """The published scores of a column, in 0..100."""
    scale = 100 if column.task == "ocr" else 1
    rows = published.ALL_ROWS
    return [scale * float(row.scores[column.key]) for row in rows if column.key in row.scores]


def _figure(facts: dict, field: str) -> tuple[float | None, list[float] | None]:
    bounds = facts.get("interval") if field == "score" else facts.get("intervals", {}).get(field)
    return facts.get(field), bounds


def score_table(members: Members, displays: Displays) -> dict:
    """{"groups": [(title, columns)], "fields", "rows", "majority", "published", "average"}.

    rows: (number, name, cells). majority: texts of the row of constant guesses, or None. published:
    [(heading, [(row, texts)])]. average: True if the table has that column.
    """
    results = [result for *_, result in members]
    shown = _with_evidence(score_columns(results, displays), results)
    has_average = any(result.get("average") is not None for result in results)
    groups = Counter(column.task for column in shown)
    rows = []
    for number, name, result in members:
        cells = [_cell(number, result, column) for column in shown]
        if has_average:
            average = result.get("average")
            cells.append(Cell("–" if average is None else f"{average:.2f}"))
        rows.append((number, name, cells))
    keys = [column.key for column in shown] + ["average"] * has_average
    printed = [(row, [row.scores.get(key, "–") for key in keys]) for row in published.ALL_ROWS]
    printed = [(row, texts) for row, texts in printed if set(texts) != {"–"}]
    return {
        "groups": [(display(task, displays).title, n) for task, n in groups.items()],
        "fields": [
            field_title(column, displays) if groups[column.task] > 1 else "" for column in shown
        ],
        "rows": rows,
        "majority": _majorities(results, shown),
        "published": [
            (heading, [pair for pair in printed if (pair[0].source == published.PAPER) == is_paper])
            for heading, is_paper in zip(published.HEADINGS, (True, False), strict=True)
        ],
        "average": has_average,
    }


def _with_evidence(shown: Sequence[Column], results: Sequence[dict]) -> list[Column]:
    """The columns, and after those of a task whose captions have evidence one of it."""
    having = {
        task for one in results for task, facts in one["tasks"].items() if "evidence" in facts
    }
    last = {column.task: place for place, column in enumerate(shown)}
    found = []
    for place, column in enumerate(shown):
        found.append(column)
        if column.task in having and last[column.task] == place:
            found.append(Column(column.task, EVIDENCE))
    return found


def _majorities(results: Sequence[dict], shown: Sequence[Column]) -> list[str] | None:
    """The scores of always giving the most frequent answer; None without a task with options.

    Results have this score for the clips that they have scored: that of the most clips is taken.
    """
    texts = []
    for column in shown:
        tasks = [result["tasks"].get(column.task, {}) for result in results]
        having = [task for task in tasks if task.get("majority")]
        text = ""
        if having and column.field == "score":
            text = f"{max(having, key=lambda task: task['n'])['majority']['score']:.1f}"
        texts.append(text)
    return texts if any(texts) else None


def _cell(number: int, result: dict, column: Column) -> Cell:
    facts = result["tasks"].get(column.task)
    if facts is None:
        return Cell("–", lines=("not scored",) * (column.task in (result.get("unscored") or {})))
    if column.field == EVIDENCE:
        told = facts.get("evidence")
        lines = (f"n {told['n']}", f"by {told['model']}") if told else ()
        return Cell(evidence_figures(facts) or "–", lines=lines)
    score, bounds = _figure(facts, column.field)
    is_score = column.field == "score"
    fraction = facts.get("unit") == "fraction"
    digits = 3 if fraction else 2 if is_score and column_names(facts) else 1
    lines = []
    if bounds is not None:
        lines.append("{:.{d}f}–{:.{d}f}".format(*bounds, d=3 if fraction else 1))
    if is_score:
        lines.append(f"n {facts['n']}")
        lines += [flag.partition(":")[0] for flag in facts.get("flags") or []]
    address = f"#task={column.task}&result={number}"
    return Cell(
        text="–" if score is None else f"{score:.{digits}f}",
        href=address if is_score else f"{address}&by={column.field}",
        lines=tuple(lines),
        failed=facts["failed"] if is_score else 0,
    )


def difference_table(
    members: Members, against: Sequence[dict], displays: Displays
) -> list[tuple[int, str, list[Cell]]] | None:
    """(number, name, cells) of the other results minus the first, clip by clip, in score_columns.

    against: of `compare_results` of the members. None if there is nothing to compare.
    """
    shown = score_columns([result for *_, result in members], displays)
    rows = [
        (number, name, [_difference(facts["tasks"], column) for column in shown])
        for (number, name, _), facts in zip(members[1:], against, strict=True)
    ]
    return rows if any(cell.text != "–" for *_, cells in rows for cell in cells) else None


def _difference(tasks: dict[str, dict], column: Column) -> Cell:
    task = tasks.get(column.task, {})
    facts = task.get(column.field)
    if facts is None or facts["difference"] is None:
        return Cell("–")
    digits = 3 if task["unit"] == "fraction" else 2
    lines = []
    if facts["interval"] is not None:
        lines.append(" to ".join(f"{bound:+.{digits}f}" for bound in facts["interval"]))
    lines.append(facts["verdict"])
    lines.append("{wins} / {ties} / {losses}".format(**facts))
    lines = [line.replace("-", "−") for line in lines]
    text = f"{facts['difference']:+.{digits}f}".replace("-", "−")
    weak = facts["verdict"] not in ("better", "worse")
    return Cell(text, lines=tuple(lines), weak=weak)

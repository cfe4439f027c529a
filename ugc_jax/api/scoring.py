"""evaluate and compare as functions: predictions or results in, scores with intervals out."""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugc_jax import files, progress
from ugc_jax.errors import UserError, require_extra
from ugc_jax.evals.compare import compare_results, comparison_table, distinguished
from ugc_jax.evals.results import (
    check_result,
    check_result_path,
    column_names,
    read_result,
    write_result,
)
from ugc_jax.evals.summary import result_table
from ugc_jax.jobs import evaluate as job

if TYPE_CHECKING:
    from ugc_jax.generate.captioner import Caption

    Row = Mapping[str, Any] | Caption
    # A file or a folder, lines of caption or of another form, {id: text}, or one of these a task.
    Predictions = str | os.PathLike | Iterable[Row] | Mapping[str, Any]

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """The score of a task.

    score: mean of the clips that have one, None without any; percent, or of ocr a fraction.
    interval: its 95 % interval, None for less than two clips. n, failed: numbers of clips with a
    score and without. columns, intervals: the further scores, as visual and audio, by name.
    clips: {"id", "score", ...} or {"id", "failure", ...} of each clip, as in the result's file.
    """

    score: float | None
    interval: Interval | None
    n: int
    failed: int
    columns: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None]
    clips: list[dict] = dataclasses.field(repr=False)

    @property
    def scores(self) -> dict[str, float]:
        """The score of each clip that has one, by its id."""
        return {clip["id"]: clip["score"] for clip in self.clips if "score" in clip}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A result of `evaluate`; printed, it is the table of the job.

    name: of the model. average: "Avg." of the paper's table 2, None unless all its tasks are there.
    tasks: name -> TaskScore. unscored: name of a task without a score -> why. content: all of it,
    as in the file that `ugc-jax report` and `compare` read.
    """

    name: str
    average: float | None
    tasks: Mapping[str, TaskScore]
    unscored: Mapping[str, str]
    content: dict = dataclasses.field(repr=False)

    @classmethod
    def of(cls, content: dict) -> "Evaluation":
        """Return the result with the content of its file."""
        tasks = {
            name: TaskScore(
                task["score"],
                _interval(task["interval"]),
                task["n"],
                task["failed"],
                {column: task[column] for column in column_names(task)},
                {column: _interval(task["intervals"][column]) for column in column_names(task)},
                content["clips"][name],
            )
            for name, task in content["tasks"].items()
        }
        return cls(content["name"], content["average"], tasks, content["unscored"], content)

    def __str__(self) -> str:
        return result_table(self.content)


@dataclasses.dataclass(frozen=True)
class Difference:
    """The other result minus the base, clip by clip; fields as of `evals.compare.difference`.

    verdict: "better" or "worse" if the 95 % interval excludes 0, else "noise"; "too few" clips for
    an interval; "does not compare" where the protocols differ.
    """

    difference: float | None
    interval: Interval | None
    n: int
    wins: int
    ties: int
    losses: int
    verdict: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A result of `compare`; printed, it is the table of the job.

    base: name of the first result. against: name of another one -> task -> column -> Difference;
    the column of a task's own score is "score". content: all of it, as in the job's file.
    """

    base: str
    against: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    content: dict = dataclasses.field(repr=False)

    @classmethod
    def of(cls, content: dict) -> "Comparison":
        """Return the comparison with the content of its file."""
        against = {
            other["name"]: {task: _differences(facts) for task, facts in other["tasks"].items()}
            for other in content["against"]
        }
        return cls(content["base"], against, content)

    def __str__(self) -> str:
        return comparison_table(self.content)


def evaluate(
    predictions: "Predictions | None" = None,
    *,
    qa: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    config: str | os.PathLike | job.EvaluateConfig | None = None,
    **options,
) -> Evaluation:
    """Score captions and answers, as the job `ugc-jax evaluate` does. No model is loaded for that.

    Examples:
        >>> captions = [{"video_id": "000000", "caption": "A red circle moves left."}]
        >>> result = ugc_jax.evaluate(captions, qa="world/test.jsonl", name="mine")
        >>> result.tasks["world"].n, result.tasks["world"].failed
        (1, 0)
        >>> 0 < result.tasks["world"].scores["000000"] < 100
        True

    predictions: the texts to score, a file of them, lines of one ({"video_id", "caption"}, or what
      `Captioner.caption` returns) or {id: text}; for several tasks a folder, or {task: these}.
      None: a model is asked (ask={"checkpoint": ..., "videos": FOLDER}), or scores are given.
    qa: folder of the benchmark's qa files, one of them, or the manifest of a world.
    output: JSON file for the result. Answers of a judge and of a model that is asked are stored
      beside it, so these need one.
    config: a config as --config takes it, or an EvaluateConfig; options replace its values.
    options: settings of the job by their names there: task="ocr,tone", judge={"model": ...}, ...

    Raises TypeError for an unknown option and for a value of another type; UserError as the job.
    """
    require_extra("eval", "evaluate")
    options |= {name: value for name, value in dict(qa=qa, output=output).items() if value}
    with progress.shown(), contextlib.ExitStack() as stack:
        if predictions is not None:
            path = stack.enter_context(_as_path(predictions))
            options["predictions"] = path
            if not isinstance(predictions, str | os.PathLike):
                stack.enter_context(_naming_predictions(path))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ugc-jax-")))
        unnamed = str(folder / "result.json")
        settings = job.SETTINGS.from_options({"output": unnamed} | options, config)
        if settings.output == unnamed and (settings.judge.model or settings.ask.checkpoint):
            raise UserError(
                "output=FILE is needed: answers of a judge and a model are kept beside it"
            )
        if settings.distributed:
            raise UserError("distributed: is for processes; run ugc-jax evaluate with a launcher")
        result = job.score(settings, stack)
        if predictions is not None and not isinstance(predictions, str | os.PathLike):
            result["sources"]["predictions"] = None
        if settings.output != unnamed:
            write_result(settings.output, result)
    return Evaluation.of(result)


def compare(
    *results: Evaluation | str | os.PathLike, output: str | os.PathLike | None = None
) -> Comparison:
    """Compare results clip by clip, the first one with each of the others, as `ugc-jax compare`.

    Examples:
        >>> better, worse = (
        ...     ugc_jax.evaluate({"000000": text}, qa="world/test.jsonl", name=name)
        ...     for name, text in (("mine", "A red circle moves left."), ("base", "Nothing."))
        ... )
        >>> ugc_jax.compare(worse, better).against["mine"]["world"]["score"].wins
        1

    results: of `evaluate`, or files of them. output: also write the comparison there, as JSON.
    Raises TypeError for anything else, UserError as the job.
    """
    require_extra("eval", "compare")
    contents, places = [], []
    for number, one in enumerate(results):
        if isinstance(one, str | os.PathLike):
            contents.append(read_result(one))
        elif isinstance(one, Evaluation):
            contents.append(check_result(one.content, f"results[{number}]"))
        else:
            raise TypeError(f"results: expected results of evaluate or files, got {one!r:.60}")
        places.append(os.fspath(one) if isinstance(one, str | os.PathLike) else str(number + 1))
    if len(contents) < 2:
        raise TypeError(f"compare() takes two or more results, got {len(contents)}")
    if output is not None:
        check_result_path(output, [one for one in results if not isinstance(one, Evaluation)])
    content = compare_results(distinguished(contents, places))
    if output is not None:
        write_result(output, content)
    return Comparison.of(content)


@contextlib.contextmanager
def _as_path(predictions) -> Iterator[str]:
    """The path of predictions, of those in memory while the block lasts."""
    if isinstance(predictions, str | os.PathLike):
        yield os.fspath(predictions)
        return
    with tempfile.TemporaryDirectory(prefix="ugc-jax-") as folder:
        if _is_by_task(predictions):
            for task, rows in predictions.items():
                if not isinstance(task, str) or not task.isidentifier():  # it names a file
                    raise UserError(f"predictions: {task!r:.60} is not the name of a task")
                files.write_text(Path(folder, f"{task}.jsonl"), _lines(rows))
            yield folder
        else:
            path = Path(folder, "predictions.jsonl")
            files.write_text(path, _lines(predictions))
            yield str(path)


@contextlib.contextmanager
def _naming_predictions(path: str) -> Iterator[None]:
    """Let errors name predictions in memory, and not the file in which they are for a moment."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace(path, "predictions")) from None


def _is_by_task(predictions) -> bool:
    """Whether predictions are {task: rows}, and not {id: text} or rows."""
    if not isinstance(predictions, Mapping) or not predictions:
        return False
    return all(isinstance(rows, list | tuple) for rows in predictions.values())


def _lines(predictions) -> str:
    """The text of a file of predictions. Raises TypeError for what is none."""
    if isinstance(predictions, Mapping):  # {id: text}
        return _as_json(dict(predictions), "predictions")
    if isinstance(predictions, bytes) or not isinstance(predictions, Iterable):
        raise TypeError(f"predictions: expected rows or {{id: text}}, got {predictions!r:.60}")
    lines = []
    for number, row in enumerate(predictions):
        place = f"predictions[{number}]"
        content = row if isinstance(row, Mapping) else getattr(row, "record", lambda: None)()
        if content is None:
            raise TypeError(f"{place}: expected a dict or a Caption, got {row!r:.60}")
        lines.append(_as_json(dict(content), place))
    return "".join(lines)


def _as_json(content: dict, place: str) -> str:
    """A line of JSON. Raises TypeError for what JSON cannot hold."""
    try:
        return json.dumps(content) + "\n"
    except (TypeError, ValueError) as error:
        raise TypeError(f"{place}: {error}; give what JSON can hold") from None


def _differences(facts: dict) -> dict[str, Difference]:
    return {
        column: Difference(**fact | {"interval": _interval(fact["interval"])})
        for column, fact in facts.items()
        if isinstance(fact, dict)
    }


def _interval(bounds) -> Interval | None:
    return None if bounds is None else tuple(bounds)

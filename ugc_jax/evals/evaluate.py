"""Scores predictions against references, task by task and clip by clip -> a result.

qa files -> tasks --+
prediction files ---+-> score of each clip, or a failure -> summary -> result.json
LLM judge, if any --+
"""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ugc_jax import __version__
from ugc_jax.errors import UserError
from ugc_jax.evals import scores, structured
from ugc_jax.evals.judged import JudgedTasks, JudgingConfig
from ugc_jax.evals.predictions import (
    FAULTS,
    Predictions,
    find_predictions,
    read_predictions,
)
from ugc_jax.evals.prompts import Item
from ugc_jax.evals.results import VERSION
from ugc_jax.evals.summary import average, summarize
from ugc_jax.evals.tasks import FORMS, Form, Sample, Task
from ugc_jax.evals.texts import is_error, is_refused_task, missing
from ugc_jax.judge.client import JudgeConfig
from ugc_jax.judge.messages import without_thinking

logger = logging.getLogger(__name__)

NEEDS_JUDGE = "it needs a judge: judge.model=NAME"
MAX_FAULTS = 100  # listed one by one in a result


@dataclasses.dataclass
class Evaluation:
    """A result to which tasks are added as they are scored."""

    name: str  # of the model, for tables
    sources: dict[str, str | None]
    asked: dict | None = None  # model and settings, if a model was asked for the predictions
    benchmark: str = "UGC-VideoCap"
    tasks: dict[str, dict] = dataclasses.field(default_factory=dict)
    clips: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    unscored: dict[str, str] = dataclasses.field(default_factory=dict)
    predictions: list[Predictions] = dataclasses.field(default_factory=list)

    @classmethod
    def create(
        cls,
        name: str | None,
        qa: str | None,
        predictions: str | None,
        scores: str | None,
        checkpoint: str | None,
        judge: str | None = None,
        benchmark_data: str | None = None,
    ) -> "Evaluation":
        """name: None takes that of the file or the checkpoint. judge: name of the judge's model.

        benchmark_data: the file or folder of a benchmark that has no qa files.

        Raises UserError if there is nothing to score, or if arguments exclude each other.
        """
        if not (predictions or scores or checkpoint):
            raise UserError(
                "nothing to score; give predictions=FILE, ask.checkpoint=DIR or scores=FILE"
            )
        if checkpoint and (predictions or scores):
            raise UserError(
                "ask.checkpoint is given with predictions or scores; give one or the other"
            )
        if scores and judge:
            raise UserError("scores and judge.model are both given; give one or the other")
        if qa is None and benchmark_data is None and (predictions or checkpoint):
            raise UserError(
                "qa=DIR is needed: the folder of the qa files, or the manifest of a world"
            )
        sources = {"qa": qa, "predictions": predictions, "scores": scores, "checkpoint": checkpoint}
        if benchmark_data is not None:
            sources["benchmark_data"] = benchmark_data
        return cls(name or checkpoint or Path(predictions or scores).stem, sources)

    def add(
        self,
        task: Task,
        clips: list[dict],
        protocol: dict,
        noise: float | None = None,
        notes: Sequence[str] = (),
    ):
        """Add a task with its scored clips; the arguments are those of `summary.summarize`."""
        self.tasks[task.name] = summarize(task, clips, protocol, noise, notes)
        if task.form.benchmark != Evaluation.benchmark:
            self.benchmark = task.form.benchmark
        self.clips[task.name] = clips

    def result(self, judge: dict | None) -> dict:
        """The content of result.json. judge: `JudgedTasks.record`, or None without a judge."""
        now = datetime.datetime.now(datetime.UTC)
        counts = [one.counts() for one in self.predictions]
        faults = {kind: sum(count[kind] for count in counts) for kind in FAULTS}
        listed = [fault for one in self.predictions for fault in one.faults()]
        return {
            "version": VERSION,
            "name": self.name,
            "benchmark": self.benchmark,
            "created": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "ugc_jax": __version__,
            "sources": self.sources,
            "asked": self.asked,
            "judge": judge,
            "average": average(self.tasks),
            "tasks": self.tasks,
            "unscored": self.unscored,
            "faults": faults | {"listed": listed[:MAX_FAULTS]},
            "clips": self.clips,
        }


def read_all(
    path: str | Path,
    benchmark: Mapping[str, Task],
    field: str | None = None,
    forms: Mapping[str, Form] = FORMS,
) -> dict[str, Predictions]:
    """Task -> its predictions, from a folder with a file a task, or from the file of one task.

    field: as in `read_predictions`. forms: the forms of all known tasks, to match file names.
    Raises UserError for one file and several tasks, and for a folder without a file of any task.
    """
    path = Path(path)
    paths = {name: path for name in benchmark}
    if path.is_dir():
        paths, unmatched = find_predictions(path, list(benchmark), forms)
        for file in unmatched:
            logger.warning("%s: is not named after a task; left out", file)
        if not paths:
            raise UserError(
                f"{path}: has no file of predictions; name them TASK.jsonl, such as "
                f"{next(iter(benchmark))}.jsonl"
            )
    elif len(benchmark) > 1:
        raise UserError(
            f"{path}: is one file for {len(benchmark)} tasks; give its task as task=NAME, or a "
            "folder with a file for each task"
        )
    texts = {}
    for name, file in paths.items():
        task = benchmark[name]
        found = read_predictions(file, set(task.ids), field, task.form.takes_json)
        if (faults := found.summary()) is not None:
            logger.warning("%s: %s", file, faults)
        rows = len(found.texts) + len(found.failures)
        if 2 * rows < len(task.ids):
            logger.warning(
                "%s: has predictions of %d of the %d clips of %s", file, rows, len(task.ids), name
            )
        texts[name] = found
    return texts


@contextlib.contextmanager
def judge_for(
    config: JudgeConfig, judging: JudgingConfig, tasks: Iterable[Task], output: Path
) -> Iterator[JudgedTasks | None]:
    """The judge of the judged tasks; None without such tasks or without a model in the config.

    Its answers are cached beside the output, unless the config names another file. Raises UserError
    for a judge that cannot be used, before it is asked anything.
    """
    rubrics = {task.name: task.form.rubric for task in tasks if task.is_judged}
    if not rubrics or config.model is None:
        yield None
        return
    cache = config.cache or str(beside(output, "judge.jsonl"))
    with JudgedTasks(dataclasses.replace(config, cache=cache), rubrics, judging, rubrics) as judge:
        yield judge


def beside(output: Path, name: str) -> Path:
    """The path of a file that belongs to a result: "result.judge.jsonl" for "result.json"."""
    stem = output.name.removesuffix(".json")
    return output.with_name(f"{stem}.{name}")


def score_all(
    evaluation: Evaluation,
    benchmark: Mapping[str, Task],
    texts: Mapping[str, Predictions],
    judge: JudgedTasks | None,
) -> dict:
    """The result of the predictions of each task.

    A task without predictions, or without the judge that it needs, is listed in "unscored". Raises
    UserError if no other task is left.
    """
    for name, task in benchmark.items():
        if name not in texts:
            evaluation.unscored[name] = "it has no predictions"
        elif task.is_judged and judge is None:
            is_rated = name in FORMS and task.form.columns
            scores_help = ", or scores=FILE of a judge's scores" if is_rated else ""
            evaluation.unscored[name] = NEEDS_JUDGE + scores_help
    todo = [task for name, task in benchmark.items() if name not in evaluation.unscored]
    if not todo:
        raise UserError(
            "; ".join(f"task {name}: {why}" for name, why in evaluation.unscored.items())
        )
    for task in todo:
        predicted = texts[task.name]
        if not any(one is predicted for one in evaluation.predictions):
            evaluation.predictions.append(predicted)
        protocol = judge.protocol(task.name) if task.is_judged else dict(task.form.protocol)
        if structured.is_by_units(task):
            units = structured.UnitFile.beside(evaluation.sources["qa"], task, judge.judging.units)
            task, predicted, facts = units.fill(task, predicted, judge)  # noqa: PLW2901
            protocol |= facts
        clips, noise, notes = score_task(task, predicted, judge)
        evaluation.add(task, clips, protocol, noise, notes)
    return evaluation.result(judge and judge.record())


def score_task(
    task: Task, predicted: Predictions, judge: JudgedTasks | None
) -> tuple[list[dict], float | None, list[str]]:
    """(clips of a result, one a sample and in their order; the judge's noise; notes).

    A clip is {"id", "reference", "prediction" (what is scored: without thinking) if there is one,
    "clip" and "weight" of the sample if it has them} with the items of `Form.score`, or with
    "failure": "missing" (no line), a kind of `predictions.Failure` ("error", "null", "NaN", ...),
    one of `_no_answer` ("empty", "cut off", "refusal"), "judge" (no usable answer), "units" (the
    reference has none: structured.py), or a kind of `Form.score`: one of `options.Choice`, or
    "skipped" (the OCR normalisation leaves nothing to compare). judge: scores the predictions of a
    judged task.
    """
    clips, to_judge, empty, thought = [], [], 0, set()
    for sample in task.samples:
        text = predicted.texts.get(sample.of)
        clip = {"id": sample.id, "reference": reference_text(sample.reference)}
        clip |= {"clip": sample.clip} if sample.clip else {}
        clip |= {"weight": sample.weight} if sample.weight != 1 else {}
        clips.append(clip)
        if (failure := predicted.failures.get(sample.of)) is not None:
            clip |= {"failure": failure.kind, "note": failure.note}
            continue
        if text is None:
            clip["failure"] = "missing"
            continue
        answer = without_thinking(text)
        thought |= {sample.of} if answer != text else set()
        clip["prediction"] = text if answer is None else answer
        if (kind := _no_answer(task, sample, answer)) is not None:
            clip["failure"] = kind
        elif task.is_judged:
            to_judge.append((clip, sample))
        else:
            empty += not answer.strip()
            clip |= task.form.score(sample, answer)
    noise, notes = None, []
    if empty:
        notes.append(f"{empty} empty answers count as 0, as in the release")
    if thought:
        notes.append(f"{len(thought)} answers are scored without their thinking")
    if cut := len(predicted.cut & set(task.ids)):
        notes.append(f"{cut} answers end at the limit of tokens (finish_reason length)")
    if to_judge:
        items = [
            Item(clip["id"], clip["reference"], clip["prediction"], sample)
            for clip, sample in to_judge
        ]
        judged, noise, unanswered = judge.judge(task.name, items)
        for (clip, _), verdict in zip(to_judge, judged, strict=True):
            clip |= verdict
        if unanswered:
            notes.append(f"{unanswered} questions to the judge have no usable answer")
    return clips, noise, notes


def _no_answer(task: Task, sample: Sample, answer: str | None) -> str | None:
    """Why a text, without its thinking, is no answer to any task; None if it may be one.

    "cut off" (None: its thinking does not end), "empty", "null", "NaN" or "error" (written as
    texts), or "refusal" (of tasks with options: options.read_choice tells).
    """
    if answer is None:
        return "cut off"
    if not answer.strip():
        return None if task.form.scores_blank else "empty"
    if (kind := missing(answer)) is not None and answer.strip() not in sample.options:
        return kind
    if is_error(answer):
        return "error"
    return "refusal" if not sample.options and is_refused_task(answer) else None


def reference_text(reference: object) -> str:
    """The reference of a sample as text."""
    if isinstance(reference, dict):
        return ", ".join(f"{name}: {value}" for name, value in reference.items())
    if isinstance(reference, str):
        return reference
    return "\n".join(one if isinstance(one, str) else one["text"] for one in reference)


def take_scores(
    evaluation: Evaluation,
    path: str | Path,
    names: Sequence[str],
    benchmark: Mapping[str, Task],
    texts: Mapping[str, Predictions],
) -> dict:
    """The result of a file of a judge's scores of one task; no judge is asked.

    benchmark, texts: for the references and predictions of the clips, as far as they are known. A
    sample without a rating is a failure "missing". A rated clip that is no sample counts, as in the
    release, and a note says so. Raises UserError for several tasks, and as `scores.read_scores`.
    """
    if len(names) > 1:
        raise UserError(f"{path}: has scores of one task, not of {', '.join(names)}; name one")
    (name,) = names
    rated, notes, protocol = scores.read_scores(path, name)
    references, predicted = {}, {}
    if name in benchmark:
        references = {s.id: reference_text(s.reference) for s in benchmark[name].samples}
    if name in texts:
        evaluation.predictions.append(texts[name])
        predicted = texts[name].texts
    ids = {clip["id"] for clip in rated}
    missing = [{"id": one, "failure": "missing"} for one in references if one not in ids]
    known = {"reference": references, "prediction": predicted}
    clips = [
        clip | {key: of[clip["id"]] for key, of in known.items() if clip["id"] in of}
        for clip in [*rated, *missing]
    ]
    if references and (unknown := len(ids - references.keys())):
        notes = [*notes, f"{unknown} rated clips are not among the task's samples; they count"]
    task = benchmark.get(name, Task(name, FORMS[name], "", ()))
    evaluation.add(task, clips, protocol, notes=notes)
    return evaluation.result(None)

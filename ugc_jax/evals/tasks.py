"""The benchmark's tasks: questions about clips, reference answers, and how to score.

    qa/final_caption_qa.json   {"question", "valid_count", "samples": [{"video_id", "answer"}]}
    qa/tone.json               the same, and "options" in each sample
    qa/ocr.jsonl               a line a clip: {"video_id", "ocr": [text, ...]}

A job may add a task: it passes `FORMS | {"mine": Form(...)}` as `forms`.
"""

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.evals import metrics, ocr, prompts
from ugc_jax.evals.options import read_choice
from ugc_jax.media.find import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

OCR_QUESTION = (
    "Which texts are shown in the video: titles, subtitles, signs, labels? Write each of them once "
    "and word for word, in the order in which they appear. Answer with nothing but JSON of this "
    'form: {"ocr": ["first text", "second text"]}'
)


class Sample(NamedTuple):
    """id: of the clip. reference: a text, or the type that the task's `Form` reads and scores.

    clip: of the clip where one has several samples, each with an id of its own; else "".
    weight: of its score in the mean, such as the number of its events.
    """

    id: str
    reference: str | list[str] | list[dict] | dict[str, str]
    options: tuple[str, ...] = ()
    clip: str = ""
    weight: int = 1

    @property
    def of(self) -> str:
        """The id of its clip."""
        return self.clip or self.id


class Form(NamedTuple):
    """A task without its samples: how these are read and scored.

    file: its name in a folder of qa files. metric: a description of the score in one line.
    read: text of the file -> (question, samples); raises ValueError with a fault and its place.
    score: (sample, answer) -> the clip in a result: {"score", each of `columns`, ...}, or
      {"failure": kind}; None: an LLM judges the answers (evals/judged.py) by the rubric.
    columns: names of further scores. unit: of the score and the columns.
    lower: those of "score" and the columns of which a lower value is better. worst: the score that
      a failure would have, for the bound that a result states.
    aliases: other names of the task. count: samples in the released file; None: not released.
    protocol: the settings that must be equal for two scores to compare, if no LLM judges.
    scores_blank: a blank answer is scored like any other, as in the release; else it is a failure.
    takes_json: predictions may be objects and lists, as in the release; else these are failures.
    facts: (samples, scored clips) -> facts of the task beyond those of `summary.summarize`; its
      "flags" and "notes" are added to the task's.
    recognize: text of a file -> True if it is of this task, whatever the file's name.
    is_caption: the texts to score are captions, not answers to a question of the task.
    benchmark: the name of the benchmark in a result.
    """

    file: str
    metric: str
    read: Callable[[str], tuple[str, list[Sample]]]
    score: Callable[[Sample, str], dict] | None
    columns: tuple[str, ...] = ()
    unit: Literal["percent", "fraction"] = "percent"
    aliases: tuple[str, ...] = ()
    count: int | None = None
    protocol: Mapping[str, str] = {}
    scores_blank: bool = False
    takes_json: bool = False
    facts: Callable[[Sequence[Sample], Sequence[dict]], dict] | None = None
    recognize: Callable[[str], bool] | None = None
    benchmark: str = "UGC-VideoCap"
    rubric: prompts.Rubric | None = None
    lower: tuple[str, ...] = ()
    worst: float = 0.0
    is_caption: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with its samples. question: for the model, about each clip."""

    name: str
    form: Form
    question: str
    samples: tuple[Sample, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of its clips, each once."""
        return tuple(dict.fromkeys(sample.of for sample in self.samples))

    @property
    def is_judged(self) -> bool:
        """True if an LLM judges its answers."""
        return self.form.score is None


# ---- readers and scorers -------------------------------------------------------------------------


def _read_texts(text: str) -> tuple[str, list[Sample]]:
    question, rows = _samples(text)
    return question, [Sample(clip_id(row["video_id"]), _string(row, "answer")) for row in rows]


def _read_options(text: str) -> tuple[str, list[Sample]]:
    question, rows = _samples(text)
    samples = []
    for row in rows:
        options, answer = row.get("options"), _string(row, "answer")
        if not is_texts(options) or options != rows[0]["options"]:
            raise ValueError(
                f"sample {row['video_id']}: its options are missing, or not those of the first"
            )
        option = _as_option(answer, options)
        if option is None:
            raise ValueError(f"sample {row['video_id']}: the answer {answer!r} is not an option")
        samples.append(Sample(clip_id(row["video_id"]), option, tuple(options)))
    return f"{question} Options: {', '.join(samples[0].options)}.", samples


def _as_option(answer: str, options: list[str]) -> str | None:
    """The option that equals an answer, by letters and digits only if these differ for all."""
    spelling = {_bare(option): option for option in options}
    if "" in spelling or len(spelling) < len(options):  # such as "+" and "-"
        return answer if answer in options else None
    return spelling.get(_bare(answer))


def _score_option(sample: Sample, answer: str) -> dict:
    choice = read_choice(answer, sample.options)
    if choice.failure is not None:
        return {"failure": choice.failure, "answer": sample.reference}
    said = choice.option or metrics.OTHER
    return {
        "score": 100.0 * (said == sample.reference),
        "said": said,
        "answer": sample.reference,
    }


def _option_facts(samples: Sequence[Sample], scored: Sequence[dict]) -> dict:
    """The accuracy of the best constant guess on the same clips, recall and confusion counts."""
    options, everyone = samples[0].options, [sample.reference for sample in samples]
    answers, chosen = ([clip[key] for clip in scored] for key in ("answer", "said"))
    answer, share = metrics.majority(answers or everyone)
    flags, notes = [], ["labels are compared without regard to case"]
    if len(set(everyone)) == 1:
        flags.append(f"degenerate: every answer is {answer}; the score is meaningless")
    if others := chosen.count(metrics.OTHER):
        notes.append(f"{others} answers name no option; they count as wrong")
    confusion = metrics.confusion_counts(answers, chosen, options)
    return {
        "majority": {"answer": answer, "score": share},
        "recall": metrics.recall(confusion),
        "confusion": confusion,
        "flags": flags,
        "notes": notes,
    }


def _read_ocr(text: str) -> tuple[str, list[Sample]]:
    rows = json_rows(text)
    for row in rows:
        _string(row, "video_id")
        if row.get("ocr") != [] and not is_texts(row.get("ocr")):
            raise ValueError(f"sample {row['video_id']}: ocr is not a list of texts")
    return OCR_QUESTION, [Sample(clip_id(row["video_id"]), row["ocr"]) for row in rows]


def _score_ocr(normalisation: ocr.Normalisation, sample: Sample, answer: str) -> dict:
    if ocr.has_key_twice(answer):
        return {"failure": "key twice", "note": "the answer is JSON with a key twice"}
    scores = ocr.scores(sample.reference, answer, normalisation)
    return {"failure": "skipped"} if scores is None else scores


# ---- forms ---------------------------------------------------------------------------------------

_RATING = "mean of the judge's ratings of the columns, 1 to 5, as percent of 5"


def _options(file: str, count: int, aliases: tuple[str, ...] = ()) -> Form:
    return Form(
        file,
        "answers that name the right option, in percent",
        _read_options,
        _score_option,
        aliases=aliases,
        count=count,
        protocol={"answers": "whole"},  # 0.1.0 took any mention of an option
        facts=_option_facts,
    )


def _judged(
    name: str, file: str, count: int, metric: str = _RATING, aliases: tuple[str, ...] = ()
) -> Form:
    rubric = prompts.RUBRICS[name]
    return Form(
        file, metric, _read_texts, None, rubric.columns, aliases=aliases, count=count, rubric=rubric
    )


def _caption(name: str, aliases: tuple[str, ...] = ()) -> Form:
    return _judged(name, f"{name}_qa.json", 999, aliases=aliases)._replace(is_caption=True)


def ocr_form(normalisation: ocr.Normalisation) -> Form:
    """The OCR task with one of the normalisations of texts."""
    return Form(
        "ocr.jsonl",
        "mean of BLEU-1 and the F1 of ROUGE-1, ROUGE-2 and ROUGE-L, a fraction",
        _read_ocr,
        functools.partial(_score_ocr, normalisation),
        ("bleu_1", "rouge_1", "rouge_2", "rouge_l"),
        "fraction",
        count=826,
        protocol={"normalisation": normalisation},
        scores_blank=normalisation == "raw",
        takes_json=True,
    )


FORMS = {
    "voice_source": _options("voice_source.json", 669, ("voice",)),
    "tone": _options("tone.json", 999),
    "bgm": _options("BGM.json", 999, ("background_music",)),
    "ocr": ocr_form("raw"),
    "background": _judged(
        "background",
        "back_ground_change_new.json",
        311,
        "answers that tell the same changes as the reference, by the judge, in percent",
        ("background_change",),
    ),
    "objects": _judged(
        "objects",
        "object.json",
        997,
        "mean share of the reference's objects that are matched, by the judge, in percent",
    ),
    "audio_caption": _caption("audio_caption"),
    "visual_caption": _caption("visual_caption"),
    "final_caption": _caption("final_caption", ("caption", "captions")),
}
TASKS = tuple(FORMS)  # "all": the benchmark, without tasks that a job adds


# ---- names ---------------------------------------------------------------------------------------


def task_names(text: str, forms: Mapping[str, Form] = FORMS) -> tuple[str, ...]:
    """The tasks of a comma-separated list, each once; "all" is the whole benchmark, TASKS.

    Accepts names in any case and with any hyphens, released file names and the aliases of forms.
    Raises UserError for an unknown name.
    """
    names = []
    for word in filter(None, map(str.strip, text.split(","))):
        name = task_of(word, forms)
        if name is None and word.lower() != "all":
            raise UserError(f"unknown task {word!r}; use {', '.join(forms)} or all")
        names += TASKS if name is None else [name]
    if not names:
        raise UserError(f"task={text!r} names no task; use {', '.join(forms)} or all")
    return tuple(dict.fromkeys(names))


def task_of(word: str, forms: Mapping[str, Form] = FORMS) -> str | None:
    """The task with a name, alias or released file stem like `word`; None without one."""
    bare = _bare(word)
    for name, form in forms.items():
        released = [Path(form.file).stem] if form.count else []
        if bare in map(_bare, (name, *form.aliases, *released)):
            return name
    return None


def clip_id(path: str) -> str:
    """The id of a clip: the name of its file without folder and without a video's suffix.

    Bytes of a name that are not UTF-8 stay as Python reads them (U+DC80 to U+DCFF); other halves of
    surrogate pairs become �.
    """
    name = PurePosixPath(re.sub("[\ud800-\udc7f\udd00-\udfff]", "�", path).replace("\\", "/"))
    return name.stem if name.suffix.lower() in VIDEO_SUFFIXES else name.name


def _bare(word: str) -> str:
    return re.sub(r"[\W_]", "", word).lower()


# ---- files ---------------------------------------------------------------------------------------


def load_tasks(
    qa: str | Path, names: Sequence[str], forms: Mapping[str, Form] = FORMS
) -> dict[str, Task]:
    """The tasks `names` (of forms), in their order.

    qa: the folder with their files, or the file of one of them if `names` has only that task or all
      TASKS. The task of a file follows from its content (`Form.recognize`) or its name; a file with
      another name is of the only task.
    If `names` has all TASKS, those without a file are left out with a warning. A question about
    options ends with the options, in one line. Answers take the spelling of their options, as the
    released ones differ in case. Raises UserError for a file that is missing, cannot be read or has
    another form, naming the first bad sample, and for a file of another task.
    """
    qa = Path(qa)
    if not qa.is_dir():
        return _load_one(qa, names, forms)
    paths = {name: qa / forms[name].file for name in names}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing and (len(missing) == len(names) or not set(TASKS) <= set(names)):
        absent = ", ".join(forms[name].file for name in missing)
        raise UserError(
            f"{qa}: has no {absent}; give the folder of the released qa files, or other tasks"
        )
    if missing:
        logger.warning("%s: has no files of %s; left out", qa, ", ".join(missing))
    return {
        name: _task(name, forms[name], path, _text(path))
        for name, path in paths.items()
        if name not in missing
    }


def _load_one(path: Path, names: Sequence[str], forms: Mapping[str, Form]) -> dict[str, Task]:
    text, is_all = _text(path), set(TASKS) <= set(names)
    recognized = (name for name, form in forms.items() if form.recognize and form.recognize(text))
    name = next(recognized, None) or task_of(path.stem, forms)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise UserError(f"{path}: is not named after a task; give task=NAME")
    others = [other for other in names if other != name]
    if others and not is_all:
        raise UserError(
            f"{path}: is of the task {name}, not of {', '.join(others)}; correct task, or give the "
            "folder of the qa files"
        )
    return {name: _task(name, forms[name], path, text)}


def _text(path: Path) -> str:
    return files.read_text(path, "give the folder of the qa files as released, or one of them")


def _task(name: str, form: Form, path: Path, text: str) -> Task:
    try:
        question, samples = form.read(text)
        _check_ids(samples)
    except ValueError as error:  # has the fault and its place
        raise UserError(f"{path}: {error}; correct it, or give a file of {name}") from None
    if form.count not in (None, len(samples)):
        logger.warning("%s: %d samples, not the released %d", path, len(samples), form.count)
    return Task(name, form, question, tuple(samples))


def _samples(text: str) -> tuple[str, list[dict]]:
    """(question, rows) of a released JSON file."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("samples"), list):
        raise ValueError('is not of the form {"question": "...", "samples": [...]}')
    rows, count = content["samples"], content.get("valid_count")
    if not rows:
        raise ValueError("has no samples")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"sample {number}: is not an object")
        _string(row, "video_id", f"sample {number}")
    if count not in (None, len(rows)):
        raise ValueError(f"valid_count is {count}, but it has {len(rows)} samples")
    return _string(content, "question", "the file").strip(), rows


def json_rows(text: str) -> list[dict]:
    """The objects of JSON Lines, at least one. Raises ValueError, as `Form.read`."""
    rows = []
    for line in files.parse_lines(text):
        if line.error is not None:
            raise ValueError(f"line {line.number} is not JSON ({line.error})")
        if not isinstance(line.value, dict):
            raise ValueError(f"line {line.number} is not an object")
        rows.append(line.value)
    if not rows:
        raise ValueError("has no samples")
    return rows


def _string(row: dict, key: str, label: str | None = None) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        label = label or f"sample {row.get('video_id', '')}"
        raise ValueError(f"{label}: {key} is {value!r:.40}, not a text")
    return value


def is_texts(value: object) -> bool:
    """True for a list of at least one text."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _check_ids(samples: Collection[Sample]):
    seen = set()
    for sample in samples:
        if sample.id in seen:
            raise ValueError(f"sample {sample.id}: a second sample with this id")
        seen.add(sample.id)

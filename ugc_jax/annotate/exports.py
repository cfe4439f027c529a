"""Agreed clips -> a benchmark in the released files, and training rows in the released form.

    qa/tone.json ...      as `evals.tasks`: `ugc-jax evaluate --qa FOLDER/qa` reads them
    qa/ocr.jsonl
    qa/questions.jsonl    questions that are of no released task
    train.jsonl           as `data.manifest`: `ugc-jax extract FOLDER/train.jsonl --media CLIPS`
    annotations.jsonl     everything, a line a clip, for `imports.read`
    answers.jsonl         what each annotator said, if given

An imported answer goes out word for word as it came in, unless its field was edited since.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.annotate import answers as values
from ugc_jax.annotate.answers import Agreed, Answer, Question
from ugc_jax.annotate.tasks import TASKS, imported_value
from ugc_jax.data import annotation
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import FORMS, clip_id

ANNOTATIONS, ANSWERS, TRAIN, QUESTIONS = (
    "annotations.jsonl",
    "answers.jsonl",
    "train.jsonl",
    "questions.jsonl",
)


class _Row(NamedTuple):
    """A row of a released file. place: in the file that it was imported from; None: at the end."""

    clip: Agreed
    answer: str
    question: str
    place: int | None


def write(
    folder: str | Path,
    agreed: Sequence[Agreed],
    answers: Iterable[Answer] = (),
    *,
    benchmark: Collection[str] | None = None,
) -> dict[str, int]:
    """Write all files and return {file within the folder: number of rows}.

    agreed: in the order that rows have in the files. Stages that are not done give no rows; neither
      do fields that say that there is nothing (no voice, no text, no object, no change). A clip
      with questions is asked about what they ask; a clip without, about all of its fields.
    benchmark: ids of the clips of qa/; all others are for training. None: each clip is in both.
    Files of an earlier export in the folder are replaced, or removed where they would be empty.
    Raises UserError, before anything is written, if there is nothing to export, for two clips of
    one id and for files of these names that no export wrote; also if a file cannot be written.
    """
    folder = Path(folder)
    _check_ids(agreed)
    asked = [one for one in agreed if benchmark is None or one.clip in benchmark]
    taught = [one for one in agreed if benchmark is None or one.clip not in benchmark]
    texts, counts = {}, {}
    for name, form in FORMS.items():
        rows = _rows(name, asked)
        texts[f"qa/{form.file}"] = _ocr_text(rows) if name == "ocr" else _text(name, rows)
        counts[f"qa/{form.file}"] = len(rows)
    lines = {
        f"qa/{QUESTIONS}": [
            _free(clip, one) for clip in asked for one in clip.questions if not one.task
        ],
        TRAIN: [_training(clip) for clip in taught if clip.both and clip.both.caption],
        ANNOTATIONS: [values.to_json(clip) for clip in agreed],
        ANSWERS: [values.answer_to_json(answer) for answer in answers],
    }
    texts |= {name: files.to_lines(rows) for name, rows in lines.items()}
    counts |= {name: len(rows) for name, rows in lines.items()}
    if not any(counts.values()):
        raise UserError("export: nothing is agreed yet; annotate clips first, or load labels")
    _check_own(folder, texts)
    written = {name: count for name, count in counts.items() if count}
    for name in written:
        files.write_text(folder / name, texts[name])
    for name in texts.keys() - written.keys():
        (folder / name).unlink(missing_ok=True)
    return written


def _check_own(folder: Path, names: Iterable[str]):
    """Raise UserError for a folder whose files of these names are not of an earlier export."""
    if any((folder / name).exists() for name in (ANNOTATIONS, ANSWERS)):
        return
    if found := [name for name in names if (folder / name).exists()]:
        raise UserError(
            f"export: {folder / found[0]} is not of an earlier export and would be replaced; "
            "choose another folder"
        )


def _check_ids(agreed: Sequence[Agreed]):
    """Raise UserError for two clips that `evaluate` could not tell apart."""
    paths: dict[str, str] = {}
    for clip in agreed:
        name = clip_id(clip.clip)
        if name in paths:
            raise UserError(
                f"{paths[name]} and {clip.path}: two clips with the id {name}; rename one of the "
                "files"
            )
        paths[name] = clip.path


def _rows(name: str, agreed: Sequence[Agreed]) -> list[_Row]:
    """The rows of a task: imported ones in their order, then the others."""
    rows = [row for clip in agreed if (row := _row(name, clip)) is not None]
    return sorted(rows, key=lambda row: (row.place is None, row.place or 0))


def _row(name: str, clip: Agreed) -> _Row | None:
    """A clip's row of a task; None if it is not asked about it.

    The field decides, and the question only how it is worded: fields may be corrected later. An
    answer that a person wrote is kept.
    """
    task, stage = TASKS[name], getattr(clip, TASKS[name].stage)
    asked = next((one for one in clip.questions if one.task == name), None)
    if stage is None:
        return asked and _Row(clip, asked.answer, asked.question, asked.row)
    value = getattr(stage, task.field)
    if asked is not None:
        is_kept = asked.source == "person" or imported_value(name, asked.answer) == value
        answer = asked.answer if is_kept else task.write(value)
        return _Row(clip, answer, asked.question, asked.row) if answer.strip() else None
    if any(one.source == "import" for one in clip.questions):
        if value == imported_value(name, None):  # the imported files did not ask, either
            return None
    elif task.is_short and clip.questions:
        return None
    answer = task.write(value)
    return _Row(clip, answer, task.question, None) if answer.strip() else None


def _text(name: str, rows: Sequence[_Row]) -> str:
    """A released JSON file. Its question is the most frequent one of the rows."""
    if not rows:
        return ""
    options = list(TASKS[name].options)
    samples = [
        {"video_id": row.clip.clip, "path": row.clip.path, "answer": row.answer}
        | ({"options": _options(name, row.clip) or options} if options else {})
        for row in rows
    ]
    question = Counter(row.question for row in rows).most_common(1)[0][0]
    content = {"question": question, "valid_count": len(samples), "samples": samples}
    return files.escaped(json.dumps(content, indent=1, ensure_ascii=False))


def _options(name: str, clip: Agreed) -> list[str]:
    return next((list(one.options) for one in clip.questions if one.task == name), [])


def _ocr_text(rows: Sequence[_Row]) -> str:
    return files.to_lines(
        {"video_id": row.clip.clip, "ocr": json.loads(row.answer)} for row in rows
    )


def _free(clip: Agreed, question: Question) -> dict:
    return {
        "video_id": clip.clip,
        "path": clip.path,
        "kind": question.kind,
        "question": question.question,
        "answer": question.answer,
        "options": list(question.options),
        "source": question.source,
    }


def _training(clip: Agreed) -> dict:
    """A row for sft and grpo, with the fields of the stages as `label` has them."""
    question = TASKS["final_caption"].question.strip()  # as in the released rows
    label = {
        name: annotation.to_json(stage)
        for name in annotation.STAGES
        if (stage := getattr(clip, name)) is not None
    }
    return {
        "videos": [clip.path],
        "messages": [
            {"role": "user", "content": f"<video>{question}"},
            {"role": "assistant", "content": clip.both.caption},
        ],
        "solution": clip.both.caption,
        "label": label,
    }

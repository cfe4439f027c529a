"""What is known of clips already: an earlier export, a labelling run, released qa files.

| path | gives |
|---|---|
| folder of an export, its annotations.jsonl | agreed clips; answers, if they lie beside it |
| JSON Lines of `label`: videos, label | drafts of the stages, and clips without agreed fields |
| folder with tone.json, ocr.jsonl ..., or one of these | agreed clips with their questions |
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ugc_jax import files
from ugc_jax.annotate import answers as values
from ugc_jax.annotate.answers import Agreed, Answer, Question
from ugc_jax.annotate.exports import ANNOTATIONS, ANSWERS
from ugc_jax.annotate.tasks import TASKS, imported_value
from ugc_jax.data import annotation
from ugc_jax.data.annotation import STAGE_TYPES, Stage, fields_of
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import FORMS, clip_id, is_texts, json_rows, task_of

REMEDY = (
    f"give the folder of an export (with {ANNOTATIONS}), the JSON Lines of ugc-jax label, or the "
    "released qa files"
)


class Imported(NamedTuple):
    """agreed: of each clip. drafts: stage -> clip -> a teacher's answer. answers: of annotators."""

    agreed: tuple[Agreed, ...]
    drafts: Mapping[str, Mapping[str, Stage]] = {}
    answers: tuple[Answer, ...] = ()


def read(path: str | Path) -> Imported:
    """Return what a file or folder says of clips.

    Raises UserError that names the file, the line or sample, and the field that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if (path / ANNOTATIONS).exists():
            return _export(path / ANNOTATIONS)
        folder = path / "qa" if (path / "qa").is_dir() else path
        found = {name: folder / form.file for name, form in FORMS.items()}
        found = {name: file for name, file in found.items() if file.exists()}
        if not found:
            raise UserError(f"{path}: has none of these files; {REMEDY}")
        return _released(found)
    if path.name == ANNOTATIONS:
        return _export(path)
    if name := task_of(path.stem):
        return _released({name: path})
    return _labelled(path)


def _export(path: Path) -> Imported:
    agreed = tuple(_each(path, values.read))
    _check_once(path, [clip.clip for clip in agreed])
    beside = path.parent / ANSWERS
    answers = tuple(_each(beside, values.read_answer)) if beside.exists() else ()
    return Imported(agreed, {}, answers)


def _labelled(path: Path) -> Imported:
    agreed: list[Agreed] = []
    drafts: dict[str, dict[str, Stage]] = {stage: {} for stage in annotation.STAGES}
    for clip, said in _each(path, _label):
        agreed.append(clip)
        for stage, value in said.items():
            drafts[stage][clip.clip] = value
    _check_once(path, [clip.clip for clip in agreed])
    return Imported(tuple(agreed), drafts)


def _label(row: Any) -> tuple[Agreed, dict[str, Stage]]:
    """The clip of a row of `label` and what the teacher said of its stages."""
    if not isinstance(row, dict) or not isinstance(row.get("label"), dict):
        raise ValueError("has no label with the stages sound, picture and both")
    videos = row.get("videos")
    if not is_texts(videos) or len(videos) > 1:
        raise ValueError("videos is not a list of one path")
    said = {}
    for stage in annotation.STAGES:
        if row["label"].get(stage) is not None:
            try:
                said[stage] = annotation.read(stage, row["label"][stage])
            except ValueError as error:
                raise ValueError(f"label.{stage}: {error}") from None
    return Agreed(clip_id(videos[0]), videos[0]), said


def _released(found: Mapping[str, Path]) -> Imported:
    """The clips of released files, in the order in which they are first met."""
    paths: dict[str, str] = {}
    questions: dict[str, dict[str, Question]] = defaultdict(dict)
    for name, file in found.items():
        text = files.read_text(file, REMEDY)
        try:
            FORMS[name].read(text)  # all that evaluate would refuse
            rows = _ocr(text) if name == "ocr" else _samples(name, text)
        except ValueError as error:
            raise UserError(f"{file}: {error}; correct it") from None
        _check_once(file, [question.clip for _, question in rows])
        for path, question in rows:
            known = paths.setdefault(question.clip, path) or path
            if path and path != known:
                raise UserError(
                    f"{file}: sample {question.clip}: its path is {path!r:.80}, in another file "
                    f"{known!r:.80}; correct one of them"
                )
            paths[question.clip] = known
            questions[question.clip][name] = question
    return Imported(tuple(_agreed(clip, paths[clip], asked) for clip, asked in questions.items()))


def _agreed(clip: str, path: str, asked: Mapping[str, Question]) -> Agreed:
    """The fields that imported answers give; those that no file says have `tasks.UNKNOWN`."""
    stages = {}
    for stage, cls in STAGE_TYPES.items():
        tasks = {name: task for name, task in TASKS.items() if task.stage == stage}
        if tasks.keys() & asked.keys():
            known = {
                task.field: imported_value(name, asked[name].answer if name in asked else None)
                for name, task in tasks.items()
            }
            known |= {name: () for name in fields_of(stage) if name not in known}  # sounds
            stages[stage] = cls(**known)
    return Agreed(clip, path, **stages, questions=tuple(asked.values()))


def _samples(name: str, text: str) -> list[tuple[str, Question]]:
    """(path, question) of the samples of a released JSON file, whose form has been checked."""
    content, kind = json.loads(text), TASKS[name].kind
    found = []
    for number, row in enumerate(content["samples"]):
        if unknown := row.keys() - {"video_id", "path", "answer", "options"}:
            raise ValueError(f"sample {row['video_id']}: {min(unknown)} is no field of this form")
        path, options = row.get("path", ""), tuple(row.get("options", ()))
        if not isinstance(path, str):
            raise ValueError(f"sample {row['video_id']}: path is {path!r:.40}, not a text")
        found.append(
            (
                path,
                Question(
                    row["video_id"], kind, content["question"], row["answer"], options, name,
                    "import", number,
                ),
            )
        )  # fmt: skip
    return found


def _ocr(text: str) -> list[tuple[str, Question]]:
    task = TASKS["ocr"]
    return [
        ("", Question(
            row["video_id"], task.kind, task.question,
            json.dumps(row["ocr"], ensure_ascii=False), (), "ocr", "import", number,
        ))
        for number, row in enumerate(json_rows(text))
    ]  # fmt: skip


def _each(path: Path, parse: Callable[[Any], Any]) -> list:
    """What `parse` makes of each line of JSON Lines. Raises UserError that names the line."""
    found = []
    for line in files.read_lines(path, REMEDY):
        try:
            if line.error is not None:
                raise ValueError(f"is not JSON ({line.error})")
            found.append(parse(line.value))
        except ValueError as error:
            raise UserError(f"{path}:{line.number}: {error}; {REMEDY}") from None
    if not found:
        raise UserError(f"{path}: has no rows; {REMEDY}")
    return found


def _check_once(path: Path, clips: list[str]):
    seen = set()
    for clip in clips:
        if clip in seen:
            raise UserError(f"{path}: two rows of the clip {clip}; keep one of them")
        seen.add(clip)

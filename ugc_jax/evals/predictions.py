"""Files of predictions, a text for each clip, in any released or usual form.

    JSON Lines  {"video_id", "caption"}, {"video_id", "ocr", "predict_ocr"}, {"video", "caption"},
                {"video", "error"}
    JSON        {"question", "samples": [{"video_id", "answer", "predict"}]}, the list of samples
                alone, {id: text}, {id: {"caption"}}

A row whose prediction is no text (NaN, false, a number, ...) is a failure of its clip, of a kind of
its own. Rows that cannot be used at all are counted and listed; the rest of the file is used.
"""

import dataclasses
import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import FORMS, Form, clip_id, task_of
from ugc_jax.evals.texts import missing
from ugc_jax.files import encodable
from ugc_jax.judge.messages import one_line

logger = logging.getLogger(__name__)

IDS = ("video_id", "video", "path", "videos")  # fields with a clip's id or file
# Fields with the predicted text. Never "answer" or "ocr": those are the ground truth.
FIELDS = ("predict", "predict_ocr", "prediction", "caption", "response")
SUFFIXES = (".json", ".jsonl")
FAULTS = ("broken", "unknown", "conflicting", "duplicate")  # kinds of rows, the worst first


class Failure(NamedTuple):
    """Why a clip with a row has no text. kind: "error", "null", "NaN", "key twice", ..."""

    kind: str
    note: str


@dataclasses.dataclass
class Predictions:
    """The predictions of a task, by clip id, and the faults of their file.

    texts: of clips with a prediction, which may be "". failures: of clips whose row has an error or
    no text instead. cut: clips whose text ended at the limit of tokens, by their finish_reason.
    Each fault is a line, "FILE:3: what is wrong": duplicate, of a further row of a clip;
    conflicting, of one with another text; unknown, broken.
    """

    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: dict[str, Failure] = dataclasses.field(default_factory=dict)
    cut: set[str] = dataclasses.field(default_factory=set)
    conflicting: list[str] = dataclasses.field(default_factory=list)
    duplicate: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    broken: list[str] = dataclasses.field(default_factory=list)

    def faults(self) -> list[str]:
        """All faults, the worst kind first."""
        return [line for kind in FAULTS for line in getattr(self, kind)]

    def counts(self) -> dict[str, int]:
        """The number of faults of each kind."""
        return {kind: len(getattr(self, kind)) for kind in FAULTS}

    def summary(self) -> str | None:
        """The number of rows of each kind of fault and the first fault, in a line; None without."""
        counts = self.counts()
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        rows = "row" if sum(counts.values()) == 1 else "rows"
        return f"{listed} {rows} (first: {self.faults()[0]})" if listed else None


def read_predictions(
    path: str | Path, known: Collection[str], field: str | None = None, takes_json: bool = False
) -> Predictions:
    """The predictions of a file.

    known: ids of the task's clips; rows of others are `unknown`. field: of the predicted text;
    None: the one of FIELDS that has a text. takes_json: objects and lists become JSON texts, as a
    task that asks for JSON has them in the release; else they are failures, as all values that are
    no text. Halves of surrogate pairs become �. Of several rows of a clip the last one with a text
    counts, a blank one only if all are blank.
    Raises UserError for a file that cannot be read, for one without a usable row, and for a row
    with different texts in two fields.
    """
    path, predictions = Path(path), Predictions()
    folded = {one.casefold(): one for one in known}
    for place, row in _rows(path, field):
        label = one_line(f"{path.name}:{place}")
        try:
            clip, found = _prediction(row, field, takes_json)
        except ValueError as reason:
            predictions.broken.append(f"{label}: {one_line(str(reason))}")
            continue
        except _Ambiguous as reason:
            raise UserError(f"{path}:{place}: {reason}") from None
        if clip not in known:
            near = folded.get(clip.casefold()) or folded.get(PurePath(clip.casefold()).stem)
            hint = f" (but {near!r:.80}; ids are compared as they are written)" if near else ""
            predictions.unknown.append(f"{label}: the task has no clip {clip!r:.80}{hint}")
            continue
        if clip in predictions.texts or clip in predictions.failures:
            earlier = predictions.texts.get(clip, "")
            texts = {text for text in (earlier, found) if isinstance(text, str) and text.strip()}
            if len(texts) > 1:
                line = f"{label}: {one_line(clip)} again, with another text, which counts"
                predictions.conflicting.append(line)
            else:
                predictions.duplicate.append(f"{label}: {one_line(clip)} again")
        if isinstance(row, _Object) and row.twice and isinstance(found, str):
            keys = ", ".join(row.twice)
            predictions.duplicate.append(one_line(f"{label}: has {keys} twice"))
        if isinstance(found, Failure):
            predictions.failures[clip] = found
        elif found.strip() or clip not in predictions.texts:
            predictions.texts[clip] = found
            cut = str(row.get("finish_reason")).lower() == "length"
            (predictions.cut.add if cut else predictions.cut.discard)(clip)
    for clip in predictions.failures.keys() & predictions.texts.keys():
        del predictions.failures[clip]
    if not predictions.texts and not predictions.failures:
        first = next(iter(predictions.faults()), "it is empty")
        raise UserError(
            f"{path}: has no prediction of the task's clips ({first}); give another file or field"
        )
    return predictions


def find_predictions(
    folder: str | Path, names: Sequence[str], forms: Mapping[str, Form] = FORMS
) -> tuple[dict[str, Path], list[Path]]:
    """({task: its file}, files that are not named after a task) of a folder of predictions.

    The file of a task is named after it (in any way that `tasks.task_of` understands), or is the
    only one in a folder with such a name. names: the tasks to find. forms: of all known tasks.
    Raises UserError if a task has several files.
    """
    folder = Path(folder)
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); give a folder with a file for each task"
        ) from None
    candidates: dict[str, list[Path]] = {name: [] for name in names}
    unmatched = []
    for entry in entries:
        files = sorted(entry.glob("[!.]*")) if entry.is_dir() else [entry]
        files = [file for file in files if file.suffix.lower() in SUFFIXES]
        task = task_of(entry.name if entry.is_dir() else entry.stem, forms)
        if task is None:
            unmatched += files
        elif task in candidates:
            candidates[task] += files
    for name, files in candidates.items():
        if len(files) > 1:
            listed = ", ".join(str(file.relative_to(folder)) for file in files)
            raise UserError(f"{folder}: has several files of {name} ({listed}); leave one there")
    return {name: files[0] for name, files in candidates.items() if files}, unmatched


# ---- rows ----------------------------------------------------------------------------------------


def _rows(path: Path, field: str | None) -> Iterator[tuple[str, object]]:
    """(place, row) of each row: the line number in JSON Lines, or "sample 3" in a JSON text.

    A line that is not JSON is its own row, as text.
    """
    text = _text(path)
    try:
        content = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        for line in files.parse_lines(text, object_pairs_hook=_Object):
            yield str(line.number), line.text if line.error else line.value
        return
    if isinstance(content, dict) and "evaluations" in content:
        raise UserError(f"{path}: has scores, not predictions; give it as scores=FILE")
    if isinstance(content, dict) and isinstance(content.get("samples"), list):
        if "samples" in content.twice:
            raise UserError(f"{path}: has 'samples' twice; keep one of them")
        content = content["samples"]
    elif isinstance(content, dict) and _id(content) is None:
        content = [_row(clip, value, field) for clip, value in content.pairs]
    rows = content if isinstance(content, list) else [content]  # JSON Lines of one line
    for number, row in enumerate(rows, 1):
        yield f"sample {number}", row


class _Object(dict):
    """A JSON object. pairs: all its keys and values; twice: the keys that it has several times."""

    def __init__(self, pairs: Sequence[tuple[str, object]]):
        super().__init__(pairs)
        self._pairs = pairs if len(self) < len(pairs) else None  # memory: few have a key twice

    @property
    def pairs(self) -> Sequence[tuple[str, object]]:
        return self._pairs or list(self.items())

    @property
    def twice(self) -> list[str]:
        return [key for key, n in Counter(key for key, _ in self._pairs or ()).items() if n > 1]


def _row(clip: str, value: object, field: str | None) -> dict:
    """The row for an item of {id: text} or {id: {"caption": text}}."""
    if isinstance(value, _Object) and (field or not {*FIELDS, "error"}.isdisjoint(value)):
        others = [(key, one) for key, one in value.pairs if key != IDS[0]]
        return _Object([*others, (IDS[0], clip)])
    return _Object([(IDS[0], clip), (field or FIELDS[0], value)])


def _text(path: Path) -> str:
    raw = files.read_bytes(path, "give a JSON or JSON Lines file")
    encoding = json.detect_encoding(raw)  # UTF-16, too, which PowerShell writes
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        logger.warning(
            "%s: byte %d is not %s; invalid bytes are read as �", path, error.start, encoding
        )
        return raw.decode(encoding, "replace")


class _Ambiguous(Exception):
    """A row has several texts; the message says which."""


def _prediction(row: object, field: str | None, takes_json: bool) -> tuple[str, str | Failure]:
    """(clip, text or failure) of a row.

    Raises ValueError for a row without either, _Ambiguous for one with several texts.
    """
    if not isinstance(row, _Object):
        raise ValueError(f"not a JSON object: {one_line(str(row))[:60]}")
    clip = _id(row)
    if clip is None:
        raise ValueError(f"no id (looked for {', '.join(IDS)})")
    for name in row.twice:
        if name in IDS:
            raise ValueError(f"the key {name} stands twice")
    fields = FIELDS if field is None else (field,)
    values = {name: row[name] for name in fields if name in row}
    for name in row.twice:
        if name in values or name == "error":
            return clip, Failure("key twice", f"the key {name} stands twice")
    if not _is_missing(row.get("error")):
        return clip, Failure("error", one_line(str(row["error"])))
    if not values:
        raise ValueError(f"no text of {clip} (looked for {', '.join(fields)})")
    read = {name: _text_of(name, value, takes_json) for name, value in values.items()}
    texts = {name: one for name, one in read.items() if isinstance(one, str)}
    full = {name: text for name, text in texts.items() if text.strip()}
    # "nan" is what programs write for a missing value, if another field has the text
    full = {name: text for name, text in full.items() if missing(text) is None} or full
    if len({text.strip() for text in full.values()}) > 1:
        first, second, *_ = full
        raise _Ambiguous(
            f"{first} and {second} have different texts; name the one to score: field={first}"
        )
    # A field without a text (blank, null, NaN, false) hides no other: tables have all columns.
    failures = [one for one in read.values() if isinstance(one, Failure)]
    failures.sort(key=lambda failure: failure.kind == "null")
    return clip, next(iter([*full.values(), *texts.values(), *failures]))


def _text_of(name: str, value: object, takes_json: bool) -> str | Failure:
    """The text in a field, or what the field has instead."""
    if isinstance(value, str):
        return encodable(value)
    if takes_json and isinstance(value, dict | list):
        if isinstance(value, _Object) and value.twice:
            return Failure("key twice", f"{name}: the key {value.twice[0]} stands twice")
        return encodable(json.dumps(value, ensure_ascii=False))
    note = one_line(f"{name} is {json.dumps(value, ensure_ascii=False)}")
    return Failure(_kind(value), note)


def _kind(value: object) -> str:
    """What a JSON value is that is no text."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case float() if math.isnan(value):
            return "NaN"
        case float() if math.isinf(value):
            return "infinity"
        case int() | float():
            return "number"
        case list():
            return "list"
    return "object"


def _is_missing(error: object) -> bool:
    """True for the value of an error that tells that there was none."""
    if isinstance(error, str):
        return not error.strip() or missing(error) is not None
    return not error or error != error  # NaN


def _id(row: Mapping) -> str | None:
    """The id of a row's clip, from its id or its file; None without one."""
    for name in IDS:
        value = row.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return clip_id(value.strip())
    return None

"""Files of predictions, a text for each clip, in any released or usual form.

    JSON Lines  {"video_id", "caption"}, {"video_id", "ocr", "predict_ocr"}, {"video", "caption"},
                {"video", "error"}
    JSON        {"question", "samples": [{"video_id", "answer", "predict"}]}, the list of samples
                alone, {id: text}, {id: {"caption"}}

Rows with errors are counted and listed; the rest of the file is used.
"""

import dataclasses
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.evals.tasks import FORMS, Form, clip_id, task_of
from ugc_jax.judge.messages import encodable, one_line

logger = logging.getLogger(__name__)

IDS = ("video_id", "video", "path", "videos")  # fields with a clip's id or file
# Fields with the predicted text; the first that a row has counts. Never "answer" or "ocr": those
# are the ground truth.
FIELDS = ("predict", "predict_ocr", "prediction", "caption", "response")
SUFFIXES = (".json", ".jsonl")


@dataclasses.dataclass
class Predictions:
    """The predictions of a task, by clip id, and the faults of their file.

    texts: of clips with a prediction, which may be "". errors: of clips whose row has an error
    instead. duplicate, unknown, broken: a line for each such row, "FILE:3: what is wrong".
    """

    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    duplicate: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    broken: list[str] = dataclasses.field(default_factory=list)

    def faults(self) -> list[str]:
        """All faults, the worst kind first."""
        return [*self.broken, *self.unknown, *self.duplicate]

    def summary(self) -> str | None:
        """The number of rows of each kind of fault and the first fault, in a line; None without."""
        kinds = ("broken", "unknown", "duplicate")
        counts = {kind: len(getattr(self, kind)) for kind in kinds}
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        rows = "row" if sum(counts.values()) == 1 else "rows"
        return f"{listed} {rows} (first: {self.faults()[0]})" if listed else None


def read_predictions(
    path: str | Path, known: Collection[str], field: str | None = None
) -> Predictions:
    """The predictions of a file.

    known: ids of the task's clips; rows of others are `unknown`. field: of the predicted text;
    None: the first of FIELDS that a row has. Values that are no text, such as lists, become JSON.
    Halves of surrogate pairs become �. Of several rows of a clip the last one with a text counts,
    a blank one only if all are blank.
    Raises UserError for a file that cannot be read and for one without a usable row.
    """
    path, predictions = Path(path), Predictions()
    for place, row in _rows(path, field):
        label = one_line(f"{path.name}:{place}")
        try:
            clip, text, error = _prediction(row, field)
        except ValueError as reason:
            predictions.broken.append(f"{label}: {one_line(str(reason))}")
            continue
        if clip not in known:
            predictions.unknown.append(f"{label}: the task has no clip {clip!r:.80}")
            continue
        if clip in predictions.texts or clip in predictions.errors:
            predictions.duplicate.append(f"{label}: {one_line(clip)} again")
        if error is not None:
            predictions.errors[clip] = error
        elif text.strip() or clip not in predictions.texts:
            predictions.texts[clip] = text
    for clip in predictions.errors.keys() & predictions.texts.keys():
        del predictions.errors[clip]
    if not predictions.texts and not predictions.errors:
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
        content = json.loads(text)
    except (ValueError, RecursionError):
        for line in files.parse_lines(text):
            yield str(line.number), line.text if line.error else line.value
        return
    if isinstance(content, dict) and "evaluations" in content:
        raise UserError(f"{path}: has scores, not predictions; give it as scores=FILE")
    if isinstance(content, dict) and isinstance(content.get("samples"), list):
        content = content["samples"]
    elif isinstance(content, dict) and _id(content) is None:
        content = [_row(clip, value, field) for clip, value in content.items()]
    rows = content if isinstance(content, list) else [content]  # JSON Lines of one line
    for number, row in enumerate(rows, 1):
        yield f"sample {number}", row


def _row(clip: str, value: object, field: str | None) -> dict:
    """The row for an item of {id: text} or {id: {"caption": text}}."""
    if isinstance(value, dict) and (field or not {*FIELDS, "error"}.isdisjoint(value)):
        return value | {IDS[0]: clip}
    return {IDS[0]: clip, field or FIELDS[0]: value}


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


def _prediction(row: object, field: str | None) -> tuple[str, str | None, str | None]:
    """(clip, text, None) or (clip, None, error) of a row. ValueError for a row without either."""
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object: {one_line(str(row))[:60]}")
    clip = _id(row)
    if clip is None:
        raise ValueError(f"no id (looked for {', '.join(IDS)})")
    fields = FIELDS if field is None else (field,)
    present = [name for name in fields if name in row]
    value = next((row[name] for name in present if row[name] is not None), None)
    if value is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return clip, encodable(text), None
    if row.get("error") is not None:
        return clip, None, one_line(str(row["error"]))
    if present:
        return clip, None, f"{present[0]} is null"
    raise ValueError(f"no text of {clip} (looked for {', '.join(fields)})")


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

"""Files of rows whose columns are mapped to the fields of a benchmark.

[{"Question": "Who sings?", ...}, ...], or JSON Lines of such objects
question=Question,video=video_id         a mapping as users write it: field=COLUMN
"""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ugc_jax import files
from ugc_jax.errors import UserError

logger = logging.getLogger(__name__)


def parse_mapping(words: Iterable[str], fields: Collection[str], name: str) -> dict[str, str]:
    """{field: column} of words FIELD=COLUMN. fields, name: of the benchmark.

    Raises UserError for a word of another form, an unknown field, and a field or column that stands
    twice.
    """
    mapping: dict[str, str] = {}
    for word in words:
        field, equals, column = map(str.strip, word.partition("="))
        if not (equals and field and column):
            raise UserError(f"map: {word!r} is not of the form FIELD=COLUMN; write field=COLUMN")
        if field not in fields:
            raise UserError(f"map: {name} has no field {field!r}; its fields: {', '.join(fields)}")
        if field in mapping:
            raise UserError(f"map: {field} is mapped twice; keep one of them")
        if column in mapping.values():
            raise UserError(f"map: the column {column!r} is mapped twice; a field has its own")
        mapping[field] = column
    return mapping


def read_rows(path: Path, columns: Mapping[str, str | None], name: str) -> list[dict]:
    """Rows of a file, as {field: value}; the values are not checked.

    columns: {field: its column, None where it is not known}. name: of the benchmark. Columns that
    are not mapped are logged. Raises UserError for a file of another form, for a field without a
    column, and for a column that the file, or one of its rows, does not have, or has twice.
    """
    rows = _objects(path)
    known = list(dict.fromkeys(column for row in rows for column in row))
    has = f"the file's columns: {', '.join(known)}"
    for field, column in columns.items():
        if column is None:
            raise UserError(
                f"{path}: the column of {field} is not published for {name}; give --map "
                f"{field}=COLUMN ({has})"
            )
        if column not in known:
            raise UserError(
                f"{path}: has no column {column!r}, which {field} is read from; give --map "
                f"{field}=COLUMN ({has})"
            )
    for number, row in enumerate(rows, 1):
        for field, column in columns.items():
            if column not in row:
                raise UserError(f"{path}: row {number} has no {column!r} ({field}); correct it")
            if column in row.twice:
                raise UserError(
                    f"{path}: row {number} has {column!r} ({field}) twice; keep one of them"
                )
    if unread := [column for column in known if column not in columns.values()]:
        logger.info("%s: columns that are not read: %s", path, ", ".join(unread))
    return [{field: row[column] for field, column in columns.items()} for row in rows]


def find_file(path: Path, file: str | None, name: str) -> Path:
    """The file of a benchmark: path itself, or in a folder `file`, or its only JSON file.

    Raises UserError if there is none, or several where `file` is None.
    """
    if not path.is_dir():
        return path
    if file is not None:
        if not (path / file).is_file():
            raise UserError(f"{path}: has no {file}, the file of {name}; give its folder or a file")
        return path / file
    found = sorted(p for p in path.glob("[!.]*") if p.suffix in (".json", ".jsonl"))
    if len(found) != 1:
        listed = ", ".join(p.name for p in found) or "none"
        raise UserError(
            f"{path}: is to have one .json or .jsonl file, of {name}, but has {listed}; give the "
            "file itself"
        )
    return found[0]


class _Row(dict):
    """A JSON object. twice: the keys that it has several times, of which a dict has the last."""

    def __init__(self, pairs: Sequence[tuple[str, object]]):
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs) if len(self) < len(pairs) else {}
        self.twice = [key for key, count in counts.items() if count > 1]


def _objects(path: Path) -> list[_Row]:
    """The rows of a file as they are; at least one."""
    remedy = "give a JSON list of objects, or JSON Lines, an object a row"
    text = files.read_text(path, remedy)
    try:
        rows: Sequence = json.loads(text, object_pairs_hook=_Row)
    except (ValueError, RecursionError):
        lines = list(files.parse_lines(text, object_pairs_hook=_Row))
        for line in lines:
            if line.error is not None:
                raise UserError(
                    f"{path}:{line.number}: not JSON ({line.error}); {remedy}"
                ) from None
        rows = [line.value for line in lines]
    else:
        rows = rows if isinstance(rows, list) else [rows]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is not an object; {remedy}")
    if not rows:
        raise UserError(f"{path}: has no rows; {remedy}")
    return list(rows)

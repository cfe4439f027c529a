"""A manifest, rows in memory or a folder of clips -> the rows to extract.

A manifest is JSON Lines or a JSON array, CSV or TSV, of rows in the forms of `forms`.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ugc_jax import files
from ugc_jax.data.forms import DIALOGUES, KNOWN, PATHS, READ, Conversation, about_file, read_columns
from ugc_jax.errors import UserError
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings, resolve

REMEDY = "name a .jsonl or .csv manifest or a folder"
_LARGEST_CELL = 1 << 30  # characters; csv's own limit is below a long dialogue


class ManifestRow(NamedTuple):
    """One conversation about media.

    id: "train.jsonl:12" for the line of a manifest (the item of an array), "train[11]" for a row in
      memory, the path for a clip of a folder.
    messages: as `prompt.pieces` takes them, system message first, each medium a part in its place.
    media: the files of these parts, in their order. solution: the answer of a GRPO row.
    extra: all other columns.
    """

    id: str
    messages: list[dict]
    media: list[str]
    solution: str | None
    extra: dict


def read_manifest(
    path: str | Path,
    settings: ClipSettings,
    media: str | Path | None = None,
    conversations: bool = False,
) -> list[ManifestRow]:
    """Return all rows of a manifest (.jsonl, .json, .csv, .tsv), or one for each clip of a folder.

    settings: their system message is used where a row has none, their question where a row has only
      a caption.
    media: folder that the manifest's paths are relative to; None: the manifest's own folder.
    conversations: see `forms.read_columns`.
    The media are not opened. Raises UserError that names the file and the first bad line.
    """
    path, settings = Path(path), resolve(settings)
    if path.is_dir():
        clips = find_clips([str(path)])
        return [
            _row(clip, about_file(clip, settings.question, settings.system), "") for clip in clips
        ]
    if "://" in str(media or ""):
        raise UserError(f"media is a URL ({media}); download the files and give their folder")
    folder = path.parent if media is None else Path(media)
    unit, numbered = "line", None
    if path.suffix.lower() in (".csv", ".tsv"):
        numbered = _table(path)
    else:
        unit, numbered = _json(path)
    name = lambda number: f"{path.name}:{number}"  # noqa: E731
    rows, bad = _read(numbered, name, folder, settings, conversations)
    if bad:
        number = bad[0][0]
        place = f"{path}:{number}" if unit == "line" else f"{path}: {unit} {number}"
        raise UserError(_of_bad(place, bad, unit))
    if not rows:
        raise UserError(f"{path}: holds no rows; give a manifest with a line a clip, or a folder")
    return rows


def read_rows(
    rows: Iterable[Mapping],
    settings: ClipSettings,
    media: str | Path | None = None,
    conversations: bool = False,
    name: str = "rows",
) -> list[ManifestRow]:
    """As `read_manifest`, of rows in memory, which are read as those of a JSON Lines file.

    media: folder that paths are relative to; None: the working directory. name: of the rows in
    messages and ids. Raises TypeError for rows that are no mappings of JSON values (a path, and a
    scalar or an array of numpy, is one, too), UserError that names the first bad row.
    """
    plain = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"{name}[{number}]: expected a dict, got {row!r:.60}")
        try:
            plain.append((number, json.loads(json.dumps(dict(row), default=_as_json))))
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"{name}[{number}]: {error}; give what JSON can hold") from None
    resolved = resolve(settings)
    place = lambda number: f"{name}[{number}]"  # noqa: E731
    read, bad = _read(plain, place, media or "", resolved, conversations)
    if bad:
        raise UserError(_of_bad(place(bad[0][0]), bad, "row"))
    if not read:
        raise UserError(f"{name}: holds no rows; give one for each clip")
    return read


def _as_json(value):
    """The JSON value that a path, or a scalar or an array of numpy, stands for."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r:.60} is no JSON value")


_Bad = list[tuple[int, ValueError]]  # number of a row, and what is wrong with it


def _read(
    numbered: "Numbered",
    name: Callable[[int], str],
    folder: str | Path,
    settings: ClipSettings,
    conversations: bool,
) -> tuple[list[ManifestRow], _Bad]:
    """Return the rows, and the numbers and faults of bad ones. name: number -> id."""
    rows, bad = [], []
    for number, columns in numbered:
        try:
            if isinstance(columns, str):
                raise ValueError(columns)
            read = read_columns(columns, settings.question, settings.system, conversations)
            rows.append(_row(name(number), read, folder))
        except ValueError as error:
            bad.append((number, error))
    return rows, bad


def _of_bad(place: str, bad: _Bad, unit: str) -> str:
    """The message about bad rows. place: of the first one."""
    plural = "s" if bad[2:] else ""
    others = f" (and {len(bad) - 1} more bad {unit}{plural})" if bad[1:] else ""
    return f"{place}: {bad[0][1]}; correct or remove this {unit}{others}"


def _row(name: str, read: Conversation, folder: str | Path) -> ManifestRow:
    """Raises ValueError for a path that was written on another system."""
    media = [os.path.join(folder, path) for path in read.media]
    for path, given in zip(media, read.media, strict=True):
        if "\\" in given and not os.path.exists(path):
            raise ValueError(f"{given!r:.80} is no file, and has \\; write / in paths")
    return ManifestRow(name, read.messages, media, read.solution, read.extra)


class _Twice(ValueError):
    """A key stands twice in an object: one of its values would be lost."""


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    """`object_pairs_hook` that refuses a key that stands twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"has {twice!r:.40} twice; keep one of them")
    return content


def _parsed(text: str) -> tuple[Any, str | None]:
    """Return the content of JSON, or what is wrong."""
    try:
        return json.loads(text, object_pairs_hook=_unique), None
    except _Twice as error:
        return None, str(error)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON ({error})"


Numbered = Iterable[tuple[int, dict | str]]


def _json(path: Path) -> tuple[str, Numbered]:
    """Return ("line" or "item", (number, columns or what is wrong) of each)."""
    text = files.read_text(path, REMEDY)
    whole, wrong = _parsed(text)
    lines = text.strip().split("\n")
    if isinstance(whole, list):
        return "item", _items(whole)
    if len(lines) > 1 and isinstance(whole, dict):  # one object on several lines
        return "item", _items([whole])
    if text.lstrip().startswith("[") and _parsed(lines[0])[1] is not None:
        raise UserError(f"{path}: begins as a JSON array, and is {wrong}; correct it")
    return "line", _lines(text)


def _items(content: list) -> Numbered:
    for number, item in enumerate(content, 1):
        yield number, item if isinstance(item, dict) else _no_object(str(item))


def _lines(text: str) -> Numbered:
    """Yield (line number, columns or what is wrong) of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):  # U+2028 is text
        if line.strip():
            content, wrong = _parsed(line)
            yield number, wrong or (content if isinstance(content, dict) else _no_object(line))


def _no_object(text: str) -> str:
    return f"expected a JSON object, got {text:.60}"


def _table(path: Path) -> Numbered:
    """Yield (line number, columns or what is wrong) of each row below the header."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    text = io.StringIO(files.read_text(path, REMEDY), newline="")
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if names and not {*DIALOGUES, *READ} & set(names):
            comma = "tabs" if delimiter == "\t" else "commas"
            raise UserError(
                f"{path}:1: the header has {', '.join(names):.100}; name a column messages or "
                f"{' or '.join(PATHS)}, and separate columns by {comma}"
            )
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise UserError(f"{path}:1: the header has {twice[0]} twice; keep one of them")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                yield (
                    reader.line_num,
                    f"has another number of columns than the header ({len(names)})",
                )
                continue
            row = dict(zip(names, cells, strict=True))
            # A table has no null: an empty cell is an absent column.
            empty = {name: None for name, cell in row.items() if not cell and name in KNOWN}
            yield reader.line_num, row | empty
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}; correct this line") from None

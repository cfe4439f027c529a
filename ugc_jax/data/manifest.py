"""A manifest, rows in memory or a folder of clips -> the rows to extract.

A manifest is JSON Lines or a JSON array, CSV or TSV, tar files (`tars`), Parquet files or a data
set of Hugging Face (`tables`), of rows in the forms of `forms`.
"""

import csv
import dataclasses
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ugc_jax import files, remote
from ugc_jax.data import tables, tars
from ugc_jax.data.forms import (
    DIALOGUES,
    KNOWN,
    PATHS,
    READ,
    Conversation,
    about_file,
    read_columns,
)
from ugc_jax.errors import UserError
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings, resolve

logger = logging.getLogger(__name__)

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


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a data set that has other names for them. None: it has the name itself."""

    messages: str | None = None  # the column with the dialogue
    conversations: str | None = None  # the one with a dialogue of LLaVA's form
    path: str | None = None  # a file of any kind
    video: str | None = None  # the clip
    videos: str | None = None  # the clips of a row
    image: str | None = None  # the picture
    images: str | None = None  # the pictures of a row
    audio: str | None = None  # the sound
    audios: str | None = None  # the sounds of a row
    question: str | None = None  # what is asked
    caption: str | None = None  # the caption
    answer: str | None = None  # the answer to the question
    solution: str | None = None  # the reference of grpo
    system: str | None = None  # the system prompt
    source: str | None = None  # where the clip is from, for the data card
    license: str | None = None  # of the clip, for the data card
    drop: tuple[str, ...] = ()  # columns to leave out

    def of(self, row: dict) -> dict:
        """Return a row with its columns renamed; one whose name is taken becomes source_NAME."""
        given = self.given()
        if not given and not self.drop:
            return row
        moved = {column for column in given.values() if column in row}
        taken = {name for name, column in given.items() if column in moved}
        kept = {
            f"source_{name}" if name in taken else name: value
            for name, value in row.items()
            if name not in moved and name not in self.drop
        }
        return kept | {name: row[column] for name, column in given.items() if column in row}

    def check(self, known: Iterable[str], place: str):
        """Raise UserError for a column that is not one of those of the data. place: its name."""
        known = dict.fromkeys(known)
        wanted = [(f"columns.{name}", column) for name, column in self.given().items()]
        for setting, column in [*wanted, *(("columns.drop", column) for column in self.drop)]:
            if column not in known:
                columns = ", ".join(map(str, known)) or "none"
                raise UserError(
                    f"{setting}: {place} has no column {column}; its columns are {columns:.400}"
                )

    def given(self) -> dict[str, str]:
        """Return {name: column} of those that are renamed."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "drop"}
        return {name: column for name, column in found.items() if column is not None}


NO_COLUMNS = Columns()


def read_manifest(
    path: str | Path,
    settings: ClipSettings,
    media: str | Path | None = None,
    conversations: bool = False,
    columns: Columns = NO_COLUMNS,
    subset: str | None = None,
    split: str | None = None,
) -> list[ManifestRow]:
    """Return all rows of a manifest, or one for each clip of a folder.

    path: of a .jsonl, .json, .csv, .tsv or .parquet file, local or a URL; of tar files (`tars`); a
      folder of `datasets`, of tar files, or of clips; or a data set of the hub (`tables`).
    settings: their system message is used where a row has none, their question where a row has only
      a caption.
    media: folder or URL that the manifest's paths are relative to; None: the manifest's own folder.
    conversations: see `forms.read_columns`. columns: other names of the columns. subset, split: of
      a data set of Hugging Face.
    The media are not opened. Raises UserError that names the file and the first bad line; a bad
    member of a tar file is logged, and the others are read.
    """
    settings, path = resolve(settings), os.fspath(path)
    source = _Source(path, media, settings, conversations, columns)
    is_folder = not remote.is_url(path) and os.path.isdir(path)
    hub = None if is_folder else tables.hub_id(path)
    is_saved = is_folder and tables.is_saved(path)
    if not hub and (subset is not None or (split is not None and not is_saved)):
        raise UserError(f"{path}: is no data set of Hugging Face; leave subset and split out")
    if hub:
        source = source._replace(media=media or "")
        return source.of_table(tables.read_hub(*hub, subset, split, source.columns_of_files))
    if is_saved:
        source = source._replace(media=media or path)
        return source.of_table(tables.read_saved(path, split, source.columns_of_files))
    if tables.is_parquet(path):
        return source.of_table(tables.read_parquet(path, source.columns_of_files))
    if tars.is_tars(path):
        return source.of_tars(tars.expand(path))
    if is_folder:
        return source.of_folder()
    return source.of_text()


class _Source(NamedTuple):
    """A manifest and how it is read, as arguments of `read_manifest`."""

    path: str
    media: str | Path | None
    settings: ClipSettings
    conversations: bool
    columns: Columns

    @property
    def folder(self) -> str | Path:
        """The folder or URL that paths are relative to."""
        if self.media is not None:
            return self.media
        return self.path.rpartition("/")[0] if remote.is_url(self.path) else Path(self.path).parent

    @property
    def columns_of_files(self) -> set[str]:
        """The columns of files, by their names in the data."""
        given = self.columns.given()
        return {given.get(name, name) for name in READ} - {*self.columns.drop}

    def read(self, numbered: "Numbered", name: Callable[[int], str]):
        """Return (rows, faults) of numbered columns. name: number -> id."""
        return _read(
            numbered, name, self.folder, self.settings, self.conversations, self.columns, self.path
        )

    def of_folder(self) -> list[ManifestRow]:
        """Rows of a folder of clips, or of tar files."""
        packed = tars.tars_in(self.path)
        try:
            clips = find_clips([self.path])
        except UserError:
            if packed:
                return self.of_tars(packed)
            raise
        if packed:
            raise UserError(
                f"{self.path}: has clips and tar files ({os.path.basename(packed[0])}, ...); "
                f"give {self.path}/*.tar or a folder of clips alone"
            )
        asked = self.settings.question, self.settings.system
        self.columns.check((), f"{self.path}, a folder of clips,")
        return [_row(clip, about_file(clip, *asked), "") for clip in clips]

    def of_text(self) -> list[ManifestRow]:
        """Rows of JSON Lines, JSON, CSV or TSV."""
        path, unit = self.path, "line"
        if path.lower().endswith((".csv", ".tsv")):
            numbered = _table(path, self.columns)
        else:
            unit, numbered = _json(path)
        rows, bad = self.read(numbered, lambda number: f"{os.path.basename(path)}:{number}")
        if bad:
            number = bad[0][0]
            place = f"{path}:{number}" if unit == "line" else f"{path}: {unit} {number}"
            raise UserError(_of_bad(place, bad, unit))
        if not rows:
            raise UserError(
                f"{path}: holds no rows; give a manifest with a line a clip, or a folder"
            )
        return rows

    def of_table(self, rows: tables.Rows) -> list[ManifestRow]:
        """Rows of a data set of Hugging Face, or of Parquet files."""
        named = list(rows)
        read, bad = self.read(
            ((number, columns) for number, (_, columns) in enumerate(named)),
            lambda number: named[number][0],
        )
        if bad:
            raise UserError(_of_bad(f"{self.path}: {named[bad[0][0]][0]}", bad, "row"))
        if not read:
            raise UserError(f"{self.path}: holds no rows; give a data set with a row a clip")
        return read

    def of_tars(self, paths: Sequence[str]) -> list[ManifestRow]:
        """Rows of tar files. A bad member is one line, and the others are read."""
        rows, faults, known, found = [], 0, {}, []
        for tar, sample in tars.samples(paths):
            columns = sample.fault or _of_sample(sample)
            if isinstance(columns, dict):
                known |= dict.fromkeys(columns)
            found.append((tar, sample, columns))
        if self.columns != NO_COLUMNS:
            self.columns.check(known, self.path)
        for tar, sample, columns in found:
            name = f"{os.path.basename(tar)}/{sample.key}"
            if isinstance(columns, dict):
                columns = _with_media(self.columns.of(columns), sample)
            read, bad = _read(
                [(0, columns)], lambda _, name=name: name, tar, self.settings, self.conversations
            )
            rows += read
            for _, error in bad:
                faults += 1
                logger.warning("%s: %s", f"{tar}/{sample.key}".rstrip("/"), error)
        if faults:
            logger.warning(
                "%s: %d of %d members are left out for these reasons", self.path, faults, len(found)
            )
        if not rows:
            raise UserError(f"{self.path}: holds no rows; give tar files of clips with their .json")
        return rows


def _of_sample(sample: tars.Sample) -> dict | str:
    """Return the columns that the members of a key have, or what is wrong with them."""
    if not sample.is_json:
        return {} if sample.text is None else {"caption": sample.text.strip() or None}
    content, wrong = _parsed(sample.text)
    if wrong is None and not isinstance(content, dict):
        wrong = _no_object(sample.text)
    return content if wrong is None else f"{sample.key}.json: {wrong}"


def _with_media(columns: dict, sample: tars.Sample) -> dict | str:
    """Return columns that name the clip of their key, or why they cannot.

    Paths in the columns are those of members, of the folder of the key or of the tar file.
    """
    own = {os.path.basename(name): name for name in sample.media}
    is_named = False

    def of(value):
        nonlocal is_named
        if isinstance(value, str) and os.path.basename(value) in own:
            is_named = True
            return own[os.path.basename(value)]
        if isinstance(value, list):
            return [of(one) for one in value]
        return {name: of(one) for name, one in value.items()} if isinstance(value, dict) else value

    named = {
        name: of(value) if name in READ or name in DIALOGUES else value
        for name, value in columns.items()
    }
    if is_named:
        return named
    if given := [name for name in columns if name in READ and columns[name]]:
        return (
            f"{given[0]} names no clip of this key ({', '.join(own)}); correct it, or leave the "
            f"column out with --columns.drop={given[0]}"
        )
    if len(sample.media) > 1:
        return f"has {' and '.join(own)}; list them in its .json, or keep one of them"
    return named | {"path": sample.media[0]}


def read_rows(
    rows: Iterable[Mapping],
    settings: ClipSettings,
    media: str | Path | None = None,
    conversations: bool = False,
    name: str = "rows",
    columns: Columns = NO_COLUMNS,
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
    read, bad = _read(plain, place, media or "", resolved, conversations, columns, name)
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
    renamed: Columns = NO_COLUMNS,
    source: str = "",
) -> tuple[list[ManifestRow], _Bad]:
    """Return the rows, and the numbers and faults of bad ones. name: number -> id.

    renamed, source: the names of columns, and that of the manifest. Raises UserError for a column
    that no row has.
    """
    rows, bad = [], []
    if renamed != NO_COLUMNS:
        numbered = list(numbered)
        known = dict.fromkeys(name for _, row in numbered if isinstance(row, dict) for name in row)
        renamed.check(known, source)
    for number, columns in numbered:
        try:
            if isinstance(columns, str):
                raise ValueError(columns)
            columns = renamed.of(columns)
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
    media = [remote.join(folder, path) for path in read.media]
    for path, given in zip(media, read.media, strict=True):
        if not remote.is_url(path) and "\\" in given and not os.path.exists(path):
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


def _text(path: str) -> str:
    """The text of a manifest, local or behind a URL."""
    if not remote.is_url(path):
        return files.read_text(Path(path), REMEDY)
    try:
        return remote.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read (not UTF-8 text); {REMEDY}") from None


def _json(path: str) -> tuple[str, Numbered]:
    """Return ("line" or "item", (number, columns or what is wrong) of each)."""
    text = _text(path)
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


def _table(path: str, columns: Columns) -> Numbered:
    """Yield (line number, columns or what is wrong) of each row below the header."""
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    text = io.StringIO(_text(path), newline="")
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if names and not {*DIALOGUES, *READ} & {*columns.of(dict.fromkeys(names))}:
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
            known = {*KNOWN, *columns.given().values()}
            empty = {name: None for name, cell in row.items() if not cell and name in known}
            yield reader.line_num, row | empty
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}; correct this line") from None

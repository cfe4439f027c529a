"""A manifest or a folder of clips -> the rows to extract.

Forms: JSON Lines as released ({"videos": [...], "messages": [...]}, also "images" and "audios", and
"solution" instead of an answer), JSON Lines or CSV of a path and a caption, and a plain folder.
"""

import csv
import io
import mimetypes
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.data.prompt import KINDS, ROLES
from ugc_jax.errors import UserError
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings, resolve

PATH_COLUMNS = ("path", "video")
PLACEHOLDER = re.compile(f"<({'|'.join(KINDS)})>")
REMEDY = "name a .jsonl or .csv manifest or a folder"


class ManifestRow(NamedTuple):
    """One conversation about media.

    id: "train.jsonl:12" for the line of a manifest, the path for a clip of a folder.
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
    path: str | Path, settings: ClipSettings, media: str | Path | None = None
) -> list[ManifestRow]:
    """Return all rows of a manifest (.jsonl, .csv, .tsv), or one for each video of a folder.

    settings: their system message is used where a row has none, their question where a row has only
      a caption.
    media: folder that the manifest's paths are relative to; None: the manifest's own folder.
    The media are not opened. Raises UserError that names the file and the first bad line.
    """
    path, settings = Path(path), resolve(settings)
    if path.is_dir():
        clips = find_clips([str(path)])
        return [_captioned(clip, clip, None, {}, settings) for clip in clips]
    folder = path.parent if media is None else Path(media)
    table = path.suffix.lower() in (".csv", ".tsv")
    rows, bad = [], []
    for number, columns in _table(path) if table else _json_lines(path):
        try:
            if isinstance(columns, str):
                raise ValueError(columns)
            rows.append(_row(f"{path.name}:{number}", columns, folder, settings))
        except ValueError as error:
            bad.append((number, error))
    if bad:
        number, error = bad[0]
        plural = "s" if bad[2:] else ""
        others = f" (and {len(bad) - 1} more bad line{plural})" if bad[1:] else ""
        raise UserError(f"{path}:{number}: {error}; correct or remove this line{others}")
    if not rows:
        raise UserError(f"{path}: holds no rows; give a manifest with a line a clip, or a folder")
    return rows


def _json_lines(path: Path) -> Iterator[tuple[int, dict | str]]:
    """Yield (line number, columns or what is wrong) of each line that is not blank."""
    text = files.read_text(path, REMEDY)
    if text.lstrip().startswith("["):
        raise UserError(f"{path}: is one JSON array; write its objects one a line (.jsonl)")
    for line in files.parse_lines(text):
        if line.error is not None:
            yield line.number, f"not JSON ({line.error})"
        elif not isinstance(line.value, dict):
            yield line.number, f"expected a JSON object, got {line.text:.60}"
        else:
            yield line.number, line.value


def _table(path: Path) -> Iterator[tuple[int, dict | str]]:
    """Yield (line number, columns or what is wrong) of each row below the header."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    text = io.StringIO(files.read_text(path, REMEDY), newline="")
    reader = csv.DictReader(text, delimiter=delimiter, restkey="", strict=True)
    try:
        names = reader.fieldnames or []
        if names and not {"messages", *PATH_COLUMNS} & set(names):
            comma = "tabs" if delimiter == "\t" else "commas"
            raise UserError(
                f"{path}:1: the header has {', '.join(names):.100}; name a column "
                f"{' or '.join(PATH_COLUMNS)}, and separate columns by {comma}"
            )
        for row in reader:
            complete = "" not in row and None not in row.values()
            wrong = f"has another number of columns than the header ({len(names)})"
            yield reader.line_num, row if complete else wrong
    except csv.Error as error:
        raise UserError(f"{path}:{reader.reader.line_num}: {error}; correct this line") from None


def _row(name: str, columns: dict, folder: Path, settings: ClipSettings) -> ManifestRow:
    """Make a row of its columns. Raises ValueError if they are wrong."""
    if "messages" in columns:
        return _conversation(name, columns, folder, settings)
    column = next((column for column in PATH_COLUMNS if column in columns), None)
    if column is None:
        raise ValueError(f"has neither messages nor {' nor '.join(PATH_COLUMNS)}")
    path = columns.pop(column)
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{column} is {path!r}, not a path")
    caption, solution = _optional(columns, "caption"), _optional(columns, "solution")
    row = _captioned(name, path, caption, columns, settings)
    return row._replace(media=_resolved([path], folder), solution=solution)


def _captioned(
    name: str, path: str, caption: str | None, extra: dict, settings: ClipSettings
) -> ManifestRow:
    """Make the row of one file: the settings' question, and the caption unless None."""
    kind = (mimetypes.guess_type(path)[0] or "video").partition("/")[0]
    kind = kind if kind in KINDS else "video"
    question = [{"type": kind, kind: path}, {"type": "text", "text": settings.question}]
    messages = [
        {"role": "system", "content": settings.system},
        {"role": "user", "content": question},
        *([] if caption is None else [{"role": "assistant", "content": caption}]),
    ]
    return ManifestRow(name, messages, [path], None, extra)


def _conversation(name: str, columns: dict, folder: Path, settings: ClipSettings) -> ManifestRow:
    """Make the row of messages whose <video>, <image> and <audio> stand for the listed files."""
    files = {kind: iter(_files(columns, f"{kind}s")) for kind in KINDS}
    turns, messages, media = columns.pop("messages"), [], []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("messages is not a list of objects with role and content")
    for turn in turns:
        role = turn.get("role")
        if role not in ROLES:
            raise ValueError(f"messages: role {role!r} is none of {', '.join(ROLES)}")
        content = _text(turn.get("content"), f"the {role}'s content")
        if role == "user":
            content = list(_parts(content, files, media))
        messages.append({"role": role, "content": content})
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("messages has no user's turn")
    for kind, rest in files.items():
        if surplus := len(list(rest)):
            raise ValueError(f"{kind}s lists {surplus} more files than messages have <{kind}>")
    if messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": settings.system})
    solution = _optional(columns, "solution")
    return ManifestRow(name, messages, _resolved(media, folder), solution, columns)


def _parts(content: str, files: dict[str, Iterator[str]], media: list[str]) -> Iterator[dict]:
    """Split a user's text into parts; the files of its placeholders are added to `media`."""
    for place, text in enumerate(PLACEHOLDER.split(content)):
        if place % 2:
            path = next(files[text], None)
            if path is None:
                raise ValueError(f"messages have more <{text}> than {text}s lists files")
            media.append(path)
            yield {"type": text, text: path}
        elif text:
            yield {"type": "text", "text": text}


def _files(columns: dict, column: str) -> list[str]:
    paths = columns.pop(column, [])
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"{column} is not a list of paths")
    return paths


def _optional(columns: dict, name: str) -> str | None:
    """Remove a column of text; None if it is absent."""
    return _text(columns.pop(name), name) if name in columns else None


def _text(text: object, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is {'empty' if text in ('', None) else f'{text!r:.60}'}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8 text: {text!r:.60}") from None
    return text


def _resolved(paths: Iterable[str], folder: Path) -> list[str]:
    return [os.path.join(folder, path) for path in paths]

"""Captions in other forms than JSON Lines: text, subtitles (SRT, WebVTT), Markdown.

`open_results` is the door: JSON Lines as results.py writes them; a folder with one document a clip,
beside captions.jsonl, from which a later run continues; or the documents on stdout.
"""

import html
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.generate.pieces import Scene, clock
from ugc_jax.generate.results import Results, coloured_lines, shares_line
from ugc_jax.generate.shares import Parts
from ugc_jax.media.find import place

Form = Literal["text", "json", "srt", "vtt", "md"]
SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "md": ".md"}
SUBTITLES = ("srt", "vtt")  # forms of one clip, with times
LINES = "captions.jsonl"  # in a folder of documents
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff]")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#])")
_ESCAPED = r"\\\1"


def open_results(
    path: str | None,
    clips: Sequence[str],
    how: dict | None,
    form: Form | None,
    parts: Parts | None = None,
) -> Results:
    """Return the results of a run in a form; a context manager.

    path: a file of JSON Lines, or for another form a folder; None for stdout. clips, how, parts: as
    of `Results`. form: None is JSON Lines in a file or a pipe and text on a terminal.

    Raises UserError as `Results`, for a file where a folder is needed, and for subtitles of several
    clips on stdout.
    """
    if form in (None, "json"):
        return (Results if form is None else _Lines)(path, clips, how, parts)
    if path is not None:
        if Path(path).is_file():
            raise UserError(f"{path}: is a file; format {form} needs a folder as output")
        return Documents(path, clips, how, form, parts)
    if form in SUBTITLES and len(clips) > 1:
        raise UserError(
            f"format {form} has one document a clip, and there are {len(clips)} clips; name a "
            "folder with output"
        )
    return _Printed(clips, form)


def lines_of(path: str | None, form: Form | None) -> str | None:
    """Return the file of JSON Lines of an output (as of `open_results`); None for stdout."""
    return str(Path(path, LINES)) if path and form not in (None, "json") else path


class _Lines(Results):
    """JSON Lines, on a terminal, too."""

    @property
    def is_terminal(self) -> bool:
        return False


class _Printed(Results):
    """Documents on stdout; below a caption with evidence, the shares of its verdicts.

    On a terminal, its words have colours in format text.
    """

    def __init__(self, clips: Sequence[str], form: Form):
        super().__init__(None, clips)
        self._form, self._count = form, len(clips)

    @property
    def is_terminal(self) -> bool:
        return False

    def write(self, record: dict):
        """Print the document of a caption."""
        if "error" in record:
            return
        text = document(record, self._form)
        if (told := record.get("evidence")) is not None:
            colours = (
                self._form == "text" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            )
            if colours:
                width = min(shutil.get_terminal_size().columns, 100)
                lines = coloured_lines(record["caption"].rstrip(), told["words"], width, colours)
                text = "\n".join(lines).strip("\n") + "\n"
            shares = shares_line(told, colours)
            text += f"\n{_MARKDOWN.sub(_ESCAPED, shares) if self._form == 'md' else shares}\n"
        if self._count > 1:
            name = f"{files.escaped(record['video'])}\n" if self._form == "text" else ""
            text = f"{name}{text}\n"
        sys.stdout.write(text)
        sys.stdout.flush()


class Documents(Results):
    """A folder with a document for each clip that has a caption, and LINES with all results.

    Documents that are missing for captions of earlier runs are written again.
    """

    def __init__(
        self,
        folder: str,
        clips: Sequence[str],
        how: dict | None,
        form: Form,
        parts: Parts | None = None,
    ):
        """Raises UserError as `Results`."""
        if not folder:
            raise UserError("output is empty; name a folder, or leave it out for stdout")
        super().__init__(lines_of(folder, form), clips, how, parts)
        self._form = form
        self._names = names_of(clips)
        missing = {
            where
            for where, name in self._names.items()
            if where in self.done and not self._document(name).exists()
        }
        if missing:
            text = files.read_text(self.path, "choose another output", errors="surrogateescape")
            for line in files.parse_lines(text):
                if place(line.value["video"]) in missing:
                    if fault := _fault(line.value):
                        raise UserError(
                            f"{self.path}:{line.number}: {fault}; remove the line, or choose "
                            "another output"
                        )
                    if form in SUBTITLES and "scenes" not in line.value:
                        raise UserError(
                            f"{self.path}:{line.number}: has no scenes for format {form}; choose "
                            "another output"
                        )
                    self._write_document(line.value)

    def write(self, record: dict):
        """Append the line, then write the document. Raises UserError as `Results.write`."""
        super().write(record)
        self._write_document(record)

    def _document(self, name: str) -> Path:
        return self.path.parent / f"{name}{SUFFIXES[self._form]}"

    def _write_document(self, record: dict):
        if "error" not in record:
            path = self._document(self._names[place(record["video"])])
            files.write_text(path, document(record, self._form), "choose another output")


def names_of(clips: Iterable[str]) -> dict[Path, str]:
    """Return the names of the clips' documents, without suffix: {place of the clip: name}.

    The name of the file without its suffix; where two clips share one, with the suffix, and then
    with as many of the folders before it as tell them apart.
    """
    places = [place(clip) for clip in clips]
    names = {where: where.stem for where in places}
    for depth in range(1, max((len(where.parts) for where in places), default=0) + 1):
        count: dict[str, int] = {}
        for name in names.values():
            count[name.lower()] = count.get(name.lower(), 0) + 1  # some disks ignore case
        for where, name in names.items():
            if count[name.lower()] > 1:
                names[where] = "_".join(where.parts[-depth:])
    return names


def _fault(record: dict) -> str | None:
    """Why no document can be made of a line with a caption; None if one can."""
    if not isinstance(record.get("caption"), str):
        return f"caption is {record.get('caption')!r:.40}, not a text"
    scenes = record.get("scenes", [])
    if not isinstance(scenes, list):
        return f"scenes is {scenes!r:.40}, not a list"
    for number, scene in enumerate(scenes, 1):
        match scene:
            case {"start": int() | float() as start, "end": int() | float() as end, "text": str()}:
                is_scene = len(scene) == 3 and 0 <= start <= end < math.inf
            case _:
                is_scene = False
        if not is_scene:
            return (
                f"scene {number} of scenes is {scene!r:.60}, not an object of start, end (seconds) "
                "and text"
            )
    return None


def document(record: dict, form: Form) -> str:
    """Return a line of the results, with a caption, in a form; it ends with a line break.

    Subtitles need its `scenes`.
    """
    scenes = [Scene(**scene) for scene in record.get("scenes", ())]
    match form:
        case "srt":
            return srt(scenes)
        case "vtt":
            return vtt(scenes)
        case "md":
            return markdown(record["video"], record["caption"], scenes)
    return record["caption"].strip() + "\n"


def srt(scenes: Iterable[Scene]) -> str:
    """Return scenes as SubRip subtitles, one cue each.

    SubRip has no escapes: an arrow (-->) in a text becomes →, empty lines are left out.
    """
    cues = [
        f"{number}\n{_stamp(start, ',')} --> {_stamp(end, ',')}\n{text.replace('-->', '→')}\n"
        for number, (start, end, text) in enumerate(_cues(scenes), 1)
    ]
    return "\n".join(cues)


def vtt(scenes: Iterable[Scene]) -> str:
    """Return scenes as WebVTT subtitles, one cue each; &, < and > are escaped."""
    cues = [
        f"\n{_stamp(start, '.')} --> {_stamp(end, '.')}\n{html.escape(text, quote=False)}\n"
        for start, end, text in _cues(scenes)
    ]
    return "WEBVTT\n" + "".join(cues)


def markdown(video: str, caption: str, scenes: Sequence[Scene]) -> str:
    """Return a caption as Markdown: a heading for the clip, one for each of several scenes."""
    name = _MARKDOWN.sub(_ESCAPED, files.escaped(Path(video).name))
    heading = f"# {name}\n"
    if len(scenes) < 2:
        return f"{heading}\n{caption.strip()}\n"
    parts = [
        f"\n## {clock(scene.start)} to {clock(scene.end)}\n\n{scene.text.strip()}\n"
        for scene in scenes
    ]
    return heading + "".join(parts)


def _cues(scenes: Iterable[Scene]) -> list[tuple[int, int, str]]:
    """Scenes as (start, end, text) in milliseconds.

    They follow each other: one that begins before the last one ends cuts it short, and of two that
    begin together the second follows the first. Each lasts a millisecond at least.
    """
    cues: list[tuple[int, int, str]] = []
    for scene in sorted(scenes, key=lambda scene: scene.start):
        lines = (_CONTROL.sub(" ", line).strip() for line in scene.text.splitlines())
        text = "\n".join(line for line in lines if line)
        if not text:
            continue
        start, end = round(scene.start * 1000), round(scene.end * 1000)
        if cues:
            before, last, words = cues[-1]
            if before < start < last:
                cues[-1] = before, start, words
            start = max(start, cues[-1][1])
        cues.append((start, max(end, start + 1), text))
    return cues


def _stamp(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}{point}{rest:03d}"

"""The captions of a run as a JSON Lines file that a later run continues, and its totals.

Several processes that share a run's clips write a part each, which are merged into the file
(shares.py).
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from ugc_jax import files
from ugc_jax.errors import UserError, environment_failure
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.media.find import place
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.compute import Compute
from ugc_jax.progress import progress
from ugc_jax.settings import flatten

if TYPE_CHECKING:  # importing this file must not import jax
    from ugc_jax.generate.captioner import Caption
    from ugc_jax.generate.shares import Parts

logger = logging.getLogger(__name__)


class Results:
    """JSON Lines, one a clip, written to a file or (path None) to stdout; a context manager.

    Opening an existing file removes a half-written last line, which a killed run may leave, and the
    lines with an `error` of the clips of this run, so that they are tried again. Of the others only
    bytes of names that are not UTF-8 are changed, to escapes. After that whole lines are appended.
    On a terminal, stdout gets readable text instead.
    """

    def __init__(
        self,
        path: str | Path | None,
        clips: Iterable[str],
        how: dict | None = None,
        parts: "Parts | None" = None,
    ):
        """Open the file. clips: all that this run has to caption. how: the model and the settings,
        which are written beside the file, to PATH.settings.json. parts: of the processes that share
        the clips; this one's lines go to its part until the block ends.

        Raises UserError if the file cannot be written, holds something else, or has captions of
        another model or other settings.
        """
        if path is not None and not str(path):
            raise UserError("output is empty; name a file, or leave it out for stdout")
        self.path = None if path is None else Path(path)
        self.done: set[Path] = set()  # `find.place` of the clips with a caption in the file
        self.waiting = 0  # clips that other processes have not done yet, at the end
        self.captions = 0  # in the file, of this run's clips, at the end of a process's share
        self._order = {place(clip): number for number, clip in enumerate(clips)}
        self._parts, self._file = parts, sys.stdout
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.nullcontext() if parts is None else parts.locked():
                    self._open(how)
            except OSError as error:
                if (failure := environment_failure(error, self.path)) is not None:
                    raise failure from None
                raise UserError(
                    f"{self.path}: cannot be used for results ({error}); choose another output"
                ) from None

    def _open(self, how: dict | None):
        parts, existing = self._parts, None
        if parts is not None:
            self._merge(parts.left(self.path))
        shared = parts is not None and parts.share is not None
        text, kept = self._read(set() if shared else self._order.keys())
        for part in parts.of(self.path) if shared else ():
            existing = self.path  # of a process that is at work, though it may have no line yet
            lines = _lines(part, _text(part), is_live=True)
            self.done |= {line.clip for line in lines if not line.failed}
        if how is not None:
            note = self.path.with_name(f"{self.path.name}.settings.json")
            record_settings(note, how, self.path if self.done else existing)
        if kept != text:
            remedy = "choose another output"
            files.write_text(self.path, kept, remedy)
        self._file = parts.open(self.path) if shared else self.path.open("a", encoding="utf-8")

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind: type | None, *_):
        if self.path is None:
            return
        try:
            if kind is None and self._parts is not None and self._parts.share is not None:
                with self._parts.locked():
                    found = self._merge([self._parts.own(self.path)])
                self.waiting = len(self._order.keys() - found.keys())
                self.captions = sum(not found[clip].failed for clip in self._order if clip in found)
        finally:
            self._file.close()

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads the results."""
        return self.path is None and sys.stdout.isatty()

    def missing(self, clips: Iterable[str]) -> list[str]:
        """Return those of `clips` that have no caption yet."""
        return [clip for clip in clips if place(clip) not in self.done]

    def write(self, record: dict):
        """Append one line and flush. Raises UserError if the disk cannot be written."""
        if self.is_terminal:
            colours = not os.environ.get("NO_COLOR")
            tqdm.write(readable(record, colours))  # without breaking a progress bar
            return
        try:
            self._file.write(files.to_json(record) + "\n")
            self._file.flush()
            if self._parts is not None and self._parts.share is not None:
                os.fsync(self._file.fileno())  # another host may read it
        except OSError as error:
            if self.path is None:  # stdout: a closed pipe is not the user's mistake
                raise
            raise UserError(
                f"{self.path}: cannot be written ({error}); {files.FULL_DISK}"
            ) from None

    def _read(self, clips: Collection[Path]) -> tuple[str, str]:
        """Fill `done`; returns the file's text, and the text of it that stays."""
        text = _text(self.path)
        kept = []
        for line in _lines(self.path, text):
            if not line.failed:
                self.done.add(line.clip)
            elif line.clip in clips:
                continue
            kept.append(line.text)
        return text, files.escaped("".join(kept))

    def _merge(self, parts: list[Path]) -> dict[Path, "_Line"]:
        """Move the lines of parts to the file, in the order of the run's clips; returns them all.

        A clip has one line: its last one, but a caption rather than an error. Lines of other clips
        come first. The file is whole before a part is removed: whoever is killed loses nothing.
        """
        found: dict[Path, _Line] = {}
        for file in (self.path, *parts):
            for line in _lines(file, _text(file)):
                if not line.failed or found.get(line.clip, line).failed:
                    found[line.clip] = line
        if parts:
            ordered = sorted(found, key=lambda clip: self._order.get(clip, -1))
            text = files.escaped("".join(found[clip].text for clip in ordered))
            if text or self.path.exists():
                files.write_text(self.path, text, "choose another output", sync=True)
            for part in parts:
                part.unlink(missing_ok=True)
        return found


class _Line(NamedTuple):
    """A line of results. clip: `find.place` of its clip. text: with its end."""

    clip: Path
    text: str
    failed: bool


def _text(path: Path) -> str:
    """The text of results; "" if there are none."""
    if not path.exists():
        return ""
    return files.read_text(path, "choose another output", errors="surrogateescape")


def _lines(path: Path, text: str, is_live: bool = False) -> Iterator[_Line]:
    """Yield the lines of results, but for a half-written last one.

    text: of the file. is_live: a process may be writing that line.
    """
    for line in files.parse_lines(text):
        if line.error is not None and not line.whole:  # the run was killed while it wrote
            if not is_live:
                logger.warning("%s: removed a half-written last line", path)
            return
        record = line.value
        if not isinstance(record, dict) or not isinstance(record.get("video"), str):
            raise UserError(
                f"{path}:{line.number}: not a caption; choose another output or remove the line"
            )
        yield _Line(place(record["video"]), line.text + "\n", record.get("error") is not None)


def record_settings(note: Path, how: dict, existing: Path | None) -> dict:
    """Write the model and the settings of results to the file `note`, as JSON; returns them.

    how: of `results_settings`; a key "questions" may differ between runs, and the result has those
    of all runs. existing: the results of earlier runs, in messages; None if there are none. Raises
    UserError if they are of other settings or weights. Results of a version without notes are
    continued with a warning; from then on the settings are this run's.
    """
    how = json.loads(json.dumps(how))
    if existing is not None and not note.exists():
        logger.warning(
            "%s: the settings of its captions are not recorded; if they differ from this run's, "
            "choose another output",
            existing,
        )
    elif existing is not None:
        before = files.read_json(note, f"delete {existing}, or choose another output")
        same_weights = before.get("weights") == how["weights"]
        whole = {"weights": "auto", "cache": "auto"}  # of versions without int8
        old = flatten({"questions": {}, "compute": whole} | before)
        for key, value in flatten(how).items():
            if key in ("checkpoint", "revision") and same_weights:  # another name of the model
                continue
            if old.get(key, value) != value:
                raise UserError(
                    f"{existing}: was made with {key} {old[key]!r:.60}, not {value!r:.60} "
                    f"({note.name}); choose another output, or delete {existing}"
                )
        if "questions" in how:
            how["questions"] = before.get("questions", {}) | how["questions"]
    files.write_json(note, how, "choose another output", indent=2)
    return how


def results_settings(
    checkpoint: str,
    revision: str | None,
    weights: str,
    compute: Compute,
    clip: ClipSettings,
    sampling: SamplingConfig,
) -> dict:
    """Return what decides a caption, for `record_settings`.

    weights: a digest. clip, sampling: resolved.
    """
    if sampling.temperature == 0:  # the seed has no effect
        sampling = dataclasses.replace(sampling, seed=0)
    return {
        "checkpoint": checkpoint,
        "revision": revision,
        "weights": weights,
        "dtype": compute.dtype,
        "attention": compute.attention,
        "compute": {"weights": compute.weights, "cache": compute.cache},
        "clip": dataclasses.asdict(clip),
        "sampling": dataclasses.asdict(sampling),
    }


def readable(record: dict, colours: bool = False) -> str:
    """Return one line of the results as text for a terminal.

    colours: show the verdicts on its words, if it has any, by ANSI colours.
    """
    text = f"error: {record['error']}" if "error" in record else record["caption"]
    told = record.get("evidence")
    width = min(shutil.get_terminal_size().columns, 100)
    if told is not None:
        lines = [
            *coloured_lines(text, told["words"], width - 2, colours),
            shares_line(told, colours),
        ]
        lines = [f"  {line}" for line in lines]
        text = ""
    else:
        lines = []
    if "token_ids" in record:
        text += f" {list(record['token_ids'])}"
    lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([record["video"], *lines, ""])


# Verdict -> its ANSI colour: blue, green, magenta, cyan, none, white on red.
COLOURS = {"heard": "34", "seen": "32", "both": "35", "either": "36", "unsupported": "97;41"}


def coloured_lines(text: str, words: list[dict], width: int, colours: bool) -> list[str]:
    """Return a text in lines of at most `width` characters, its words in the colours of verdicts.

    words: records of evidence.Word. Lines of the text stay lines.
    """
    pieces, place = [], 0  # (text, colour)
    for word in words:
        code = COLOURS.get(word["verdict"]) if colours and word["content"] else None
        pieces += [(text[place : word["start"]], None), (text[word["start"] : word["end"]], code)]
        place = word["end"]
    pieces.append((text[place:], None))
    letters = [(letter, code) for piece, code in pieces for letter in piece]
    lines = []
    for first in text.splitlines(keepends=True):
        own, letters = letters[: len(first)], letters[len(first) :]
        plain = "".join(letter for letter, _ in own).rstrip()
        at = 0
        for line in textwrap.wrap(plain, width, drop_whitespace=True) or [""]:
            at = plain.index(line[:1], at) if line else at
            lines.append(_painted(own[at : at + len(line)]))
            at += len(line)
    return lines


def _painted(letters: list[tuple[str, str | None]]) -> str:
    """Letters with their colours, a code for each run."""
    runs = itertools.groupby(letters, key=lambda letter: letter[1])
    texts = ((code, "".join(letter for letter, _ in run)) for code, run in runs)
    return "".join(f"\x1b[{code}m{text}\x1b[0m" if code else text for code, text in texts)


def shares_line(told: dict, colours: bool) -> str:
    """Return the shares of the verdicts, and the words that nothing supports, in a line."""
    shares = [
        f"\x1b[{COLOURS[name]}m{name}\x1b[0m {share:.0%}"
        if colours and name in COLOURS
        else f"{name} {share:.0%}"
        for name, share in told["shares"].items()
        if share
    ]
    line = f"({', '.join(shares) or 'no words'})"
    return line + (f" unsupported: {', '.join(told['unsupported'])}" if told["unsupported"] else "")


@dataclasses.dataclass
class Totals:
    """Counts of a run so far. str() describes them in one line."""

    captioned: int = 0
    skipped: int = 0  # with a caption of an earlier run
    failed: int = 0
    new_tokens: int = 0
    programs: int = 0  # compiled
    started: float = dataclasses.field(default_factory=time.perf_counter, repr=False)

    def count(self, record: dict):
        """Add one line of the results."""
        if "error" in record:
            self.failed += 1
        else:
            self.captioned += 1
            self.new_tokens += record["new_tokens"]

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run, loading and compilation included."""
        return time.perf_counter() - self.started

    @property
    def tokens_per_second(self) -> float:
        """New tokens over `seconds`."""
        return self.new_tokens / self.seconds

    def record(self) -> dict:
        """Return the totals as a JSON object, with seconds and rates."""
        fields = dataclasses.asdict(self)
        del fields["started"]
        seconds = self.seconds
        return fields | {
            "seconds": round(seconds, 2),
            "clips_per_second": round(self.captioned / seconds, 3),
            "tokens_per_second": round(self.new_tokens / seconds, 1),
        }

    def __str__(self) -> str:
        return (
            "captioned {captioned}, skipped {skipped}, failed {failed}; "
            "compiled {programs} programs; {new_tokens} tokens in {seconds} s "
            "({clips_per_second} clips/s, {tokens_per_second} tokens/s)"
        ).format(**self.record())


def record_all(
    stream: Iterable["Caption"],
    total: int,
    results: Results,
    totals: Totals,
    *,
    desc: str = "captioning",
    token_ids: bool = False,
):
    """Write each of the `total` captions of a stream to the results; log the errors."""

    def rate() -> str:
        return f"{totals.tokens_per_second:.1f} tokens/s"

    for caption in progress(stream, total, "clip", desc, rate):
        record = caption.record(token_ids)
        results.write(record)
        totals.count(record)
        if caption.error is not None and not results.is_terminal:
            logger.warning("%s", caption.error)

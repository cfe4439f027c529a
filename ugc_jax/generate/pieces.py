"""Long clips in pieces: each is captioned alone, as a file of this piece would be.

clips -> their lengths -> spans -> Inputs with a part -> captions -> one caption with scenes

A caption may be a timed script: lines that begin with a range of times (MM:SS - MM:SS, or that of
a SubRip cue), or a JSON list of scenes with one each. Its times count from the start of the piece;
here they become those of the clip.
"""

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from ugc_jax.data.reading import Question
from ugc_jax.data.workers import Pool
from ugc_jax.errors import UserError
from ugc_jax.generate.settings import LEAST_PIECE, EngineConfig
from ugc_jax.media.inputs import Input, measure
from ugc_jax.media.presets import ClipSettings

logger = logging.getLogger(__name__)

SLACK = 1.0  # seconds by which a script may pass the end of its piece: it counts in whole ones

_CLOCK = r"(?:(\d{1,2}):)?(\d{1,3}):([0-5]\d)(\.\d{1,3}|,\d{3}(?!\d))?"
_END_KEY = r"""(?:"(?:end\w*|\w+_end|to|stop)"\s*:\s*)?"""  # of "start": "00:05", "end": "00:09"
_BETWEEN = rf"""\s*(?:-->|-|–|—|~|to)\s*|"\s*,\s*{_END_KEY}\""""  # noqa: RUF001
_RANGE = re.compile(
    rf"(?<![\d:.]){_CLOCK}(?P<between>{_BETWEEN}){_CLOCK}(?!\d|:\d)(?!\s*[ap]\.?m\b)",
    re.IGNORECASE,
)
_HEAD = re.compile(r"^\W*(?:\w+\W+){0,2}$")  # what may stand before the range of a scene's line
_CUE_NUMBER = re.compile(r"(?:^|\n)[ \t]*\d+[ \t]*\r?\n$")  # the line before a SubRip cue
_AFTER_RANGE = " \t\r\n)]}>*_:;,.|\"'-–—"  # noqa: RUF001


class Scene(NamedTuple):
    """What a caption says of a part of its clip. start, end: seconds of the clip."""

    start: float
    end: float
    text: str

    def record(self) -> dict:
        """Return the scene as a JSON object; its times are rounded to milliseconds."""
        return {"start": round(self.start, 3), "end": round(self.end, 3), "text": self.text}


class Captioned(Protocol):
    """A dataclass of a caption with its facts: `captioner.Caption`."""

    video: str
    caption: str | None
    token_ids: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    finish_reason: str | None
    seconds: float
    notes: tuple[str, ...]
    error: str | None
    scenes: tuple[Scene, ...]


class Span(NamedTuple):
    """A piece of a clip. part: as of `Input`."""

    start: float
    end: float
    part: tuple[float, float | None] | None

    def __str__(self) -> str:
        return f"{clock(self.start)}-{clock(self.end)}"


def clock(seconds: float) -> str:
    """Return a time as MM:SS, with as many decimals, up to three, as it has."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    text = f"{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
    return text.rstrip("0").rstrip(".") if rest % 1000 else text[:-4]


def spans_of(kind: str, length: float, clip: ClipSettings, seconds: float) -> list[Span]:
    """Return the pieces of a clip between start and end of its settings, at least one.

    kind, length: of `media.inputs.measure`. seconds: of a piece; infinite for the whole clip. A
    rest of less than LEAST_PIECE belongs to the piece before, and so does sound that is longer than
    the picture.
    """
    start = clip.start or 0.0
    stop = length if clip.end is None else min(clip.end, length)
    if kind == "image" or stop - start < seconds + LEAST_PIECE:
        return [Span(start, max(start, stop), None)]
    count = int((stop - start) / seconds)
    if stop - start - count * seconds >= LEAST_PIECE:
        count += 1
    begins = [start + number * seconds for number in range(count)]
    spans = [Span(begin, end, (begin, end)) for begin, end in zip(begins, begins[1:], strict=False)]
    return [*spans, Span(begins[-1], stop, (begins[-1], clip.end))]


def caption_in_pieces(
    asked: Sequence[tuple[Input, Question]],
    seconds: float,
    clip: ClipSettings,
    engine: EngineConfig,
    run: Callable[[list[tuple[Input, Question]]], Iterator[tuple[int, Captioned]]],
    result: Callable[..., Captioned],
) -> Iterator[tuple[int, Captioned]]:
    """Yield (place in `asked`, its caption with scenes) when all pieces of a clip are done.

    seconds, clip: as of `spans_of`. run: captions what it is given, and yields each with its place.
    result: makes a Caption. The lengths of all clips are read before the first caption.
    """
    spans: dict[int, list[Span]] = {}
    with Pool(measure, engine, lambda given: given.name) as pool:
        outcomes = pool.read([given for given, _ in asked], 2 * pool.workers)
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome.value, UserError):
                yield place, result(asked[place][0].name, error=str(outcome.value))
            else:
                spans[place] = spans_of(*outcome.value, clip, seconds)
    pieces = [(place, number) for place, own in spans.items() for number in range(len(own))]
    if not pieces:
        return
    if len(pieces) > len(spans):
        logger.info("%d clips are captioned in %d pieces", len(spans), len(pieces))
    inputs = [
        (
            asked[place][0].to_be_read_again()._replace(part=spans[place][number].part),
            asked[place][1],
        )
        for place, number in pieces
    ]
    found: dict[int, dict[int, Captioned]] = {}
    with contextlib.closing(run(inputs)) as captions:
        for number, one in captions:
            place, piece = pieces[number]
            own = found.setdefault(place, {})
            own[piece] = one
            if len(spans[place]) > 1:
                of_all = f"{len(own)} of {len(spans[place])}"
                logger.info("%s: piece %s is done, %s", one.video, spans[place][piece], of_all)
            if len(own) == len(spans[place]):
                del found[place]
                yield place, merge(spans[place], [own[k] for k in range(len(own))])


def merge(spans: Sequence[Span], captions: Sequence[Captioned]) -> Captioned:
    """Return the captions of a clip's pieces as one, with scenes and times of the clip.

    A caption of one piece stays as it is, but for the times of a script if the piece begins later
    than the clip. If pieces failed, the result has the scenes of the others beside the error.
    """
    paragraphs, scenes, failed = [], [], {}
    for span, one in zip(spans, captions, strict=True):
        if one.error is not None:
            failed.setdefault(one.error.removeprefix(f"{one.video}: "), []).append(str(span))
            continue
        script = read_script(one.caption, span.end - span.start)
        if script is None:
            heading = f"[{span}] " if len(spans) > 1 else ""
            paragraphs.append(heading + one.caption)
            scenes.append(Scene(span.start, span.end, one.caption))
        else:
            paragraphs.append(shift(one.caption, span.start, span.end - span.start))
            scenes += [
                Scene(span.start + start, max(span.start + start, min(span.start + end, span.end)),
                      text)
                for start, end, text in script
            ]  # fmt: skip
    whole = dataclasses.replace(captions[0], scenes=tuple(scenes))
    if failed:
        error = captions[0].error
        if len(spans) > 1:
            listed = " / ".join(f"{', '.join(at)}: {why}" for why, at in failed.items())
            count = sum(map(len, failed.values()))
            error = f"{captions[0].video}: {count} of {len(spans)} pieces failed: {listed}"
        return dataclasses.replace(whole, caption=None, error=error)
    if len(spans) == 1:
        return dataclasses.replace(whole, caption=paragraphs[0])
    notes = {}
    for span, one in zip(spans, captions, strict=True):
        for note in one.notes:
            notes.setdefault(note, []).append(str(span))
    return dataclasses.replace(
        whole,
        caption=_joined(paragraphs),
        token_ids=tuple(token for one in captions for token in one.token_ids),
        prompt_tokens=sum(one.prompt_tokens for one in captions),
        new_tokens=sum(one.new_tokens for one in captions),
        finish_reason="length"
        if any(one.finish_reason == "length" for one in captions)
        else captions[0].finish_reason,
        seconds=round(sum(one.seconds for one in captions), 3),
        notes=tuple(
            note if len(at) == len(spans) else f"{', '.join(at)}: {note}"
            for note, at in notes.items()
        ),
    )


def _joined(paragraphs: Sequence[str]) -> str:
    """The captions of pieces one below the other; JSON lists become one list."""
    lists = [_json_list(paragraph) for paragraph in paragraphs]
    if all(found is not None for found in lists):
        return json.dumps([scene for found in lists for scene in found], ensure_ascii=False)
    return "\n\n".join(paragraphs)


# ---- timed scripts -------------------------------------------------------------------------------


def read_script(text: str, length: float) -> list[Scene] | None:
    """Return the scenes of a timed script of a piece of `length` seconds; None if it is none.

    A script is a JSON list of objects with a range of times each, or has lines that begin with one,
    after two words at most. The ranges lie in the piece and their starts do not go back; another
    time, such as one on a clock that the clip shows, makes no script.
    """
    scenes = _json_scenes(text, length)
    if scenes is None:
        scenes = _line_scenes(text, length)
    starts = [scene.start for scene in scenes]
    return scenes if scenes and starts == sorted(starts) else None


def shift(text: str, offset: float, length: float) -> str:
    """Return a script with `offset` seconds added to the ranges that lie in its piece."""
    if not offset:
        return text

    def moved(match: re.Match) -> str:
        found = _times(match, length)
        if found is None:
            return match[0]
        first, second = match.groups()[:4], match.groups()[5:]
        return _like(found[0] + offset, first) + match["between"] + _like(found[1] + offset, second)

    return _RANGE.sub(moved, text)


def _times(match: re.Match, length: float) -> tuple[float, float] | None:
    """The seconds of a range; None if it does not lie in a piece of `length` seconds."""
    groups = match.groups()
    start, end = _seconds(groups[:4]), _seconds(groups[5:])
    if start is None or end is None or not start <= end <= length + SLACK:
        return None
    return start, end


def _seconds(groups: Sequence[str | None]) -> float | None:
    hours, minutes, seconds, decimals = groups
    if hours is not None and int(minutes) > 59:
        return None
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + float(f"0.{decimals[1:] if decimals else 0}")


def _like(seconds: float, groups: Sequence[str | None]) -> str:
    """A time in the form of another one: with hours if that has them, else MM:SS beyond an hour.

    After a decimal comma there are three digits, as SubRip has them.
    """
    hours, rest = divmod(round(seconds * 1000), 3_600_000)
    text = clock(seconds if groups[0] is None else rest / 1000)
    if groups[3] and groups[3].startswith(","):
        whole, _, decimals = text.partition(".")
        text = f"{whole},{decimals:0<3}"
    return text if groups[0] is None else f"{hours:0{len(groups[0])}d}:{text}"


def _json_list(text: str) -> list[dict] | None:
    """The objects of a text that is a JSON list of them, within a code fence or not."""
    inner = re.sub(r"^```\w*\s*|\s*```$", "", text.strip())
    if not inner.startswith("["):
        return None
    try:
        found = json.loads(inner)
    except (ValueError, RecursionError):
        return None
    return found if found and all(isinstance(scene, dict) for scene in found) else None


def _json_scenes(text: str, length: float) -> list[Scene] | None:
    """The scenes of a JSON list, [] if not every one has a time; None for another text."""
    found = _json_list(text)
    if found is None:
        return None
    scenes = []
    for one in found:
        values = [((name,), value) for name, value in one.items()]
        starts_and_ends = [(pair, {key: one[key] for key in pair}) for pair in pairwise(one)]
        for names, value in values + starts_and_ends:
            match = _RANGE.search(json.dumps(value))
            times = match and _times(match, length)
            if times:
                rest = [f"{key}: {_plain(one[key])}" for key in one if key not in names]
                scenes.append(Scene(*times, "\n".join(rest)))
                break
        else:
            return []
    return scenes


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line_scenes(text: str, length: float) -> list[Scene]:
    """The scenes of lines that begin with a range."""
    heads: list[tuple[int, int, tuple[float, float]]] = []  # of the line, after the range, times
    place = 0
    for line in text.splitlines(keepends=True):
        match = _RANGE.search(line)
        if match and _HEAD.match(line[: match.start()]) and (times := _times(match, length)):
            is_cue = match["between"].strip() == "-->"
            number = _CUE_NUMBER.search(text, 0, place) if is_cue else None
            heads.append((number.start() if number else place, place + match.end(), times))
        place += len(line)
    scenes = []
    for number, (_, after, times) in enumerate(heads):
        end = heads[number + 1][0] if number + 1 < len(heads) else len(text)
        scenes.append(Scene(*times, text[after:end].lstrip(_AFTER_RANGE).rstrip()))
    if scenes and (before := text[: heads[0][0]].strip()):
        scenes[0] = scenes[0]._replace(text=f"{before}\n{scenes[0].text}".strip())
    return scenes

"""Clips and texts about them -> explanations: reading ahead, rows of one bucket, one program each.

prompts of data/reading.py, texts -> groups -> scoring.text_rows -> Engine.score -> evidence.explain
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ugc_jax.data.batching import BucketKey, collate
from ugc_jax.data.example import Example
from ugc_jax.data.hiding import PICTURE, SOUND, is_of
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.reading import Prompt
from ugc_jax.errors import UserError
from ugc_jax.generate import evidence, scoring
from ugc_jax.generate.engine import Engine, prefill_tokens
from ugc_jax.generate.evidence import WAYS, Explanation
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import round_up_rows

PARTS = 16  # most parts of the time of a clip
PART_SECONDS = 1.0  # of a part, at least
TOGETHER = 32  # captions that are explained together
_MOST_SLOTS = 4096  # tokens of texts in a row
_PENDING = 32  # most rows that wait for others of their bucket


class Model(Protocol):
    """What scores, such as a `captioner.Captioner`."""

    params: dict
    engine: Engine
    config: OmniConfig
    tokenizer: ChatTokenizer


class Captioned(Protocol):
    """A caption that takes an explanation, such as a `captioner.Caption`."""

    video: str
    caption: str | None
    error: str | None

    def with_evidence(self, evidence: Explanation) -> "Captioned":
        """Return the caption with an explanation."""


class _Text(NamedTuple):
    """A text to explain. place, number: of the clip, and of the text among the clip's."""

    place: int
    number: int
    video: str
    text: str
    ids: list[int]


class _Unit(NamedTuple):
    """A row to be: a prompt and some of its texts."""

    example: Example
    texts: list[_Text]


def explanations(
    captioner: Model,
    read: Callable[..., Iterator],
    texts: Sequence[Sequence[str]],
    by_time: bool = False,
) -> Iterator[tuple[int, int, Explanation]]:
    """Yield (place of the clip, number of its text, explanation), in any order.

    read: of data/reading.py, of one prompt a clip, with `ahead` and `waits` to be given. texts: of
    each clip. A text's explanation does not depend on the other texts and clips, up to rounding.
    """
    mesh = captioner.engine.mesh
    waiting: dict[tuple[BucketKey, int], list[_Unit]] = {}
    total = sum(map(len, texts))

    def rows(key: BucketKey, size: int) -> int:
        most = max(1, prefill_tokens(mesh) // (key.tokens + size))
        return round_up_rows(mesh, min(most, max(total, 1)))

    def score(key: tuple[BucketKey, int]) -> Iterator[tuple[int, int, Explanation]]:
        count = rows(*key)
        units, rest = waiting[key][:count], waiting.pop(key)[count:]
        if rest:
            waiting[key] = rest
        yield from _scored(captioner, units, *key, count, by_time)

    reading = read(ahead=8, waits=lambda: True)
    try:
        for place, (video, (prompt,)) in enumerate(reading):
            units = []
            for one in _units(captioner, video, place, prompt, texts[place]):
                if isinstance(one, _Unit):
                    units.append(one)
                else:
                    yield one
            for unit in units:
                size = scoring.slots_of(sum(len(text.ids) for text in unit.texts))
                key = prompt.bucket, size
                waiting.setdefault(key, []).append(unit)
                if len(waiting[key]) >= rows(*key):
                    yield from score(key)
                elif sum(map(len, waiting.values())) >= _PENDING:
                    yield from score(max(waiting, key=lambda one: len(waiting[one])))
        while waiting:
            yield from score(next(iter(waiting)))
    finally:
        reading.close()


def with_evidence(
    captioner: Model,
    stream: Iterable[Captioned],
    read_of: Callable[[Sequence[str]], Callable[..., Iterator]],
    by_time: bool = False,
) -> Iterator[Captioned]:
    """Yield the captions of a stream with their `evidence`, TOGETHER at a time, in any order.

    read_of: names of clips, as in the captions -> `read` as of `explanations`. A clip whose caption
    has an error, or whose evidence cannot be computed, comes without.
    """
    stream = iter(stream)
    while some := list(itertools.islice(stream, TOGETHER)):
        good = [one for one in some if one.error is None]
        yield from (one for one in some if one.error is not None)
        if not good:
            continue
        texts, read = [[one.caption] for one in good], read_of([one.video for one in good])
        for place, _, found in explanations(captioner, read, texts, by_time):
            yield good[place].with_evidence(found)


def _units(
    captioner: Model, video: str, place: int, prompt: Prompt | UserError, texts: Sequence[str]
) -> Iterator[_Unit | tuple[int, int, Explanation]]:
    """Yield the rows of a clip's texts, and explanations of those that need none."""
    room = _MOST_SLOTS
    row: list[_Text] = []
    for number, text in enumerate(texts):
        if isinstance(prompt, UserError):
            yield place, number, Explanation(video, text, error=str(prompt))
            continue
        ids = captioner.tokenizer.encode(text)
        free = captioner.config.text.max_position_embeddings - len(prompt.example.tokens)
        if len(ids) > min(free, _MOST_SLOTS):
            most = min(free, _MOST_SLOTS)
            fault = f"{video}: the text has {len(ids)} tokens; shorten it to {most}"
            yield place, number, Explanation(video, text, error=fault)
        elif not ids:
            yield place, number, Explanation(video, text)
        else:
            if len(ids) > room:
                yield _Unit(prompt.example, row)
                row, room = [], _MOST_SLOTS
            row.append(_Text(place, number, video, text, ids))
            room -= len(ids)
    if row:
        yield _Unit(prompt.example, row)


def _scored(
    captioner: Model,
    units: Sequence[_Unit],
    key: BucketKey,
    size: int,
    count: int,
    by_time: bool,
) -> Iterator[tuple[int, int, Explanation]]:
    """Score rows of one bucket, and yield the explanations of their texts."""
    engine, config = captioner.engine, captioner.config
    prompts = collate([unit.example for unit in units], key, count, config)
    rows = scoring.text_rows(prompts, [[t.ids for t in unit.texts] for unit in units], size, config)
    segments, times = [scoring.hidden_ways(rows.batch, WAYS, config)], [[]] * len(units)
    if by_time:
        further, times = _by_time(rows.batch.segment_ids, units, config)
        segments += further
    most = max(map(len, times))
    scores = engine.score(captioner.params, rows, segments)
    for b, unit in enumerate(units):
        for text, place in zip(unit.texts, rows.places[b], strict=True):
            own, curves = scores[b, :, place], None
            if by_time:
                parts = own[len(WAYS) : len(WAYS) + 2 * most].reshape(2, most, -1)
                curves = parts[:, : len(times[b])]
            spans = evidence.token_spans(text.ids, captioner.tokenizer)
            found = evidence.explain(
                text.video, text.text, spans, own[: len(WAYS)], times[b], curves
            )
            yield text.place, text.number, found


def time_parts(example: Example, config: OmniConfig) -> tuple[np.ndarray, list[tuple]]:
    """Return the part of the clip's time of each media token, i32[T], -1 for text, and the seconds
    (begin, end) of the parts: at most PARTS, each of at least PART_SECONDS.
    """
    media = is_of(example.tokens, (SOUND, PICTURE), config)
    if not media.any():
        return np.full(len(media), -1), []
    ids = example.positions[0] - example.positions[0, media].min()
    seconds = ids / config.position_id_per_seconds
    end = (ids[media].max() + 1) / config.position_id_per_seconds
    length = max(PART_SECONDS, end / PARTS)
    count = max(1, math.ceil(round(end / length, 6)))
    parts = np.where(media, np.minimum(seconds // length, count - 1), -1).astype(np.int32)
    times = [(round(i * length, 3), round(min((i + 1) * length, end), 3)) for i in range(count)]
    return parts, times


def _by_time(
    segments_BT: np.ndarray, units: Sequence[_Unit], config: OmniConfig
) -> tuple[list[np.ndarray], list[list[tuple]]]:
    """Return the segments of rows with each part hidden in turn, as many ways an array as WAYS, and
    the times of the parts of each row. First the sound of each part, then the picture, up to the
    most parts of a row.
    """
    made = [time_parts(unit.example, config) for unit in units]
    most = max(len(times) for _, times in made)
    ways = []
    for kind in (SOUND, PICTURE):
        for part in range(most):
            hidden = segments_BT.copy()
            for b, (unit, (parts, _)) in enumerate(zip(units, made, strict=True)):
                n = len(parts)
                gone = (parts == part) & is_of(unit.example.tokens, (kind,), config)
                hidden[b, :n][gone] = 0
            ways.append(hidden)
    ways += [segments_BT] * (-len(ways) % len(WAYS))
    arrays = [np.stack(ways[i : i + len(WAYS)], 1) for i in range(0, len(ways), len(WAYS))]
    return arrays, [times for _, times in made]

"""Clips and texts about them -> explanations: rows of one bucket, scored together.

    explanations       clips that are read, and texts of each
    explained          captions that are made, with what was read and encoded for them (Kept)
    explain_prompt     texts after one prompt, at once

prompts, texts -> rows of a bucket -> scoring.text_rows -> Engine.score -> evidence.explain
"""

import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from ugc_jax.data.batching import Batch, BucketKey, collate
from ugc_jax.data.example import Example
from ugc_jax.data.hiding import PICTURE, SOUND, is_of
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.reading import Prompt
from ugc_jax.errors import UserError
from ugc_jax.files import encodable
from ugc_jax.generate import evidence, scoring
from ugc_jax.generate.engine import Engine, prefill_tokens
from ugc_jax.generate.evidence import WAYS, Explanation
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import round_up_rows

PARTS = 16  # most parts of the time of a clip
PART_SECONDS = 1.0  # of a part, at least
TOGETHER = 32  # captions that are explained together
KEPT_BYTES = 1 << 30  # most of what was encoded for them, beyond which fewer are
_MOST_SLOTS = 4096  # tokens of texts in a row
_PENDING = 32  # most rows that wait for others of their bucket


class Model(Protocol):
    """What scores, such as a `captioner.Captioner`."""

    params: dict
    engine: Engine
    config: OmniConfig
    tokenizer: ChatTokenizer


class Captioned(Protocol):
    """A caption to explain, such as a `captioner.Caption`."""

    video: str
    caption: str | None
    error: str | None


class Kept(NamedTuple):
    """A prompt as it was prefilled, to be scored without reading or encoding its clip again.

    key: its bucket. batch: one row, without media. media: its rows of the encoders by modality.
    """

    key: BucketKey
    batch: Batch
    media: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows of the encoders."""
        return sum(rows.nbytes for rows in self.media.values())


class _Text(NamedTuple):
    """A text to explain. place, number: of the clip, and of the text among the clip's."""

    place: int
    number: int
    video: str
    text: str
    ids: list[int]


class _Unit(NamedTuple):
    """A row to be: a prompt and some of its texts."""

    prompt: Example | Kept
    texts: list[_Text]


def kept_row(batch: Batch, row: int, key: BucketKey, media: dict[str, np.ndarray]) -> Kept:
    """Return a prompt of a batch that was prefilled. media: its rows of the encoders."""
    one = jax.tree.map(lambda leaf: leaf[row].copy(), batch._replace(media={}))
    return Kept(key, one, media)


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
    reading = read(ahead=8, waits=lambda: True)

    def units() -> Iterator[tuple[BucketKey, _Unit] | tuple[int, int, Explanation]]:
        for place, (video, (prompt,)) in enumerate(reading):
            if isinstance(prompt, UserError):
                for number, text in enumerate(texts[place]):
                    yield place, number, Explanation(video, text, error=str(prompt))
                continue
            many = [(place, number, video, text) for number, text in enumerate(texts[place])]
            for one in _units(captioner, prompt.example, many):
                yield (prompt.bucket, one) if isinstance(one, _Unit) else one

    try:
        yield from _in_rows(captioner, units(), sum(map(len, texts)), by_time)
    finally:
        reading.close()


def explained(
    captioner: Model,
    stream: Iterable[tuple[int, Captioned]],
    kept: MutableMapping[int, Kept],
    by_time: bool = False,
) -> Iterator[tuple[int, Captioned, Explanation | None]]:
    """Yield (place, caption, its explanation), TOGETHER at a time, in any order.

    stream: (place, caption). kept: by place, of each caption when it comes; taken out. None for a
    caption that has an error.
    """
    together: list[tuple[int, Captioned, Kept]] = []

    def units() -> Iterator[tuple[BucketKey, _Unit] | tuple[int, int, Explanation]]:
        for number, (_, one, prompt) in enumerate(together):
            for unit in _units(captioner, prompt, [(number, 0, one.video, one.caption)]):
                yield (prompt.key, unit) if isinstance(unit, _Unit) else unit

    def all_together() -> Iterator[tuple[int, Captioned, Explanation | None]]:
        for number, _, found in _in_rows(captioner, units(), len(together), by_time):
            yield *together[number][:2], found
        together.clear()

    for place, one in stream:
        prompt = kept.pop(place, None)
        if one.error is not None or prompt is None:
            yield place, one, None
            continue
        together.append((place, one, prompt))
        size = sum(prompt.nbytes for *_, prompt in together)
        if len(together) >= TOGETHER or size >= KEPT_BYTES:
            yield from all_together()
    yield from all_together()


def explain_prompt(
    captioner: Model,
    prompt: Prompt,
    texts: Sequence[str],
    by_time: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[Explanation]:
    """Explain texts after one prompt. check: called before each prefill; may raise.

    One prefill is under way at a time and waited for, so that other work of the device comes
    between.
    """
    found: dict[int, Explanation] = {}
    engine = captioner.engine
    rows = round_up_rows(engine.mesh, 1)
    many = [(0, number, "", text) for number, text in enumerate(texts)]
    for one in _units(captioner, prompt.example, many):
        if not isinstance(one, _Unit):
            found[one[1]] = one[2]
            continue
        size = scoring.slots_of(sum(len(text.ids) for text in one.texts))
        for _, number, told in _scored(captioner, [one], prompt.bucket, size, rows, by_time, check):
            found[number] = told
    return [found[number] for number in range(len(texts))]


def _in_rows(
    captioner: Model,
    units: Iterable[tuple[BucketKey, _Unit] | tuple[int, int, Explanation]],
    total: int,
    by_time: bool,
) -> Iterator[tuple[int, int, Explanation]]:
    """Score units with others of their bucket, and yield the explanations of their texts.

    units: (bucket of the prompt, unit), or explanations, which are passed on. total: of texts.
    """
    mesh = captioner.engine.mesh
    waiting: dict[tuple[BucketKey, int], list[_Unit]] = {}

    def rows(key: BucketKey, size: int) -> int:
        most = max(1, prefill_tokens(mesh) // (key.tokens + size))
        return round_up_rows(mesh, min(most, max(total, 1)))

    def score(key: tuple[BucketKey, int]) -> Iterator[tuple[int, int, Explanation]]:
        count = rows(*key)
        some, rest = waiting[key][:count], waiting.pop(key)[count:]
        if rest:
            waiting[key] = rest
        yield from _scored(captioner, some, *key, count, by_time)

    for given in units:
        if len(given) == 3:
            yield given
            continue
        bucket, unit = given
        size = scoring.slots_of(sum(len(text.ids) for text in unit.texts))
        key = bucket, size
        waiting.setdefault(key, []).append(unit)
        if len(waiting[key]) >= rows(*key):
            yield from score(key)
        elif sum(map(len, waiting.values())) >= _PENDING:
            yield from score(max(waiting, key=lambda one: len(waiting[one])))
    while waiting:
        yield from score(next(iter(waiting)))


def _units(
    captioner: Model, prompt: Example | Kept, texts: Sequence[tuple[int, int, str, str]]
) -> Iterator[_Unit | tuple[int, int, Explanation]]:
    """Yield the rows of a prompt's texts, and explanations of those that need none.

    texts: (place, number, video, text) of each.
    """
    row: list[_Text] = []
    room = _MOST_SLOTS
    tokens = len(prompt.tokens) if isinstance(prompt, Example) else _length(prompt.batch)
    for place, number, video, text in texts:
        text = encodable(text)  # noqa: PLW2901
        ids = captioner.tokenizer.encode(text)
        free = captioner.config.text.max_position_embeddings - tokens
        if len(ids) > min(free, _MOST_SLOTS):
            most = min(free, _MOST_SLOTS)
            fault = f"the text has {len(ids)} tokens; shorten it to {most}"
            fault = f"{video}: {fault}" if video else fault
            yield place, number, Explanation(video, text, error=fault)
        elif not ids:
            yield place, number, Explanation(video, text)
        else:
            if len(ids) > room:
                yield _Unit(prompt, row)
                row, room = [], _MOST_SLOTS
            row.append(_Text(place, number, video, text, ids))
            room -= len(ids)
    if row:
        yield _Unit(prompt, row)


def _length(batch: Batch) -> int:
    """Return the tokens of a row."""
    return int((batch.segment_ids > 0).sum())


def _scored(
    captioner: Model,
    units: Sequence[_Unit],
    key: BucketKey,
    size: int,
    count: int,
    by_time: bool,
    check: Callable[[], None] | None = None,
) -> Iterator[tuple[int, int, Explanation]]:
    """Score rows of one bucket, and yield the explanations of their texts.

    check: called before each way, which is then waited for.
    """
    engine, config, params = captioner.engine, captioner.config, captioner.params
    prompts, media = _batch([unit.prompt for unit in units], key, count, config)
    texts = [[text.ids for text in unit.texts] for unit in units]
    rows = scoring.text_rows(prompts, texts, size, config)
    ways, times = scoring.hidden_ways(rows.batch, WAYS, config), [[]] * len(units)
    if by_time:
        further, times = _by_time(rows.batch, len(units), config)
        ways = np.concatenate([ways, further], axis=1)
    most = max(map(len, times))
    if check is None:
        scores = engine.score(params, rows, ways, media)
    else:
        check()
        media = media or jax.block_until_ready(engine.encode(params, rows.batch))
        alone = []
        for c in range(ways.shape[1]):
            check()
            alone.append(engine.score(params, rows, ways[:, c : c + 1], media))
        scores = np.concatenate(alone, axis=1)
    for b, unit in enumerate(units):
        for text, place in zip(unit.texts, rows.places[b], strict=True):
            own, curves = scores[b, :, place], None
            if by_time:
                parts = own[len(WAYS) :].reshape(2, most, -1)
                curves = parts[:, : len(times[b])]
            spans = evidence.token_spans(text.ids, captioner.tokenizer, text.text)
            found = evidence.explain(
                text.video, text.text, spans, own[: len(WAYS)], times[b], curves
            )
            yield text.place, text.number, found


def _batch(
    prompts: Sequence[Example | Kept], key: BucketKey, count: int, config: OmniConfig
) -> tuple[Batch, dict[str, np.ndarray] | None]:
    """Return `count` rows of prompts, and their rows of the encoders if they were encoded."""
    if isinstance(prompts[0], Example):
        return collate(prompts, key, count, config), None
    empty = collate([], key, count, config)._replace(media={})

    def filled(padding, *rows):
        out = padding.copy()
        out[: len(rows)] = rows
        return out

    batch = jax.tree.map(filled, empty, *(one.batch for one in prompts))
    media = {
        name: filled(np.zeros((count, *rows.shape), rows.dtype), *(p.media[name] for p in prompts))
        for name, rows in prompts[0].media.items()
    }
    return batch, media


def time_parts(
    tokens: np.ndarray, positions: np.ndarray, config: OmniConfig
) -> tuple[np.ndarray, list[tuple]]:
    """Return the part of the clip's time of each media token, i32[T], -1 for text, and the seconds
    (begin, end) of the parts: at most PARTS, each of at least PART_SECONDS.

    tokens, positions: of a prompt, i32[T] and i32[3, T].
    """
    media = is_of(tokens, (SOUND, PICTURE), config)
    if not media.any():
        return np.full(len(media), -1), []
    ids = positions[0] - positions[0, media].min()
    seconds = ids / config.position_id_per_seconds
    end = (ids[media].max() + 1) / config.position_id_per_seconds
    length = max(PART_SECONDS, end / PARTS)
    count = max(1, math.ceil(round(end / length, 6)))
    parts = np.where(media, np.minimum(seconds // length, count - 1), -1).astype(np.int32)
    times = [(round(i * length, 3), round(min((i + 1) * length, end), 3)) for i in range(count)]
    return parts, times


def _by_time(batch: Batch, count: int, config: OmniConfig) -> tuple[np.ndarray, list[list[tuple]]]:
    """Return the segments of rows with each part hidden in turn, i32[B, 2 * parts, T], and the
    times of the parts of the first `count` rows.

    First the sound of each part, then the picture, up to the most parts of a row.
    """
    made = [time_parts(batch.tokens[b], batch.positions[b], config) for b in range(count)]
    most = max(len(times) for _, times in made)
    out = np.repeat(batch.segment_ids[:, None], 2 * most, axis=1)
    for k, kind in enumerate((SOUND, PICTURE)):
        of_kind = is_of(batch.tokens, (kind,), config)
        for b, (parts, _) in enumerate(made):
            for part in range(most):
                out[b, k * most + part, (parts == part) & of_kind[b]] = 0
    return out, [times for _, times in made]

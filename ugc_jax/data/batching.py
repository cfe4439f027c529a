"""Examples -> batches of a few static shapes: buckets, grouping, padding, splicing.

A bucket is a shape that a jitted function is compiled for. Each of its four sizes is one of a list
of bucket sizes, each a quarter to a half larger than the one before: padding adds at most that
much, and a program serves many clips.
"""

import bisect
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ugc_jax.data.example import Example
from ugc_jax.data.features import chunk_mel
from ugc_jax.data.prompt import AUDIO, VISION, Medium, medium_tokens
from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

Tag = TypeVar("Tag")

_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

# The settings to lower when a size of BucketKey exceeds its largest bucket size.
_REMEDIES = {
    "tokens": "max_tokens",
    "grids": "fps, frames or max_frames",
    "windows": "max_pixels or image_max_pixels",
    "chunks": "max_audio_seconds",
}


class Patches(NamedTuple):
    """The pictures of a batch: B rows, F temporal grids a row, W windows a grid, K = 64 patches a
    window.

    patches: u8[B, F, W, K, patch_dim]. coords: i32[B, F, W, K, 2], padding -1.
    """

    patches: np.ndarray
    coords: np.ndarray


class LogMel(NamedTuple):
    """The sounds of a batch: B rows, C chunks a row, M = 200 mel frames a chunk.

    mel: f32[B, C, M, 128]. frames: i32[B, C], valid frames of each chunk, 0 for padding.
    """

    mel: np.ndarray
    frames: np.ndarray


class Batch(NamedTuple):
    """Examples padded to one bucket: a pytree, the input of all jitted code.

    B rows, T tokens; the sizes of the media are those of Patches and LogMel.

    tokens: i32[B, T], right-padded with the pad id.
    positions: i32[B, 3, T], padding 0.
    segment_ids: i32[B, T], 0 for padding, 1.. for the example within the row (1 unless packed).
    splice: i32[B, T], -1 for a token's own embedding, otherwise the row that replaces it, of
      concat(vision rows [F * W * K / 4], audio rows [C * 50]).
    target: bool[B, T], the tokens to train on; padding False.
    next_position: i32[B], `Example.next_position` of the row's last example; 0 for an empty row.
    media: the input of each encoder by modality: {"vision": Patches, "audio": LogMel}.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    splice: np.ndarray
    target: np.ndarray
    next_position: np.ndarray
    media: dict[str, Patches | LogMel]


def named_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """Return the arrays of a batch by name for an .npz file; those of media as "vision.patches"."""
    arrays = batch._asdict()
    media = arrays.pop("media")
    return arrays | {
        f"{modality}.{name}": array
        for modality, fields in media.items()
        for name, array in fields._asdict().items()
    }


class BucketKey(NamedTuple):
    """Sizes of one batch row: T tokens, F temporal grids, W windows a grid, C audio chunks."""

    tokens: int
    grids: int
    windows: int
    chunks: int

    def joined(self, other: "BucketKey") -> "BucketKey":
        """Return the sizes of a row that holds both: the maximum of windows, sums of the others."""
        return BucketKey(
            self.tokens + other.tokens,
            self.grids + other.grids,
            max(self.windows, other.windows),
            self.chunks + other.chunks,
        )

    def within(self, limit: "BucketKey") -> bool:
        """Return whether a row of size `limit` can hold this."""
        return all(size <= most for size, most in zip(self, limit, strict=True))


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The bucket sizes of each axis of a batch, ascending.

    Fewer sizes make fewer programs and more padding.
    """

    tokens: tuple[int, ...] = (
        128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096,
        5120, 6144, 8192, 10240, 12288, 16384, 20480, 24576, 32768,
    )  # fmt: skip
    grids: tuple[int, ...] = (0, *_SIZES[:16])  # 384 grids are the 768 frames of the longest clip
    windows: tuple[int, ...] = (*_SIZES, 1536)  # the largest image has 1024, as a 200:1 strip 1359
    chunks: tuple[int, ...] = (0, *_SIZES[:13], 160)  # 150 chunks are 300 seconds

    def __post_init__(self):
        for field in dataclasses.fields(self):
            sizes = getattr(self, field.name)
            if not sizes or list(sizes) != sorted(set(sizes)):
                raise UserError(f"buckets.{field.name}: sizes must ascend, got {sizes}")


def bucket_of(
    example: Example, buckets: Buckets, config: OmniConfig, what: str = "prompt"
) -> BucketKey:
    """Return the smallest bucket that holds an example, which messages call `what`.

    Raises UserError naming the size that exceeds its largest bucket, and the setting to lower.
    """
    return bucket_of_size(size_of(example, config), buckets, what)


def bucket_of_size(size: BucketKey, buckets: Buckets, what: str = "prompt") -> BucketKey:
    """As `bucket_of`, of sizes."""
    need = size._asdict()
    return BucketKey(
        *(_bucket_size(name, size, getattr(buckets, name), what) for name, size in need.items())
    )


def _bucket_size(name: str, size: int, sizes: tuple[int, ...], what: str) -> int:
    place = bisect.bisect_left(sizes, size)
    if place == len(sizes):
        raise UserError(
            f"{what} needs {size} {name}, the largest bucket has {sizes[-1]}; lower "
            f"{_REMEDIES[name]}"
        )
    return sizes[place]


def group(
    examples: Iterable[tuple[Tag, Example]],
    batch_size: int,
    buckets: Buckets,
    config: OmniConfig,
    pending: int = 256,
) -> Iterator[tuple[BucketKey, list[tuple[Tag, Example]]]]:
    """Gather (tag, example) pairs of one bucket into groups of at most `batch_size`, lazily.

    A group is yielded as soon as it is full. When `pending` examples wait, the longest group is
    yielded as it is, and at the end all others. The order within a bucket is kept.
    """
    waiting: dict[BucketKey, list[tuple[Tag, Example]]] = {}
    for tag, example in examples:
        key = bucket_of(example, buckets, config)
        waiting.setdefault(key, []).append((tag, example))
        if len(waiting[key]) == batch_size:
            yield key, waiting.pop(key)
        elif sum(map(len, waiting.values())) >= pending:
            longest = max(waiting, key=lambda key: len(waiting[key]))
            yield longest, waiting.pop(longest)
    yield from waiting.items()


def collate(
    examples: Sequence[Example], key: BucketKey, batch_size: int, config: OmniConfig
) -> Batch:
    """Make a batch of one example a row; see `collate_rows`."""
    return collate_rows([[example] for example in examples], key, batch_size, config)


def collate_rows(
    rows: Sequence[Sequence[Example]], key: BucketKey, batch_size: int, config: OmniConfig
) -> Batch:
    """Make a batch: concatenate the examples of each row, pad rows to the bucket, add empty rows.

    Examples of a row are segments 1, 2, ..., each with the positions that it has alone; their grids
    and chunks are concatenated, too. Empty rows (all segment 0) fill the batch up to `batch_size`.

    Raises UserError if there are too many rows or the bucket is too small, and, with the counts, if
    an example's media tokens and its features differ in number (spec 7.6).
    """
    if len(rows) > batch_size:
        raise UserError(f"{len(rows)} rows do not fit a batch of {batch_size}")
    vision, audio = config.vision, config.audio
    B, (T, F, W, C) = batch_size, key
    K, M = vision.window_patches, audio.chunk_frames
    batch = Batch(
        tokens=np.full((B, T), config.tokens.pad_token_id, np.int32),
        positions=np.zeros((B, 3, T), np.int32),
        segment_ids=np.zeros((B, T), np.int32),
        splice=np.full((B, T), -1, np.int32),
        target=np.zeros((B, T), bool),
        next_position=np.zeros(B, np.int32),
        media={
            "vision": Patches(
                np.zeros((B, F, W, K, vision.patch_dim), np.uint8),
                np.full((B, F, W, K, 2), -1, np.int32),
            ),
            "audio": LogMel(
                np.zeros((B, C, M, audio.num_mel_bins), np.float32), np.zeros((B, C), np.int32)
            ),
        },
    )
    for b, row in enumerate(rows):
        used = BucketKey(0, 0, 0, 0)
        for segment, example in enumerate(row, start=1):
            check_counts(example, config)
            need = used.joined(size_of(example, config))
            if not need.within(key):
                raise UserError(f"row of {need} does not fit {key}; take what bucket_of gives")
            _place(example, batch, b, segment, used, key, config)
            used = need
    return batch


def _place(
    example: Example,
    batch: Batch,
    b: int,
    segment: int,
    used: BucketKey,
    key: BucketKey,
    config: OmniConfig,
) -> None:
    """Write an example into row `b` of a batch, after the `used` part of the row."""
    place = slice(used.tokens, used.tokens + len(example.tokens))
    batch.tokens[b, place] = example.tokens
    batch.positions[b, :, place] = example.positions
    batch.segment_ids[b, place] = segment
    batch.splice[b, place] = _splice(example, used, key, config)
    batch.target[b, place] = example.target
    batch.next_position[b] = example.next_position
    grid, chunk = used.grids, used.chunks
    for picture in example.vision:
        t, windows = picture.patches.shape[:2]
        batch.media["vision"].patches[b, grid : grid + t, :windows] = picture.patches
        batch.media["vision"].coords[b, grid : grid + t, :windows] = picture.coords
        grid += t
    for mel in example.mels:
        chunks, frames = chunk_mel(mel, config.audio)
        batch.media["audio"].mel[b, chunk : chunk + len(chunks)] = chunks
        batch.media["audio"].frames[b, chunk : chunk + len(chunks)] = frames
        chunk += len(chunks)


# ---- prompts that begin alike --------------------------------------------------------------------


class SharedKey(NamedTuple):
    """Sizes of rows of prompts that begin alike: see `collate_shared`.

    row: of each row. prompts: Q, of a row. tokens: S, of each prompt.
    """

    row: BucketKey
    prompts: int
    tokens: int


def begin_alike(a: Example, b: Example) -> bool:
    """Return whether two prompts have the same media (the same arrays), with only text after it."""

    def media(example: Example):
        return [id(array) for array in (*example.vision, *example.mels)]

    return media(a) == media(b)


def shared_row(examples: Sequence[Example]) -> tuple[list[Example], list[np.ndarray]]:
    """Put prompts that begin alike into one row, their common beginning once.

    Returns the row's examples for `collate_rows`, which are the beginning and then the end of each
    prompt, at least a token, with the positions that they have in the prompt; and for each prompt
    the tokens of the row that make it up, i32[T].
    """
    first, shortest = examples[0], min(len(example.tokens) for example in examples)

    def equal(other: Example) -> np.ndarray:
        n = np.s_[:shortest]
        same = (first.tokens[n] == other.tokens[n]) & (first.source[n] == other.source[n])
        same &= (first.positions[:, n] == other.positions[:, n]).all(axis=0)
        return same & (first.row[n] == other.row[n]).all(axis=1)

    alike = np.logical_and.reduce([equal(other) for other in examples])
    alike[-1] = False  # every prompt has an end
    length = int(np.argmin(alike))
    row, places, used = [_part(first, np.s_[:length])], [], length
    for example in examples:
        end = _part(example, np.s_[length:])._replace(vision=(), mels=())
        own = np.arange(used, used + len(end.tokens))
        places.append(np.concatenate([np.arange(length), own]).astype(np.int32))
        row.append(end)
        used += len(end.tokens)
    return row, places


def _part(example: Example, tokens: slice) -> Example:
    names = ("tokens", "source", "row", "target")
    parts = {name: getattr(example, name)[tokens] for name in names}
    return example._replace(positions=example.positions[:, tokens], **parts)


def shared_bucket(examples: Sequence[Example], prompts: int, buckets: Buckets, config: OmniConfig):
    """Return the SharedKey of prompts that begin alike, or None if no bucket holds their row.

    prompts: Q, at least as many as there are.
    """
    row, _ = shared_row(examples)
    size = functools.reduce(BucketKey.joined, (size_of(part, config) for part in row))
    try:
        longest = max(bucket_of(example, buckets, config).tokens for example in examples)
        return SharedKey(bucket_of_size(size, buckets), prompts, longest)
    except UserError:
        return None


class Shared(NamedTuple):
    """C rows of Q prompts each that begin alike.

    batch: the rows; segment 1 is the beginning. places: i32[C, Q, S], the tokens of its row that
    make up a prompt, -1 after its end.
    """

    batch: Batch
    places: np.ndarray


def collate_shared(
    rows: Sequence[Sequence[Example]], key: SharedKey, count: int, config: OmniConfig
) -> tuple[Batch, Shared]:
    """Make a batch of `count` rows of prompts that begin alike.

    Returns the prompts, one a row without their media (prompt c * Q + q is number q of row c), and
    the rows themselves.
    """
    Q, S = key.prompts, key.tokens
    made = [shared_row(examples) for examples in rows]
    shared = Shared(
        collate_rows([row for row, _ in made], key.row, count, config),
        np.full((count, Q, S), -1, np.int32),
    )
    prompts = collate_rows([], BucketKey(S, 0, 0, 0), count * Q, config)
    for c, (examples, (_, places)) in enumerate(zip(rows, made, strict=True)):
        for q, (example, place) in enumerate(zip(examples, places, strict=True)):
            b, n = c * Q + q, len(place)
            shared.places[c, q, :n] = place
            prompts.tokens[b, :n], prompts.segment_ids[b, :n] = example.tokens, 1
            prompts.positions[b, :, :n] = example.positions
            prompts.next_position[b] = example.next_position
    return prompts._replace(media={}), shared


# ---- checks and sizes ----------------------------------------------------------------------------


def check_counts(example: Example, config: OmniConfig) -> None:
    """Raise UserError, with the counts, unless media have as many tokens as rows (spec 7.6)."""
    ids, merge = config.tokens, config.vision.spatial_merge_size
    _check_source(
        example,
        "image/video",
        example.source == VISION,
        np.isin(example.tokens, (ids.image_token_id, ids.video_token_id)),
        [picture.grid[0] for picture in example.vision],
        [math.prod(picture.grid) // merge**2 for picture in example.vision],
    )
    _check_source(
        example,
        "audio",
        example.source == AUDIO,
        example.tokens == ids.audio_token_id,
        [config.audio.chunks(len(mel)) for mel in example.mels],
        [config.audio.tokens(len(mel)) for mel in example.mels],
    )


def _check_source(
    example: Example, name: str, takes: np.ndarray, has_id: np.ndarray, holders: list, rows: list
):
    """Compare the tokens and the features of the encoder called `name`.

    takes, has_id: bool[T], tokens that take a feature, tokens with a media id.
    holders, rows: of each medium, its number of grids (or chunks) and of feature rows.
    """
    owner = np.searchsorted(np.cumsum(holders), example.row[takes, 0], side="right")
    counts = np.bincount(owner, minlength=len(rows)).tolist()
    if counts != rows or not np.array_equal(takes, has_id):
        raise UserError(
            f"prompt has {has_id.sum()} {name} tokens, of which each medium takes {counts}, but "
            f"the features have {rows} rows; make both from the same clip, never cut media tokens"
        )


def _splice(example: Example, used: BucketKey, key: BucketKey, config: OmniConfig) -> np.ndarray:
    """Return `Batch.splice` of an example, i32[T].

    used: by the examples before it in the row.
    """
    grid_rows = key.windows * config.vision.window_cells**2
    holder, row = example.row[:, 0], example.row[:, 1]
    vision = (used.grids + holder) * grid_rows + row
    audio = key.grids * grid_rows + (used.chunks + holder) * config.audio.chunk_tokens + row
    takes = [example.source == VISION, example.source == AUDIO]
    return np.select(takes, [vision, audio], -1).astype(np.int32)


def size_of(example: Example, config: OmniConfig) -> BucketKey:
    """Return the sizes of an example in a row."""
    return BucketKey(
        tokens=len(example.tokens),
        grids=sum(picture.grid[0] for picture in example.vision),
        windows=max((picture.patches.shape[1] for picture in example.vision), default=0),
        chunks=sum(config.audio.chunks(len(mel)) for mel in example.mels),
    )


def size_of_media(media: Sequence[Medium], config: OmniConfig) -> BucketKey:
    """Return the sizes of media in a row, as `size_of` does, from their facts alone."""
    merge = config.vision.spatial_merge_size
    cells = [(h // merge, w // merge) for _, h, w in (medium.grid for medium in media)]
    return BucketKey(
        tokens=sum(medium_tokens(medium, config) for medium in media),
        grids=sum(medium.grid[0] for medium in media),
        windows=max((math.prod(config.vision.windows(*size)) for size in cells), default=0),
        chunks=sum(config.audio.chunks(medium.mel_frames or 0) for medium in media),
    )

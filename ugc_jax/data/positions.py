"""The pieces of a prompt -> its tokens and their TMRoPE positions (spec 3.2, 3.3).

`chunk_slices` cuts both a video and its sound into two-second chunks, and one permutation orders
tokens, positions and feature rows alike, so that they always agree. In the reference the processor
cuts by float64 times and the model by truncated float32 positions; for some rates (1.98, 10.25,
11.75 fps; spec 7.4) the two differ by a token. Here the model's cut is used for both: at every
rate, the reference model computes exactly these positions for these tokens.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ugc_jax.data.features import vision_rows
from ugc_jax.data.prompt import Medium, Piece, Text
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

TEXT, VISION, AUDIO = 0, 1, 2  # values of `source`


class Layout(NamedTuple):
    """T tokens of a prompt, or of a part of one; fields as those of `example.Example`.

    next_position: where the following part starts. Positions of a part count from 0.
    """

    tokens: np.ndarray  # i32[T]
    positions: np.ndarray  # i32[3, T]
    next_position: int
    source: np.ndarray  # i8[T]
    row: np.ndarray  # i32[T, 2]
    target: np.ndarray  # bool[T]


def layout(pieces: Sequence[Piece], config: OmniConfig) -> Layout:
    """Expand media to their tokens and give every token its position and its feature row.

    pieces: of one prompt, in order, as `prompt.pieces` returns them.
    Decoding continues at the last position + 1 on all axes, as in transformers 5 (spec 3.4).
    """
    parts: list[Layout] = []
    position = grids = chunks = 0
    for piece in pieces:
        if isinstance(piece, Text):
            part = _text(piece.ids, piece.target)
        else:
            part = _medium(piece, grids, chunks, config)
            grids += piece.grid[0]
            chunks += config.audio.chunks(piece.mel_frames or 0)
        parts.append(part._replace(positions=part.positions + np.int32(position)))
        position += part.next_position
    return _join(parts, position)


def medium_tokens(medium: Medium, config: OmniConfig) -> int:
    """Return the number of tokens of a medium with its markers, as `layout` lays them out."""
    markers = 2 * (medium.kind != "audio") + 2 * (medium.mel_frames is not None)
    cells = math.prod(medium.grid) // config.vision.spatial_merge_size**2
    return markers + cells + config.audio.tokens(medium.mel_frames or 0)


def chunk_slices(values: np.ndarray, tokens_per_chunk: int) -> list[slice]:
    """Cut tokens into chunks by their times (spec 3.2).

    values: i[n], times in position units, not decreasing. Returns slices that cover 0..n; one empty
    slice for n = 0. As in the reference, each token closes at most one chunk: where the time
    between frames exceeds a chunk (below 1 fps), the borders lag behind and split a frame. Dividing
    the times by the chunk's length would give other borders.
    """
    borders = [0]
    for i, value in enumerate(values.tolist()):
        if value >= len(borders) * tokens_per_chunk:
            borders.append(i)
    return [slice(*pair) for pair in itertools.pairwise([*borders, len(values)])]


def _text(ids: Sequence[int], target: bool = False) -> Layout:
    n = len(ids)
    source, row = np.full(n, TEXT, np.int8), np.zeros((n, 2), np.int32)
    return Layout(np.array(ids, np.int32), _running(n), n, source, row, np.full(n, target))


@functools.lru_cache(maxsize=64)  # clips of a data set often have few sizes
def _medium(medium: Medium, first_grid: int, first_chunk: int, config: OmniConfig) -> Layout:
    """Lay out the tokens of a medium's features between its markers.

    The two markers at each end of a video with sound share a position.
    """
    ids, streams, opening, closing = config.tokens, [], [], []
    if medium.kind != "audio":
        opening, closing = [ids.vision_start_token_id], [ids.vision_end_token_id]
        streams.append(_picture(medium, first_grid, config))
    if medium.mel_frames is not None:
        opening, closing = [*opening, ids.audio_start_token_id], [ids.audio_end_token_id, *closing]
        streams.append(_sound(medium.mel_frames, first_chunk, config))
    inner = _interleave(*streams, config=config) if len(streams) == 2 else streams[0]
    parts = (
        _text(opening)._replace(positions=np.zeros((3, len(opening)), np.int32)),
        inner._replace(positions=inner.positions + np.int32(1)),
        _text(closing)._replace(
            positions=np.full((3, len(closing)), 1 + inner.next_position, np.int32)
        ),
    )
    return _join(parts, inner.next_position + 2)


def _picture(medium: Medium, first_grid: int, config: OmniConfig) -> Layout:
    """Lay out an image or a video in the order (grid, row, column) of merged cells."""
    merge = config.vision.spatial_merge_size
    t, h, w = medium.grid[0], medium.grid[1] // merge, medium.grid[2] // merge
    # float32 in this order, as the reference rounds: at 1.98 fps another order changes integers.
    times = np.arange(t, dtype=np.float32) * np.float32(medium.seconds_per_grid)
    times *= np.float32(config.position_id_per_seconds)
    grid, row, column = (axis.ravel() for axis in np.indices((t, h, w), np.int32))
    positions = np.stack([times.astype(np.int32)[grid], row, column])
    ids = config.tokens
    token = ids.video_token_id if medium.kind == "video" else ids.image_token_id
    rows = vision_rows(medium.grid, config.vision) + np.array([first_grid, 0], np.int32)
    return _features(token, positions, VISION, rows)


def _sound(frames: int, first_chunk: int, config: OmniConfig) -> Layout:
    """Lay out a sound, one token a position (40 ms)."""
    n = config.audio.tokens(frames)
    index = np.arange(n, dtype=np.int32)
    chunk_tokens = config.audio.chunk_tokens
    rows = np.stack([first_chunk + index // chunk_tokens, index % chunk_tokens], axis=1)
    return _features(config.tokens.audio_token_id, _running(n), AUDIO, rows)


def _interleave(video: Layout, audio: Layout, config: OmniConfig) -> Layout:
    """Order video chunk 0, audio chunk 0, video chunk 1, ...; the rest of the longer one last."""
    per_chunk = config.position_id_per_seconds * config.seconds_per_chunk
    both = _join((video, audio), 0)
    index = np.arange(len(both.tokens))
    of_video, of_audio = index[: len(video.tokens)], index[len(video.tokens) :]
    slices = itertools.zip_longest(
        chunk_slices(video.positions[0], per_chunk),
        chunk_slices(audio.positions[0], per_chunk),
        fillvalue=slice(0),
    )
    order = [chunk for v, a in slices for chunk in (of_video[v], of_audio[a]) if len(chunk)]
    # The reference continues after the last chunk in this order, even where an earlier one has
    # larger positions (spec 3.3, 7.1).
    end = int(both.positions[:, order[-1]].max()) + 1
    at = np.concatenate(order)
    return Layout(
        both.tokens[at], both.positions[:, at], end, both.source[at], both.row[at], both.target[at]
    )


def _features(token: int, positions: np.ndarray, source: int, rows: np.ndarray) -> Layout:
    n, end = positions.shape[1], int(positions.max(initial=-1)) + 1
    tokens, sources = np.full(n, token, np.int32), np.full(n, source, np.int8)
    return Layout(tokens, positions, end, sources, rows.astype(np.int32), np.zeros(n, bool))


def _join(parts: Sequence[Layout], next_position: int) -> Layout:
    tokens, positions, _, *others = zip(*parts, strict=True)
    joined = np.concatenate(tokens), np.concatenate(positions, axis=1)
    return Layout(*joined, next_position, *map(np.concatenate, others))


def _running(n: int) -> np.ndarray:
    return np.broadcast_to(np.arange(n, dtype=np.int32), (3, n))

"""From the pieces of a prompt to its tokens and their TMRoPE positions (spec 3.2, 3.3).

One routine, `chunk_slices`, cuts a video and its sound into two-second chunks, and one permutation
orders tokens, positions and feature rows alike, so that they cannot disagree. In the reference the
processor cuts on float64 times and the model on truncated float32 positions, and for some rates
(1.98, 10.25, 11.75 fps; spec 7.4) the two are out of step by a token. Here the model's cut is used
for both: whatever the rate, the reference model finds in these tokens exactly these positions.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ugc_jax.data.features import vision_rows
from ugc_jax.data.prompt import Audio, Image, Medium, Piece, Text, Video
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

TEXT, VISION, AUDIO = 0, 1, 2  # values of `source`


class Layout(NamedTuple):
    """T tokens of a prompt: the fields of the same names in `example.Example`."""

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    source: np.ndarray
    row: np.ndarray
    target: np.ndarray


class _Part(NamedTuple):
    """A stretch of n tokens whose positions count from 0; the following stretch starts at `end`."""

    tokens: np.ndarray  # i32[n]
    positions: np.ndarray  # i32[3, n]
    end: int
    source: np.ndarray  # i8[n]
    row: np.ndarray  # i32[n, 2]
    target: np.ndarray  # bool[n]


def layout(pieces: Sequence[Piece], config: OmniConfig) -> Layout:
    """Expand media to their tokens and give every token its position and its feature row.

    pieces: of one prompt, in order, as `prompt.pieces` makes them.
    Decoding continues at the last position + 1 on all axes, as in transformers 5 (spec 3.4).
    """
    parts: list[_Part] = []
    position = grids = chunks = 0
    for piece in pieces:
        if isinstance(piece, Text):
            part = _text(piece.ids, piece.target)
        else:
            part = _medium(piece, grids, chunks, config)
            grids += 0 if isinstance(piece, Audio) else piece.grid[0]
            chunks += config.audio.chunks(sound_frames(piece))
        parts.append(part._replace(positions=part.positions + np.int32(position)))
        position += part.end
    joined = _join(parts, end=position)
    return Layout(*joined)


def medium_tokens(medium: Medium, config: OmniConfig) -> int:
    """Tokens of a medium with its markers, as `layout` lays them out."""
    markers, count = 0, 0
    if not isinstance(medium, Audio):
        markers, count = 2, math.prod(medium.grid) // config.vision.spatial_merge_size**2
    if isinstance(medium, Audio) or (isinstance(medium, Video) and medium.audio_frames is not None):
        markers, count = markers + 2, count + config.audio.tokens(sound_frames(medium))
    return markers + count


def chunk_slices(values: np.ndarray, tokens_per_chunk: int) -> list[slice]:
    """Cut tokens into chunks by their times (spec 3.2).

    values: i[n], times in position units, not decreasing. Returns slices that cover 0..n; one empty
    slice for n = 0. This is the reference's walk: a chunk is closed at most once a token, so that
    where a step is longer than a chunk (below 1 fps) the walk lags and splits a frame. Dividing the
    times would not do the same.
    """
    borders = [0]
    for i, value in enumerate(values.tolist()):
        if value >= len(borders) * tokens_per_chunk:
            borders.append(i)
    return [slice(*pair) for pair in itertools.pairwise([*borders, len(values)])]


def _text(ids: Sequence[int], target: bool = False) -> _Part:
    n = len(ids)
    source, row = np.full(n, TEXT, np.int8), np.zeros((n, 2), np.int32)
    return _Part(np.array(ids, np.int32), _running(n), n, source, row, np.full(n, target))


@functools.lru_cache(maxsize=64)  # clips of a data set are often of a few sizes
def _medium(piece: Medium, first_grid: int, first_chunk: int, config: OmniConfig) -> _Part:
    """The tokens of the features between their markers.

    The two markers at either end of a video with sound share a position.
    """
    ids, streams, opening, closing = config.tokens, [], [], []
    if not isinstance(piece, Audio):
        opening, closing = [ids.vision_start_token_id], [ids.vision_end_token_id]
        streams.append(_picture(piece, first_grid, config))
    if isinstance(piece, Audio) or (isinstance(piece, Video) and piece.audio_frames is not None):
        opening, closing = [*opening, ids.audio_start_token_id], [ids.audio_end_token_id, *closing]
        streams.append(_sound(sound_frames(piece), first_chunk, config))
    inner = _interleave(*streams, config=config) if len(streams) == 2 else streams[0]
    parts = (
        _text(opening)._replace(positions=np.zeros((3, len(opening)), np.int32)),
        inner._replace(positions=inner.positions + np.int32(1)),
        _text(closing)._replace(positions=np.full((3, len(closing)), 1 + inner.end, np.int32)),
    )
    return _join(parts, end=inner.end + 2)


def _picture(piece: Image | Video, first_grid: int, config: OmniConfig) -> _Part:
    """Tokens of an image or a video in the order (grid, row, column) of merged cells."""
    t, h, w = piece.grid[0], *(side // config.vision.spatial_merge_size for side in piece.grid[1:])
    seconds = piece.seconds_per_grid if isinstance(piece, Video) else 1.0
    # float32 in this order, as the reference rounds: at 1.98 fps another order changes integers.
    times = np.arange(t, dtype=np.float32) * np.float32(seconds)
    times *= np.float32(config.position_id_per_seconds)
    grid, row, column = (axis.ravel() for axis in np.indices((t, h, w), np.int32))
    positions = np.stack([times.astype(np.int32)[grid], row, column])
    ids = config.tokens
    token = ids.video_token_id if isinstance(piece, Video) else ids.image_token_id
    rows = vision_rows(piece.grid, config.vision) + np.array([first_grid, 0], np.int32)
    return _features(token, positions, VISION, rows)


def _sound(frames: int, first_chunk: int, config: OmniConfig) -> _Part:
    """Tokens of a sound, one a position (40 ms)."""
    n = config.audio.tokens(frames)
    index = np.arange(n, dtype=np.int32)
    chunk_tokens = config.audio.chunk_tokens
    rows = np.stack([first_chunk + index // chunk_tokens, index % chunk_tokens], axis=1)
    return _features(config.tokens.audio_token_id, _running(n), AUDIO, rows)


def _interleave(video: _Part, audio: _Part, config: OmniConfig) -> _Part:
    """Video chunk 0, audio chunk 0, video chunk 1, ...; the longer one's last chunks alone."""
    per_chunk = config.position_id_per_seconds * config.seconds_per_chunk
    both = _join((video, audio), end=0)
    index = np.arange(len(both.tokens))
    of_video, of_audio = index[: len(video.tokens)], index[len(video.tokens) :]
    slices = itertools.zip_longest(
        chunk_slices(video.positions[0], per_chunk),
        chunk_slices(audio.positions[0], per_chunk),
        fillvalue=slice(0),
    )
    order = [chunk for v, a in slices for chunk in (of_video[v], of_audio[a]) if len(chunk)]
    # The reference goes on from the last chunk laid out, even where the picture reaches further
    # (spec 3.3, 7.1).
    end = int(both.positions[:, order[-1]].max()) + 1
    at = np.concatenate(order)
    return _Part(
        both.tokens[at], both.positions[:, at], end, both.source[at], both.row[at], both.target[at]
    )


def _features(token: int, positions: np.ndarray, source: int, rows: np.ndarray) -> _Part:
    n, end = positions.shape[1], int(positions.max(initial=-1)) + 1
    tokens, sources = np.full(n, token, np.int32), np.full(n, source, np.int8)
    return _Part(tokens, positions, end, sources, rows.astype(np.int32), np.zeros(n, bool))


def _join(parts: Sequence[_Part], end: int) -> _Part:
    return _Part(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.positions for part in parts], axis=1),
        end,
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.target for part in parts]),
    )


def _running(n: int) -> np.ndarray:
    return np.broadcast_to(np.arange(n, dtype=np.int32), (3, n))


def sound_frames(piece: Medium) -> int:
    """Log-mel frames of a medium; 0 without sound."""
    frames = piece.frames if isinstance(piece, Audio) else getattr(piece, "audio_frames", None)
    return frames or 0

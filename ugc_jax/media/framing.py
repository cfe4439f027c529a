"""Which frames of a clip are taken and at what size (spec 4.1, 4.2).

Arithmetic on a file's facts: nothing is decoded here.
"""

from typing import NamedTuple

import numpy as np

from ugc_jax.data import features
from ugc_jax.errors import UserError
from ugc_jax.media.presets import ClipSettings

# The published captioner shrinks frames to this area before the model's own resize.
UPSTREAM_PIXELS = 100_176


class Index(NamedTuple):
    """The packets of a picture stream. Frame k is the k-th picture shown.

    stamps: i64[packets] in decoding order: presentation times, or running numbers if untimed.
    keys: bool[packets], decoding may start here.
    shown: i64[frames], ascending, the stamps of the pictures that are shown.
    times: f64[frames], ascending, seconds on the file's clock.
    timed: the stamps are presentation times.
    """

    stamps: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    times: np.ndarray
    timed: bool


class Source(NamedTuple):
    """A file's own facts. Sizes are as displayed: after rotation and pixel aspect ratio."""

    path: str
    kind: str  # "video", "image" or "audio"
    width: int  # pixels; 0 for audio
    height: int
    fps: float  # average frames per second; 0 unless video
    frames: int  # 1 for an image, 0 for audio
    seconds: float  # of picture; of sound for audio; 0 for an image
    rotation: int  # degrees counter-clockwise that turn the stored picture upright: 0, 90, 180, 270
    has_audio: bool
    audio_seconds: float
    index: Index | None  # None unless video


class Plan(NamedTuple):
    """Which frames are taken and at what size. Needs no decoding: it gives token counts early."""

    indices: np.ndarray  # i64[n], frame numbers, ascending
    height: int  # pixels, multiples of 28
    width: int
    sample_fps: float  # n / frames in the range * fps; 0 for an image


def plan_frames(source: Source, settings: ClipSettings) -> Plan:
    """Choose frames (spec 4.1) and their size (spec 4.2) of a probed video or image.

    settings: resolved. Raises UserError if [start, end] lies outside the clip or the picture is
    longer than 200:1.
    """
    if source.kind == "image":
        indices, sample_fps = np.zeros(1, np.int64), 0.0
        limits = settings.image_min_pixels, settings.image_max_pixels
    else:
        first, last = _frame_range(source, settings)
        total = last - first + 1
        count = _frame_count(total, source, settings)
        if settings.preset == "upstream":
            indices = np.linspace(first, last, count).astype(np.int64)
        else:
            indices = _rounded_linspace(first, last, count)
        sample_fps = count / total * source.fps
        allowance = max(settings.total_pixels / count * 2, int(1.05 * settings.min_pixels))
        limits = settings.min_pixels, min(settings.max_pixels, allowance)
    try:
        size = [(source.height, source.width), *first_size(source, settings)][-1]
        height, width = features.smart_resize(*size, *limits)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None
    return Plan(indices, height, width, sample_fps)


def first_size(source: Source, settings: ClipSettings) -> list[tuple[int, int]]:
    """The published captioner's resize before the model's: [(height, width)], or [] without one."""
    if settings.preset != "upstream" or source.kind != "video":
        return []
    area = source.height * source.width
    shrink = min(1.0, (UPSTREAM_PIXELS / area) ** 0.5) if area else 1.0
    step = round if shrink == 1.0 else int
    return [tuple(max(2, step(side * shrink / 2) * 2) for side in (source.height, source.width))]


def _frame_range(source: Source, settings: ClipSettings) -> tuple[int, int]:
    """First and last frame number within [start, end] seconds."""
    first = 0 if settings.start is None else int(np.ceil(settings.start * source.fps))
    last = source.frames - 1
    if settings.end is not None:
        last = min(int(np.floor(settings.end * source.fps)), last)
    if first > last:
        asked = f"start={settings.start} and end={settings.end}"
        raise UserError(
            f"{source.path}: no frame between {asked}; the picture lasts {source.seconds:.2f} s"
        )
    return first, last


def _frame_count(total: int, source: Source, settings: ClipSettings) -> int:
    """An even number of frames, of `total` (spec 4.1)."""
    if settings.preset == "upstream" and settings.frames:
        return settings.frames + settings.frames % 2  # short clips repeat frames
    if settings.frames:
        return max(min(round(settings.frames / 2) * 2, total) // 2 * 2, 2)
    low = settings.min_frames + settings.min_frames % 2
    high = min(settings.max_frames, total) // 2 * 2
    return max(int(min(max(total / source.fps * settings.fps, low), high, total)) // 2 * 2, 2)


def _rounded_linspace(first: int, last: int, count: int) -> np.ndarray:
    """`count` frame numbers from `first` to `last`, rounded half to even.

    In float32 from both ends inwards, as the reference computes it: float64 takes another frame in
    one clip of forty.
    """
    step = np.float32(last - first) / np.float32(count - 1)
    place = np.arange(count, dtype=np.float32)
    rising, falling = np.float32(first) + step * place, np.float32(last) - step * place[::-1]
    return np.rint(np.where(place < count // 2, rising, falling)).astype(np.int64)

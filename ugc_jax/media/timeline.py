"""The facts of a video or a sound file, from a pass that only demultiplexes its packets.

The pass lists the time stamp and the key-frame flag of every picture, so that "frame k" is the same
picture in any container, whatever its header says (variable rate, edit lists, B-frames, late
start).
"""

from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.media.container import (
    check_complete,
    check_size,
    decode,
    main_stream,
    open_media,
    reading_error,
)

# Pixel aspect ratios that differ from 1 by at most this are encoders' rounding.
SQUARE_PIXELS = 0.05


class Index(NamedTuple):
    """The packets of a picture stream. Frame k is the k-th picture displayed.

    stamps: i64[packets] in decoding order: presentation times, or running numbers if untimed.
    keys: bool[packets], decoding may start here.
    displayed: i64[frames], ascending, the stamps of the pictures that are displayed.
    times: f64[frames], ascending, seconds on the file's clock.
    timed: whether the stamps are presentation times.
    """

    stamps: np.ndarray
    keys: np.ndarray
    displayed: np.ndarray
    times: np.ndarray
    timed: bool


class Source(NamedTuple):
    """The facts of a file. Sizes are as displayed: after rotation and pixel aspect ratio."""

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


def scan(path: Path) -> Source:
    """Return the facts of a video or a sound file, from all its packets and its first picture.

    Raises UserError naming the file if it is unreadable, cut off, or holds no media.
    """
    with open_media(str(path)) as container:
        picture, sound = main_stream(container, "video"), main_stream(container, "audio")
        if picture is not None:
            check_size(path, picture.codec_context.width, picture.codec_context.height)
        # AVI stores no presentation times, and FFmpeg's guesses are wrong with B-frames.
        has_pts = container.format.name != "avi"
        packets, extents, frame = [], {}, None
        for packet in container.demux():
            if packet.size == 0:
                continue
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                begin = float(stamp * packet.time_base)
                end = float((stamp + (packet.duration or 0)) * packet.time_base)
                low, high = extents.get(packet.stream_index, (begin, end))
                extents[packet.stream_index] = min(low, begin), max(high, end)
            if picture is not None and packet.stream_index == picture.index:
                pts = packet.pts if has_pts else None
                packets.append((pts, packet.dts, packet.is_keyframe, packet.is_discard))
                frame = frame or next(iter(decode(picture, packet)), None)
        check_complete(path, container, extents, picture is not None)
        low, high = extents.get(sound.index, (0.0, 0.0)) if sound else (0.0, 0.0)
        sound_seconds = high - low
        if picture is None:
            if not sound_seconds:
                raise UserError(
                    f"{path}: holds neither picture nor sound; name a video, image or sound file"
                )
            facts = 0, 0, 0.0, 0, sound_seconds, 0, True, sound_seconds, None
            return Source(str(path), "audio", *facts)
        frame = frame or next(iter(decode(picture, None)), None)
        if frame is None:
            fault = f"none of its {len(packets)} pictures is readable; copy or encode it again"
            raise reading_error(path, fault)
        announced = float(picture.average_rate or picture.guessed_rate or 0)
        index = _index(packets, float(picture.time_base), announced)
        fps, count = _rate(index.times, announced), len(index.displayed)
        rotation = round(frame.rotation / 90) % 4 * 90
        width, height = _display_size(frame, picture.sample_aspect_ratio, rotation)
        check_size(path, width, height)
        return Source(
            path=str(path),
            kind="video",
            width=width,
            height=height,
            fps=fps,
            frames=count,
            seconds=count / fps,
            rotation=rotation,
            has_audio=sound_seconds > 0,
            audio_seconds=sound_seconds,
            index=index,
        )


def _index(
    packets: list[tuple[int | None, int | None, bool, bool]], tick: float, rate: float
) -> Index:
    """Index the packets of a picture stream.

    packets: in decoding order, (presentation time, decoding time, is key frame, is hidden by an
      edit list) of each. tick: seconds of a time stamp's unit. rate: announced frames per second,
      for files without time stamps.
    """
    pts, dts, keys, hidden = zip(*packets, strict=True)
    timed = None not in pts
    hidden = np.array(hidden) & timed & (not all(hidden))
    stamps = np.array(pts if timed else range(len(packets)), np.int64)
    clock = pts if timed else dts
    times = np.arange(len(packets)) / (rate or 25.0) if None in clock else np.array(clock) * tick
    return Index(stamps, np.array(keys), np.sort(stamps[~hidden]), np.sort(times[~hidden]), timed)


def _rate(times: np.ndarray, announced: float) -> float:
    """Return the average frames per second: the announced fraction unless the times differ."""
    if times[-1] <= times[0]:
        return announced or 25.0
    measured = float((len(times) - 1) / (times[-1] - times[0]))
    return announced if abs(announced - measured) < 0.02 * measured else measured


def _display_size(frame: av.VideoFrame, aspect, rotation: int) -> tuple[int, int]:
    """Return (width, height) after pixel aspect ratio and rotation."""
    width, height = frame.width, frame.height
    if aspect and abs(aspect - 1) > SQUARE_PIXELS:
        width = max(1, round(width * aspect))
    return (height, width) if rotation % 180 else (width, height)

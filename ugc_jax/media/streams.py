"""The parts of a clip as files of their own, in memory: its sound, its picture, both, stills.

Pictures are copied packet by packet, not encoded again. Names, places and other notes of the file
are left out: who gets a part gets nothing else.
"""

import io
import wave
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from ugc_jax.errors import UserError
from ugc_jax.media.clip import read_pictures, resize
from ugc_jax.media.container import main_stream, open_media, read_packets
from ugc_jax.media.sound import read_sound
from ugc_jax.media.timeline import Source, shown
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE

_CONTAINERS = (("mp4", "video/mp4"), ("matroska", "video/x-matroska"))


class Part(NamedTuple):
    """A part of a clip. kind: its media type, such as "audio/wav"."""

    data: bytes
    kind: str


def sound_part(source: Source, limit: float = 3600.0) -> Part | None:
    """Return the sound of a probed file as WAV (mono, 16 kHz, 16 bits); None without sound.

    limit: seconds that are kept at most.
    """
    waveform = read_sound(source, 0.0, None, limit).waveform
    if waveform is None:
        return None
    samples = np.clip(np.rint(waveform * 32768), -32768, 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(samples.tobytes())
    return Part(file.getvalue(), "audio/wav")


def picture_part(source: Source) -> Part | None:
    """Return the picture of a probed file without its sound; None for a file without picture.

    Raises UserError for a picture that no common container takes.
    """
    return _copied(source, ("video",)) if source.kind == "video" else None


def whole_part(source: Source) -> Part:
    """Return picture and sound of a probed video. Raises UserError as `picture_part`."""
    return _copied(source, ("video", "audio"))


def stills(source: Source, count: int, side: int) -> list[Part]:
    """Return `count` pictures as JPEG, at the middles of as many equal parts of a probed video.

    side: pixels that the longer side has at most.
    """
    shrink = min(1.0, side / max(source.width, source.height))
    size = tuple(max(1, round(one * shrink)) for one in (source.height, source.width))
    return [_jpeg(frame) for frame in middles(source, count, size)[0]]


def middles(source: Source, count: int, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Return the pictures at the middles of `count` equal parts of a probed video or image.

    size: (height, width). Returns u8[count, *size, 3] and notes on how they are shown.
    """
    parts = (np.arange(count) + 0.5) / count
    places = (parts * source.frames).astype(int)
    if source.by_time:
        places = shown(source, parts * source.seconds)
    frames, notes = read_pictures(source, places, size, lambda frame, to: resize(frame, *to))
    return np.broadcast_to(frames, (count, *frames.shape[1:])), notes


def _jpeg(frame: np.ndarray) -> Part:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "jpeg", quality=85)
    return Part(file.getvalue(), "image/jpeg")


def _copied(source: Source, kinds: Sequence[str]) -> Part:
    """Return the main streams of these kinds in the first container that takes them."""
    fault: Exception | None = None
    for name, kind in _CONTAINERS:
        try:
            return Part(_mux(source, kinds, name), kind)
        except (ValueError, av.FFmpegError) as error:
            if isinstance(error, UserError):
                raise
            fault = error
    raise UserError(f"{source.path}: cannot be copied to a stream ({fault}); encode it as mp4")


def _mux(source: Source, kinds: Sequence[str], container: str) -> bytes:
    file = io.BytesIO()
    with open_media(source.path, source.probe) as given:
        streams = [stream for kind in kinds if (stream := main_stream(given, kind)) is not None]
        with av.open(file, "w", format=container) as out:
            copies = {one.index: out.add_stream_from_template(one) for one in streams}
            for packet in read_packets(given, *streams):
                if packet.dts is None:
                    packet.dts = packet.pts
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    return file.getvalue()

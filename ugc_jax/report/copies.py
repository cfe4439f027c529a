"""Small copies of clips that any browser plays: H.264 and AAC in mp4, to be put into a page."""

import io
import math
from fractions import Fraction

import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.media.sound import read_sound
from ugc_jax.media.streams import middles
from ugc_jax.media.timeline import Source
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE

SIDE = 240  # pixels of a copy's shorter side, at most
RATE, MOST = 12, 1440  # frames a second, and frames of a copy: longer clips have fewer a second
QUALITY = "31"  # x264's constant rate factor
SOUND_BITS = 32_000  # a second, mono
MAX_SOUND = 300.0  # seconds of sound
CODECS = "libx264", "aac"


def small_copy(source: Source) -> bytes:
    """Return a clip as a small mp4, as the model sees and hears it: upright, on the file's clock.

    Raises UserError if the clip cannot be read, or PyAV has no encoder for H.264 or AAC.
    """
    import av

    lacking = [name for name in CODECS if name not in av.codecs_available]
    if lacking:
        raise UserError(f"play: PyAV has no encoder {lacking[0]} here; use play=link")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        sound = read_sound(source, 0.0, None, MAX_SOUND).waveform
        picture, heard = None, None
        if source.kind != "audio":
            frames, rate = _frames(source)
            picture = out.add_stream(CODECS[0], rate=rate)
            picture.height, picture.width = frames[0].shape[:2]
            picture.pix_fmt, picture.options = "yuv420p", {"crf": QUALITY, "preset": "veryfast"}
        if sound is not None and sound.size:
            heard = out.add_stream(CODECS[1], rate=SAMPLE_RATE, layout="mono")
            heard.bit_rate = SOUND_BITS
        if picture is not None:
            for place, frame in enumerate(frames):
                one = av.VideoFrame.from_ndarray(frame, format="rgb24")
                one.pts, one.time_base = place, 1 / rate
                out.mux(picture.encode(one))
            out.mux(picture.encode(None))
        if heard is not None:
            one = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[None], np.float32), format="fltp", layout="mono"
            )
            one.sample_rate, one.pts, one.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
            out.mux(heard.encode(one))
            out.mux(heard.encode(None))
    return file.getvalue()


def _frames(source: Source) -> tuple[np.ndarray, Fraction]:
    """Frames of equal distances over the whole clip, u8[n, h, w, 3], and their number a second."""
    shrink = min(1.0, SIDE / min(source.width, source.height))
    size = tuple(
        max(2, 2 * round(side * shrink / 2)) for side in (source.height, source.width)
    )  # H.264 has even sides
    count = max(1, min(math.ceil(source.seconds * RATE), MOST, source.frames))
    frames, _ = middles(source, count, size)
    rate = Fraction(count / max(source.seconds, 1 / RATE)).limit_denominator(1000)
    return frames, rate

"""The sound of a file as the model hears it: mono, 16 kHz, on the picture's clock."""

import itertools
import math
from collections.abc import Iterator

import av
import numpy as np
import soxr

from ugc_jax.media.container import decode, main_stream, open_media
from ugc_jax.media.timeline import Source
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE

# Seconds of an audio token; smaller offsets of sound against picture are ignored, as the reference
# ignores them.
ALIGN_SECONDS = 0.04


def read_sound(source: Source, start: float, end: float | None, limit: float) -> np.ndarray | None:
    """Read sound from `start` to `end` seconds of the picture's clock: f32[samples], mono, 16 kHz.

    limit: seconds that are kept at most. Returns None if there is no sample in between.
    As in the reference: FFmpeg's samples as 16-bit integers, mean of the channels, soxr_hq
    resampling (spec 4.3).
    """
    length = limit + 1.0  # one second more, so that resampling at `limit` does not see the cut
    if end is not None:
        length = min(end - start, length)
    pieces, rate, first, last, place, found = [], 0, 0, 0, 0, False
    for time, rate, piece in _decode_sound(source.path):
        if not pieces:
            late = time - source.index.times[0] if source.index else 0.0
            first = round((start - (late if abs(late) >= ALIGN_SECONDS else 0.0)) * rate)
            last = first + round(length * rate)
            # silence while only the picture has started
            pieces.append(np.zeros(max(0, min(-first, last - first)), np.float32))
        pieces.append(piece[max(0, first - place) : max(0, last - place)])
        found = found or len(pieces[-1]) > 0
        place += len(piece)
        if place >= last:
            break
    if not found:
        return None
    waveform = np.concatenate(pieces)
    if rate != SAMPLE_RATE:
        length = math.ceil(len(waveform) * (SAMPLE_RATE / rate))  # as librosa pads and cuts
        waveform = soxr.resample(waveform, rate, SAMPLE_RATE, "HQ")[:length]
        waveform = np.pad(waveform, (0, length - len(waveform)))
    waveform = np.ascontiguousarray(waveform[: round(limit * SAMPLE_RATE)], np.float32)
    return waveform if len(waveform) else None


def _decode_sound(path: str) -> Iterator[tuple[float, int, np.ndarray]]:
    """Yield the sound piece by piece: (seconds, samples per second, f32[n] mono)."""
    with open_media(path) as container:
        stream = main_stream(container, "audio")
        to_int16 = av.AudioResampler(format="s16p")
        packets = (packet for packet in container.demux(stream) if packet.size)
        for packet in itertools.chain(packets, [None]):
            for frame in decode(stream, packet):
                time = frame.time or 0.0
                for piece in to_int16.resample(frame):
                    mono = piece.to_ndarray().astype(np.float32).mean(axis=0) / 32768
                    yield time, piece.sample_rate, mono

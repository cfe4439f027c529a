"""The sound of a file as the model hears it: mono, 16 kHz, each piece at its own time."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
import soxr

from ugc_jax.media.container import decode, main_stream, open_media, read_packets
from ugc_jax.media.timeline import Source
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE

# Seconds of an audio token; smaller offsets of sound against picture are ignored, as the reference
# ignores them.
ALIGN_SECONDS = 0.04
# Seconds by which sound may be off its time stamps: less than any codec's packet but the shortest.
TOLERANCE = 0.0195
# Seconds for which a deviation must last, so that it is not a time stamp's jitter.
STEADY = 0.5
# The same for the first and the last packets, of which none before or after tells more.
UNCERTAIN = 0.1
# Most channels that FFmpeg converts.
MOST_CHANNELS = 64
# Seconds of a codec's delay and padding, in which packets may have no samples.
PADDING = 0.15


class Sound(NamedTuple):
    """The sound of a clip.

    waveform: f32[samples], at least one, mono, 16 kHz; None without sound. notes: what is missing,
    one line each, for the user. fault: why the file's sound cannot be heard, or "".
    """

    waveform: np.ndarray | None
    notes: list[str]
    fault: str = ""


class _Piece(NamedTuple):
    """Decoded samples."""

    time: float  # seconds on the file's clock; NaN if unknown
    rate: int  # samples a second
    samples: np.ndarray  # f32[n], mono


def read_sound(source: Source, start: float, end: float | None, limit: float) -> Sound:
    """Read sound from `start` to `end` seconds of the clip's clock.

    limit: seconds that are kept at most. As in the reference: FFmpeg's samples as 16-bit integers,
    mean of the channels, soxr_hq resampling (spec 4.3). What is missing is silent.
    """
    if source.sound_codec:
        return _unheard(f"the sound (codec {source.sound_codec}) has no decoder")
    if not source.has_audio:
        return Sound(None, [])
    length = limit + 1.0  # one second more, so that resampling at `limit` does not see the cut
    if end is not None:
        length = min(end - start, length)
    pieces, until = [], math.inf
    for piece in _decode_sound(source):
        if not pieces:  # a sound file begins where its sound begins
            late = (
                piece.time - source.origin if source.index and not math.isnan(piece.time) else 0.0
            )
            until, place = start - late + length + STEADY, 0.0
        pieces.append(piece)
        place += len(piece.samples) / piece.rate
        if place > until:
            break
    if not pieces:
        return _unheard("the sound does not decode")
    places, gaps = _places(pieces)
    if abs(late) < ALIGN_SECONDS and not gaps:
        late = 0.0
    waveform = _join(pieces, places, start - late, length)
    if waveform is not None:
        waveform = np.ascontiguousarray(waveform[: round(limit * SAMPLE_RATE)], np.float32)
    notes = []
    if late <= -ALIGN_SECONDS and start == 0:
        notes.append(f"{-late:.2f} s of sound before the first picture are left out")
    first = pieces[0].time - source.sound_begin  # between the first packet and the first sample
    last = source.audio_seconds - first - places[-1] - len(pieces[-1].samples) / pieces[-1].rate
    if first > PADDING:
        gaps.append((-first, 0.0))
    if last > PADDING and place <= until and source.sound_stamped:
        gaps.append((source.audio_seconds - first - last, source.audio_seconds - first))
    low, high = start - late, start - late + min(length, limit)
    lost = sum(max(0.0, min(after, high) - max(before, low)) for before, after in gaps)
    if lost >= TOLERANCE:
        notes.append(f"{lost:.2f} s of the sound are missing in the file or do not decode")
    return Sound(waveform if waveform is not None and len(waveform) else None, notes)


def _unheard(fault: str) -> Sound:
    return Sound(None, [f"{fault}; the clip is silent"], fault)


def _places(pieces: list[_Piece]) -> tuple[list[float], list[tuple[float, float]]]:
    """Return the second at which each piece begins, and the gaps between them (begin, end).

    Both count from the first sample. Pieces follow each other without a break, unless their time
    stamps say something else for longer than they jitter.
    """
    seconds = np.array([len(piece.samples) / piece.rate for piece in pieces])
    places = np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
    off = np.array([piece.time for piece in pieces]) - pieces[0].time - places
    known = np.flatnonzero(~np.isnan(off))
    if not len(known):
        return places.tolist(), []
    off = off[known[np.maximum(np.searchsorted(known, np.arange(len(off)), side="right") - 1, 0)]]
    width = min(len(off), max(1, math.ceil(STEADY / max(float(np.median(seconds)), 1e-3))))
    ahead = np.pad(off, (0, width - 1), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(ahead, width)
    least, most = windows.min(axis=1), windows.max(axis=1)
    shift, gaps = 0.0, []
    for number, place in enumerate(places.tolist()):
        if number == 1 and abs(least[1]) < UNCERTAIN:  # the first packet only filled the decoder
            least, most = least - least[1], most - least[1]
        enough = UNCERTAIN if number > len(off) - width else TOLERANCE
        if least[number] - shift > enough:
            gaps.append((place + shift, place + float(least[number])))
            shift = float(least[number])
        elif most[number] - shift < -enough:
            shift = float(most[number])
        places[number] += shift
    return places.tolist(), gaps


def _join(
    pieces: list[_Piece], places: list[float], start: float, length: float
) -> np.ndarray | None:
    """Return the sound at 16 kHz from `start` on, for `length` seconds; None if there is none.

    start: seconds after the first sample; silence before that. Pieces of one rate are joined, then
    resampled as a whole.
    """
    result, found = np.zeros(0, np.float32), False
    groups = itertools.groupby(zip(pieces, places, strict=True), key=lambda pair: pair[0].rate)
    for rate, group in groups:
        group = list(group)
        begin = group[0][1]
        if begin - start >= length:  # damaged time stamps may be years away
            continue
        first = round((start - begin) * rate)  # samples after the first one of these pieces
        last = first + round(length * rate)
        if begin > 0:
            first = max(first, 0)
        buffer, filled = [np.zeros(max(0, min(-first, last - first)), np.float32)], max(first, 0)
        count, shift = 0, 0.0  # samples so far; seconds by which they are late
        for piece, place in group:
            shift = place - begin - count / rate
            at = count + round(shift * rate)
            if min(at, last) > filled:
                buffer.append(np.zeros(min(at, last) - filled, np.float32))
                filled = min(at, last)
            part = piece.samples[max(0, filled - at) : max(0, last - at)]
            buffer.append(part)
            filled, count = filled + len(part), count + len(piece.samples)
            found = found or len(part) > 0
        waveform = np.concatenate(buffer)
        if rate != SAMPLE_RATE:
            size = math.ceil(len(waveform) * (SAMPLE_RATE / rate))  # as librosa pads and cuts
            waveform = soxr.resample(waveform, rate, SAMPLE_RATE, "HQ")[:size]
            waveform = np.pad(waveform, (0, size - len(waveform)))
        at = round(max(0.0, begin - start) * SAMPLE_RATE) if begin > 0 else 0
        result = np.concatenate(
            [result[:at], np.zeros(max(0, at - len(result)), np.float32), waveform]
        )
    return result if found else None


def _decode_sound(source: Source) -> Iterator[_Piece]:
    """Decode the sound piece by piece; that of a Clip is one piece."""
    if source.clip is not None:
        yield _Piece(0.0, source.clip.rate, source.clip.waveform)
        return
    with open_media(source.path, source.probe) as container:
        stream = main_stream(container, "audio")
        form, to_int16, place, lasting = None, None, math.nan, 0.0
        packets = read_packets(container, stream, shifts=source.shifts["audio"])
        for packet in itertools.chain(packets, [None]):
            frames = decode(stream, packet)
            if not frames and packet is not None:
                place += lasting  # as much is lost
            for frame in frames:
                found = frame.format.name, frame.layout.name, frame.sample_rate
                if found != form:
                    # packed, as PyAV reads past the planes of 8 or more channels
                    form, to_int16 = found, av.AudioResampler(format="s16")
                time = math.nan if frame.time is None else frame.time
                if not source.sound_stamped:
                    place = time = time if math.isnan(place) else place
                lasting = frame.samples / frame.sample_rate
                place += lasting
                if frame.layout.nb_channels > MOST_CHANNELS:
                    pieces = [frame] if frame.format.is_packed else []
                else:
                    pieces = to_int16.resample(frame)
                for piece in pieces:
                    channels = piece.to_ndarray().reshape(-1, piece.layout.nb_channels)
                    mono = _int16(channels).astype(np.float32).mean(axis=1) / 32768
                    yield _Piece(time, piece.sample_rate, mono)


def _int16(samples: np.ndarray) -> np.ndarray:
    """Return samples of any type as 16-bit integers, by FFmpeg's rule."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.int16) - 128) << 8
    if samples.dtype.kind == "f":
        return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    return (samples >> 8 * (samples.dtype.itemsize - 2)).astype(np.int16)

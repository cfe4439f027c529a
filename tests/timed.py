"""Clips that tell the time: pictures show their second, the sound clicks at known seconds."""

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ugc_jax.media import clip as media
from ugc_jax.media.clip import DecodedClip
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.models.qwen2_5_omni.config import GEOMETRY, SAMPLE_RATE

BITS = 16
UNKNOWN_LENGTH = "nothing in this file tells its length; it may be cut off"
MILLISECOND = Fraction(1, 1000)


def picture(seconds: float, width: int = 160, height: int = 120) -> np.ndarray:
    """Return u8[h, w, 3]: the grey code of hundredths of a second as vertical bars, lowest left."""
    value = round(seconds * 100)
    code = value ^ (value >> 1)
    page = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        bar = slice(bit * width // BITS, (bit + 1) * width // BITS)
        page[: height * 2 // 3, bar] = 235 if code >> bit & 1 else 16
    return page


def burnt_in(frame: np.ndarray) -> float:
    """Return the seconds that a picture shows, of any size."""
    height, width = frame.shape[:2]
    places = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    code = sum(int(frame[height // 3, at].mean() > 125) << bit for bit, at in enumerate(places))
    value = 0
    while code:
        value, code = value ^ code, code >> 1
    return value / 100


def clicks(
    times: Iterable[float], seconds: float, rate: int = 48_000, channels: int = 1
) -> np.ndarray:
    """Return f32[channels, samples]: 10 ms of 2 kHz at each of `times`."""
    wave = np.zeros(round(seconds * rate), np.float32)
    tone = 0.8 * np.sin(2 * np.pi * 2000 * np.arange(rate // 100) / rate)
    for time in times:
        wave[round(time * rate) :][: len(tone)] = tone
    return np.tile(wave, (channels, 1))


def onsets(wave: np.ndarray | None) -> list[float]:
    """Return the seconds at which the clicks of a mono waveform of 16 kHz begin."""
    loud = np.flatnonzero(np.abs(wave) > 0.1)
    before = np.concatenate([[-SAMPLE_RATE], loud[:-1]])
    return (loud[loud - before > 0.15 * SAMPLE_RATE] / SAMPLE_RATE).tolist()


def write(
    path: str | Path,
    pictures: Sequence[float] | None,
    wave: np.ndarray | None = None,
    *,
    codecs: tuple[str, str] = ("libx264", "aac"),
    layout: str = "mono",
    rate: int = 48_000,
    shift: float = 0.0,
    sound_shift: float = 0.0,
    keep: Callable[[float], bool] = lambda time: True,
    move: Callable[[float], float] = lambda time: time,
    stand: float | None = None,
    form: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write pictures of the given seconds and sound f32[channels, samples].

    shift: seconds added to all time stamps. sound_shift: and to those of sound. keep: whether a
    packet of sound of that second is written. move: second of a packet -> another one. stand:
    seconds of the last picture.
    """
    with av.open(str(path), "w", format=form, options=options or {}) as out:
        packets = []
        if pictures is not None:
            video = out.add_stream(codecs[0], rate=10)
            video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
            video.options = {"g": "10", "bf": "0"} if codecs[0] == "libx264" else {"g": "10"}
            video.codec_context.time_base = MILLISECOND
            for time in pictures:
                frame = av.VideoFrame.from_ndarray(picture(time), format="rgb24")
                frame.pts, frame.time_base = round((time + shift) * 1000), MILLISECOND
                packets += video.encode(frame)
            packets += video.encode(None)
            if stand is not None:
                packets[-1].duration = round(stand / packets[-1].time_base)
        if wave is not None:
            audio = out.add_stream(codecs[1], rate=rate)
            audio.layout = layout
            heard, size = [], 960 if "opus" in codecs[1] else 1024
            for place in range(0, wave.shape[1], size):
                packed = np.ascontiguousarray(wave[:, place : place + size].T).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
                frame.rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
                heard += audio.encode(frame)
            heard += audio.encode(None)
            for packet in heard:
                packet.pts += round((shift + sound_shift) / packet.time_base)
                packet.dts += round((shift + sound_shift) / packet.time_base)
            packets += [p for p in heard if keep(float(p.pts * p.time_base))]
        for packet in packets:
            time = float(packet.dts * packet.time_base)
            by = round((move(time) - time) / packet.time_base)
            packet.pts, packet.dts = packet.pts + by, packet.dts + by
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            out.mux(packet)
    return Path(path)


def tenths(seconds: float) -> list[float]:
    """Return the times of ten pictures a second."""
    return [number / 10 for number in range(round(seconds * 10))]


def join(path: Path, *parts: Path) -> Path:
    """Write the parts one after another, as `cat` does."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def read(path: str | Path, **settings) -> DecodedClip:
    """Read a clip with small pictures; transport streams without the note on their length."""
    settings = resolve(ClipSettings(min_pixels=1, max_pixels=50_176, **settings))
    clip = media.read_clip(media.probe(path), settings, 1 << 30, GEOMETRY)
    if Path(path).suffix == ".ts":
        assert UNKNOWN_LENGTH in clip.notes
        clip = clip._replace(notes=[note for note in clip.notes if note != UNKNOWN_LENGTH])
    return clip


def seen(clip: DecodedClip) -> np.ndarray:
    """Return the seconds that the frames of a clip show."""
    return np.array([burnt_in(frame) for frame in clip.frames])


def boxes(data: bytes, start: int = 0, end: int | None = None) -> list[tuple[bytes, int, int]]:
    """Return (name, place, end) of the outermost boxes of an mp4."""
    found, end = [], len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack(">I4s", data[start : start + 8])
        found.append((name, start, start + size))
        start += size
    return found

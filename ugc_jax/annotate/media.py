"""A clip -> what its pages show: sound without picture, picture without sound, both, and drawings.

    sound.wav     what the model hears: mono, 16 kHz      sound.png     waveform above mel
    picture.mp4   H.264 without sound, at most SIDE pixels wide and high
    both.mp4      the same picture with the sound          strip-N.jpg  pictures where most changes
    facts.json    lengths, times of the pictures

The clip itself is never served: it may have a form that no browser plays, and has both tracks.
"""

import os
import shutil
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from ugc_jax import files
from ugc_jax.data.features import log_mel
from ugc_jax.data.workers import allow
from ugc_jax.errors import UserError
from ugc_jax.media.clip import probe, read_pictures, resize
from ugc_jax.media.sound import read_sound
from ugc_jax.media.timeline import Source
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE

SIDE = 960  # pixels of the longer side of the picture; on-screen text stays readable
STRIP = 12  # pictures in the strip
THUMB = 160  # pixels of their longer side
DRAWING = (1200, 200)  # pixels of the drawing of the sound
MOST_SECONDS = 3600.0  # of sound
REMEDY = "delete the folder of the clip's media, then run again"
# The files of each stage; a later stage's are not served before.
OF_STAGE = {
    "sound": ("sound.wav", "sound.png"),
    "picture": ("picture.mp4", *(f"strip-{number}.jpg" for number in range(STRIP))),
    "both": ("both.mp4",),
}
TYPES = {".wav": "audio/wav", ".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}
_CLOCK = Fraction(1, 90_000)
_CHUNK_BYTES = 100 << 20  # of pictures that are held at a time
_AAC_BLOCK = 1024


class Job(NamedTuple):
    """A clip to prepare. folder: for its files."""

    clip: str
    folder: str


def prepare(job: Job) -> dict[str, Any]:
    """Write the files of a clip, all or none; return its facts.

    seconds: of the clip. times: seconds of each picture. strip: seconds of those of the strip.
    sound, picture: whether there is one. notes: what differs from the file, for the annotator.
    Raises UserError with the clip's name if it cannot be read.
    """
    folder = Path(job.folder)
    new = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        facts = _prepare(job.clip, new)
        files.write_json(new / "facts.json", facts, REMEDY)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return facts


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a prepared clip. Raises UserError if they are unreadable."""
    return files.read_json(folder / "facts.json", REMEDY)


def _prepare(clip: str, folder: Path) -> dict[str, Any]:
    source = probe(clip)
    if source.kind == "image":
        raise UserError(f"{clip}: is an image; annotate videos or sounds")
    allow(10 * source.length)
    sound = read_sound(source, 0.0, None, MOST_SECONDS)
    notes = [*source.notes, *sound.notes]
    if sound.waveform is not None:
        _write_wave(folder / "sound.wav", sound.waveform)
        _draw(sound.waveform, source.length).save(folder / "sound.png", optimize=True)
    times, strip = np.zeros(0), []
    if source.kind == "video":
        times = np.maximum(source.index.times - source.origin, 0.0)
        strip, more = _write_picture(source, times, folder)
        notes += more
        _join(folder, sound.waveform)
    return {
        "seconds": source.length,
        "times": [round(time, 4) for time in times.tolist()],
        "strip": [round(time, 4) for time in strip],
        "sound": sound.waveform is not None,
        "picture": source.kind == "video",
        "notes": notes,
    }


def _write_wave(path: Path, waveform: np.ndarray):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, len(waveform), "NONE", ""))
        file.writeframes(_int16(waveform).tobytes())


def _int16(waveform: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(waveform * 32767), -32768, 32767).astype("<i2")


def _draw(waveform: np.ndarray, seconds: float) -> Image.Image:
    """Draw the waveform above its mel spectrogram; the width is the clip's length."""
    width, height = DRAWING
    total = max(len(waveform), round(seconds * SAMPLE_RATE), width)
    padded = np.pad(waveform, (0, total - len(waveform)))
    half = height // 2
    edges = np.linspace(0, total, width + 1).astype(int)
    loud = np.maximum.reduceat(np.abs(padded), edges[:-1])
    loud = loud / max(float(loud.max()), 1e-4)
    rows = np.abs(np.arange(half) - (half - 1) / 2)[:, None]
    image = np.zeros((height, width, 3), np.uint8)
    image[:half] = np.where((rows <= 0.5 + loud * (half / 2 - 3))[..., None], (90, 190, 255), 16)
    mel = log_mel(padded).T[::-1]
    tones = (mel - mel.min()) / max(float(mel.max() - mel.min()), 1e-6)
    small = Image.fromarray((tones * 255).astype(np.uint8)).resize((width, height - half))
    light = np.asarray(small, np.float32)[..., None] / 255
    # black - violet - orange - white
    stops = np.array([[0, 0, 8], [110, 30, 120], [245, 130, 60], [255, 250, 220]], np.float32)
    place = np.clip(light[..., 0] * 3, 0, 2.999)
    low = place.astype(int)
    part = (place - low)[..., None]
    image[half:] = stops[low] * (1 - part) + stops[low + 1] * part
    return Image.fromarray(image)


def _write_picture(
    source: Source, times: np.ndarray, folder: Path
) -> tuple[list[float], list[str]]:
    """Write picture.mp4 and the strip; return the seconds of the strip's pictures, and notes."""
    shrink = min(1.0, SIDE / max(source.width, source.height))
    width, height = (max(2, round(side * shrink / 2) * 2) for side in (source.width, source.height))
    changes, last, notes = [0.0], None, {}
    with av.open(str(folder / "picture.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(source.fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = _CLOCK
        stream.codec_context.gop_size = 12  # a step to any frame decodes few others
        stream.options = {"preset": "veryfast", "crf": "21", "bf": "0"}
        stamps = _stamps(times)
        for first, pictures, more in _pictures(source, (height, width)):
            notes |= dict.fromkeys(more)
            for number, picture in enumerate(pictures, first):
                tiny = resize(picture, 24, 24).astype(np.float32)
                if last is not None:
                    changes.append(float(np.abs(tiny - last).mean()))
                last = tiny
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = stamps[number], _CLOCK
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    numbers = _choose(np.array(changes))
    shrink = THUMB / max(width, height)
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    pictures, _ = read_pictures(source, numbers, size, lambda one, size: resize(one, *size))
    for place, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"strip-{place}.jpg", quality=80)
    return times[numbers].tolist(), list(notes)


def _pictures(source: Source, size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray, list[str]]]:
    """Yield (number of the first, pictures, notes) of parts that fit in memory."""
    step = max(8, _CHUNK_BYTES // (3 * size[0] * size[1]))
    for first in range(0, source.frames, step):
        numbers = np.arange(first, min(first + step, source.frames))
        pictures, notes = read_pictures(source, numbers, size, lambda one, size: resize(one, *size))
        yield first, pictures, notes


def _stamps(times: np.ndarray) -> list[int]:
    """Return ascending time stamps in ticks of the clock."""
    stamps: list[int] = []
    for time in times.tolist():
        tick = round(time / _CLOCK)
        stamps.append(max(tick, stamps[-1] + 1) if stamps else tick)
    return stamps


def _choose(changes: np.ndarray) -> np.ndarray:
    """Return the numbers of at most STRIP frames: at equal parts of the change so far and of time.

    changes: f64[frames], of each frame against the one before.
    """
    even = max(float(changes.mean()), 1e-3)  # a picture that stands still is shown, too
    weight = np.cumsum(changes + even)
    targets = (np.arange(STRIP) + 0.5) / STRIP * weight[-1]
    return np.unique(np.minimum(np.searchsorted(weight, targets), len(changes) - 1))


def _join(folder: Path, waveform: np.ndarray | None):
    """Write both.mp4: the packets of picture.mp4, and the sound as AAC."""
    with (
        av.open(str(folder / "picture.mp4")) as source,
        av.open(str(folder / "both.mp4"), "w", options={"movflags": "faststart"}) as container,
    ):
        picture = container.add_stream_from_template(source.streams.video[0])
        track = None
        if waveform is not None:
            track = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                container.mux(packet)
        if track is None:
            return
        samples = _int16(waveform).astype(np.float32)[None] / 32768
        for first in range(0, samples.shape[1], _AAC_BLOCK):
            block = np.ascontiguousarray(samples[:, first : first + _AAC_BLOCK])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, first
            frame.time_base = Fraction(1, SAMPLE_RATE)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))

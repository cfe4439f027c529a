"""Small synthetic clips: coloured shapes that move and beeps with a rhythm, as real H.264 and AAC.

A `Scene` says what happens; `draw` and `sound` render an instant and a stretch of it; `write_clip`
makes the file. Everything follows from the scene, so equal arguments give equal files.
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

SOUND_RATE = 44_100
TIME_BASE = Fraction(1, 12_800)  # of pictures; common frame rates are whole numbers of it
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 50),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
}
BACKGROUNDS = {
    "black": (15, 15, 20),
    "grey": (110, 115, 120),
    "navy": (20, 30, 80),
    "brown": (90, 60, 40),
}
FORMS = ("circle", "square", "triangle")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One thing that moves in a straight line and bounces off the edges."""

    form: str  # of FORMS
    colour: str  # of COLOURS
    size: float  # as a fraction of the frame's shorter side
    start: tuple[float, float]  # centre at time 0: (x, y) in 0..1
    velocity: tuple[float, float]  # frames crossed per second: (x, y)


@dataclasses.dataclass(frozen=True)
class Beeps:
    """A tone that is switched on and off."""

    pitch: float  # hertz
    per_second: float  # beeps a second, each half a period long
    noise: float = 0.02  # loudness of the hiss below it, 0..1


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is seen and heard."""

    background: str  # of BACKGROUNDS
    shapes: tuple[Shape, ...]
    beeps: Beeps
    seed: int  # of the hiss


def random_scene(seed: int) -> Scene:
    """A scene with one to three shapes."""
    random = np.random.default_rng(seed)
    colours = random.permutation(sorted(COLOURS))
    shapes = tuple(
        Shape(
            form=str(random.choice(FORMS)),
            colour=str(colours[number]),
            size=float(random.uniform(0.2, 0.4)),
            start=tuple(random.uniform(0.2, 0.8, 2).tolist()),
            velocity=tuple((random.uniform(0.2, 0.6, 2) * random.choice([-1, 1], 2)).tolist()),
        )
        for number in range(random.integers(1, 4))
    )
    beeps = Beeps(float(random.choice([220, 330, 440, 660, 880])), float(random.choice([1, 2, 4])))
    return Scene(str(random.choice(sorted(BACKGROUNDS))), shapes, beeps, seed)


def draw(scene: Scene, time: float, size: tuple[int, int]) -> np.ndarray:
    """The picture at `time` seconds: u8[height, width, 3] for size = (width, height)."""
    width, height = size
    image = Image.new("RGB", size, BACKGROUNDS[scene.background])
    canvas = ImageDraw.Draw(image)
    for shape in scene.shapes:
        half = shape.size * min(size) / 2
        x, y = (
            _bounce(begin + speed * time) * (length - 2 * half) + half
            for begin, speed, length in zip(shape.start, shape.velocity, size, strict=True)
        )
        fill = COLOURS[shape.colour]
        if shape.form == "circle":
            canvas.ellipse((x - half, y - half, x + half, y + half), fill=fill)
        elif shape.form == "square":
            canvas.rectangle((x - half, y - half, x + half, y + half), fill=fill)
        else:
            canvas.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=fill)
    return np.asarray(image)


def _bounce(place: float) -> float:
    """Fold the line onto 0..1, as a ball between two walls."""
    place = place % 2
    return 2 - place if place > 1 else place


def sound(scene: Scene, seconds: float, rate: int = SOUND_RATE) -> np.ndarray:
    """f32[seconds * rate] mono, in [-1, 1]."""
    time = np.arange(round(seconds * rate)) / rate
    on = (time * scene.beeps.per_second) % 1 < 0.5
    hiss = np.random.default_rng(scene.seed).uniform(-1, 1, len(time)) * scene.beeps.noise
    return (0.4 * np.sin(2 * np.pi * scene.beeps.pitch * time) * on + hiss).astype(np.float32)


def write_clip(
    path: str | Path,
    *,
    seconds: float = 4.0,
    fps: float = 25.0,
    size: tuple[int, int] = (320, 240),
    audio: bool | float = True,
    seed: int = 0,
    scene: Scene | None = None,
    rotation: int = 0,
    key_every: int = 50,
    faststart: bool = False,
    times: Sequence[float] | None = None,
) -> Scene:
    """Write a clip and return the scene shown in it.

    path: its ending chooses the container: .mp4, .mov, .mkv, .avi, .ts.
    size: (width, height) as stored, even numbers.
    audio: False for none, True for as long as the picture, or seconds.
    rotation: degrees counter-clockwise that a player turns the stored picture, as phones write it.
    key_every: frames from one key frame to the next.
    faststart: put the mp4's index first.
    times: seconds of each frame, for a variable rate (instead of `seconds` and `fps`).
    """
    scene = scene or random_scene(seed)
    if times is None:
        times = [frame / fps for frame in range(max(1, round(seconds * fps)))]
    else:
        seconds = times[-1] + 1 / fps
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        picture = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        picture.width, picture.height = size
        picture.pix_fmt = "yuv420p"
        picture.codec_context.time_base = TIME_BASE
        picture.codec_context.gop_size = key_every
        # A fixed quantiser and one thread: rate control does not always give the same bytes.
        picture.options = {"preset": "veryfast", "qp": "22", "threads": "1"}
        if rotation:
            picture.set_display_rotation(rotation)
        track = None
        if audio is not False:
            track = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        for time in times:
            frame = av.VideoFrame.from_ndarray(draw(scene, time, size), format="rgb24")
            frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if track:
            length = seconds if audio is True else float(audio)
            _encode_sound(container, track, sound(scene, length))
    return scene


def _encode_sound(
    container: av.container.OutputContainer, track: av.AudioStream, samples: np.ndarray
):
    """Encode f32[n] mono and end the track; n = 0 leaves a sound stream without sound."""
    step = 1024
    for first in range(0, len(samples), step):
        block = samples[None, first : first + step]
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, first, Fraction(1, SOUND_RATE)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))

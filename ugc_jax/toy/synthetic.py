"""Small synthetic clips as real H.264 and AAC: coloured shapes, text, and sounds with a rhythm.

A `Scene` says what happens; `draw` shows an instant of it and `sound` plays it; `write_clip` makes
the file. Everything follows from the scene, so equal arguments give equal files.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SOUND_RATE = 44_100
AAC_BLOCK = 1024  # samples that are coded together
TIME_BASE = Fraction(1, 12_800)  # of pictures; common frame rates are whole numbers of it
COLOURS = {
    "red": (230, 30, 30),
    "green": (50, 210, 60),
    "blue": (40, 70, 240),
    "yellow": (245, 225, 40),
    "pink": (255, 120, 210),
    "white": (250, 250, 250),
}
BACKGROUNDS = {
    "purple": (95, 50, 130),
    "grey": (130, 130, 135),
    "brown": (110, 60, 20),
    "teal": (0, 95, 105),
}
FORMS = ("circle", "square", "triangle")
LOUDNESS = 0.4
PLOUGH = 2 / 3  # how deep the two stripes of a plough are together, in halves of the shape
TICK = 0.02  # seconds
MELODY_STEPS = (-5, -3, 0, 2, 4)  # semitones from a melody's pitch


@dataclasses.dataclass(frozen=True)
class Shape:
    """One thing that moves in a straight line and bounces off the edges."""

    form: str  # of FORMS
    colour: str  # of COLOURS
    size: float  # as a fraction of the frame's shorter side
    start: tuple[float, float]  # centre when it appears: (x, y) in 0..1 of the room that it has
    velocity: tuple[float, float]  # rooms crossed per second: (x, y)
    appears: float = 0.0  # seconds
    # where it pushes a plough of a white and a black stripe: (x, y) of -1, 0, 1; (0, 0) for none
    plough: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Sound(abc.ABC):
    """Something to hear, with a pitch and a rhythm."""

    pitch: float  # hertz
    per_second: float  # beeps, notes or bursts a second
    hiss: float = 0.02  # loudness of the noise below the whole clip, 0..1
    begins: float = 0.0  # seconds
    tick: float = 0.0  # loudness of a tick at the beginning of each, 0..1

    @abc.abstractmethod
    def wave(self, count: int, rate: int, random: np.random.Generator) -> np.ndarray:
        """f64[count] in [-1, 1], from where the sound begins."""

    def ticks(self, count: int, rate: int, random: np.random.Generator) -> np.ndarray:
        """f64[count]: short noise at the beginning of each beep, note or burst."""
        begins = self._beat(count, rate) % 1 < TICK * self.per_second
        return self.tick * random.uniform(-1, 1, count) * begins

    def _beat(self, count: int, rate: int) -> np.ndarray:
        """f64[count]: beeps, notes or bursts until then."""
        return np.arange(count) / rate * self.per_second


class Beeps(Sound):
    """A pure tone that is on half of the time."""

    def wave(self, count: int, rate: int, random: np.random.Generator) -> np.ndarray:
        tone = np.sin(2 * np.pi * self.pitch * np.arange(count) / rate)
        return tone * (self._beat(count, rate) % 1 < 0.5)


class Music(Sound):
    """A melody around the pitch: notes with an overtone that follow each other and fade."""

    def wave(self, count: int, rate: int, random: np.random.Generator) -> np.ndarray:
        note, age = np.divmod(self._beat(count, rate), 1)
        steps = random.choice(MELODY_STEPS, round(count / rate * self.per_second) + 1)
        pitch = self.pitch * 2 ** (steps[note.astype(int)] / 12)
        angle = 2 * np.pi * pitch * np.arange(count) / rate
        return (np.sin(angle) + np.sin(2 * angle) / 2) / 1.5 * np.exp(-1.5 * age)


class Noise(Sound):
    """Noise in the octave around the pitch that is on half of the time."""

    def wave(self, count: int, rate: int, random: np.random.Generator) -> np.ndarray:
        octaves = np.log2(np.fft.rfftfreq(count, 1 / rate)[1:] / self.pitch)
        spectrum = np.fft.rfft(random.standard_normal(count))
        spectrum *= np.append(False, np.abs(octaves) < 0.5)  # no constant part
        rush = np.fft.irfft(spectrum, count)
        rush /= 3 * rush.std() + 1e-9  # most of it lies within three standard deviations
        return rush.clip(-1, 1) * (self._beat(count, rate) % 1 < 0.5)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is seen and heard."""

    background: str  # of BACKGROUNDS
    shapes: tuple[Shape, ...]
    sound: Sound | None  # None: silence
    seed: int  # of what is random in the sound
    turns: tuple[str, float] | None = None  # the background that follows, and from when (seconds)
    band: bool = False  # keep shapes out of the lowest quarter of the picture, for text
    text: str = ""  # shown in that band, black on white
    tiles: int = 0  # of the width: shapes stand on them and move from one to the next; 0: anywhere


def random_scene(seed: int) -> Scene:
    """A scene with one to three shapes and beeps."""
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
    turned = scene.turns is not None and time >= scene.turns[1]
    image = Image.new("RGB", size, BACKGROUNDS[scene.turns[0] if turned else scene.background])
    canvas = ImageDraw.Draw(image)
    band = height * 3 // 4  # where it begins
    room = (width - 1, (band if scene.band else height) - 1)  # the last pixels are drawn, too
    for shape in scene.shapes:
        age = time - shape.appears
        if age < 0:
            continue
        half = shape.size * min(size) / 2
        x, y = (
            _bounce(start + speed * age) * (length - 2 * half) + half
            for start, speed, length in zip(shape.start, shape.velocity, room, strict=True)
        )
        if scene.tiles:
            tile = width / scene.tiles
            x, y = (round((centre - half) / tile) * tile + half for centre in (x, y))
        _draw_shape(canvas, shape, x, y, half)
    if scene.text:
        canvas.rectangle((0, band, width, height), fill="white")
        middle = (width / 2, (band + height) / 2)
        canvas.text(middle, scene.text, "black", _font(height - band), anchor="mm")
    return np.asarray(image)


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: Shape, x: float, y: float, half: float):
    """A shape around (x, y) that reaches `half` to each side, outlined, and its plough."""
    box = (x - half, y - half, x + half - 1, y + half - 1)  # the last pixels are drawn, too
    look = dict(fill=COLOURS[shape.colour], outline="black", width=max(round(half / 3), 1))
    if shape.form == "circle":
        canvas.ellipse(box, **look)
    elif shape.form == "square":
        canvas.rectangle(box, **look)
    else:
        canvas.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], **look)
    towards = np.array(shape.plough)
    for stripe, colour in enumerate(("white", "black") if towards.any() else ()):
        near, far = (half + (stripe + end) * half * PLOUGH / 2 for end in (0, 1))
        aside = half * (towards == 0)
        corners = (x, y) + np.stack([towards * near - aside, towards * far + aside])
        first, last = corners.min(axis=0), corners.max(axis=0) - 1
        canvas.rectangle((*first.tolist(), *last.tolist()), fill=colour)


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """PIL's own font, `size` pixels high."""
    return ImageFont.load_default(size)


def _bounce(place: float) -> float:
    """Fold the line onto 0..1, as a ball between two walls."""
    place = place % 2
    return 2 - place if place > 1 else place


def sound(scene: Scene, seconds: float, rate: int = SOUND_RATE) -> np.ndarray:
    """f32[seconds * rate] mono, in [-1, 1]."""
    wave = np.zeros(round(seconds * rate))
    if scene.sound is not None:
        random = np.random.default_rng(scene.seed)
        wave += random.uniform(-1, 1, len(wave)) * scene.sound.hiss
        rest = wave[round(scene.sound.begins * rate) :]  # a view: what is added stands in wave
        if len(rest):
            rest += LOUDNESS * scene.sound.wave(len(rest), rate, random)
            rest += scene.sound.ticks(len(rest), rate, random)
    return wave.astype(np.float32)


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
    rate: int = SOUND_RATE,
    preset: str = "veryfast",
) -> Scene:
    """Write a clip and return the scene shown in it.

    path: its ending chooses the container: .mp4, .mov, .mkv, .avi, .ts.
    size: (width, height) as stored, even numbers.
    audio: False for none, True for as long as the picture, or seconds.
    rotation: degrees counter-clockwise that a player turns the stored picture, as phones write it.
    key_every: frames from one key frame to the next.
    faststart: put the mp4's index first.
    times: seconds of each frame, for a variable rate (instead of `seconds` and `fps`).
    rate: samples of sound a second.
    preset: x264's speed against size, "ultrafast" for many clips.
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
        picture.options = {"preset": preset, "qp": "22", "threads": "1"}
        if rotation:
            picture.set_display_rotation(rotation)
        track = None
        if audio is not False:
            track = container.add_stream("aac", rate=rate, layout="mono")
            track.options = {"aac_coder": "fast"}
        for time in times:
            frame = av.VideoFrame.from_ndarray(draw(scene, time, size), format="rgb24")
            frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if track:
            length = seconds if audio is True else float(audio)
            _encode_sound(container, track, sound(scene, length, rate), rate)
    return scene


def _encode_sound(
    container: av.container.OutputContainer, track: av.AudioStream, samples: np.ndarray, rate: int
):
    """Encode f32[n] mono and end the track; n = 0 leaves a sound stream without sound."""
    for first in range(0, len(samples), AAC_BLOCK):
        block = samples[None, first : first + AAC_BLOCK]
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))

"""Small synthetic clips as real H.264 and AAC: coloured shapes, text, and sounds with a rhythm.

A `Scene` describes what happens; `draw_scene` gives its picture at a time, `sound` its samples, and
`write_clip` encodes both. All randomness has a seed in the scene: equal arguments, equal files.
"""

import abc
import dataclasses
import functools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
OUTLINES = {"circle": "cyan", "square": "black", "triangle": None}  # of marked shapes
LOUDNESS = 0.4
PLOUGH = 2 / 3  # depth of the two stripes of a plough together, in halves of the shape
TICK = 0.02  # length of a tick in seconds
MELODY_STEPS = (-5, -3, 0, 2, 4)  # semitones from a melody's pitch


@dataclasses.dataclass(frozen=True)
class Shape:
    """A shape that moves in a straight line and bounces off the edges."""

    form: str  # of FORMS
    colour: str  # of COLOURS
    size: float  # as a fraction of the frame's shorter side
    start: tuple[float, float]  # centre when it appears: (x, y) in 0..1 of the room that it has
    velocity: tuple[float, float]  # rooms crossed per second: (x, y)
    appears: float = 0.0  # seconds
    # direction in which it pushes a plough, a white and a black stripe: (x, y) of -1, 0, 1;
    # (0, 0) for no plough
    plough: tuple[int, int] = (0, 0)
    # true: an outline by form (OUTLINES), so that forms differ in more than their corners; false: a
    # black one
    marked: bool = False


@dataclasses.dataclass(frozen=True)
class Sound(abc.ABC):
    """A sound with a pitch and a rhythm."""

    pitch: float  # hertz
    per_second: float  # beeps, notes or bursts a second
    hiss: float = 0.02  # loudness of background noise during the whole clip, 0..1
    begins: float = 0.0  # seconds
    tick: float = 0.0  # loudness of a tick at the start of each beep, note or burst, 0..1

    @abc.abstractmethod
    def wave(self, count: int, rate: int, random: np.random.Generator) -> np.ndarray:
        """f64[count] in [-1, 1], from the moment at which the sound begins."""

    def ticks(self, count: int, rate: int, random: np.random.Generator) -> np.ndarray:
        """f64[count]: short noise at the beginning of each beep, note or burst."""
        begins = self._beat(count, rate) % 1 < TICK * self.per_second
        return self.tick * random.uniform(-1, 1, count) * begins

    def _beat(self, count: int, rate: int) -> np.ndarray:
        """f64[count]: number of beeps, notes or bursts since the beginning."""
        return np.arange(count) / rate * self.per_second


class Beeps(Sound):
    """A pure tone, on half of the time."""

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
    """Noise in the octave around the pitch, on half of the time."""

    def wave(self, count: int, rate: int, random: np.random.Generator) -> np.ndarray:
        octaves = np.log2(np.fft.rfftfreq(count, 1 / rate)[1:] / self.pitch)
        spectrum = np.fft.rfft(random.standard_normal(count))
        spectrum *= np.append(False, np.abs(octaves) < 0.5)  # no constant part
        rush = np.fft.irfft(spectrum, count)
        rush /= 3 * rush.std() + 1e-9  # most of it lies within three standard deviations
        return rush.clip(-1, 1) * (self._beat(count, rate) % 1 < 0.5)


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a clip: what is seen and heard."""

    background: str  # of BACKGROUNDS
    shapes: tuple[Shape, ...]
    sound: Sound | None  # None: silence
    seed: int  # of what is random in the sound
    turns: tuple[str, float] | None = None  # (the next background, its beginning in seconds)
    band: bool = False  # keep shapes out of the lowest quarter of the picture, for text
    text: str = ""  # shown in that band, black on white
    tiles: int = 0  # a row: shapes stand on tiles and move from one to the next; 0: anywhere


def draw_scene(scene: Scene, time: float, size: tuple[int, int]) -> np.ndarray:
    """The picture of a scene at `time` seconds: u8[height, width, 3] for size = (width, height)."""
    width, height = size
    turned = scene.turns is not None and time >= scene.turns[1]
    image = Image.new("RGB", size, BACKGROUNDS[scene.turns[0] if turned else scene.background])
    canvas = ImageDraw.Draw(image)
    band = height * 3 // 4  # first row of the band for text
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
    """A shape around (x, y) that reaches `half` to each side, and its plough."""
    box = (x - half, y - half, x + half - 1, y + half - 1)  # the last pixels are drawn, too
    look = dict(fill=COLOURS[shape.colour])
    outline = OUTLINES[shape.form] if shape.marked else "black"
    if outline:
        look |= dict(outline=outline, width=max(round(half / 3), 1))
    if shape.form == "circle":
        canvas.ellipse(box, **look)
    elif shape.form == "square":
        canvas.rectangle(box, **look)
    else:
        canvas.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], **look)
    towards = np.array(shape.plough)
    for stripe, shade in enumerate(("white", "black") if towards.any() else ()):
        near, far = (half + (stripe + end) * half * PLOUGH / 2 for end in (0, 1))
        aside = half * (towards == 0)
        corners = (x, y) + np.stack([towards * near - aside, towards * far + aside])
        first, last = corners.min(axis=0), corners.max(axis=0) - 1
        canvas.rectangle((*first.tolist(), *last.tolist()), fill=shade)


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """PIL's own font, `size` pixels high."""
    return ImageFont.load_default(size)


def _bounce(place: float) -> float:
    """Fold the line onto 0..1, as a ball between two walls."""
    place = place % 2
    return 2 - place if place > 1 else place


def sound(scene: Scene, seconds: float, rate: int) -> np.ndarray:
    """The sound of a scene: f32[seconds * rate] mono, in [-1, 1]."""
    wave = np.zeros(round(seconds * rate))
    if scene.sound is not None:
        random = np.random.default_rng(scene.seed)
        wave += random.uniform(-1, 1, len(wave)) * scene.sound.hiss
        rest = wave[round(scene.sound.begins * rate) :]  # a view: additions change `wave`
        if len(rest):
            rest += LOUDNESS * scene.sound.wave(len(rest), rate, random)
            rest += scene.sound.ticks(len(rest), rate, random)
    return wave.astype(np.float32)


def write_clip(
    path: str | Path,
    scene: Scene,
    *,
    seconds: float,
    fps: float,
    size: tuple[int, int],
    sound_seconds: float,
    rate: int,
):
    """Write a scene as H.264 and AAC; equal arguments give equal files.

    path: its suffix chooses the container, such as .mp4. size: (width, height) in pixels, even.
    sound_seconds: length of the sound. rate: samples of sound a second. Raises OSError.
    """
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        picture.width, picture.height = size
        picture.pix_fmt = "yuv420p"
        picture.codec_context.time_base = TIME_BASE
        picture.codec_context.gop_size = 50
        # A fixed quantiser and one thread: rate control does not always give the same bytes.
        picture.options = {"preset": "ultrafast", "qp": "22", "threads": "1"}
        track = container.add_stream("aac", rate=rate, layout="mono")
        track.options = {"aac_coder": "fast"}
        for number in range(max(1, round(seconds * fps))):
            encode_picture(container, picture, scene, number / fps)
        container.mux(picture.encode(None))
        encode_sound(container, track, sound(scene, sound_seconds, rate))


def encode_picture(
    container: av.container.OutputContainer, stream: av.VideoStream, scene: Scene, time: float
):
    """Encode the picture at `time` seconds, in the size of the stream."""
    image = draw_scene(scene, time, (stream.width, stream.height))
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
    container.mux(stream.encode(frame))


def encode_sound(
    container: av.container.OutputContainer, track: av.AudioStream, samples: np.ndarray
):
    """Encode f32[n] mono at the track's rate, and end the track.

    n = 0 leaves a sound stream without sound.
    """
    rate = track.rate
    for first in range(0, len(samples), AAC_BLOCK):
        block = samples[None, first : first + AAC_BLOCK]
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))

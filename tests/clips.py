"""Clips of all kinds for the tests: real files of the pieces of ugc_jax.toy.synthetic."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ugc_jax.toy.synthetic import (
    BACKGROUNDS,
    COLOURS,
    FORMS,
    TIME_BASE,
    Beeps,
    Scene,
    Shape,
    encode_picture,
    encode_sound,
    sound,
)

SOUND_RATE = 44_100


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
            track = container.add_stream("aac", rate=rate, layout="mono")
            track.options = {"aac_coder": "fast"}
        for time in times:
            encode_picture(container, picture, scene, time)
        container.mux(picture.encode(None))
        if track:
            length = seconds if audio is True else float(audio)
            encode_sound(container, track, sound(scene, length, rate))
    return scene
